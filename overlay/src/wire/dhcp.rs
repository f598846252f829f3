//! DHCP for IPv4 (RFC 2131, RFC 2132): a checked view of what a client asks, and the answer's bytes.

use super::PacketError;
use crate::ids::Mac;
use std::net::Ipv4Addr;

/// The port of servers and that of clients.
pub const SERVER_PORT: u16 = 67;
/// See [`SERVER_PORT`].
pub const CLIENT_PORT: u16 = 68;

/// What a client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// To hear what it could have.
    Discover,
    /// An address.
    Request,
    /// It found the address in use.
    Decline,
    /// To give its address back.
    Release,
    /// Everything but an address.
    Inform,
}

/// A client's message.
#[derive(Clone, Copy, Debug)]
pub struct DhcpView<'a> {
    fixed: &'a [u8; FIXED_BYTES],
    /// What it wants.
    pub wish: Wish,
    /// The address that it asks for.
    pub requested: Option<Ipv4Addr>,
    /// The server that it has chosen.
    pub server: Option<Ipv4Addr>,
}

impl<'a> DhcpView<'a> {
    /// Reads a client's message.
    ///
    /// # Errors
    /// If it is cut, a server's, not for Ethernet, or its options contradict its length.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_BYTES>().ok_or(PacketError::Truncated)?;
        if fixed[..3] != [1, 1, 6] {
            return Err(PacketError::OtherKind);
        }
        let (magic, mut options) = rest.split_first_chunk::<4>().ok_or(PacketError::Truncated)?;
        if *magic != MAGIC {
            return Err(PacketError::OtherKind);
        }
        let (mut kind, mut requested, mut server) = (None, None, None);
        while let [option, after @ ..] = options {
            options = match *option {
                END => break,
                PAD => after,
                option => {
                    let (length, after) = after.split_first().ok_or(PacketError::Truncated)?;
                    let (value, after) = after.split_at_checked((*length).into()).ok_or(PacketError::Truncated)?;
                    match (option, value) {
                        (MESSAGE_TYPE, [value]) => kind = Some(*value),
                        (REQUESTED, &[a, b, c, d]) => requested = Some(Ipv4Addr::new(a, b, c, d)),
                        (SERVER, &[a, b, c, d]) => server = Some(Ipv4Addr::new(a, b, c, d)),
                        (MESSAGE_TYPE | REQUESTED | SERVER, _) => return Err(PacketError::Malformed),
                        _ => {}
                    }
                    after
                }
            };
        }
        let wish = match kind {
            Some(1) => Wish::Discover,
            Some(3) => Wish::Request,
            Some(4) => Wish::Decline,
            Some(7) => Wish::Release,
            Some(8) => Wish::Inform,
            _ => return Err(PacketError::OtherKind),
        };
        Ok(Self { fixed, wish, requested, server })
    }

    /// The address that it uses already; unspecified if none.
    pub fn client_ip(&self) -> Ipv4Addr {
        self.ip_at(12)
    }

    /// The relay that passed it on; unspecified if none.
    pub fn relay_ip(&self) -> Ipv4Addr {
        self.ip_at(24)
    }

    /// The client's Ethernet address.
    pub fn client_mac(&self) -> Mac {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.fixed[28..34]);
        Mac(mac)
    }

    /// Whether it can't hear what is sent to its future address alone.
    pub fn wants_broadcast(&self) -> bool {
        self.fixed[10] & 0x80 != 0
    }

    /// An answer of this kind that gives `ip`, with `options` behind those that every answer has.
    pub fn build_answer(&self, kind: Kind, ip: Ipv4Addr, server: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut answer = vec![0; FIXED_BYTES];
        answer[..3].copy_from_slice(&[2, 1, 6]);
        // Transaction id, flags, relay and hardware address are the client's.
        for range in [4..8, 10..12, 24..44] {
            answer[range.clone()].copy_from_slice(&self.fixed[range]);
        }
        if kind != Kind::Nak {
            answer[12..16].copy_from_slice(&self.fixed[12..16]);
            answer[16..20].copy_from_slice(&ip.octets());
        }
        answer.extend_from_slice(&MAGIC);
        let always = [(MESSAGE_TYPE, &[kind as u8][..]), (SERVER, &server.octets()[..])];
        for (option, value) in always.iter().chain(options) {
            let length = value.len().min(OPTION_BYTES_MAX);
            answer.extend_from_slice(&[*option, u8::try_from(length).expect("the length is limited")]);
            answer.extend_from_slice(&value[..length]);
        }
        answer.push(END);
        // Old relays and clients take no shorter ones (RFC 1542, section 2.1).
        answer.resize(answer.len().max(ANSWER_BYTES_MIN), 0);
        answer
    }

    fn ip_at(&self, offset: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.fixed[offset], self.fixed[offset + 1], self.fixed[offset + 2], self.fixed[offset + 3])
    }
}

