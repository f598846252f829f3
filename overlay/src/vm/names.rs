//! Which VM has a name when several want it.
//!
//! Nobody owns names: the rows of VMs say which are taken. So that two hosts that make a VM of one name at once do not
//! both succeed, a new VM's host asks the **registrar** of the name first. That is a host which follows from the name
//! and from the hosts that are alive, so both ask the same one, and it tells the second of the first. It remembers a
//! promise only until the VM's row has come, from which on the table speaks.
//!
//! Hosts that can't reach each other have different registrars. When they meet again, two VMs have one name, and
//! [`goes_before`] says everywhere alike which of them keeps it; the other one gets [`another_name`].

use crate::ids::{HostId, VmId};
use crate::limits::{NAME_CHARS_MAX, NAME_PROMISES_MAX};
use crate::table::{VmRow, VmState};
use bincode::{Decode, Encode};
use std::collections::BTreeMap;

/// Bytes of the question or the answer about a name.
pub const NAME_MESSAGE_BYTES_MAX: usize = 128;

/// What a host asks a name's registrar.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct NameQuestion {
    /// The name.
    pub name: String,
    /// The VM that wants it.
    pub vm: VmId,
}

/// What the registrar says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum NameAnswer {
    /// The VM has the name.
    Yours,
    /// A VM of this host has it, or gets it.
    Taken(HostId),
    /// The registrar has promised so many names that it can't remember another.
    Busy,
}

/// Names that VMs whose rows have not come yet will have.
#[derive(Clone, Debug, Default)]
pub struct Promises(BTreeMap<String, (HostId, VmId)>);

impl Promises {
    /// Promises a name to a VM of `host`, unless another one was first.
    pub fn ask(&mut self, host: HostId, question: &NameQuestion) -> NameAnswer {
        match self.0.get(&question.name) {
            Some((_, vm)) if *vm == question.vm => NameAnswer::Yours,
            Some((holder, _)) => NameAnswer::Taken(*holder),
            None if self.0.len() >= NAME_PROMISES_MAX => NameAnswer::Busy,
            None => {
                self.0.insert(question.name.clone(), (host, question.vm));
                NameAnswer::Yours
            }
        }
    }

    /// Forgets a promise: the VM's row is here, or it won't come.
    pub fn forget(&mut self, question: &NameQuestion) {
        if self.0.get(&question.name).is_some_and(|(_, vm)| *vm == question.vm) {
            self.0.remove(&question.name);
        }
    }
}

/// The hosts of `alive`, the registrar of a name first, then those that stand in for it.
pub fn registrars(name: &str, alive: impl Iterator<Item = HostId>) -> Vec<HostId> {
    let weight = |host: &HostId| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes()).update(&host.0);
        *hasher.finalize().as_bytes()
    };
    let mut hosts: Vec<HostId> = alive.collect();
    hosts.sort_by_cached_key(weight);
    hosts.dedup();
    hosts
}

/// Whether of two VMs of one name the first one keeps it: one that is there before one that is being made, then the
/// older one, then that of the smaller id.
pub fn goes_before(one: &VmRow, other: &VmRow) -> bool {
    let rank = |row: &VmRow| (row.state == VmState::Creating, row.made, row.id);
    rank(one) < rank(other)
}

