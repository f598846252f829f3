//! Tickets: an invitation to the swarm as one word of text, and the book in which the issuer keeps them.

use super::CODEC_LIMIT_TICKET;
use crate::ids::{HostId, SwarmId};
use crate::limits::{TICKET_ADDRESSES_MAX, TICKETS_MAX};
use crate::time::UnixTime;
use crate::wire::codec::{self, MEMORY_FACTOR};
use bincode::{Decode, Encode};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What the text begins with.
const PREFIX: &str = "virtuoso-ticket:";

/// An invitation: where to go, which swarm it must be, and the secret that opens it once.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Ticket {
    /// The swarm's authority: what answers must be signed by.
    pub swarm: SwarmId,
    /// Multiaddrs of the issuer, each with its peer id.
    pub addresses: Vec<String>,
    /// Names the ticket in the issuer's book.
    pub id: [u8; 8],
    /// Shown once to the issuer.
    pub secret: [u8; 16],
    /// From when on it is void.
    pub expires: UnixTime,
}

/// The tickets that one host has issued.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct TicketBook {
    entries: BTreeMap<[u8; 8], TicketEntry>,
}

/// What the issuer remembers of a ticket. The secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TicketEntry {
    secret_hash: [u8; 32],
    /// From when on it is void.
    pub expires: UnixTime,
    /// The only name that it admits, if it names one.
    name: Option<String>,
    /// Who used it.
    pub used_by: Option<HostId>,
}

/// Why a ticket opens nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TicketError {
    /// Not in the book, or with another secret.
    #[error("Ticket is not one that this host issued: ask an admin for a new one (virtuoso swarm invite)")]
    Wrong,
    /// Past its end.
    #[error("Ticket has expired: ask an admin for a new one (virtuoso swarm invite)")]
    Expired,
    /// Another host came first.
    #[error("Ticket was used by another host: each opens the swarm once, ask an admin for a new one")]
    Used,
    /// The ticket is for another name.
    #[error("Ticket admits a host of another name: join with the name it was made for (--name)")]
    Name,
    /// The book is full of tickets that are still good.
    #[error("There are {TICKETS_MAX} unused tickets: wait until some are used or expire")]
    TooMany,
}

/// Why a text is no ticket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TicketParseError {
    /// It does not begin like one.
    #[error("Not a ticket: it must begin with {PREFIX}")]
    Prefix,
    /// It is cut off or mistyped.
    #[error("Ticket is damaged: copy it again, whole and without line breaks")]
    Damaged,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = codec::encode(self);
        let sum = blake3::hash(&bytes);
        bytes.extend(&sum.as_bytes()[..SUM_BYTES]);
        write!(f, "{PREFIX}{}", bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({:?}, {:?})", self.swarm, self.addresses)
    }
}

impl FromStr for Ticket {
    type Err = TicketParseError;

    fn from_str(text: &str) -> Result<Self, TicketParseError> {
        let word = text.trim().strip_prefix(PREFIX).ok_or(TicketParseError::Prefix)?;
        if word.len() > 2 * CODEC_LIMIT_TICKET {
            return Err(TicketParseError::Damaged);
        }
        let bytes = bs58::decode(word).into_vec().map_err(|_| TicketParseError::Damaged)?;
        let (body, sum) = bytes.split_at_checked(bytes.len().saturating_sub(SUM_BYTES)).unwrap_or_default();
        if blake3::hash(body).as_bytes()[..SUM_BYTES] != *sum {
            return Err(TicketParseError::Damaged);
        }
        let ticket: Self = codec::decode::<Self, CODEC_LIMIT_TICKET, { CODEC_LIMIT_TICKET * MEMORY_FACTOR }>(body)
            .map_err(|_| TicketParseError::Damaged)?;
        let bounded = ticket.addresses.len() <= TICKET_ADDRESSES_MAX;
        if bounded { Ok(ticket) } else { Err(TicketParseError::Damaged) }
    }
}

