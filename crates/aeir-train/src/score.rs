//! Scoring with a cross-attentive head: all pairs, or the candidates that the cosine found.

use aeir_encoders::{DualEncoder, Embedded, Encoded, EncoderError, Fragments, Mode, ShardSize};
use aeir_retrieve::{Matrix, Query, Reranker};
use candle_core::{Device, Tensor};

use crate::error::{Result, TrainError};

/// Scores of all images against all sentences by the model's head, the mean over the members of an ensemble.
///
/// Rows are scored in shards that bound memory; `progress` hears of pairs done and of all.
///
/// # Errors
/// When the model has no cross-attentive head, or an operation fails.
pub fn full_scores(
    encoder: &DualEncoder,
    images: &Encoded,
    sentences: &Encoded,
    mut progress: impl FnMut(usize, usize),
) -> Result<Matrix> {
    let heads: Vec<_> = encoder.heads().collect();
    let mut sum: Vec<f32> = Vec::new();
    let (mut rows, mut columns) = (0, 0);
    for (turn, (member, head)) in heads.iter().enumerate() {
        let regions = member_fragments(images, *member)?;
        let words = member_fragments(sentences, *member)?;
        (rows, columns) = (regions.mask().dim(0)?, words.mask().dim(0)?);
        let all = rows * columns * heads.len();
        let scores = head.scores_in_shards(regions, words, ShardSize::default(), |done, of_member| {
            progress(turn * of_member + done, all);
        })?;
        if sum.is_empty() {
            sum = scores;
        } else {
            sum.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
        }
    }
    if heads.is_empty() {
        return Err(no_head());
    }
    let share = 1.0 / heads.len() as f32;
    sum.iter_mut().for_each(|score| *score *= share);
    Ok(Matrix::new(sum, rows, columns)?)
}

fn member_fragments(encoded: &Encoded, member: usize) -> Result<&Fragments> {
    encoded.members.get(member).and_then(|it| it.fragments.as_ref()).ok_or_else(no_head)
}

fn no_head() -> TrainError {
    TrainError::Data {
        what: "scoring in full".into(),
        expected: "a model with a cross-attentive head".into(),
        got: "one that compares by cosine".into(),
    }
}

/// The second stage of an evaluation: the head scores the candidates of each query.
pub struct HeadReranker<'a> {
    encoder: &'a DualEncoder,
    images: &'a Encoded,
    sentences: &'a Encoded,
    progress: Box<dyn FnMut() + 'a>,
}

impl<'a> HeadReranker<'a> {
    /// Re-ranks among these images and sentences; `progress` is called once a query.
    pub fn new(
        encoder: &'a DualEncoder,
        images: &'a Encoded,
        sentences: &'a Encoded,
        progress: impl FnMut() + 'a,
    ) -> Self {
        Self { encoder, images, sentences, progress: Box::new(progress) }
    }
}

impl Reranker for HeadReranker<'_> {
    type Error = EncoderError;

    fn scores(&mut self, query: Query, candidates: &[usize]) -> std::result::Result<Vec<f32>, EncoderError> {
        (self.progress)();
        let rows = |rows: &[usize]| {
            Tensor::new(rows.iter().map(|row| *row as u32).collect::<Vec<_>>(), &Device::Cpu)
        };
        let (images, sentences) = match query {
            Query::Image(image) => {
                (self.images.select(&rows(&[image])?)?, self.sentences.select(&rows(candidates)?)?)
            }
            Query::Sentence(sentence) => {
                (self.images.select(&rows(candidates)?)?, self.sentences.select(&rows(&[sentence])?)?)
            }
        };
        let scores = self.encoder.scores(&images, &sentences, &mut Mode::Evaluation)?;
        Ok(scores.flatten_all()?.to_vec1::<f32>()?)
    }
}

/// Several encoded batches as one, fragments padded to the longest.
///
/// # Errors
/// When an operation fails, or there is none.
pub(crate) fn joined(blocks: &[Encoded]) -> Result<Encoded> {
    let members = blocks.first().map_or(0, |block| block.members.len());
    let members = (0..members)
        .map(|member| {
            let of: Vec<&Embedded> = blocks.iter().filter_map(|block| block.members.get(member)).collect();
            let pooled: Vec<&Tensor> = of.iter().map(|it| &it.pooled).collect();
            let fragments: Vec<&Fragments> = of.iter().filter_map(|it| it.fragments.as_ref()).collect();
            let fragments = if fragments.is_empty() { None } else { Some(joined_fragments(&fragments)?) };
            Ok(Embedded { fragments, pooled: Tensor::cat(&pooled, 0)? })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Encoded { members })
}

fn joined_fragments(blocks: &[&Fragments]) -> Result<Fragments> {
    let longest = blocks.iter().filter_map(|block| block.mask().dims().last()).max().copied().unwrap_or(1);
    let (mut features, mut masks) = (Vec::new(), Vec::new());
    for block in blocks {
        let missing = longest - block.mask().dim(1)?;
        features.push(block.features().pad_with_zeros(1, 0, missing)?);
        masks.push(block.mask().pad_with_zeros(1, 0, missing)?);
    }
    Ok(Fragments::new(Tensor::cat(&features, 0)?, Tensor::cat(&masks, 0)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MethodName, TrainConfig};
    use crate::data::tests::toy_fragments;
    use crate::method;
    use crate::parameters::ParameterStore;
    use aeir_encoders::Head;

    #[test]
    fn progress_runs_over_the_pairs_of_all_members_to_the_end() {
        let mut config = TrainConfig { method: MethodName::SourceOnly, ..TrainConfig::default() };
        config.model.embedding_dimension = 8;
        config.model.head = Some(Head::Sgraf);
        let config = config.resolved().unwrap();
        let data = toy_fragments(6, 4, 5).prepare(&config, &Device::Cpu).unwrap();
        let store = ParameterStore::new(1, &Device::Cpu);
        let method = method::build(&config, data.inputs(Head::Sgraf).unwrap(), &store).unwrap();
        let mode = || Mode::Evaluation;
        let rows: Vec<usize> = (0..6).collect();
        let images =
            method.encoder().encode_images(&data.images.select(&rows).unwrap(), &mut mode()).unwrap();
        let sentences =
            method.encoder().encode_sentences(&data.sentences.select(&rows).unwrap(), &mut mode()).unwrap();
        let mut told = Vec::new();
        let scores =
            full_scores(method.encoder(), &images, &sentences, |done, total| told.push((done, total)))
                .unwrap();
        assert_eq!((scores.rows(), scores.columns()), (6, 6));
        // Two members, 36 pairs each.
        assert_eq!(told.last(), Some(&(72, 72)));
        assert!(told.contains(&(36, 72)), "{told:?}");
        assert!(told.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{told:?}");
    }
}
