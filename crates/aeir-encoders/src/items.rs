//! What the towers take and what they give.

use candle_core::Tensor;

use crate::{EncoderError, Fragments, UnitNorm, WordBatch};

/// A batch of items of one modality.
#[derive(Debug, Clone)]
pub enum Items {
    /// One feature vector an item, `[B, F]`.
    Pooled(Tensor),
    /// Regions, grid cells or tokens of a frozen backbone, `[B, T, F]` with their mask.
    Fragments(Fragments),
    /// Words of a vocabulary, `[B, L]` with their mask.
    Words(WordBatch),
}

impl Items {
    /// Number of items B.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] for a scalar.
    pub fn count(&self) -> Result<usize, EncoderError> {
        Ok(match self {
            Self::Pooled(features) => features.dim(0)?,
            Self::Fragments(fragments) => fragments.mask().dim(0)?,
            Self::Words(words) => words.mask().dim(0)?,
        })
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Pooled(_) => "one vector an item",
            Self::Fragments(_) => "fragments",
            Self::Words(_) => "words",
        }
    }
}

/// One member's view of a batch in the joint space.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// Unit rows `[B, T, D]`, where the tower works on fragments.
    pub fragments: Option<Fragments>,
    /// Unit vectors `[B, D]`: what can be indexed.
    pub pooled: Tensor,
}

impl Embedded {
    /// Unit fragments, and their masked mean as a unit vector.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn of_fragments(fragments: Fragments, norm: UnitNorm) -> Result<Self, EncoderError> {
        let pooled = norm.apply(&fragments.mean_pooled()?)?;
        Ok(Self { fragments: Some(fragments), pooled })
    }

    /// What a domain critic sees: the masked mean of the fragments, or the vector itself; `[B, D]`, not normalised again.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn mean(&self) -> Result<Tensor, EncoderError> {
        self.fragments.as_ref().map_or_else(|| Ok(self.pooled.clone()), Fragments::mean_pooled)
    }
}

/// A batch in the joint space of every member of a [`DualEncoder`](crate::DualEncoder): one, but for an ensemble.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// In the order of the members; never empty.
    pub members: Vec<Embedded>,
}

impl Encoded {
    /// Unit vectors `[B, D]`, `[B, nD]` for an ensemble of n: their dot product is the mean of the members' cosines.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn pooled(&self) -> Result<Tensor, EncoderError> {
        let vectors: Vec<&Tensor> = self.members.iter().map(|member| &member.pooled).collect();
        match vectors.as_slice() {
            [only] => Ok((*only).clone()),
            _ => Ok((Tensor::cat(&vectors, 1)? / (vectors.len() as f64).sqrt())?),
        }
    }

    /// What a domain critic sees of all members side by side: [`Embedded::mean`].
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn mean(&self) -> Result<Tensor, EncoderError> {
        let means = self.members.iter().map(Embedded::mean).collect::<Result<Vec<_>, _>>()?;
        match means.as_slice() {
            [only] => Ok(only.clone()),
            _ => Ok(Tensor::cat(&means, 1)?),
        }
    }

    /// The given rows, such as a re-ranker's candidates.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle, such as for a row that isn't there.
    pub fn select(&self, rows: &Tensor) -> Result<Self, EncoderError> {
        let of = |tensor: &Tensor| tensor.index_select(&rows.to_device(tensor.device())?, 0);
        let members = self
            .members
            .iter()
            .map(|member| {
                let fragments = member
                    .fragments
                    .as_ref()
                    .map(|fragments| Fragments::new(of(fragments.features())?, of(fragments.mask())?));
                Ok(Embedded { fragments: fragments.transpose()?, pooled: of(&member.pooled)? })
            })
            .collect::<Result<Vec<_>, EncoderError>>()?;
        Ok(Self { members })
    }

    /// The same values without their graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        let detach = |member: &Embedded| Embedded {
            fragments: member.fragments.as_ref().map(Fragments::detach),
            pooled: member.pooled.detach(),
        };
        Self { members: self.members.iter().map(detach).collect() }
    }
}
