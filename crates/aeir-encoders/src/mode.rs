//! Training or evaluation, said by the caller at every forward pass.

use rand_chacha::ChaCha8Rng;

/// How a forward pass treats its stochastic parts.
///
/// Training carries the generator that draws dropout masks: candle's CPU randomness can't be seeded, and a
/// generator that the caller owns can be stored in a checkpoint and put back.
#[derive(Debug, Default)]
pub enum Mode<'a> {
    /// Nothing is random: dropout does nothing.
    #[default]
    Evaluation,
    /// Dropout is on; its masks come from this generator.
    Training(&'a mut ChaCha8Rng),
}

impl Mode<'_> {
    /// Whether this is training.
    #[must_use]
    pub fn is_training(&self) -> bool {
        matches!(self, Self::Training(_))
    }

    /// The same mode for a shorter time, to hand it to a function that takes a `Mode` by value.
    #[must_use]
    pub fn reborrow(&mut self) -> Mode<'_> {
        match self {
            Self::Evaluation => Mode::Evaluation,
            Self::Training(generator) => Mode::Training(generator),
        }
    }
}
