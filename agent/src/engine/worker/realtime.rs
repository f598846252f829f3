//! Real-time priority for the engine's thread: the biggest single gain in latency under load. A guest's packet must not
//! wait until the scheduler has served everybody else. The thread never polls in vain, so it leaves them the CPU.

use std::io;

/// Asks for round-robin scheduling with the lowest real-time priority. A thread that is started from here does not
/// inherit it. Without the right to it the thread goes on as it is.
pub(super) fn request() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 names the calling thread, and the parameter outlives the call.
    let result =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const priority) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::info!(%error, "No real-time priority for the data plane: grant CAP_SYS_NICE for lower latency");
    }
}
