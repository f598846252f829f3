//! Claims: "this MAC (with these IPs) of this network is at this host now", and the rule by which every host decides
//! alike which of two claims holds.
//!
//! A claim has an **epoch**; the higher one wins, if its **ground** says why it may. Grounds are checked against what
//! the receiver knows, so that an address can't be taken from a living host:
//! - `First`: nobody held the address.
//! - `Handoff`: the former holder signed it over.
//! - `Lapsed`: the former holder's lease ran out. Believed only where it did.
//! - `Kept`: the former holder was alive all along (a partition), and takes back what was claimed as lapsed.
//!
//! Two justified claims of one epoch are a conflict: the smaller [`HostId`] holds the address, everywhere.

use crate::crypto::{Signature, Signer, Verifier};
use crate::ids::{Epoch, HostId, Mac, NetworkId};
use crate::limits::CLAIM_IPS_MAX;
use bincode::{Decode, Encode};
use std::cmp::Ordering;
use std::net::IpAddr;

/// Who holds an address, since which epoch, and why.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Claim {
    /// The network of the address.
    pub network: NetworkId,
    /// The address.
    pub mac: Mac,
    /// IP addresses that the MAC announced, at most [`CLAIM_IPS_MAX`].
    pub ips: Vec<IpAddr>,
    /// Whether the station called itself an IPv6 router, once it has said so or otherwise.
    pub router: Option<bool>,
    /// The host that has it.
    pub holder: HostId,
    /// Grows with every change of holder.
    pub epoch: Epoch,
    /// Grows with every change of `ips` by one holder in one epoch.
    pub revision: u32,
    /// Why the holder may claim it.
    pub ground: Ground,
}

/// Why a host may claim an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Ground {
    /// Nobody held it.
    First,
    /// `from` held it in the epoch before and signed it over.
    Handoff {
        /// The former holder.
        from: HostId,
        /// Its signature over network, MAC, epoch and new holder.
        signature: Signature,
    },
    /// The lease of `from` ran out.
    Lapsed {
        /// The former holder.
        from: HostId,
    },
    /// The holder lived while `over` claimed the address as lapsed.
    Kept {
        /// Who had claimed it.
        over: HostId,
    },
}

/// What a claim does to what is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It replaces what is known.
    Accept,
    /// It is the same as what is known, or older.
    Stale,
    /// Its epoch is taken by a claim that wins the tie, or its ground does not hold here: the operator is told.
    Conflict,
    /// Its signature does not fit, or it breaks a bound.
    Forged,
}

impl Claim {
    /// Judges this claim against the one that is `known` for the same address.
    ///
    /// `lapsed` tells whether the known holder's lease ran out, as far as the judging host knows.
    pub fn judge(&self, known: Option<&Self>, lapsed: bool, verifier: &dyn Verifier) -> Verdict {
        if !self.is_well_formed() {
            return Verdict::Forged;
        }
        let Some(known) = known else { return self.signature_verdict(verifier) };
        match self.epoch.cmp(&known.epoch) {
            Ordering::Less => Verdict::Stale,
            Ordering::Equal => self.judge_equal(known, verifier),
            Ordering::Greater => self.judge_newer(known, lapsed, verifier),
        }
    }

    /// The first claim of an address that nobody held.
    pub(crate) const fn first(network: NetworkId, mac: Mac, holder: HostId, epoch: Epoch) -> Self {
        Self { network, mac, ips: Vec::new(), router: None, holder, epoch, revision: 0, ground: Ground::First }
    }

    /// Whether the claim keeps its bounds.
    pub fn is_well_formed(&self) -> bool {
        self.ips.len() <= CLAIM_IPS_MAX && !self.mac.is_group() && self.mac != Mac::ZERO
    }

    fn judge_equal(&self, known: &Self, verifier: &dyn Verifier) -> Verdict {
        if self.holder == known.holder {
            return if self.revision > known.revision { self.signature_verdict(verifier) } else { Verdict::Stale };
        }
        if self.holder < known.holder { self.signature_verdict(verifier) } else { Verdict::Conflict }
    }

    fn judge_newer(&self, known: &Self, lapsed: bool, verifier: &dyn Verifier) -> Verdict {
        let justified = self.holder == known.holder
            || match self.ground {
                // Whoever missed an epoch can't know who held the address in it.
                Ground::Handoff { from, .. } => from == known.holder || self.epoch.0 > known.epoch.0 + 1 || lapsed,
                Ground::Kept { over } => over == known.holder || self.epoch.0 > known.epoch.0 + 1 || lapsed,
                Ground::Lapsed { .. } | Ground::First => lapsed,
            };
        if justified { self.signature_verdict(verifier) } else { Verdict::Conflict }
    }

