//! Virtual machines of this host: their definitions on disk, their QEMU processes, their consoles.
//!
//! One QEMU process for each VM that runs, which outlives the agent: its QMP and serial sockets stand in the VM's
//! directory, and the next agent finds it by them; the connection to QMP it keeps itself. What a VM may do in which
//! state, and whether there is room for it, is decided in the overlay.

mod addresses;
mod cdrom;
mod cgroup;
mod clone;
mod console;
mod descriptor;
mod disk;
mod display;
mod error;
mod initrd;
mod launch;
mod limits;
mod machine;
mod medium;
mod migration;
mod monitor;
mod moving;
mod names;
mod process;
mod qemu;
pub mod qmp;
mod seed;
mod spec;
mod stall;
mod store;
mod supervisor;
mod usage;
mod vms;

pub use clone::{Offered, Offers, Token};
pub use console::Console;
pub(crate) use console::Shown;
pub use error::VmError;
pub use limits::{VmLimits, VmLimitsChange};
pub use medium::Medium;
pub use migration::{MIGRATION, MigrateOptions, Migrations, unfinished};
pub use moving::Move;
pub use spec::{BaseImage, Boot, CPU, MACHINE, Nic, Spec};
pub use usage::{TotalUsage, Usage};
pub use vms::{DiskSource, Parts, VmInfo, Vms};
