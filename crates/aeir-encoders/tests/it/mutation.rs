//! Damaged copies of a file, a fixed sequence for each seed.

/// Copies with some bytes changed, removed, repeated or cut off.
pub(crate) struct Mutations<'a> {
    state: u64,
    whole: &'a [u8],
}

impl<'a> Mutations<'a> {
    pub(crate) fn new(seed: u64, whole: &'a [u8]) -> Self {
        Self { state: seed.wrapping_mul(2).wrapping_add(1), whole }
    }

    /// SplitMix64.
    fn next_number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next_number() % limit.max(1) as u64) as usize
    }
}

impl Iterator for Mutations<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut bytes = self.whole.to_vec();
        match self.below(8) {
            0 => bytes.truncate(self.below(self.whole.len())),
            1 => {
                let start = self.below(bytes.len());
                let end = (start + 1 + self.below(64)).min(bytes.len());
                bytes.drain(start..end);
            }
            2 => {
                let start = self.below(bytes.len());
                let end = (start + 1 + self.below(64)).min(bytes.len());
                let piece = bytes[start..end].to_vec();
                let at = self.below(bytes.len());
                bytes.splice(at..at, piece);
            }
            _ => {
                for _ in 0..1 + self.below(4) {
                    let at = self.below(bytes.len());
                    bytes[at] = match self.below(4) {
                        0 => 0xff,
                        1 => 0,
                        2 => bytes[at] ^ (1 << self.below(8)),
                        _ => self.next_number() as u8,
                    };
                }
            }
        }
        Some(bytes)
    }
}