/// The name of a VM that lost its own: with as much of its id behind it as makes it free.
pub fn another_name(name: &str, vm: VmId, is_taken: impl Fn(&str) -> bool) -> String {
    let id = vm.to_string();
    let with = |digits: usize| {
        let room = NAME_CHARS_MAX - digits - 1;
        let stem = name.get(..room.min(name.len())).unwrap_or_default().trim_end_matches('-');
        format!("{stem}-{}", &id[..digits])
    };
    let free = [4, 8, 16].map(with).into_iter().find(|name| !is_taken(name));
    free.unwrap_or_else(|| with(id.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::is_name;
    use crate::rng::Rng;
    use crate::time::UnixTime;

    fn host(number: u8) -> HostId {
        HostId([number; 32])
    }

    fn row(id: u8, state: VmState, made: u64) -> VmRow {
        VmRow {
            id: VmId([id; 16]),
            name: "web".into(),
            state,
            vcpus: 1,
            memory_bytes: 1,
            image: None,
            nics: Vec::new(),
            made: UnixTime(made),
        }
    }

    #[test]
    fn the_first_who_asks_has_the_name_until_it_is_forgotten() {
        let mut promises = Promises::default();
        let ask = |vm: u8| NameQuestion { name: "web".into(), vm: VmId([vm; 16]) };
        assert_eq!(promises.ask(host(1), &ask(9)), NameAnswer::Yours);
        assert_eq!(promises.ask(host(2), &ask(1)), NameAnswer::Taken(host(1)));
        assert_eq!(promises.ask(host(1), &ask(9)), NameAnswer::Yours);
        promises.forget(&ask(1));
        assert_eq!(promises.ask(host(2), &ask(1)), NameAnswer::Taken(host(1)));
        promises.forget(&ask(9));
        assert_eq!(promises.ask(host(2), &ask(1)), NameAnswer::Yours);
    }

    #[test]
    fn promises_are_bounded() {
        let mut promises = Promises::default();
        for number in 0..NAME_PROMISES_MAX {
            let question = NameQuestion { name: number.to_string(), vm: VmId([1; 16]) };
            assert_eq!(promises.ask(host(1), &question), NameAnswer::Yours);
        }
        let one_more = NameQuestion { name: "web".into(), vm: VmId([1; 16]) };
        assert_eq!(promises.ask(host(1), &one_more), NameAnswer::Busy);
    }

    #[test]
    fn all_who_see_the_same_hosts_ask_the_same_one() {
        let mut rng = Rng::new(7);
        let hosts: Vec<HostId> = (0..20).map(host).collect();
        let mut chosen = std::collections::BTreeSet::new();
        for number in 0..50 {
            let name = format!("vm-{number}");
            let mut shuffled = hosts.clone();
            for index in (1..shuffled.len()).rev() {
                shuffled.swap(index, usize::try_from(rng.below(index as u64 + 1)).unwrap());
            }
            let order = registrars(&name, hosts.iter().copied());
            assert_eq!(registrars(&name, shuffled.into_iter()), order);
            // Without the first the second takes its place, and nothing else changes.
            let others = hosts.iter().copied().filter(|host| *host != order[0]);
            assert_eq!(registrars(&name, others), order[1..]);
            chosen.insert(order[0]);
        }
        assert!(chosen.len() > 10, "The names are spread over {} of 20 hosts", chosen.len());
    }

    /// Both sides of a partition judge alike, whatever states and clocks the two VMs have.
    #[test]
    fn one_of_two_keeps_the_name() {
        let states = [VmState::Running, VmState::Stopped, VmState::Creating];
        let all = states.iter().flat_map(|state| [row(1, *state, 5), row(2, *state, 5), row(3, *state, 4)]);
        let all: Vec<VmRow> = all.collect();
        for one in &all {
            for other in all.iter().filter(|other| other.id != one.id) {
                assert_ne!(goes_before(one, other), goes_before(other, one), "{one:?} {other:?}");
            }
        }
        assert!(goes_before(&row(3, VmState::Running, 4), &row(1, VmState::Running, 5)), "the older one");
        assert!(goes_before(&row(2, VmState::Stopped, 9), &row(1, VmState::Creating, 1)), "the one that is there");
        assert!(goes_before(&row(1, VmState::Running, 5), &row(2, VmState::Paused, 5)), "the smaller id");
    }

    #[test]
    fn another_name_is_a_name_and_free() {
        let vm = VmId([0xab; 16]);
        assert_eq!(another_name("web", vm, |_| false), "web-abab");
        assert_eq!(another_name("web", vm, |name| name == "web-abab"), "web-abababab");
        let long = format!("{}-{}", "a".repeat(57), "b".repeat(5));
        for taken in [0, 4, 8, 16] {
            let name = another_name(&long, vm, |name| name.rsplit('-').next().unwrap().len() <= taken);
            assert!(is_name(&name) && name.ends_with("abab"), "{name}");
        }
    }
}
