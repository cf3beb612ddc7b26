//! Sum or mean.

/// How the terms of a loss become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// All terms added: what the released procedure does.
    #[default]
    Sum,
    /// The sum divided by the number of rows (pairs, or target items): independent of the batch size.
    Mean,
}

impl Reduction {
    pub(crate) fn apply(
        self,
        sum: candle_core::Tensor,
        rows: usize,
    ) -> candle_core::Result<candle_core::Tensor> {
        match self {
            Self::Sum => Ok(sum),
            Self::Mean => sum / rows as f64,
        }
    }
}