    fn signature_verdict(&self, verifier: &dyn Verifier) -> Verdict {
        match &self.ground {
            Ground::Handoff { from, signature } => {
                let message = handoff_message(self.network, self.mac, self.epoch, self.holder);
                if verifier.verify(&from.0, &message, signature) { Verdict::Accept } else { Verdict::Forged }
            }
            Ground::First | Ground::Lapsed { .. } | Ground::Kept { .. } => Verdict::Accept,
        }
    }

    /// The claim of the next epoch, signed over by the present holder to `to`.
    pub fn hand_off(&self, to: HostId, signer: &dyn Signer) -> Self {
        let epoch = Epoch(self.epoch.0 + 1);
        let signature = signer.sign(&handoff_message(self.network, self.mac, epoch, to));
        let from = HostId(signer.public_key());
        Self { holder: to, epoch, revision: 0, ground: Ground::Handoff { from, signature }, ..self.clone() }
    }
}

/// What a handoff signs.
fn handoff_message(network: NetworkId, mac: Mac, epoch: Epoch, to: HostId) -> Vec<u8> {
    let mut message = b"virtuoso handoff 1".to_vec();
    message.extend(network.0.to_be_bytes());
    message.extend(mac.0);
    message.extend(epoch.0.to_be_bytes());
    message.extend(to.0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::Toy;

    fn claim(holder: u8, epoch: u64, ground: Ground) -> Claim {
        Claim {
            network: NetworkId(1),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            ips: vec![],
            router: None,
            holder: Toy(holder).host(),
            epoch: Epoch(epoch),
            revision: 0,
            ground,
        }
    }

    #[test]
    fn a_handoff_is_believed_and_a_forged_one_is_not() {
        let held = claim(1, 1, Ground::First);
        let moved = held.hand_off(Toy(2).host(), &Toy(1));
        assert_eq!(moved.judge(Some(&held), false, &Toy(0)), Verdict::Accept);

        let thief = held.hand_off(Toy(3).host(), &Toy(3));
        assert_eq!(thief.judge(Some(&held), false, &Toy(0)), Verdict::Conflict);

        let redirected = Claim { holder: Toy(3).host(), ..moved };
        assert_eq!(redirected.judge(Some(&held), false, &Toy(0)), Verdict::Forged);
    }

    #[test]
    fn a_lapsed_claim_is_believed_only_where_the_lease_ran_out() {
        let held = claim(1, 1, Ground::First);
        let taken = claim(2, 2, Ground::Lapsed { from: Toy(1).host() });
        assert_eq!(taken.judge(Some(&held), false, &Toy(0)), Verdict::Conflict);
        assert_eq!(taken.judge(Some(&held), true, &Toy(0)), Verdict::Accept);

        let kept = claim(1, 3, Ground::Kept { over: Toy(2).host() });
        assert_eq!(kept.judge(Some(&taken), false, &Toy(0)), Verdict::Accept);
        assert_eq!(taken.judge(Some(&kept), true, &Toy(0)), Verdict::Stale);
    }

    #[test]
    fn ties_are_decided_alike_on_both_sides() {
        let (a, b) = (claim(1, 2, Ground::First), claim(2, 2, Ground::First));
        let verdicts = (a.judge(Some(&b), false, &Toy(0)), b.judge(Some(&a), false, &Toy(0)));
        let smaller_wins = if a.holder < b.holder {
            (Verdict::Accept, Verdict::Conflict)
        } else {
            (Verdict::Conflict, Verdict::Accept)
        };
        assert_eq!(verdicts, smaller_wins);
    }

    #[test]
    fn revisions_of_one_holder_replace_each_other() {
        let first = claim(1, 1, Ground::First);
        let second = Claim { revision: 1, ..first.clone() };
        assert_eq!(second.judge(Some(&first), false, &Toy(0)), Verdict::Accept);
        assert_eq!(first.judge(Some(&second), false, &Toy(0)), Verdict::Stale);
        assert_eq!(first.judge(Some(&first), false, &Toy(0)), Verdict::Stale);
    }

    #[test]
    fn group_addresses_are_never_claimed() {
        let broadcast = Claim { mac: Mac::BROADCAST, ..claim(1, 1, Ground::First) };
        assert_eq!(broadcast.judge(None, false, &Toy(0)), Verdict::Forged);
    }
}
