//! How long ago something was, as a person writes it.

use std::str::FromStr;
use std::time::Duration;

/// A length of time in hours, days or weeks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Age(pub(crate) Duration);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const HOUR: u64 = 3600;
        let (digits, unit) = match text.find(|digit: char| !digit.is_ascii_digit()) {
            Some(end) => text.split_at(end),
            None => (text, "d"),
        };
        let unit = match unit {
            "h" => Some(HOUR),
            "d" => Some(24 * HOUR),
            "w" => Some(7 * 24 * HOUR),
            _ => None,
        };
        let seconds =
            unit.zip(digits.parse().ok()).and_then(|(unit, count): (u64, u64)| unit.checked_mul(count));
        seconds
            .map(|seconds| Self(Duration::from_secs(seconds)))
            .ok_or_else(|| "expected a number of days, or such as 12h, 30d, 8w".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_parse() {
        for (text, hours) in [("12h", 12), ("30d", 720), ("30", 720), ("2w", 336), ("0", 0)] {
            assert_eq!(text.parse(), Ok(Age(Duration::from_secs(hours * 3600))), "{text}");
        }
        for wrong in ["", "d", "3y", "-1", "1.5d", "99999999999999999999", "9999999999999999999w"] {
            assert!(wrong.parse::<Age>().is_err(), "{wrong}");
        }
    }
}
