//! What VMs hold of a host, and whether there is room for one more.
//!
//! A VM holds its share from the reservation until it is deleted: a stopped VM can always be started again. Each
//! request has an id of its own, and the VM's id follows from it: the same request again finds what it has made.

use crate::ids::VmId;
use crate::limits::VMS_PER_HOST_MAX;
use crate::table::Shortage;
use std::collections::BTreeMap;

/// What a VM holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk, as much as it may grow to.
    pub disk_bytes: u64,
}

/// All that VMs hold of one host.
#[derive(Clone, Debug, Default)]
pub struct Reservations {
    held: BTreeMap<VmId, (String, Share)>,
}

/// Room was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// Now.
    New,
    /// When the same request came before.
    Before,
}

/// Why there is no room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another VM has the name.
    #[error("there is a VM {0} already")]
    NameTaken(String),
    /// Something is short.
    #[error("{0}")]
    Lacks(Shortage),
    /// The host keeps as many VMs as it can.
    #[error("it keeps {VMS_PER_HOST_MAX} VMs, its most")]
    TooMany,
}

impl Reservations {
    /// Takes a share of `room`, which is what the host lends to VMs in all, or says what is missing.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing is held then.
    pub fn reserve(&mut self, id: VmId, name: &str, wanted: Share, room: Share) -> Result<Reserved, Refusal> {
        if self.held.contains_key(&id) {
            return Ok(Reserved::Before);
        }
        if self.held.values().any(|(taken, _)| taken == name) {
            return Err(Refusal::NameTaken(name.to_owned()));
        }
        if self.held.len() >= VMS_PER_HOST_MAX {
            return Err(Refusal::TooMany);
        }
        let held = self.total();
        let free = Share {
            vcpus: room.vcpus.saturating_sub(held.vcpus),
            memory_bytes: room.memory_bytes.saturating_sub(held.memory_bytes),
            disk_bytes: room.disk_bytes.saturating_sub(held.disk_bytes),
        };
        if let Some(shortage) = shortage(wanted, free) {
            return Err(Refusal::Lacks(shortage));
        }
        self.held.insert(id, (name.to_owned(), wanted));
        Ok(Reserved::New)
    }

    /// Holds a share whatever there is: a VM of an earlier run.
    pub fn restore(&mut self, id: VmId, name: &str, share: Share) {
        self.held.insert(id, (name.to_owned(), share));
    }

    /// Gives a VM's share back.
    pub fn release(&mut self, id: VmId) {
        self.held.remove(&id);
    }

    /// What all VMs hold together.
    pub fn total(&self) -> Share {
        self.held.values().fold(Share::default(), |sum, (_, share)| Share {
            vcpus: sum.vcpus.saturating_add(share.vcpus),
            memory_bytes: sum.memory_bytes.saturating_add(share.memory_bytes),
            disk_bytes: sum.disk_bytes.saturating_add(share.disk_bytes),
        })
    }
}

fn shortage(wanted: Share, free: Share) -> Option<Shortage> {
    if wanted.vcpus > free.vcpus {
        return Some(Shortage::Vcpus { free: free.vcpus, wanted: wanted.vcpus });
    }
    if wanted.memory_bytes > free.memory_bytes {
        return Some(Shortage::Memory { free: free.memory_bytes, wanted: wanted.memory_bytes });
    }
    let disk_is_short = wanted.disk_bytes > free.disk_bytes;
    disk_is_short.then_some(Shortage::Disk { free: free.disk_bytes, wanted: wanted.disk_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Share = Share { vcpus: 4, memory_bytes: 100, disk_bytes: 50 };

    fn share(vcpus: u32, memory_bytes: u64) -> Share {
        Share { vcpus, memory_bytes, disk_bytes: 10 }
    }

    #[test]
    fn what_is_held_is_not_given_twice() {
        let mut held = Reservations::default();
        assert_eq!(held.reserve(VmId([1; 16]), "a", share(3, 60), ROOM), Ok(Reserved::New));
        let short = Refusal::Lacks(Shortage::Vcpus { free: 1, wanted: 2 });
        assert_eq!(held.reserve(VmId([2; 16]), "b", share(2, 1), ROOM), Err(short));
        let short = Refusal::Lacks(Shortage::Memory { free: 40, wanted: 41 });
        assert_eq!(held.reserve(VmId([2; 16]), "b", share(1, 41), ROOM), Err(short));
        assert_eq!(held.total(), share(3, 60));
        held.release(VmId([1; 16]));
        assert_eq!(held.reserve(VmId([2; 16]), "b", share(4, 100), ROOM), Ok(Reserved::New));
    }

    #[test]
    fn a_repeated_request_makes_nothing_twice() {
        let mut held = Reservations::default();
        assert_eq!(held.reserve(VmId([1; 16]), "a", share(4, 1), ROOM), Ok(Reserved::New));
        assert_eq!(held.reserve(VmId([1; 16]), "a", share(4, 1), ROOM), Ok(Reserved::Before));
        assert_eq!(held.total(), share(4, 1));
        assert_eq!(held.reserve(VmId([2; 16]), "a", share(0, 0), ROOM), Err(Refusal::NameTaken("a".into())));
    }

    #[test]
    fn vms_of_an_earlier_run_are_held_even_if_the_limits_shrank() {
        let mut held = Reservations::default();
        held.restore(VmId([1; 16]), "a", share(9, 1));
        let short = Refusal::Lacks(Shortage::Vcpus { free: 0, wanted: 1 });
        assert_eq!(held.reserve(VmId([2; 16]), "b", share(1, 1), ROOM), Err(short));
    }
}
