//! Scores of all pairs in one operation with its own backward pass: the CPU, f32.
//!
//! candle's element-wise operations and reductions run on one thread and every one of them would pass over hundreds of
//! megabytes. Here the work is cut into blocks that stay in the cache, the matrix products of a block run on the thread that
//! has it, and the backward pass computes again what is large and cheap (attention, attended vectors), keeping only the
//! alignment vectors. All sums have an order that does not depend on the number of threads.

mod align;
mod attention;
pub(super) mod dense;
mod filter;
mod graph;
mod pairs;
pub(super) mod scan;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

use self::align::{Affine, AlignInput, AlignmentVectors, align, align_backward};
use self::filter::{FilterBackward, FilterInput, Filtered, filter, statistics};
use self::graph::{GraphBackward, GraphInput, Step, reason};
use self::pairs::Pairs;
use super::{AlignmentHead, Reasoning};
use crate::batch_norm::BatchStatistics;
use crate::error::Result as EncoderResult;
use crate::fragments::Fragments;
use crate::rehearsal::is_fused;

/// Whether the fused operation can take these.
pub(super) fn applies(images: &Fragments, sentences: &Fragments, head: &AlignmentHead) -> bool {
    let tensors = [images.features(), sentences.features(), &head.local.weight];
    is_fused(&tensors)
}

/// Logits of all pairs, `[M, N]`. Padded rows of the fragments hold zeros.
pub(super) fn logits(
    head: &AlignmentHead,
    (images, image_global): (&Fragments, &Tensor),
    (sentences, sentence_global): (&Fragments, &Tensor),
    training: bool,
) -> EncoderResult<Tensor> {
    let (_, regions, dimension) = images.features().dims3()?;
    let (_, length, _) = sentences.features().dims3()?;
    let similarity = head.local.bias.elem_count();
    let mask = |fragments: &Fragments| fragments.mask().flatten_all()?.to_vec1::<f32>();
    let pairs =
        Pairs::new(mask(images)?, &mask(sentences)?, (regions, length), (dimension, similarity), head.norm);
    let mut parts = vec![image_global, sentence_global];
    parts.extend([&head.local, &head.global].into_iter().flat_map(|layer| [&layer.weight, &layer.bias]));
    let (steps, running) = match &head.reasoning {
        Reasoning::Filter(filter) => {
            let norm = &filter.batch_norm;
            parts.extend([&filter.gate.weight, &filter.gate.bias, norm.weight(), norm.bias()]);
            (None, (!training).then(|| norm.running()).transpose()?)
        }
        Reasoning::Graph(graph) => {
            let layers = graph.steps.iter().flat_map(|step| [&step.query, &step.key, &step.output]);
            parts.extend(layers.flat_map(|layer| [&layer.weight, &layer.bias]));
            (Some(graph.steps.len()), None)
        }
    };
    parts.extend([&head.score.weight, &head.score.bias]);
    let mut end = 0;
    let ranges = parts
        .iter()
        .map(|part| {
            let start = end;
            end += part.elem_count();
            start..end
        })
        .collect();
    let flat = parts.iter().map(|part| part.flatten_all()).collect::<Result<Vec<_>>>()?;
    // An operation takes three tensors: the parameters go in as one.
    let parameters = Tensor::cat(&flat, 0)?;
    let (images, words) = (images.features().contiguous()?, sentences.features().contiguous()?);
    let keep = [&images, &words, &parameters].iter().any(|tensor| tensor.track_op());
    let batch_statistics = Arc::new(OnceLock::new());
    let operation = PairScores {
        pairs,
        ranges,
        steps,
        running,
        keep,
        kept: OnceLock::new(),
        statistics: batch_statistics.clone(),
    };
    let logits = images.apply_op3(&words, &parameters, operation)?;
    if let (Reasoning::Filter(filter), Some(statistics)) = (&head.reasoning, batch_statistics.get()) {
        filter.batch_norm.update(statistics)?;
    }
    Ok(logits)
}

/// The operation: image features `[N, R, D]`, word features `[M, L, D]` and all parameters to logits `[M, N]`.
struct PairScores {
    pairs: Pairs,
    /// Where each part of the parameters lies.
    ranges: Vec<Range<usize>>,
    /// Rounds of graph reasoning; none for the filter.
    steps: Option<usize>,
    /// Mean and variance for the filter, if not the batch's.
    running: Option<(f64, f64)>,
    /// Whether there may be a backward pass.
    keep: bool,
    kept: OnceLock<Kept>,
    statistics: Arc<OnceLock<BatchStatistics>>,
}

/// What the backward pass needs.
struct Kept {
    vectors: AlignmentVectors,
    filtered: Vec<Filtered>,
}

