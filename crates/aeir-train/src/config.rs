//! The configuration of a training run: versioned TOML in which every setting has a default.

use aeir_data::EpochLength;
use aeir_encoders::{Head, HeadOptions, Precision, UnitNorm, WordOptions};
use serde::{Deserialize, Serialize};

use crate::budget::Bytes;
use crate::error::{Result, TrainError};

mod backbone;
pub mod layers;
mod optimization;
mod standardise;

pub use backbone::{BackboneConfig, IMAGE_BACKBONE, TEXT_BACKBONE, Tuning};
pub use layers::Difference;
pub use optimization::{GroupConfig, OptimizerConfig, OptimizerKind, Schedule};
pub use standardise::Standardise;

mod adapt;

pub use adapt::AdaptConfig;

/// The configuration format this version reads and writes.
pub const CONFIG_VERSION: u32 = 1;

/// `source_loss.all_negatives_share` of SAF and SGR: docs/results.md has what it changes.
const HEAD_ALL_NEGATIVES_SHARE: f64 = 0.6;

/// Everything that decides what a run computes, the data apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Format version.
    pub version: u32,
    /// What is trained.
    pub method: MethodName,
    /// Whether each domain is standardised, or whitened, with its own statistics. Otherwise all domains get the source's.
    pub standardise: Standardise,
    /// Decides initial weights, order and dropout.
    pub seed: u64,
    /// Passes over the set that `epoch_length` names.
    pub epochs: usize,
    /// Whose passes an epoch is counted by: the largest of the source pairs and, where the method uses it, the target sets; or
    /// one of the two, the other starting again or going on.
    pub epoch_length: EpochLength,
    /// Source pairs a step.
    pub batch_size: usize,
    /// Target images and target sentences a step.
    pub target_batch_size: usize,
    /// Labelled pairs of the target that stand beside the source pairs of a step, as a share of `batch_size`; where there are
    /// fewer, all of them.
    pub labelled_share: f64,
    /// In which precision the towers' linear layers multiply in training.
    pub precision: Precision,
    /// Memory of the device that a training may take, such as `8GiB`: a batch that takes more is refused before the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_budget: Option<Bytes>,
    /// The encoders.
    pub model: ModelConfig,
    /// The loss on the source pairs.
    pub source_loss: SourceLossConfig,
    /// What all methods that adapt share.
    pub adaptation: AdaptationConfig,
    /// The paper's two transfer terms.
    pub aeir: AeirConfig,
    /// The recipe.
    pub adapt: AdaptConfig,
    /// Canonical correlation.
    pub cca: CcaConfig,
    /// The optimiser of encoders and critics.
    pub optimizer: OptimizerConfig,
    /// Which epoch becomes the model; where it is not given, the best on the source's validation split, and of a dual encoder
    /// that is adapted, which may have no source, the best by the unpaired target sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selection: Option<Selection>,
    /// Epochs without a better one after which training ends; 0 for never.
    pub patience: usize,
    /// Share of the target's images and of its sentences that nothing is trained on: the figures without labels are those of
    /// this part alone. 0 for none.
    pub target_held_out: f64,
    /// Epochs between checkpoints.
    pub checkpoint_every: usize,
    /// Steps between further checkpoints within an epoch; 0 for none.
    pub checkpoint_steps: usize,
    /// Newest checkpoints that are kept; beside them the best one by `selection` stays.
    pub keep_checkpoints: usize,
}

/// Methods that can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodName {
    /// Source pairs alone.
    SourceOnly,
    /// Source alignment, semantic transfer and structure transfer.
    Aeir,
    /// The recipe: standardisation, a memory of the source pairs, matches between the target's sets.
    Adapt,
    /// Domain-adversarial training by gradient reversal.
    Dann,
    /// A target encoder set against a fixed source encoder.
    Adda,
    /// Multi-kernel maximum mean discrepancy between the domains.
    Mmd,
    /// The distance between the domains' covariances.
    Coral,
    /// Domain-adversarial training on embeddings joined with their retrieval posterior.
    Cdan,
    /// Linear canonical correlation of the source pairs, in closed form.
    Cca,
    /// Canonical correlation of two small networks.
    Dcca,
    /// Source pairs alone, cosine and the hardest negative (VSE++).
    Vsepp,
    /// Source pairs alone, stacked cross attention.
    Scan,
    /// Source pairs alone, similarity attention filtration.
    Saf,
    /// Source pairs alone, similarity graph reasoning.
    Sgr,
    /// Source pairs alone, SAF and SGR averaged.
    Sgraf,
}

