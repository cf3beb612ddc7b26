//! A part of a list, for one of several machines.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Part `number` of `count`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) number: usize,
    pub(crate) count: usize,
}

impl Shard {
    /// The positions of this part in a list of `length`: contiguous, so that the parts one after the other are the whole.
    pub(crate) fn of(self, length: usize) -> Range<usize> {
        // Wider than usize: length times count need not fit.
        let border = |parts: usize| (length as u128 * parts as u128 / self.count as u128) as usize;
        border(self.number - 1)..border(self.number)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(number, count)| {
            Some(Self { number: number.parse().ok()?, count: count.parse().ok()? })
        });
        parsed
            .filter(|shard| (1..=shard.count).contains(&shard.number))
            .ok_or_else(|| "expected I/N with I from 1 to N, such as 2/8".to_owned())
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.number, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole() {
        for length in [0, 1, 7, 100, usize::MAX] {
            for count in [1, 2, 3, 8, 101] {
                let mut end = 0;
                for number in 1..=count {
                    let part = Shard { number, count }.of(length);
                    assert_eq!(part.start, end);
                    assert!(part.len() <= (length / count).saturating_add(1));
                    end = part.end;
                }
                assert_eq!(end, length);
            }
        }
    }

    #[test]
    fn what_is_no_part_is_refused() {
        assert_eq!("2/8".parse(), Ok(Shard { number: 2, count: 8 }));
        for wrong in ["", "2", "0/8", "9/8", "1/0", "a/b", "-1/2", "1/2/3"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
