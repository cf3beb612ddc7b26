//! A set of row numbers, one bit each.

/// Rows `0..len`, each in the set or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    pub(crate) fn none(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    pub(crate) fn all(len: usize) -> Self {
        let mut bits = Self { words: vec![u64::MAX; len.div_ceil(64)], len };
        bits.clear_beyond();
        bits
    }

    /// From little-endian words; none where they are not of this length or set beyond it.
    pub(crate) fn from_bytes(bytes: &[u8], len: usize) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let bits = Self { words, len };
        let mut cleared = bits.clone();
        cleared.clear_beyond();
        (rest.is_empty() && bits.words.len() == len.div_ceil(64) && cleared == bits).then_some(bits)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// A bit a row in words of 32, the first row's lowest.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn half_words(&self) -> Vec<u32> {
        self.words.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]).collect()
    }

    fn clear_beyond(&mut self) {
        if !self.len.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << (self.len % 64)) - 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(crate) fn contains(&self, row: usize) -> bool {
        self.words.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// Rows beyond the length are left out.
    pub(crate) fn insert(&mut self, row: usize) {
        if row < self.len
            && let Some(word) = self.words.get_mut(row / 64)
        {
            *word |= 1 << (row % 64);
        }
    }

    /// Inserts a row; says whether it was not in the set. Rows beyond the length are left out.
    pub(crate) fn insert_new(&mut self, row: usize) -> bool {
        let new = row < self.len && !self.contains(row);
        self.insert(row);
        new
    }

    pub(crate) fn remove(&mut self, row: usize) {
        if let Some(word) = self.words.get_mut(row / 64) {
            *word &= !(1 << (row % 64));
        }
    }

    /// Takes out what `other` holds, whose row 0 is row `first` here.
    pub(crate) fn remove_all(&mut self, other: &Self, first: usize) {
        other.ones().for_each(|row| self.remove(first + row));
    }

    pub(crate) fn intersect(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
    }

    /// The rows in the set, ascending.
    pub(crate) fn ones(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(place, word)| {
            let mut word = *word;
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
                word &= word - 1;
                Some(place * 64 + bit)
            })
        })
    }

    /// How many of the rows `first..last` are in the set.
    pub(crate) fn count_within(&self, first: usize, last: usize) -> usize {
        (first..last).filter(|row| self.contains(*row)).count()
    }

    /// The rows of `first..last` that are not in the set, less `first`.
    pub(crate) fn zeros_within(&self, first: usize, last: usize) -> Vec<usize> {
        (first..last).filter(|row| !self.contains(*row)).map(|row| row - first).collect()
    }
}

/// Which of all rows live, and the live ones' positions: their numbers in order, without gaps.
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    live: Bits,
    /// Live rows before each word.
    before: Vec<usize>,
    count: usize,
}

impl Positions {
    pub(crate) fn of(live: Bits) -> Self {
        let mut count = 0;
        let before = (live.words.iter())
            .map(|word| {
                let before = count;
                count += word.count_ones() as usize;
                before
            })
            .collect();
        Self { live, before, count }
    }

    pub(crate) fn live(&self) -> &Bits {
        &self.live
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Whether every row lives: then row and position are the same number.
    pub(crate) fn is_whole(&self) -> bool {
        self.count == self.live.len
    }

    pub(crate) fn position(&self, row: usize) -> Option<usize> {
        if !self.live.contains(row) {
            return None;
        }
        let below = self.live.words.get(row / 64)? & ((1 << (row % 64)) - 1);
        Some(self.before.get(row / 64)? + below.count_ones() as usize)
    }

    pub(crate) fn row(&self, position: usize) -> Option<usize> {
        if position >= self.count {
            return None;
        }
        let place = self.before.partition_point(|before| *before <= position).checked_sub(1)?;
        let mut word = *self.live.words.get(place)?;
        for _ in 0..position - self.before.get(place)? {
            word &= word.wrapping_sub(1);
        }
        Some(place * 64 + word.trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_and_positions_are_each_other(set in prop::collection::vec(any::<bool>(), 0..300)) {
            let mut bits = Bits::none(set.len());
            (0..set.len()).filter(|row| set[*row]).for_each(|row| bits.insert(row));
            prop_assert_eq!(Bits::from_bytes(&bits.to_bytes(), set.len()), Some(bits.clone()));
            let rows: Vec<usize> = bits.ones().collect();
            prop_assert_eq!(&rows, &(0..set.len()).filter(|row| set[*row]).collect::<Vec<_>>());
            prop_assert_eq!(bits.count(), rows.len());
            prop_assert_eq!(bits.zeros_within(0, set.len()).len(), set.len() - rows.len());
            let words = bits.half_words();
            prop_assert!((0..set.len()).all(|row| (words[row / 32] >> (row % 32) & 1 == 1) == set[row]));
            let positions = Positions::of(bits);
            for (position, row) in rows.iter().enumerate() {
                prop_assert_eq!(positions.position(*row), Some(position));
                prop_assert_eq!(positions.row(position), Some(*row));
            }
            prop_assert_eq!(positions.row(rows.len()), None);
            let dead = (0..=set.len()).filter(|row| !set.get(*row).copied().unwrap_or(false));
            prop_assert!(dead.into_iter().all(|row| positions.position(row).is_none()));
        }
    }

    #[test]
    fn words_that_do_not_fit_are_refused() {
        assert_eq!(Bits::from_bytes(&[255; 8], 63), None);
        assert_eq!(Bits::from_bytes(&[0; 7], 3), None);
        assert_eq!(Bits::from_bytes(&[0; 16], 3), None);
        assert_eq!(Bits::from_bytes(&[255; 8], 64), Some(Bits::all(64)));
        assert_eq!(Bits::all(70).count(), 70);
    }
}