impl MethodName {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::SourceOnly,
        Self::Aeir,
        Self::Adapt,
        Self::Dann,
        Self::Adda,
        Self::Mmd,
        Self::Coral,
        Self::Cdan,
        Self::Cca,
        Self::Dcca,
        Self::Vsepp,
        Self::Scan,
        Self::Saf,
        Self::Sgr,
        Self::Sgraf,
    ];

    /// As in files and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SourceOnly => "source-only",
            Self::Aeir => "aeir",
            Self::Adapt => "adapt",
            Self::Dann => "dann",
            Self::Adda => "adda",
            Self::Mmd => "mmd",
            Self::Coral => "coral",
            Self::Cdan => "cdan",
            Self::Cca => "cca",
            Self::Dcca => "dcca",
            Self::Vsepp => "vsepp",
            Self::Scan => "scan",
            Self::Saf => "saf",
            Self::Sgr => "sgr",
            Self::Sgraf => "sgraf",
        }
    }

    /// Whether it learns from the target's unpaired sets.
    pub fn adapts(self) -> bool {
        matches!(
            self,
            Self::Aeir | Self::Adapt | Self::Dann | Self::Adda | Self::Mmd | Self::Coral | Self::Cdan
        )
    }

    /// Whether it looks at the setting with this dotted key.
    fn looks_at(self, key: &str) -> bool {
        // The recipe has the paper's structure term as an option, with its own weight.
        const SHARED: [&str; 2] = ["aeir.neighbours", "aeir.structure_temperature"];
        match key.split('.').next().unwrap_or_default() {
            "adapt" => self == Self::Adapt,
            "aeir" => self == Self::Aeir || (self == Self::Adapt && SHARED.contains(&key)),
            "cca" => matches!(self, Self::Cca | Self::Dcca),
            "adaptation" => self.adapts(),
            "labelled_share" => self.learns_labelled(),
            _ => true,
        }
    }

    /// Whether it can learn from a few labelled pairs of the target beside the source pairs. Methods that set the source's items as a whole
    /// against the target's would take them for source.
    pub fn learns_labelled(self) -> bool {
        matches!(self, Self::SourceOnly | Self::Aeir | Self::Adapt) || self.is_supervised_model()
    }

    /// The similarity head that the name stands for, where it stands for one.
    fn head(self, given: Option<Head>) -> Option<Head> {
        match (self, given) {
            (Self::Vsepp | Self::Cca | Self::Dcca, _) => Some(Head::Cosine),
            (Self::Scan, Some(Head::ScanI2t)) => Some(Head::ScanI2t),
            (Self::Scan, _) => Some(Head::ScanT2i),
            (Self::Saf, _) => Some(Head::Saf),
            (Self::Sgr, _) => Some(Head::Sgr),
            (Self::Sgraf, _) => Some(Head::Sgraf),
            _ => None,
        }
    }

    /// Whether it computes canonical correlation.
    fn is_canonical(self) -> bool {
        matches!(self, Self::Cca | Self::Dcca)
    }

    /// Whether it stands for a published supervised model.
    fn is_supervised_model(self) -> bool {
        matches!(self, Self::Vsepp | Self::Scan | Self::Saf | Self::Sgr | Self::Sgraf)
    }
}

/// What the towers are before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TowerStart {
    /// Random numbers, by the seed.
    #[default]
    Random,
    /// Projections that change nothing, behind both encoders of a CLIP or SigLIP: its own space.
    ZeroShot,
}

/// The trained towers and their head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// What the towers start from; `--model` sets it.
    pub start: TowerStart,
    /// D of the joint space.
    pub embedding_dimension: usize,
    /// Probability of dropping an input feature.
    pub input_dropout: f32,
    /// Width of a hidden layer with ReLU in each tower of features; 0 for none.
    pub hidden_dimension: usize,
    /// How images and sentences are compared; where it is not given, by the method, or the cosine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// Sizes of a cross-attentive head.
    pub head_options: HeadOptions,
    /// The word encoder, where sentences come as words.
    pub words: WordOptions,
    /// What becomes of the pre-trained image encoder.
    pub image_backbone: BackboneConfig,
    /// What becomes of the pre-trained sentence encoder.
    pub text_backbone: BackboneConfig,
}

