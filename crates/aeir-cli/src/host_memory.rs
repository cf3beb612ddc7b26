//! The machine's own memory: how much there is, and refusals of what can't fit.
//!
//! An allocation that fails ends a program at once. What a command can foresee it refuses before, with a hint.

use crate::failure::CliError;
use crate::selftest::readable;

/// Bytes that programs could still take, and bytes in all, where the system tells.
pub(crate) fn available() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes << 10)
    };
    Some((bytes("MemAvailable")?, bytes("MemTotal")?))
}

/// Refuses `what` if it takes more numbers of four bytes than the machine has memory for; `sizes` are multiplied.
///
/// # Errors
/// [`CliError::Usage`] with `flag` in its hint.
pub(crate) fn check_numbers(what: &str, sizes: &[usize], flag: &str) -> Result<(), CliError> {
    let numbers = sizes.iter().try_fold(4u64, |bytes, size| bytes.checked_mul(*size as u64));
    let limit = available().map_or(u64::MAX / 2, |(_, total)| total);
    match numbers {
        Some(bytes) if bytes <= limit => Ok(()),
        needed => Err(CliError::Usage {
            message: format!(
                "{what} would take {}, and this machine has {}",
                needed.map_or_else(|| "more bytes than can be counted".to_owned(), readable),
                available().map_or_else(|| "less".to_owned(), |(_, total)| readable(total))
            ),
            hint: format!("lower {flag}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_passes_and_what_cannot_is_refused() {
        assert!(check_numbers("a few", &[10, 10], "--items").is_ok());
        for sizes in [&[usize::MAX, 2][..], &[1 << 40, 1 << 22]] {
            let error = check_numbers("all of them", sizes, "--items").unwrap_err().to_string();
            assert!(error.contains("all of them would take"), "{error}");
        }
    }
}
