//! Similarity graph reasoning: the alignment vectors of a pair as nodes that attend to each other.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::linear::Linear;
use super::masked;
use crate::error::Result;
use crate::rehearsal::Product;

/// Rounds of attention among the nodes of a pair.
#[derive(Debug, Clone)]
pub(super) struct GraphReasoning {
    pub(super) steps: Vec<GraphStep>,
}

/// The three linear layers of a round.
#[derive(Debug, Clone)]
pub(super) struct GraphStep {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) output: Linear,
}

impl GraphReasoning {
    pub(super) fn new(similarity: usize, steps: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let linear =
            |step: usize, name: &str| Linear::new(similarity, similarity, vb.pp(step.to_string()).pp(name));
        let steps = (0..steps)
            .map(|step| {
                Ok(GraphStep {
                    query: linear(step, "query")?,
                    key: linear(step, "key")?,
                    output: linear(step, "output")?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { steps })
    }

    pub(super) fn detached(&self) -> Self {
        let detached = |step: &GraphStep| GraphStep {
            query: step.query.detached(),
            key: step.key.detached(),
            output: step.output.detached(),
        };
        Self { steps: self.steps.iter().map(detached).collect() }
    }

    /// `vectors [M, N, P, S]` and a mask that broadcasts to `[M, N, 1, P]` to the first node after the last round, `[M, N, S]`.
    pub(super) fn forward(&self, vectors: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let positions = vectors.dim(2)?;
        let mut nodes = vectors.clone();
        for (index, step) in self.steps.iter().enumerate() {
            // Of the last round only the first node is read.
            let last = index + 1 == self.steps.len();
            let asking = nodes.narrow(2, 0, if last { 1 } else { positions })?.contiguous()?;
            let query = step.query.forward(&asking)?;
            let key = step.key.forward(&nodes)?;
            let edges = query.product(&key.transpose(2, 3)?.contiguous()?)?;
            let mixed = masked::softmax(&edges, mask)?.product(&nodes)?;
            nodes = step.output.forward(&mixed)?.relu()?;
        }
        Ok(nodes.squeeze(2)?)
    }
}
