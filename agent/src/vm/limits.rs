//! What a VM may use at most. Its share of the processors is the kernel's business (control groups), its disk
//! operations are QEMU's: QEMU counts what the guest asks for, on every kernel, and carries on where it was when the
//! limit changes.

use super::qmp::{Qmp, QmpError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

/// Limits of a VM; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VmLimits {
    /// Processor time of its process; 100 is one whole processor.
    pub cpu_percent: u32,
    /// Bytes a second that it reads from its disk and writes to it, in all.
    pub io_bytes_per_s: u64,
    /// Operations a second on its disk, in all.
    pub iops: u64,
}

/// A change of limits: what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VmLimitsChange {
    /// See [`VmLimits::cpu_percent`].
    pub cpu_percent: Option<u32>,
    /// See [`VmLimits::io_bytes_per_s`].
    pub io_bytes_per_s: Option<u64>,
    /// See [`VmLimits::iops`].
    pub iops: Option<u64>,
}

/// A whole processor for each virtual CPU that a VM can have.
const CPU_PERCENT_MAX: u32 = 6400;
/// Below this a guest's kernel takes its disk for broken: an operation takes more than its 30 s.
const IO_BYTES_PER_S_MIN: u64 = 64 << 10;
const IOPS_MIN: u64 = 10;
/// QEMU's own largest value is 10^15.
const IO_MAX: u64 = 1 << 40;

impl VmLimits {
    /// What is wrong with them, if something is.
    pub fn fault(&self) -> Option<String> {
        let outside = |value: u64, min: u64, max: u64| value != 0 && !(min..=max).contains(&value);
        if self.cpu_percent > CPU_PERCENT_MAX {
            return Some(format!(
                "A limit of processor time is 1 to {CPU_PERCENT_MAX} percent, 100 for each processor"
            ));
        }
        if outside(self.io_bytes_per_s, IO_BYTES_PER_S_MIN, IO_MAX) {
            return Some("A VM's disk can't be slower than 64KiB a second: guests take it for broken".into());
        }
        let few = format!("A VM's disk can't be slower than {IOPS_MIN} operations a second: guests take it for broken");
        outside(self.iops, IOPS_MIN, IO_MAX).then_some(few)
    }

    /// The limits after a change.
    #[must_use]
    pub fn changed(self, change: VmLimitsChange) -> Self {
        Self {
            cpu_percent: change.cpu_percent.unwrap_or(self.cpu_percent),
            io_bytes_per_s: change.io_bytes_per_s.unwrap_or(self.io_bytes_per_s),
            iops: change.iops.unwrap_or(self.iops),
        }
    }

    /// Tells QEMU the limits of the virtio disk that is plugged in as `device`.
    pub(super) async fn throttle(&self, qmp: &Qmp, device: &str) -> Result<(), QmpError> {
        let arguments = json!({
            // The device of this name is a PCI card; the disk is behind it.
            "id": format!("/machine/peripheral/{device}/virtio-backend"),
            "bps": self.io_bytes_per_s, "bps_rd": 0, "bps_wr": 0,
            "iops": self.iops, "iops_rd": 0, "iops_wr": 0,
        });
        qmp.run_with("block_set_io_throttle", arguments).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_break_guests_are_refused() {
        let none = VmLimits::default();
        assert_eq!(none.fault(), None);
        assert_eq!(VmLimits { cpu_percent: 50, io_bytes_per_s: 1 << 20, iops: 100 }.fault(), None);
        for (wrong, word) in [
            (VmLimits { cpu_percent: 6401, ..none }, "6400"),
            (VmLimits { io_bytes_per_s: 1000, ..none }, "64KiB"),
            (VmLimits { iops: 9, ..none }, "10 operations"),
            (VmLimits { iops: u64::MAX, ..none }, "operations"),
        ] {
            let fault = wrong.fault().unwrap();
            assert!(fault.contains(word), "{fault}");
        }
    }

    #[test]
    fn what_is_absent_stays() {
        let limits = VmLimits { cpu_percent: 50, io_bytes_per_s: 1 << 20, iops: 100 };
        assert_eq!(limits.changed(VmLimitsChange::default()), limits);
        let change = VmLimitsChange { cpu_percent: Some(0), ..VmLimitsChange::default() };
        assert_eq!(limits.changed(change), VmLimits { cpu_percent: 0, ..limits });
    }
}