impl PairScores {
    fn part<'a>(&self, parameters: &'a [f32], index: usize) -> &'a [f32] {
        self.ranges.get(index).and_then(|range| parameters.get(range.clone())).unwrap_or_default()
    }

    fn affine<'a>(&self, parameters: &'a [f32], index: usize) -> Affine<'a> {
        Affine { weight: self.part(parameters, index), bias: self.part(parameters, index + 1) }
    }

    fn align_input<'a>(&self, images: &'a [f32], words: &'a [f32], parameters: &'a [f32]) -> AlignInput<'a> {
        AlignInput {
            images,
            words,
            image_global: self.part(parameters, 0),
            sentence_global: self.part(parameters, 1),
            local: self.affine(parameters, 2),
            global: self.affine(parameters, 4),
        }
    }

    fn filter_input<'a>(&self, parameters: &'a [f32]) -> FilterInput<'a> {
        let scalar = |index| self.part(parameters, index).first().copied().unwrap_or(0.0);
        FilterInput {
            gate: self.affine(parameters, 6),
            norm: (scalar(8), scalar(9)),
            running: self.running,
            score: self.affine(parameters, 10),
        }
    }

    fn graph_input<'a>(&self, parameters: &'a [f32], steps: usize) -> GraphInput<'a> {
        let step = |index: usize| Step {
            query: self.affine(parameters, 6 + 6 * index),
            key: self.affine(parameters, 8 + 6 * index),
            output: self.affine(parameters, 10 + 6 * index),
        };
        GraphInput { steps: (0..steps).map(step).collect(), score: self.affine(parameters, 6 + 6 * steps) }
    }

    /// Gradients of images, words and parameters from `upstream [M, N]`.
    fn gradients(
        &self,
        images: &[f32],
        padded_words: &[f32],
        parameters: &[f32],
        upstream: &[f32],
    ) -> Result<[Vec<f32>; 3]> {
        let Some(Kept { vectors, filtered }) = self.kept.get() else {
            bail!("pair scores: the forward pass kept nothing for a backward pass");
        };
        let words = self.pairs.pack(padded_words);
        let input = self.align_input(images, &words, parameters);
        let (aligned, mut reasoning) = match self.steps {
            None => {
                let backward = FilterBackward::new(
                    &self.pairs,
                    vectors,
                    &self.filter_input(parameters),
                    filtered,
                    upstream,
                );
                let total = backward.parameters();
                let (weight, shift) = total.norm;
                let parts = vec![
                    total.gate_weight,
                    vec![total.gate_bias],
                    vec![weight],
                    vec![shift],
                    total.score_weight,
                    vec![total.score_bias],
                ];
                (align_backward(&self.pairs, &input, vectors, &backward), parts)
            }
            Some(steps) => {
                let graph = self.graph_input(parameters, steps);
                let backward = GraphBackward::new(&self.pairs, vectors, &graph, upstream);
                let aligned = align_backward(&self.pairs, &input, vectors, &backward);
                let total = backward.parameters;
                let layers = total.steps.into_iter().flat_map(|step| [step.query, step.key, step.output]);
                let layers = layers.chain([total.score]).flat_map(|layer| [layer.weight, layer.bias]);
                (aligned, layers.collect())
            }
        };
        let mut parts = vec![
            aligned.image_global,
            aligned.sentence_global,
            aligned.local_weight,
            aligned.local_bias,
            aligned.global_weight,
            aligned.global_bias,
        ];
        parts.append(&mut reasoning);
        let rows = padded_words.len() / self.pairs.dimension.max(1);
        Ok([aligned.images, self.pairs.unpack(&aligned.words, rows), parts.concat()])
    }
}

impl CustomOp3 for PairScores {
    fn name(&self) -> &'static str {
        "pair-scores"
    }

    fn cpu_fwd(
        &self,
        images: &CpuStorage,
        images_layout: &Layout,
        words: &CpuStorage,
        words_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let images = values(images, images_layout)?;
        let words = self.pairs.pack(values(words, words_layout)?);
        let parameters = values(parameters, parameters_layout)?;
        let sentences = self.pairs.sentences().len();
        let vectors = align(&self.pairs, &self.align_input(images, &words, parameters), sentences);
        let (logits, filtered) = match self.steps {
            None => {
                let filtered = filter(&self.pairs, &vectors, &self.filter_input(parameters));
                if self.running.is_none() {
                    // The cell is new: this runs once.
                    let _ = self.statistics.set(statistics(&self.pairs, &filtered));
                }
                (filtered.iter().flat_map(|sentence| sentence.logits.iter().copied()).collect(), filtered)
            }
            Some(steps) => (reason(&self.pairs, &vectors, &self.graph_input(parameters, steps)), Vec::new()),
        };
        if self.keep {
            let _ = self.kept.set(Kept { vectors, filtered });
        }
        Ok((CpuStorage::F32(logits), Shape::from((sentences, self.pairs.images))))
    }

    fn bwd(
        &self,
        images: &Tensor,
        words: &Tensor,
        parameters: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let guards = [images, words, parameters, &gradient].map(Tensor::storage_and_layout);
        let slices = guards
            .iter()
            .map(|(storage, layout)| match &**storage {
                Storage::Cpu(storage) => values(storage, layout),
                _ => bail!("pair scores: not on the CPU"),
            })
            .collect::<Result<Vec<_>>>()?;
        let &[image_values, word_values, parameter_values, upstream] = slices.as_slice() else {
            bail!("pair scores: four tensors");
        };
        let [image_gradient, word_gradient, parameter_gradient] =
            self.gradients(image_values, word_values, parameter_values, upstream)?;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((
            Some(tensor(image_gradient, images)?),
            Some(tensor(word_gradient, words)?),
            Some(tensor(parameter_gradient, parameters)?),
        ))
    }
}

/// The numbers of a contiguous f32 tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        bail!("pair scores: expected contiguous f32");
    };
    match values.get(start..end) {
        Some(values) => Ok(values),
        None => bail!("pair scores: layout outside of the storage"),
    }
}
