//! Free space where things are put.

use std::path::Path;

/// Bytes that may be written below `folder`, which need not exist yet; none where the system does not say.
#[cfg(unix)]
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    // A relative path ends in nothing, which is the working folder.
    let empty = |folder: &Path| folder.as_os_str().is_empty();
    let there = folder.ancestors().find(|folder| empty(folder) || folder.exists())?;
    let there = if empty(there) { Path::new(".") } else { there };
    let path = CString::new(there.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros is a value of this plain structure, which the call fills.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers live as long as the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut found) } != 0 {
        return None;
    }
    // Their widths differ between systems.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    Some((found.f_bavail as u64).saturating_mul(found.f_frsize as u64))
}

/// Bytes that may be written below `folder`; here the system is not asked.
#[cfg(not(unix))]
pub(crate) fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// Bytes as people say them.
pub(crate) fn readable(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.0} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.1} GB", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_not_there_yet_has_the_space_of_the_one_above() {
        assert!(free_bytes(&std::env::temp_dir().join("not/there/yet")).is_some());
        assert!(free_bytes(Path::new("not-there")).is_some());
    }

    #[test]
    fn sizes_are_readable() {
        let all = [0, 999, 1_000, 90_868_376, 13_510_573_713].map(readable);
        assert_eq!(all, ["0 B", "999 B", "1 kB", "90.9 MB", "13.5 GB"]);
    }
}
