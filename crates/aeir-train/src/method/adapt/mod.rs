//! Adapting to a target without a single target label, step by step.

mod noise;
mod pool;
mod regression;
mod remember;
mod soft;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aeir_data::ShuffledSampler;
use aeir_encoders::rehearsal::Product;
use aeir_encoders::{DualEncoder, Encoded, EncoderError, Items, Mode, calibrated_softmax, frozen_features};
use aeir_losses::{StructureTransferLoss, dann_schedule, pooled_similarity};
use aeir_retrieve::{Matrix, similarity};
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use self::noise::probably_right;
use self::pool::NearestOf;
use self::remember::Memory;
use self::soft::{cross_entropy, soft_info_nce};
use super::alignment::{Aligned, SourceAlignment};
use super::critics::{Critics, Sides, confusion_loss, critic_loss};
use super::{
    Adaptation, Batch, Embeddings, Group, Method, Moment, PhaseOutcome, TargetEmbeddings, TargetRows, embed,
    no_target,
};
use crate::config::{AdaptConfig, TrainConfig};
use crate::data::{PreparedData, PreparedTarget};
use crate::error::Result;
use crate::figure::Figure;
use crate::items::PreparedItems;
use crate::mining::{Match, Matches, MiningOptions, match_sets};
use crate::parameters::ParameterStore;
use crate::validate::{embed_prepared, unit_columns};

/// Prefix of the teacher's parameters.
pub(super) const TEACHER: &str = "teacher";
/// Name of a checkpoint's tensor that counts the epochs of adaptation.
const EPOCHS: &str = "epochs";
/// Streams of random numbers: the pool of a round, the order of the matches, the partners.
const POOL_STREAM: u64 = 0x0ad0_0000;
const ORDER_STREAM: u64 = 0x0ad2;
const PARTNER_STREAM: u64 = 0x0ad3_0000_0000;
/// Of a batch, over how many others an item's neighbourhood is spread.
const NEIGHBOURHOOD: f64 = 8.0;

/// The recipe: each step can be left out by its setting.
///
/// 1. Each domain is standardised with its own statistics (`adapt.standardise`).
/// 2. The source pairs are remembered: what the frozen backbones know of likeness describes target images and target
///    sentences by the source pairs they are near to ([`aeir_encoders::PairMemory`]; `adapt.memory_pairs`).
/// 3. The first `adapt.source_share` of the epochs is source alignment. From then on, every `adapt.mine_every` epochs the
///    two target sets are matched by the scores of the model as it stands ([`match_sets`]), or of a slowly following teacher
///    (`adapt.teacher_decay`). The surest are kept, a share that grows from `keep_first` to `keep_last`; what the towers
///    can't fit is weighed down as noise (`reject_noise`).
/// 4. The towers learn the matches beside the source pairs: `alignment + pair_weight soft-InfoNCE`.
/// 5. Of each epoch's weights and those that the adaptation began with a mixture can become the model (`adapt.interpolate`).
/// 6. Options, off by default: `geometry_weight` keeps the neighbourhoods that target items have in the backbones' spaces,
///    `semantic_weight` and `structure_weight` are the paper's two transfer terms, on pooled vectors.
///
/// Equation of the geometry term, for each modality of a target batch: `KL(p_i || q_i)` averaged over i, `p_i` the softmax of the frozen
/// features' cosines spread over 8 others, `q_i` that of the scaled cosines of the embeddings, an item itself left out of both.
///
/// Without a memory (words have no frozen features; other heads than the cosine) the rest of the recipe works as it is. Without source
/// pairs, with towers that start as a pre-trained dual encoder, there is no memory, no alignment and no phase of its own for them.
///
/// Mined matches and the count of epochs are saved with a checkpoint; partners are drawn from seed and batch number.
pub struct Adapt {
    encoder: DualEncoder,
    teacher: Option<DualEncoder>,
    alignment: SourceAlignment,
    critics: Option<Critics>,
    structure: StructureTransferLoss,
    adaptation: Adaptation,
    has_source: bool,
    config: AdaptConfig,
    seed: u64,
    store: ParameterStore,
    state: Mutex<State>,
}

/// What changes as the training goes on.
#[derive(Default)]
struct State {
    /// Epochs of adaptation begun.
    epochs: usize,
    matches: Matches,
}