/// The loss on the source pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceLossConfig {
    /// Which loss; where it is not given, InfoNCE for the cosine and triplet ranking with the hardest negative for other
    /// heads and for the published supervised models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<SourceLossKind>,
    /// Initial temperature of InfoNCE; it is learned.
    pub temperature: f64,
    /// Margin of the triplet ranking loss.
    pub margin: f64,
    /// Share of all steps in which the hardest-negative loss takes all negatives instead, as the hardest ones can
    /// collapse a model that knows nothing yet; where it is not given, 0.6 for SAF, SGR and SGRAF, and 0 for other
    /// heads and the released procedure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_negatives_share: Option<f64>,
    /// Beside a cross-attentive head: weight of InfoNCE on the pooled vectors, which find the candidates that the head
    /// re-ranks; where it is not given, 1, and 0 for the published supervised models and the released procedure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooled_weight: Option<f64>,
}

/// Losses on the source pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceLossKind {
    /// Symmetric InfoNCE with a learned temperature.
    InfoNce,
    /// Triplet ranking with the hardest negative in the batch (VSE++), averaged over the batch.
    TripletHardest,
    /// Triplet ranking with all negatives of the batch, averaged over the batch.
    TripletAll,
}

/// The paper's transfer terms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AeirConfig {
    /// The paper's procedure, or that of its released sibling with all that is wrong in it.
    pub fidelity: Fidelity,
    /// How encoders and critics are set against each other.
    pub adversary: Adversary,
    /// Weight of semantic transfer (the adversarial term).
    pub semantic_weight: f64,
    /// Weight of structure transfer, lambda in the paper.
    pub structure_weight: f64,
    /// K: source neighbours of a target item.
    pub neighbours: usize,
    /// tau: divides similarities before the softmax.
    pub structure_temperature: f64,
    /// Stop the gradient at the own-modality distribution, so that it only teaches.
    pub detach_reference: bool,
    /// How the two distributions of structure transfer are compared.
    pub divergence: DivergenceName,
}

/// What all methods that adapt share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptationConfig {
    /// Share of the epochs that are source alignment alone, before the transfer sets in.
    pub source_share: f64,
    /// Weight of the transfer loss of `dann`, `adda`, `mmd`, `coral` and `cdan`; `aeir` has its own two.
    pub weight: f64,
    /// Raise the adversarial weight from 0 with the DANN schedule, `2 / (1 + exp(-10 p)) - 1`.
    pub warm_up: bool,
    /// Learning rate of the critics.
    pub critic_learning_rate: f64,
    /// Source pairs whose embeddings stand for classes in `cdan`.
    pub anchors: usize,
}

/// Canonical correlation, `cca` and `dcca`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CcaConfig {
    /// Added to the diagonal of both covariances: of the standardised features in `cca`, of the outputs in `dcca`.
    pub regularisation: f64,
}

/// How faithful `aeir` is to the released procedure of its sibling method AECR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fidelity {
    /// As the paper describes it.
    Paper,
    /// As the released code computes it: the critics also take the encoders' confusion gradient, padding counts, the
    /// triplet loss is summed, one norm clips both groups, features are raw.
    Released,
}

/// How two distributions are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DivergenceName {
    /// Kullback-Leibler, the published choice.
    KullbackLeibler,
    /// Jensen-Shannon.
    JensenShannon,
}

/// The adversarial game in paper fidelity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adversary {
    /// The critics step on detached embeddings, then the encoders step on the confusion loss.
    Alternating,
    /// One step of both, the gradient reversed between them.
    GradientReversal,
    /// As alternating, with a critic of bounded slope (Wasserstein distance with gradient penalty).
    Wasserstein,
}

