//! What a host lacks, with sizes as people read them.

use crate::size::ByteSize;
use virtuoso_overlay::table::Shortage;
use virtuoso_overlay::vm::reservations::Refusal;

/// Why a host does not suit.
pub(crate) fn explain(shortage: &Shortage) -> String {
    match shortage {
        Shortage::Memory { free, wanted } => {
            format!("{} of memory free, {} wanted", ByteSize(*free).rounded(), ByteSize(*wanted).rounded())
        }
        Shortage::Disk { free, wanted } => {
            format!("{} of disk free, {} wanted", ByteSize(*free).rounded(), ByteSize(*wanted).rounded())
        }
        Shortage::Silent(_)
        | Shortage::Draining
        | Shortage::Vcpus { .. }
        | Shortage::Label { .. }
        | Shortage::Image(_) => shortage.to_string(),
    }
}

/// Why a VM is not taken.
pub(crate) fn explain_refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Lacks(shortage) => explain(shortage),
        Refusal::NameTaken(_) | Refusal::TooMany => refusal.to_string(),
    }
}