impl Adapt {
    /// Trains `encoder` with `config` on so many source pairs, which may be none; a `teacher` follows it where there is one. Critics
    /// are in `store`.
    ///
    /// # Errors
    /// When the critics can't be made.
    pub fn new(
        encoder: DualEncoder,
        teacher: Option<DualEncoder>,
        config: &TrainConfig,
        pairs: usize,
        store: &ParameterStore,
    ) -> Result<Self> {
        let dimension = encoder.config().trained_dimension();
        // Without a source there are no domains to tell apart.
        let adversarial = config.adapt.semantic_weight > 0.0 && pairs > 0;
        let critics = adversarial.then(|| Critics::new([dimension; 2], store)).transpose()?;
        Ok(Self {
            encoder,
            teacher,
            alignment: SourceAlignment::new(config),
            critics,
            structure: StructureTransferLoss {
                neighbours: config.aeir.neighbours,
                temperature: config.aeir.structure_temperature,
                ..StructureTransferLoss::default()
            },
            adaptation: Adaptation::from_share(
                if pairs > 0 { config.adapt.source_share } else { 0.0 },
                config.epochs,
            ),
            has_source: pairs > 0,
            config: config.adapt.clone(),
            seed: config.seed,
            store: store.clone(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> Option<Memory<'_>> {
        let config = self.encoder.config().memory?;
        let (seed, ridge) = (self.seed, self.config.ridge);
        Some(Memory { encoder: &self.encoder, store: &self.store, config, seed, ridge })
    }

    /// Which model the matches are mined with.
    fn miner(&self) -> &DualEncoder {
        self.teacher.as_ref().unwrap_or(&self.encoder)
    }

    /// Embeds the unpaired sets with the miner, or a part of them if they are large: rows and vectors of each. One set's part is
    /// drawn, the other's is what is near to it; rounds take turns in which.
    fn pools(&self, target: &PreparedTarget, round: u64) -> Result<[(Vec<usize>, Matrix); 2]> {
        let miner = self.miner();
        let images = |items: &Items| miner.encode_images(items, &mut Mode::Evaluation);
        let sentences = |items: &Items| miner.encode_sentences(items, &mut Mode::Evaluation);
        let stream = POOL_STREAM + round;
        if round.is_multiple_of(2) {
            let images = (&target.images, self.drawn(target.images.len(), stream), images);
            self.pools_around(images, (&target.sentences, sentences))
        } else {
            let sentences = (&target.sentences, self.drawn(target.sentences.len(), stream), sentences);
            let [sentences, images] = self.pools_around(sentences, (&target.images, images))?;
            Ok([images, sentences])
        }
    }

    /// As many rows as a pool has, or all.
    fn drawn(&self, count: usize, stream: u64) -> Vec<usize> {
        let mut rows = ShuffledSampler::new(count, self.seed, stream).epoch_order(0);
        rows.truncate(self.config.pool);
        rows.sort_unstable();
        rows
    }

    /// The drawn items and what is near to them in the other set.
    fn pools_around<A, B>(
        &self,
        (own, rows, encode): (&PreparedItems, Vec<usize>, A),
        (other, encode_other): (&PreparedItems, B),
    ) -> Result<[(Vec<usize>, Matrix); 2]>
    where
        A: FnMut(&Items) -> std::result::Result<Encoded, EncoderError>,
        B: Fn(&Items) -> std::result::Result<Encoded, EncoderError>,
    {
        let vectors = embed_prepared(&own.view(rows.clone()), encode)?;
        let near = if other.len() <= self.config.pool {
            (0..other.len()).collect()
        } else {
            let mut nearest = NearestOf::new(&vectors, self.config.pool);
            let all: Vec<usize> = (0..other.len()).collect();
            for block in all.chunks(self.config.pool) {
                nearest.block(&embed_prepared(&other.view(block.to_vec()), &encode_other)?)?;
            }
            nearest.rows()
        };
        let of_near = embed_prepared(&other.view(near.clone()), &encode_other)?;
        Ok([(rows, vectors), (near, of_near)])
    }

    /// Matches the unpaired sets; `progress` runs from 0 to 1 over the adaptation.
    fn mine(&self, target: &PreparedTarget, round: u64, progress: f64) -> Result<Matches> {
        let [(image_rows, images), (sentence_rows, sentences)] = self.pools(target, round)?;
        let AdaptConfig { matching, epsilon, dustbin, keep_first, keep_last, .. } = &self.config;
        let options = MiningOptions { matching: *matching, epsilon: *epsilon, dustbin: *dustbin };
        let found = match_sets(&similarity(&images, &sentences)?, &options)?;
        let mut found = found.surest(keep_first + (keep_last - keep_first) * progress);
        if self.config.reject_noise {
            let losses = self.losses(&found, &images, &sentences)?;
            found.weigh(&probably_right(&losses));
        }
        Ok(found.renumbered(&image_rows, &sentence_rows))
    }

    /// The loss of each match under the towers alone, which have learned from the earlier rounds: `-sum_j m_j ln softmax_j(s cos)`.
    fn losses(&self, matches: &Matches, images: &Matrix, sentences: &Matrix) -> Result<Vec<f64>> {
        let dimension = self.encoder.config().trained_dimension();
        let scores =
            similarity(&unit_columns(images, 0..dimension)?, &unit_columns(sentences, 0..dimension)?)?;
        let scale = Figure::of(&self.encoder.log_scale().exp()?)?.value()?;
        let loss = |found: &Match| {
            let row = scores.row(found.image).unwrap_or_default();
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let shifted = |score: f32| scale * f64::from(score - largest);
            let total = row.iter().map(|score| shifted(*score).exp()).sum::<f64>().ln();
            let of = |(sentence, mass): &(usize, f32)| {
                f64::from(*mass) * (total - shifted(row.get(*sentence).copied().unwrap_or(largest)))
            };
            found.partners.iter().map(of).sum()
        };
        Ok(matches.rows().iter().map(loss).collect())
    }

    /// The loss on a batch of matches that [`Method::target_rows`] drew.
    fn pair_loss(&self, target: &TargetEmbeddings) -> Result<Option<Tensor>> {
        let Some(rows) = &target.rows else { return Ok(None) };
        let (images, sentences) = (target.images.pooled()?, target.sentences.pooled()?);
        let scores = images.product(&sentences.t()?)?.broadcast_mul(&self.encoder.log_scale().exp()?)?;
        let (targets, weights) = targets(&self.state().matches, rows, scores.device())?;
        Ok(Some(soft_info_nce(&scores, &targets, &weights)?))
    }

    /// The geometry term of both modalities.
    fn geometry_loss(&self, target: &TargetEmbeddings) -> Result<Option<Tensor>> {
        let Some([images, sentences]) = &target.frozen else { return Ok(None) };
        let scale = self.encoder.log_scale().detach().exp()?;
        let images = neighbourhood_loss(images, &target.images.pooled()?, &scale)?;
        let sentences = neighbourhood_loss(sentences, &target.sentences.pooled()?, &scale)?;
        Ok(Some((images + sentences)?))
    }

    /// The paper's structure transfer on pooled vectors.
    fn structure_loss(&self, embeddings: &Embeddings, target: &TargetEmbeddings) -> Result<Tensor> {
        let (source_images, source_sentences) =
            (embeddings.source_images.pooled()?, embeddings.source_sentences.pooled()?);
        let one = |target: &Tensor, own: &Tensor, partners: &Tensor| {
            let (own, cross) = (pooled_similarity(target, own)?, pooled_similarity(target, partners)?);
            Ok::<_, crate::TrainError>(self.structure.forward(&own, &cross)?)
        };
        let images = one(&target.images.pooled()?, &source_images, &source_sentences)?;
        let sentences = one(&target.sentences.pooled()?, &source_sentences, &source_images)?;
        Ok((images + sentences)?)
    }

    fn sides(embeddings: &Embeddings, target: &TargetEmbeddings) -> Result<[Sides; 2]> {
        Ok([
            Sides {
                source: embeddings.of_source(embeddings.source_images.mean()?)?,
                target: target.images.mean()?,
            },
            Sides {
                source: embeddings.of_source(embeddings.source_sentences.mean()?)?,
                target: target.sentences.mean()?,
            },
        ])
    }

    /// The loss on the source pairs; nothing where there is none.
    fn aligned(&self, embeddings: &Embeddings, moment: Moment, mode: &mut Mode<'_>) -> Result<Aligned> {
        if self.has_source {
            return self.alignment.loss(&self.encoder, embeddings, moment, mode);
        }
        Ok(Aligned { loss: self.encoder.log_scale().zeros_like()?, logged: Vec::new() })
    }

    fn encoder_phase(
        &self,
        alignment: Aligned,
        embeddings: &Embeddings,
        target: &TargetEmbeddings,
        progress: f64,
    ) -> Result<PhaseOutcome> {
        let Aligned { loss: mut total, mut logged } = alignment;
        let mut add = |name: &'static str, loss: Option<Tensor>, weight: f64| {
            if let Some(loss) = loss {
                logged.push((name, Figure::of(&loss)?));
                total = (&total + (loss * weight)?)?;
            }
            Ok::<_, crate::TrainError>(())
        };
        let AdaptConfig { pair_weight, geometry_weight, structure_weight, semantic_weight, .. } =
            &self.config;
        let (pair_weight, geometry_weight) = (*pair_weight, *geometry_weight);
        let (structure_weight, semantic_weight) = (*structure_weight, *semantic_weight);
        if pair_weight > 0.0 {
            add("pair_loss", self.pair_loss(target)?, pair_weight)?;
        }
        if geometry_weight > 0.0 {
            add("geometry_loss", self.geometry_loss(target)?, geometry_weight)?;
        }
        if structure_weight > 0.0 && self.has_source {
            add("structure_loss", Some(self.structure_loss(embeddings, target)?), structure_weight)?;
        }
        if let Some(critics) = &self.critics {
            let confusion = confusion_loss(&critics.logits(&Self::sides(embeddings, target)?)?)?;
            add("confusion_loss", Some(confusion), semantic_weight * dann_schedule(progress))?;
        }
        Ok(PhaseOutcome::encoder(total, logged))
    }
}

impl Method for Adapt {
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, moment: Moment) -> bool {
        self.adaptation.progress(moment).is_some()
    }

    fn phases(&self, moment: Moment) -> usize {
        if self.uses_target(moment) && self.critics.is_some() { 2 } else { 1 }
    }

    fn before_epoch(&self, moment: Moment, data: &PreparedData) -> Result<Vec<(&'static str, f64)>> {
        let target = data.target.as_ref().ok_or_else(no_target)?;
        if moment.step == 0
            && let Some(memory) = self.memory()
        {
            memory.learn(data, target)?;
            if self.teacher.is_some() {
                self.store.copy("encoder.memory_", &format!("{TEACHER}.memory_"))?;
            }
        }
        let Some(progress) = self.adaptation.progress(moment) else { return Ok(Vec::new()) };
        let mut state = self.state();
        let round = state.epochs / self.config.mine_every;
        let mines = state.epochs.is_multiple_of(self.config.mine_every);
        state.epochs += 1;
        if mines {
            if let Some(memory) = self.memory() {
                memory.balance(
                    self.miner(),
                    if self.teacher.is_some() { TEACHER } else { "encoder" },
                    target,
                )?;
            }
            state.matches = self.mine(target, round as u64, progress)?;
        }
        let count = state.matches.len();
        let confidence: f64 = state.matches.rows().iter().map(|row| f64::from(row.confidence)).sum();
        let weight: f64 = state.matches.rows().iter().map(|row| f64::from(row.weight)).sum();
        let mean = |sum: f64| sum / count.max(1) as f64;
        Ok(vec![
            ("matched_images", count as f64),
            ("match_confidence", mean(confidence)),
            ("match_weight", mean(weight)),
        ])
    }

    fn target_rows(&self, batch: u64, size: usize) -> Option<TargetRows> {
        let state = self.state();
        let matches = state.matches.rows();
        if matches.len() < 2 {
            // One match has no negatives; the samplers' batches serve the other terms.
            return None;
        }
        let order = ShuffledSampler::new(matches.len(), self.seed, ORDER_STREAM);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(PARTNER_STREAM + batch);
        let drawn = order.batch(batch, size);
        let pairs = drawn.iter().filter_map(|place| {
            let found = matches.get(*place)?;
            Some((found.image, draw(&found.partners, &mut random)?))
        });
        let (images, sentences) = pairs.unzip();
        Some(TargetRows { images, sentences })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let state = Adapt::state(self);
        let mut tensors = state.matches.tensors()?;
        tensors.insert(EPOCHS.to_owned(), Tensor::new(&[state.epochs as u32], &Device::Cpu)?);
        Ok(tensors)
    }

    fn restore(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let matches = Matches::from_tensors(tensors)?;
        let epochs = match tensors.get(EPOCHS) {
            Some(epochs) => epochs.to_vec1::<u32>()?.first().copied().unwrap_or(0),
            None => 0,
        };
        *Adapt::state(self) = State { epochs: epochs as usize, matches };
        Ok(())
    }

    fn before_step(&self, moment: Moment) -> Result<()> {
        if self.teacher.is_none() {
            return Ok(());
        }
        // The same average as that of the trainer: the first weights, drawn at random, are soon forgotten.
        let done = moment.step as f64;
        let keeps = self.config.teacher_decay.min(done / (9.0 + done));
        self.store.blend(Group::Encoder.prefix(), &format!("{TEACHER}."), keeps)
    }

    fn after_epoch(&self, data: &PreparedData) -> Result<()> {
        match (self.memory(), &data.target) {
            (Some(memory), Some(target)) => memory.balance(&self.encoder, "encoder", target),
            _ => Ok(()),
        }
    }

    fn embed(&self, batch: &Batch, moment: Moment, mode: &mut Mode<'_>) -> Result<Embeddings> {
        let mut embeddings = embed(&self.encoder, batch, self.uses_target(moment), mode)?;
        if let (Some(target), Some(items)) = (&mut embeddings.target, &batch.target)
            && self.config.geometry_weight > 0.0
        {
            target.frozen = Some([frozen_features(&items.images)?, frozen_features(&items.sentences)?]);
        }
        Ok(embeddings)
    }

    fn phase(
        &self,
        index: usize,
        embeddings: &Embeddings,
        moment: Moment,
        mode: &mut Mode<'_>,
    ) -> Result<PhaseOutcome> {
        let progress = self.adaptation.progress(moment);
        let (Some(progress), Some(target)) = (progress, &embeddings.target) else {
            let Aligned { loss, logged } = self.aligned(embeddings, moment, mode)?;
            return Ok(PhaseOutcome::encoder(loss, logged));
        };
        if let Some(critics) = self.critics.as_ref().filter(|_| index == 0) {
            let [images, sentences] = Self::sides(embeddings, target)?;
            let (loss, logged) = critic_loss(&critics.logits(&[images.detach(), sentences.detach()])?)?;
            return Ok(PhaseOutcome::critic(loss, logged));
        }
        let alignment = self.aligned(embeddings, moment, mode)?;
        self.encoder_phase(alignment, embeddings, target, progress)
    }
}

/// One partner, drawn by mass.
fn draw(partners: &[(usize, f32)], random: &mut ChaCha8Rng) -> Option<usize> {
    let mut left = (f64::from(random.next_u32()) + 0.5) / (f64::from(u32::MAX) + 1.0);
    for (sentence, mass) in partners {
        left -= f64::from(*mass);
        if left <= 0.0 {
            return Some(*sentence);
        }
    }
    partners.last().map(|(sentence, _)| *sentence)
}

/// How much of each image's mass the sentences of a batch have, `[B, B]`, and what each image weighs, `[B]`.
fn targets(matches: &Matches, rows: &TargetRows, device: &Device) -> Result<(Tensor, Tensor)> {
    let by_image: BTreeMap<usize, &Match> = matches.rows().iter().map(|row| (row.image, row)).collect();
    let size = rows.images.len();
    let (mut masses, mut weights) = (Vec::with_capacity(size * size), Vec::with_capacity(size));
    for image in &rows.images {
        let found = by_image.get(image);
        let partners: BTreeMap<usize, f32> =
            found.map(|row| row.partners.iter().copied().collect()).unwrap_or_default();
        masses.extend(rows.sentences.iter().map(|sentence| partners.get(sentence).copied().unwrap_or(0.0)));
        weights.push(found.map_or(0.0, |row| row.weight));
    }
    Ok((
        Tensor::from_vec(masses, (size, rows.sentences.len()), device)?,
        Tensor::from_vec(weights, size, device)?,
    ))
}

/// `KL(p || q)` of an item's neighbourhood in the backbone's space and in the joint one.
fn neighbourhood_loss(frozen: &Tensor, embeddings: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let size = frozen.dim(0)?;
    // Far below any cosine: an item is not its own neighbour.
    let itself = (Tensor::eye(size, frozen.dtype(), frozen.device())? * -1e4)?;
    let frozen = (frozen.product(&frozen.t()?)? + &itself)?.detach();
    let reference = calibrated_softmax(&frozen, NEIGHBOURHOOD.min(size as f64 / 2.0))?;
    let own = (embeddings.product(&embeddings.t()?)?.broadcast_mul(scale)? + itself)?;
    // The entropy of the reference is a constant that the cross-entropy lacks.
    let entropy = cross_entropy(&(&reference + 1e-12)?.log()?, &reference)?;
    Ok((cross_entropy(&own, &reference)? - entropy)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::TrainingData;
    use crate::config::{MethodName, Selection};
    use crate::data::tests::{toy, toy_fragments};
    use crate::mining::Matching;
    use crate::observer::{Observer, Silent};
    use crate::run::{Existing, METRICS_FILE, Opened, RunFolder};
    use crate::trainer::{Trained, train};

    fn small() -> TrainConfig {
        let mut config = TrainConfig {
            method: MethodName::Adapt,
            epochs: 8,
            batch_size: 16,
            target_batch_size: 8,
            checkpoint_every: 1,
            selection: Some(Selection::Last),
            ..TrainConfig::default()
        };
        config.model.embedding_dimension = 6;
        config.optimizer.learning_rate = 1e-2;
        config.adapt.mine_every = 2;
        config.adapt.memory_code = 16;
        config.adapt.perplexity = 4.0;
        config
    }

    /// All that can be switched on.
    fn whole() -> TrainConfig {
        let mut config = small();
        config.adapt.keep_first = 0.5;
        config.adapt.dustbin = 0.1;
        config.adapt.reject_noise = true;
        config.adapt.teacher_decay = 0.9;
        config.adapt.geometry_weight = 0.5;
        config.adapt.semantic_weight = 0.1;
        config.adapt.structure_weight = 0.01;
        config.adapt.pool = 12;
        config.adapt.interpolate = vec![0.3];
        config
    }

    fn trained(config: &TrainConfig, data: &TrainingData) -> Trained {
        train(config, data, None, &Device::Cpu, &mut Silent).unwrap()
    }

    #[test]
    fn every_step_can_be_left_out() {
        let data = toy(40, 17, 23);
        let logs = |config: &TrainConfig| trained(config, &data).history.last().unwrap().means.clone();
        let with = logs(&whole());
        let terms = ["pair_loss", "geometry_loss", "structure_loss", "confusion_loss"];
        assert!(terms.iter().all(|name| with.contains_key(*name)), "{with:?}");
        assert!(with["match_weight"] < 1.0, "noise is rejected: {with:?}");
        let without = logs(&small());
        assert!(without.contains_key("pair_loss"));
        assert!(terms[1..].iter().all(|name| !without.contains_key(*name)), "{without:?}");
        assert_eq!((without["match_weight"], without["matched_images"]), (1.0, 17.0));
        let mut config = small();
        config.adapt.pair_weight = 0.0;
        assert!(!logs(&config).contains_key("pair_loss"));
        config.adapt.matching = Matching::Mutual;
        assert!(logs(&config)["matched_images"] <= 17.0);
    }

    #[test]
    fn a_share_of_the_matches_that_grows_is_kept() {
        let mut config = small();
        config.adapt.keep_first = 0.2;
        let history = trained(&config, &toy(40, 17, 23)).history;
        let kept: Vec<f64> =
            history.iter().filter_map(|record| record.means.get("matched_images").copied()).collect();
        assert_eq!(kept.len(), 6, "two of eight epochs are source alignment alone");
        assert!(kept.windows(2).all(|pair| pair[0] <= pair[1]) && kept[0] < kept[5], "{kept:?}");
    }

    #[test]
    fn the_memory_is_in_the_model_and_words_or_other_heads_do_without() {
        let model = trained(&small(), &toy(40, 17, 23));
        let memory = model.encoder.memory.unwrap();
        // Six directions of sentences, and of images as many.
        assert_eq!((memory.pairs, model.encoder.pooled_dimension()), (40, 6 + 16 + 2 * 6));
        let weights = model.parameters["memory_weights"].to_vec1::<f32>().unwrap();
        assert!((weights.iter().map(|weight| weight * weight).sum::<f32>() - 1.0).abs() < 1e-5);
        let anchors =
            model.parameters["memory_image"].sqr().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
        assert!(anchors.iter().all(|norm| (norm - 1.0).abs() < 1e-4), "unit vectors: {anchors:?}");

        assert!(trained(&small(), &toy_fragments(40, 17, 23)).encoder.memory.is_some());
        let mut config = small();
        config.model.head = Some(aeir_encoders::Head::ScanT2i);
        assert!(trained(&config, &toy_fragments(40, 17, 23)).encoder.memory.is_none());
        let mut config = small();
        config.adapt.memory_pairs = 0;
        assert!(trained(&config, &toy(40, 17, 23)).encoder.memory.is_none());
        config.adapt.memory_pairs = 7;
        assert_eq!(trained(&config, &toy(40, 17, 23)).encoder.memory.unwrap().pairs, 7);
    }

    #[test]
    fn weights_from_before_the_adaptation_are_mixed_in_as_the_selection_likes() {
        let data = toy(40, 17, 23);
        let mut config = small();
        let adapted = trained(&config, &data);
        config.adapt.interpolate = vec![0.0];
        assert_eq!(trained(&config, &data).history, adapted.history, "0 leaves it out");
        config.adapt.interpolate = vec![0.5];
        let half = trained(&config, &data);
        config.adapt.interpolate = vec![1.0];
        let before = trained(&config, &data);
        let flat = |model: &Trained| {
            let weight = &model.parameters["image.projection.weight"];
            weight.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for ((adapted, half), before) in flat(&adapted).iter().zip(flat(&half)).zip(flat(&before)) {
            assert!((half - 0.5 * (adapted + before)).abs() < 1e-6);
        }
        // The mixture is looked at and not trained on: all losses are those of the plain run.
        let losses = |model: &Trained| -> Vec<f64> {
            model.history.iter().map(|record| record.means["source_loss"]).collect()
        };
        assert_eq!(losses(&half), losses(&adapted));
        assert!(half.history[..2].iter().all(|record| record.interpolation.is_none()), "not yet adapted");

        config.selection = Some(Selection::TargetSimilarity);
        config.adapt.interpolate = vec![0.0, 0.5, 1.0];
        let chosen = trained(&config, &data);
        for (epoch, record) in chosen.history.iter().enumerate().skip(2) {
            let figure = |model: &Trained| model.history[epoch].target_mutual_similarity.unwrap();
            let best = [&adapted, &half, &before].into_iter().map(figure).fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(record.target_mutual_similarity, Some(best), "epoch {epoch}");
        }
        config.selection = Some(Selection::Last);
        assert!(config.resolved().is_err(), "nothing decides between several");
    }

    /// Images and sentences of one space, the sentences of the target off by a constant, as those of CLIP are.
    fn shared_space(images: usize, sentences: usize) -> TrainingData {
        use crate::{FeatureTable, ItemTable, TargetData};
        let mut random = ChaCha8Rng::seed_from_u64(9);
        let mut table = |count: usize, shift: f32| {
            let values = (0..count * 6).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5 + shift);
            ItemTable::Pooled(FeatureTable::new(values.collect(), 6).unwrap())
        };
        let target = TargetData { images: table(images, 0.0), sentences: table(sentences, 0.8) };
        TrainingData { sources: Vec::new(), target: Some(target), labelled: None }
    }

    #[test]
    fn a_dual_encoder_is_adapted_without_any_source() {
        use crate::config::TowerStart;
        let data = shared_space(30, 25);
        let mut config = TrainConfig { selection: None, ..whole() };
        config.model.start = TowerStart::ZeroShot;
        config.optimizer.learning_rate = 1e-3;
        config.adapt.interpolate = vec![0.0, 0.5, 1.0];
        let model = trained(&config, &data);
        let last = model.history.last().unwrap();
        assert!(last.means.contains_key("pair_loss") && last.means.contains_key("geometry_loss"), "{last:?}");
        assert!(!last.means.contains_key("source_loss") && !last.means.contains_key("confusion_loss"));
        assert!(model.history[0].means.contains_key("pair_loss"), "from the first epoch on");
        assert!(model.encoder.memory.is_none() && model.score.is_some());
        assert_eq!(last.source_validation_rsum, None);

        config.adapt.interpolate = vec![1.0];
        let model = trained(&config, &data);
        let identity = Tensor::eye(6, candle_core::DType::F32, &Device::Cpu).unwrap();
        for tower in ["image", "sentence"] {
            let weight = &model.parameters[&format!("{tower}.projection.weight")];
            let moved = (weight - &identity).unwrap().abs().unwrap().sum_all().unwrap();
            assert!(moved.to_scalar::<f32>().unwrap() < 1e-5, "the pre-trained weights alone");
        }

        let refused = |config: &TrainConfig, data: &TrainingData| {
            train(config, data, None, &Device::Cpu, &mut Silent).unwrap_err().to_string()
        };
        let mut other = config.clone();
        other.model.start = TowerStart::Random;
        assert!(refused(&other, &data).contains("source pairs"), "random towers need a source");
        let mut other = config.clone();
        other.model.embedding_dimension = 4;
        assert!(refused(&other, &data).contains("model.embedding_dimension"));
        let mut other = config.clone();
        other.model.hidden_dimension = 4;
        assert!(refused(&other, &data).contains("model.hidden_dimension"));
        config.method = MethodName::Dann;
        assert!(refused(&config, &data).contains("source pairs"), "other methods need a source");
    }

    #[test]
    fn a_dual_encoder_with_source_pairs_learns_from_them_too() {
        use crate::config::TowerStart;
        // Features of one length for both modalities.
        let mut data = shared_space(30, 25);
        let of = shared_space(40, 40).target.unwrap();
        data.sources = vec![crate::SourceData {
            name: "pairs".into(),
            images: of.images,
            sentences: of.sentences,
            sentences_of: (0..40).map(|row| vec![row]).collect(),
            validation: None,
        }];
        let mut config = small();
        config.model.start = TowerStart::ZeroShot;
        let model = trained(&config, &data);
        assert!(model.encoder.memory.is_some());
        assert!(model.history.last().unwrap().means.contains_key("source_loss"));
        config.method = MethodName::SourceOnly;
        assert!(trained(&config, &data).encoder.memory.is_none());
    }

    #[test]
    fn an_interruption_changes_nothing() {
        struct Stop(usize);
        impl Observer for Stop {
            fn stepped(&mut self, step: usize) {
                assert!(step < self.0, "stop");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let (config, data) = (whole(), toy(40, 17, 23));
        let open = |name: &str, existing| match RunFolder::open(&folder.path().join(name), existing).unwrap()
        {
            Opened::Ready(run) => run,
            Opened::Finished => panic!("finished"),
        };
        let run = open("whole", Existing::Refuse);
        let undisturbed = train(&config, &data, Some(&run), &Device::Cpu, &mut Silent).unwrap();
        let metrics = |name: &str| std::fs::read(folder.path().join(name).join(METRICS_FILE)).unwrap();
        let values = |trained: &Trained| -> Vec<Vec<f32>> {
            let flat = |value: &Tensor| value.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            trained.parameters.values().map(flat).collect()
        };
        // Before the first match, between two rounds, and right after one.
        for stop in [4, 11, 14] {
            let name = format!("stopped-{stop}");
            let run = open(&name, Existing::Refuse);
            let stopped = train(&config, &data, Some(&run), &Device::Cpu, &mut Stop(stop));
            assert!(stopped.is_err());
            drop(run);
            let run = open(&name, Existing::Resume);
            let resumed = train(&config, &data, Some(&run), &Device::Cpu, &mut Silent).unwrap();
            assert_eq!(values(&resumed), values(&undisturbed), "stopped at {stop}");
            assert_eq!(metrics(&name), metrics("whole"), "stopped at {stop}");
        }
    }

    #[test]
    fn gradients_reach_the_towers_and_no_memory() {
        let data = toy(40, 17, 23);
        let config = whole();
        let model = trained(&config, &data);
        let start = ParameterStore::new(config.seed, &Device::Cpu);
        let prepared = data.prepare(&config.resolved().unwrap(), &Device::Cpu).unwrap();
        let inputs = crate::method::Inputs { pairs: 40, ..crate::method::Inputs::pooled(8, 6) };
        let fresh = crate::method::build(&config.resolved().unwrap(), inputs, &start).unwrap();
        assert!(prepared.target.is_some() && fresh.encoder().config().memory.is_some());
        for (name, value) in &model.parameters {
            let before = start.snapshot(&format!("encoder.{name}")).unwrap().pop_first().unwrap().1;
            let moved =
                (value - before).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(moved.is_finite());
            // Everything is learned or computed.
            assert!(moved > 0.0, "{name}: {moved}");
        }
    }

    /// Each term of the recipe alone: the whole training moves everything, whoever taught it.
    #[test]
    fn each_term_teaches_both_towers_and_nothing_else() {
        use crate::method::{Inputs, TargetBatch, encoder_config};

        let config = whole().resolved().unwrap();
        let data = toy(40, 17, 23).prepare(&config, &Device::Cpu).unwrap();
        let store = ParameterStore::new(1, &Device::Cpu);
        let make = |prefix: &str| {
            let shape = encoder_config(&config, Inputs { pairs: 40, ..Inputs::pooled(8, 6) });
            DualEncoder::new(shape, config.source_loss.temperature, store.builder().pp(prefix)).unwrap()
        };
        let adapt = Adapt::new(make("encoder"), Some(make(TEACHER)), &config, 40, &store).unwrap();
        let moment = |step| Moment { step, steps: 80 };
        for step in [0, 40] {
            adapt.before_epoch(moment(step), &data).unwrap();
        }
        let rows = adapt.target_rows(0, 8).unwrap();
        let target = data.target.as_ref().unwrap();
        let pairs: Vec<usize> = (0..8).collect();
        let sentences: Vec<usize> = pairs.iter().map(|pair| data.sentences_of[*pair][0]).collect();
        let batch = Batch {
            source_images: data.images.select(&pairs).unwrap(),
            labelled: 0,
            source_sentences: data.sentences.select(&sentences).unwrap(),
            target: Some(TargetBatch {
                images: target.images.select(&rows.images).unwrap(),
                sentences: target.sentences.select(&rows.sentences).unwrap(),
                rows: Some(rows),
            }),
            anchors: None,
        };
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let embeddings = adapt.embed(&batch, moment(40), &mut Mode::Training(&mut random)).unwrap();
        let target = embeddings.target.as_ref().unwrap();
        let sides = Adapt::sides(&embeddings, target).unwrap();
        let terms = [
            ("pairs", adapt.pair_loss(target).unwrap().unwrap()),
            ("geometry", adapt.geometry_loss(target).unwrap().unwrap()),
            ("structure", adapt.structure_loss(&embeddings, target).unwrap()),
            ("confusion", confusion_loss(&adapt.critics.as_ref().unwrap().logits(&sides).unwrap()).unwrap()),
        ];
        for (term, loss) in terms {
            let gradients = loss.backward().unwrap();
            for (name, variable) in store.with_prefix("") {
                let size = gradients
                    .get(&variable)
                    .map_or(0.0, |it| it.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
                assert!(size.is_finite(), "{term}, {name}");
                if name.starts_with("encoder.") && name.ends_with("projection.weight") {
                    assert!(size > 0.0, "{term} does not reach {name}");
                }
                if name.contains("memory_") || name.starts_with(TEACHER) {
                    assert_eq!(size, 0.0, "{term} reaches {name}");
                }
            }
        }
    }

    #[test]
    fn what_a_person_labelled_is_remembered_first() {
        let mut data = toy(40, 17, 23);
        let labelled = toy(5, 3, 3).sources.remove(0);
        data.labelled = Some(crate::data::SourceData { validation: None, ..labelled });
        let mut config = small();
        config.adapt.memory_pairs = 7;
        let config = config.resolved().unwrap();
        let prepared = data.prepare(&config, &Device::Cpu).unwrap();
        let trained = train(&config, &data, None, &Device::Cpu, &mut Silent).unwrap();
        let memory = trained.parameters["memory_image"].to_vec2::<f32>().unwrap();
        let rows: Vec<usize> = (40..45).collect();
        let labelled = frozen_features(&prepared.images.select(&rows).unwrap()).unwrap();
        let labelled = labelled.to_vec2::<f32>().unwrap();
        assert_eq!(memory.len(), 7);
        assert!(
            labelled.iter().all(|features| memory.contains(features)),
            "two places are left for the source"
        );
    }

    #[test]
    fn partners_are_drawn_by_their_mass() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let drawn: Vec<usize> = (0..4_000).filter_map(|_| draw(&[(5, 0.7), (2, 0.3)], &mut random)).collect();
        let share = drawn.iter().filter(|sentence| **sentence == 5).count() as f64 / 4_000.0;
        assert!((share - 0.7).abs() < 0.03, "{share}");
        assert_eq!(draw(&[], &mut random), None);
    }

    #[test]
    fn the_geometry_term_is_smallest_where_neighbourhoods_agree() {
        let x = Tensor::new(&[[1.0f32, 0.0], [0.9, 0.436], [0.0, 1.0], [-1.0, 0.0]], &Device::Cpu).unwrap();
        let turned =
            Tensor::new(&[[0.0f32, 1.0], [1.0, 0.0], [0.9, 0.436], [-1.0, 0.0]], &Device::Cpu).unwrap();
        let scale = Tensor::new(3.0f32, &Device::Cpu).unwrap();
        let of = |embeddings: &Tensor| {
            neighbourhood_loss(&x, embeddings, &scale).unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(of(&x) < of(&turned), "{} {}", of(&x), of(&turned));
        assert!(of(&x) >= -1e-5, "a divergence is not negative: {}", of(&x));
    }
}