/// Which epoch becomes the model. None of them sees a target label. Of a method that adapts, only epochs of the
/// adaptation are candidates. Those without labels look at the unpaired target sets, at a part of them that is held out
/// where `target_held_out` says so; without a target they take the last epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// The last.
    Last,
    /// The best rSum on the source validation split; the last where there is none.
    SourceValidation,
    /// The best mean CSLS similarity of mutual neighbours.
    TargetSimilarity,
    /// The largest share of items whose nearest item's nearest is they.
    TargetCycle,
    /// The surest retrieval posterior: the least entropy.
    TargetEntropy,
    /// The most diverse retrieval posterior.
    TargetDiversity,
    /// The most information between query and answer: diversity less entropy.
    TargetInformation,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            version: CONFIG_VERSION,
            method: MethodName::Aeir,
            standardise: Standardise::None,
            seed: 1,
            epochs: 40,
            epoch_length: EpochLength::default(),
            batch_size: 128,
            target_batch_size: 128,
            labelled_share: 0.125,
            precision: Precision::Fp32,
            memory_budget: None,
            model: ModelConfig::default(),
            source_loss: SourceLossConfig::default(),
            adaptation: AdaptationConfig::default(),
            aeir: AeirConfig::default(),
            adapt: AdaptConfig::default(),
            cca: CcaConfig::default(),
            optimizer: OptimizerConfig::default(),
            selection: None,
            patience: 0,
            target_held_out: 0.0,
            checkpoint_every: 10,
            checkpoint_steps: 0,
            keep_checkpoints: 2,
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            start: TowerStart::Random,
            embedding_dimension: 256,
            input_dropout: 0.5,
            hidden_dimension: 0,
            head: None,
            head_options: HeadOptions::default(),
            words: WordOptions::default(),
            image_backbone: BackboneConfig::default(),
            text_backbone: BackboneConfig::default(),
        }
    }
}

impl Default for SourceLossConfig {
    fn default() -> Self {
        Self { kind: None, temperature: 0.07, margin: 0.2, all_negatives_share: None, pooled_weight: None }
    }
}

impl Default for AeirConfig {
    fn default() -> Self {
        Self {
            fidelity: Fidelity::Paper,
            adversary: Adversary::Alternating,
            semantic_weight: 1.0,
            structure_weight: 0.001,
            neighbours: 3,
            structure_temperature: 3.0,
            detach_reference: false,
            divergence: DivergenceName::KullbackLeibler,
        }
    }
}

impl Default for AdaptationConfig {
    fn default() -> Self {
        Self { source_share: 0.75, weight: 1.0, warm_up: true, critic_learning_rate: 1e-3, anchors: 16 }
    }
}

impl Default for CcaConfig {
    fn default() -> Self {
        Self { regularisation: 0.1 }
    }
}

impl TrainConfig {
    /// With everything decided that method and head decide: what a run writes down. Deciding twice changes nothing.
    ///
    /// # Errors
    /// When a value can't be trained with, or the method stands for another head than the one given.
    pub fn resolved(&self) -> Result<Self> {
        self.check()?;
        let mut config = self.clone();
        let given = self.model.head;
        let head = self.method.head(given).or(given).unwrap_or_default();
        if given.is_some_and(|given| given != head) {
            return Err(TrainError::Setting {
                key: "model.head",
                expected: format!("`{}`, which method `{}` stands for", head.as_str(), self.method.as_str()),
                got: format!("`{}`", given.unwrap_or_default().as_str()),
            });
        }
        config.model.head = Some(head);
        self.check_tuning(head)?;
        self.check_start(head)?;
        config.selection.get_or_insert(match self.model.start {
            TowerStart::Random => Selection::SourceValidation,
            TowerStart::ZeroShot => Selection::TargetSimilarity,
        });
        let ranks = head.is_cross_attentive() || self.method.is_supervised_model() || self.is_released();
        let loss = if ranks { SourceLossKind::TripletHardest } else { SourceLossKind::InfoNce };
        config.source_loss.kind.get_or_insert(loss);
        // These collapse on the hardest negatives from the start, SCAN learns from them; the released procedure starts from a trained model.
        let collapses = matches!(head, Head::Saf | Head::Sgr | Head::Sgraf) && !self.is_released();
        let warms_up = collapses && config.source_loss.kind == Some(SourceLossKind::TripletHardest);
        let share = if warms_up { HEAD_ALL_NEGATIVES_SHARE } else { 0.0 };
        config.source_loss.all_negatives_share.get_or_insert(share);
        let published = self.method.is_supervised_model() || self.is_released();
        config.source_loss.pooled_weight.get_or_insert(if published { 0.0 } else { 1.0 });
        match self.method {
            MethodName::Adapt => config.standardise = config.standardise.or_more(config.adapt.standardise),
            // Closed form: one epoch is all of it.
            MethodName::Cca => config.epochs = 1,
            MethodName::Dcca => {
                let dimension = self.model.embedding_dimension;
                if self.model.hidden_dimension == 0 {
                    config.model.hidden_dimension = 2 * dimension;
                }
                // The covariances of fewer rows are singular.
                config.batch_size = config.batch_size.max(2 * dimension);
            }
            _ => {}
        }
        Ok(config)
    }