impl TicketBook {
    /// Enters a ticket, which admits hosts of any name unless one is given. Expired ones make room.
    ///
    /// # Errors
    /// If the book is full.
    pub fn add(&mut self, now: UnixTime, ticket: &Ticket, name: Option<&str>) -> Result<(), TicketError> {
        self.entries.retain(|_, entry| entry.expires > now);
        if self.entries.len() >= TICKETS_MAX {
            return Err(TicketError::TooMany);
        }
        let entry = TicketEntry {
            secret_hash: hash(&ticket.secret),
            expires: ticket.expires,
            name: name.map(Into::into),
            used_by: None,
        };
        self.entries.insert(ticket.id, entry);
        Ok(())
    }

    /// Uses a ticket for `host`, which wants `name`. The same host may use it again, because its answer may have been
    /// lost.
    ///
    /// # Errors
    /// If the ticket opens nothing.
    pub fn redeem(
        &mut self,
        now: UnixTime,
        (id, secret): (&[u8; 8], &[u8; 16]),
        host: HostId,
        name: &str,
    ) -> Result<(), TicketError> {
        let entry = self.entries.get_mut(id).ok_or(TicketError::Wrong)?;
        // Hashes are compared, so the time that takes tells nothing of the secret.
        if entry.secret_hash != hash(secret) {
            return Err(TicketError::Wrong);
        }
        if entry.used_by.is_some_and(|user| user != host) {
            return Err(TicketError::Used);
        }
        if entry.expires <= now {
            return Err(TicketError::Expired);
        }
        if entry.name.as_ref().is_some_and(|only| only != name) {
            return Err(TicketError::Name);
        }
        entry.used_by = Some(host);
        Ok(())
    }
}

fn hash(secret: &[u8; 16]) -> [u8; 32] {
    *blake3::hash(secret).as_bytes()
}

/// Bytes of checksum at the end of the text: a mistyped ticket is told from a wrong one.
const SUM_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket() -> Ticket {
        Ticket {
            swarm: SwarmId([1; 32]),
            addresses: vec!["/ip4/10.0.0.1/udp/4747/quic-v1".into()],
            id: [2; 8],
            secret: [3; 16],
            expires: UnixTime(100),
        }
    }

    #[test]
    fn text_round_trips_and_damage_is_seen() {
        let text = ticket().to_string();
        assert_eq!(text.parse(), Ok(ticket()));
        assert_eq!(format!(" {text}\n").parse(), Ok(ticket()));
        assert_eq!(text[1..].parse::<Ticket>(), Err(TicketParseError::Prefix));
        assert_eq!(text[..text.len() - 3].parse::<Ticket>(), Err(TicketParseError::Damaged));
    }

    #[test]
    fn a_ticket_opens_once() {
        let (mut book, now) = (TicketBook::default(), UnixTime(50));
        let (one, two) = (HostId([1; 32]), HostId([2; 32]));
        book.add(now, &ticket(), Some("beta")).unwrap();
        assert_eq!(book.redeem(now, (&[9; 8], &[3; 16]), one, "beta"), Err(TicketError::Wrong));
        assert_eq!(book.redeem(now, (&[2; 8], &[9; 16]), one, "beta"), Err(TicketError::Wrong));
        assert_eq!(book.redeem(now, (&[2; 8], &[3; 16]), one, "gamma"), Err(TicketError::Name));
        assert_eq!(book.redeem(now, (&[2; 8], &[3; 16]), one, "beta"), Ok(()));
        assert_eq!(book.redeem(now, (&[2; 8], &[3; 16]), one, "beta"), Ok(()));
        assert_eq!(book.redeem(now, (&[2; 8], &[3; 16]), two, "beta"), Err(TicketError::Used));
        assert_eq!(book.redeem(UnixTime(100), (&[2; 8], &[3; 16]), one, "beta"), Err(TicketError::Expired));
    }

    #[test]
    fn the_book_is_bounded() {
        let mut book = TicketBook::default();
        for n in 0..TICKETS_MAX {
            let mut id = [0; 8];
            id[..8].copy_from_slice(&n.to_be_bytes());
            book.add(UnixTime(1), &Ticket { id, ..ticket() }, None).unwrap();
        }
        assert_eq!(book.add(UnixTime(1), &ticket(), None), Err(TicketError::TooMany));
        assert_eq!(book.add(UnixTime(100), &Ticket { expires: UnixTime(200), ..ticket() }, None), Ok(()));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails(text: String) {
            let _ = text.parse::<Ticket>();
            let _ = format!("{PREFIX}{text}").parse::<Ticket>();
        }
    }
}