/// What an answer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// What the client could have.
    Offer = 2,
    /// It has it.
    Ack = 5,
    /// It can't have it.
    Nak = 6,
}

/// Everything before the options.
const FIXED_BYTES: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
const OPTION_BYTES_MAX: usize = 255;
const ANSWER_BYTES_MIN: usize = 300;

const PAD: u8 = 0;
const END: u8 = 255;
const REQUESTED: u8 = 50;
const MESSAGE_TYPE: u8 = 53;
const SERVER: u8 = 54;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A client's message.
    pub(crate) fn message(mac: Mac, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_BYTES];
        bytes[..8].copy_from_slice(&[1, 1, 6, 0, 9, 8, 7, 6]);
        bytes[28..34].copy_from_slice(&mac.0);
        bytes.extend_from_slice(&MAGIC);
        for (option, value) in options {
            bytes.extend_from_slice(&[*option, u8::try_from(value.len()).unwrap()]);
            bytes.extend_from_slice(value);
        }
        bytes.push(END);
        bytes
    }

    #[test]
    fn a_request_is_read_and_answered() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let bytes = message(mac, &[(53, &[3]), (12, b"name"), (50, &[10, 8, 0, 7]), (54, &[10, 8, 0, 1])]);
        let view = DhcpView::new_checked(&bytes).unwrap();
        assert_eq!((view.wish, view.client_mac()), (Wish::Request, mac));
        assert_eq!((view.requested, view.server), (Some([10, 8, 0, 7].into()), Some([10, 8, 0, 1].into())));
        let answer = view.build_answer(Kind::Ack, [10, 8, 0, 7].into(), [10, 8, 0, 1].into(), &[(12, b"web")]);
        assert_eq!((answer[0], &answer[4..8], &answer[16..20]), (2, &[9, 8, 7, 6][..], &[10, 8, 0, 7][..]));
        assert_eq!(answer[240..253], [53, 1, 5, 54, 4, 10, 8, 0, 1, 12, 3, b'w', b'e']);
    }

    #[test]
    fn contradictions_are_refused() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let cut = |bytes: &[u8], to: usize| DhcpView::new_checked(&bytes[..to]).err();
        let bytes = message(mac, &[(53, &[1])]);
        assert_eq!(cut(&bytes, 200), Some(PacketError::Truncated));
        assert_eq!(cut(&bytes, 242), Some(PacketError::Truncated));
        assert_eq!(DhcpView::new_checked(&message(mac, &[(53, &[1, 1])])).err(), Some(PacketError::Malformed));
        assert_eq!(DhcpView::new_checked(&message(mac, &[(53, &[5])])).err(), Some(PacketError::OtherKind));
    }

    proptest! {
        #[test]
        fn any_options_are_read_or_refused(options: Vec<u8>) {
            let mut bytes = message(Mac([2, 0, 0, 0, 0, 9]), &[(53, &[1])]);
            bytes.pop();
            bytes.extend(options);
            if let Ok(view) = DhcpView::new_checked(&bytes) {
                let answer = view.build_answer(Kind::Offer, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, &[]);
                prop_assert!(answer.len() >= ANSWER_BYTES_MIN);
            }
        }
    }
}