    /// Whether this is `aeir` as the released procedure has it.
    pub fn is_released(&self) -> bool {
        self.method == MethodName::Aeir && self.aeir.fidelity == Fidelity::Released
    }

    /// Refuses labelled pairs where the method can't learn from them.
    ///
    /// # Errors
    /// Then.
    pub fn check_labelled(&self) -> Result<()> {
        let expected =
            "one that learns from labelled pairs: source-only, aeir, adapt, vsepp, scan, saf, sgr or sgraf";
        demand(self.method.learns_labelled(), "method", expected, format!("`{}`", self.method.as_str()))?;
        demand(
            !self.is_released(),
            "aeir.fidelity",
            "`paper` with labelled pairs, which the released procedure does not know",
            "`released`",
        )
    }

    /// Labelled pairs that stand beside the source pairs of a step, of so many.
    pub(crate) fn labelled_batch_size(&self, labelled: usize) -> usize {
        ((self.labelled_share * self.batch_size as f64).ceil() as usize).min(labelled)
    }

    /// Whether features are taken as they are: the released procedure has no standardisation, and a pre-trained space is
    /// what it is.
    pub(crate) fn raw_features(&self) -> bool {
        let pretrained = self.model.start == TowerStart::ZeroShot;
        self.is_released() || (pretrained && !self.standardise.is_per_domain())
    }

    /// Whether there may be no source pairs at all.
    pub(crate) fn needs_no_source(&self) -> bool {
        self.model.start == TowerStart::ZeroShot && self.method == MethodName::Adapt
    }

    /// Whether weights from before the adaptation are mixed into those after it.
    pub(crate) fn interpolates(&self) -> bool {
        self.method == MethodName::Adapt && self.adapt.interpolate.iter().any(|share| *share > 0.0)
    }

    /// Which epoch becomes the model, decided.
    #[must_use]
    pub fn selected_by(&self) -> Selection {
        self.selection.unwrap_or(Selection::SourceValidation)
    }

    /// A pre-trained space has no hidden layer, no head, and nothing that is computed in closed form.
    fn check_start(&self, head: Head) -> Result<()> {
        if self.model.start == TowerStart::Random {
            return Ok(());
        }
        let refuse = |key: &'static str, expected: &str, got: String| demand(false, key, expected, got);
        if self.method.is_canonical() || self.is_released() {
            let got = format!("`{}`", self.method.as_str());
            return refuse("method", "one that goes on from a model with `model.start = \"zero-shot\"`", got);
        }
        if head.is_cross_attentive() {
            let got = format!("`{}`", head.as_str());
            return refuse("model.head", "`cosine` with `model.start = \"zero-shot\"`", got);
        }
        if self.model.hidden_dimension > 0 {
            let got = self.model.hidden_dimension.to_string();
            return refuse("model.hidden_dimension", "0 with `model.start = \"zero-shot\"`", got);
        }
        Ok(())
    }

    /// The pre-trained encoders, each with how its parameters' names begin in the group of the encoders.
    pub fn backbones(&self) -> [(&'static str, &BackboneConfig); 2] {
        [(IMAGE_BACKBONE, &self.model.image_backbone), (TEXT_BACKBONE, &self.model.text_backbone)]
    }

    fn whitens(&self) -> bool {
        let of_recipe = self.method == MethodName::Adapt && self.adapt.standardise == Standardise::Whiten;
        self.standardise == Standardise::Whiten || of_recipe
    }

    /// Encoders are trained for one vector an item, and by steps.
    fn check_tuning(&self, head: Head) -> Result<()> {
        let keys = ["model.image_backbone.train", "model.text_backbone.train"];
        let what = match self.method {
            MethodName::Adda => "method `adda`, which keeps an encoder as it was",
            MethodName::Cca => "method `cca`, which takes no step",
            _ if head.is_cross_attentive() => "a head that compares fragments",
            _ if self.whitens() => "`standardise = \"whiten\"`, which is of features as they were",
            MethodName::Adapt if self.adapt.memory_pairs > 0 => {
                "`adapt.memory_pairs`, which remembers features as they were (0 switches it off)"
            }
            MethodName::Adapt if self.adapt.geometry_weight > 0.0 => {
                "`adapt.geometry_weight`, which holds on to features as they were"
            }
            _ => return Ok(()),
        };
        for (key, (_, backbone)) in keys.into_iter().zip(self.backbones()) {
            let frozen = backbone.train == Tuning::Frozen;
            demand(frozen, key, &format!("`frozen` with {what}"), format!("`{}`", backbone.train.as_str()))?;
        }
        Ok(())
    }

    /// How rows become unit vectors.
    pub(crate) fn norm(&self) -> UnitNorm {
        if self.is_released() { UnitNorm::Released } else { UnitNorm::Smooth }
    }

    /// Reads TOML; `origin` names it in errors.
    ///
    /// # Errors
    /// When it does not parse, has an unknown key (the nearest one is named), another version or an unusable value.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let syntax = |message: String| TrainError::ConfigSyntax { file: origin.into(), message };
        let config: Self = toml::from_str(text).map_err(|error| {
            let message = error.to_string();
            let nearest = layers::nearest_in_message(error.message());
            syntax(layers::told_with_nearest(message.trim_end(), nearest.as_deref()))
        })?;
        config.check()?;
        Ok(config)
    }

