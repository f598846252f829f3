//! Space on a disk.

use anyhow::Context;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that this user can still write to the file system of `path`.
pub fn free_bytes(path: &Path) -> anyhow::Result<u64> {
    let text = CString::new(path.as_os_str().as_bytes()).context("A path has no zero byte")?;
    // SAFETY: `statvfs` holds plain integers, for which zeros are valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: path and result live through the call.
    if unsafe { libc::statvfs(text.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("Can't read the space at {}", path.display()));
    }
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_space() {
        assert!(free_bytes(Path::new("/")).is_ok());
        assert!(free_bytes(Path::new("/nonexistent")).is_err());
    }
}