    /// As TOML, every setting written out.
    ///
    /// # Errors
    /// When a value has no TOML form; none has.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|error| TrainError::ConfigSyntax {
            file: "resolved configuration".into(),
            message: error.to_string(),
        })
    }

    /// What a checkpoint must have in common with the run that takes it up: all but the memory that it may take, which changes no result.
    ///
    /// # Errors
    /// As [`TrainConfig::to_toml`].
    pub(crate) fn identity(&self) -> Result<String> {
        Self { memory_budget: None, ..self.clone() }.to_toml()
    }

    /// Refuses values that can't be trained with.
    ///
    /// # Errors
    /// The first such value, with its key.
    pub fn check(&self) -> Result<()> {
        demand(self.version == CONFIG_VERSION, "version", "1", self.version)?;
        demand(self.epochs > 0, "epochs", "at least 1", self.epochs)?;
        demand(
            self.batch_size > 1,
            "batch_size",
            "at least 2: other pairs are the negatives",
            self.batch_size,
        )?;
        demand(self.target_batch_size > 0, "target_batch_size", "at least 1", self.target_batch_size)?;
        demand(
            self.labelled_share > 0.0 && self.labelled_share <= 1.0,
            "labelled_share",
            "above 0, at most 1",
            self.labelled_share,
        )?;
        demand(self.checkpoint_every > 0, "checkpoint_every", "at least 1", self.checkpoint_every)?;
        demand(self.keep_checkpoints > 0, "keep_checkpoints", "at least 1", self.keep_checkpoints)?;
        demand(
            (0.0..1.0).contains(&self.target_held_out),
            "target_held_out",
            "in 0 .. 1",
            self.target_held_out,
        )?;
        demand(
            self.patience == 0 || self.selection != Some(Selection::Last),
            "patience",
            "0 with `selection = \"last\"`, which looks at nothing",
            self.patience,
        )?;
        let ModelConfig { embedding_dimension, input_dropout, .. } = self.model;
        demand(embedding_dimension > 1, "model.embedding_dimension", "at least 2", embedding_dimension)?;
        demand((0.0..1.0).contains(&input_dropout), "model.input_dropout", "in 0 .. 1", input_dropout)?;
        let loss = self.source_loss;
        demand(positive(loss.temperature), "source_loss.temperature", "above 0", loss.temperature)?;
        demand(positive(loss.margin), "source_loss.margin", "above 0", loss.margin)?;
        let share = loss.all_negatives_share.unwrap_or(0.0);
        demand((0.0..=1.0).contains(&share), "source_loss.all_negatives_share", "in 0 ..= 1", share)?;
        let pooled = loss.pooled_weight.unwrap_or(1.0);
        demand(weight(pooled), "source_loss.pooled_weight", "0 or more", pooled)?;
        let HeadOptions { similarity_dimension, graph_steps, dropout, .. } = self.model.head_options;
        demand(
            similarity_dimension > 0,
            "model.head_options.similarity_dimension",
            "at least 1",
            similarity_dimension,
        )?;
        demand(graph_steps > 0, "model.head_options.graph_steps", "at least 1", graph_steps)?;
        demand((0.0..1.0).contains(&dropout), "model.head_options.dropout", "in 0 .. 1", dropout)?;
        let words = self.model.words;
        demand(words.word_dimension > 0, "model.words.word_dimension", "at least 1", words.word_dimension)?;
        demand((0.0..1.0).contains(&words.dropout), "model.words.dropout", "in 0 .. 1", words.dropout)?;
        let aeir = self.aeir;
        let share = |value: f64| (0.0..1.0).contains(&value);
        let adaptation = self.adaptation;
        demand(
            share(adaptation.source_share),
            "adaptation.source_share",
            "in 0 .. 1",
            adaptation.source_share,
        )?;
        demand(weight(adaptation.weight), "adaptation.weight", "0 or more", adaptation.weight)?;
        demand(adaptation.anchors > 1, "adaptation.anchors", "at least 2", adaptation.anchors)?;
        demand(
            positive(adaptation.critic_learning_rate),
            "adaptation.critic_learning_rate",
            "above 0",
            adaptation.critic_learning_rate,
        )?;
        demand(weight(aeir.semantic_weight), "aeir.semantic_weight", "0 or more", aeir.semantic_weight)?;
        demand(weight(aeir.structure_weight), "aeir.structure_weight", "0 or more", aeir.structure_weight)?;
        demand(aeir.neighbours > 0, "aeir.neighbours", "at least 1", aeir.neighbours)?;
        demand(
            positive(aeir.structure_temperature),
            "aeir.structure_temperature",
            "above 0",
            aeir.structure_temperature,
        )?;
        self.adapt.check(self.selection)?;
        demand(positive(self.cca.regularisation), "cca.regularisation", "above 0", self.cca.regularisation)?;
        demand(
            !(self.is_released() && self.standardise.is_per_domain()),
            "standardise",
            "`none` with `aeir.fidelity = \"released\"`, which takes features as they are",
            format!("`{}`", self.standardise.as_str()),
        )?;
        self.model.image_backbone.check()?;
        self.model.text_backbone.check()?;
        self.optimizer.check()
    }
}

/// Refuses the value of a setting unless `holds`.
fn demand(holds: bool, key: &'static str, expected: &str, got: impl ToString) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(TrainError::Setting { key, expected: expected.into(), got: got.to_string() })
}

fn positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn weight(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_survive_a_round_trip() {
        let config = TrainConfig::default();
        assert_eq!(TrainConfig::from_toml(&config.to_toml().unwrap(), "test").unwrap(), config);
        assert_eq!(TrainConfig::from_toml("", "test").unwrap(), config);
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        let error =
            TrainConfig::from_toml("[optimizer]\nlearnig_rate = 1.0", "my.toml").unwrap_err().to_string();
        assert!(error.contains("my.toml") && error.contains("did you mean `learning_rate`"), "{error}");
    }

    #[test]
    fn unusable_values_are_refused_by_key() {
        for (text, key) in [
            ("epochs = 0", "epochs"),
            ("version = 9", "version"),
            ("[model]\ninput_dropout = 1.0", "model.input_dropout"),
            ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate"),
            ("[aeir]\nneighbours = 0", "aeir.neighbours"),
        ] {
            let error = TrainConfig::from_toml(text, "test").unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{text}: {error}");
        }
    }

    #[test]
    fn method_and_head_decide_what_is_not_given() {
        let config = |method| TrainConfig { method, ..TrainConfig::default() };
        let plain = config(MethodName::SourceOnly).resolved().unwrap();
        assert_eq!(plain.model.head, Some(Head::Cosine));
        assert_eq!(plain.source_loss.kind, Some(SourceLossKind::InfoNce));
        let saf = config(MethodName::Saf).resolved().unwrap();
        assert_eq!(saf.model.head, Some(Head::Saf));
        assert_eq!(saf.source_loss.kind, Some(SourceLossKind::TripletHardest));
        assert_eq!(saf.source_loss.pooled_weight, Some(0.0));
        assert_eq!(saf.resolved().unwrap(), saf);
        let mut other = config(MethodName::Saf);
        other.model.head = Some(Head::Sgr);
        assert!(other.resolved().unwrap_err().to_string().contains("model.head"));
        let mut scan = config(MethodName::Scan);
        scan.model.head = Some(Head::ScanI2t);
        assert_eq!(scan.resolved().unwrap().model.head, Some(Head::ScanI2t));
        let mut released = config(MethodName::Aeir);
        released.aeir.fidelity = Fidelity::Released;
        assert_eq!(released.resolved().unwrap().source_loss.kind, Some(SourceLossKind::TripletHardest));
        released.standardise = Standardise::Standardise;
        assert!(released.resolved().is_err());
    }
}
