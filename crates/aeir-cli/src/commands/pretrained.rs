//! Training that starts from a pre-trained dual encoder, `--model`.

use aeir_encoders::LogitScale;
use aeir_train::config::{OptimizerConfig, TowerStart};
use aeir_train::{MethodName, TrainConfig};
use candle_core::Device;

use crate::backbones::{Backbones, WORDS, find};
use crate::failure::CliError;
use crate::flags::{DEFAULT_IMAGE_ENCODER, DEFAULT_TEXT_ENCODER, TrainFlags};
use crate::terminal::Terminal;

/// Peak learning rate where none is given: twenty times smaller than that of random towers, whose entries are as large as what a
/// step of it changes.
const LEARNING_RATE: f64 = 1e-4;

/// What both encoders are: `--model` names them together.
pub(super) fn encoders(flags: &TrainFlags) -> (&str, &str) {
    match &flags.model {
        Some(model) => (model, model),
        None => (&flags.image_encoder, &flags.text_encoder),
    }
}

/// The settings with those that `--model` decides: where the towers start, the scale of the scores, the learning rate.
pub(super) fn begun(
    flags: &TrainFlags,
    mut config: TrainConfig,
    terminal: &Terminal,
) -> anyhow::Result<TrainConfig> {
    let Some(model) = &flags.model else {
        if config.model.start == TowerStart::ZeroShot {
            return Err(CliError::Usage {
                message: "`model.start = \"zero-shot\"` needs a pre-trained dual encoder".into(),
                hint: "name a CLIP or SigLIP with --model, which sets it".into(),
            }
            .into());
        }
        return Ok(config);
    };
    refuse_encoders(flags)?;
    let folder = find(model, "--model", terminal)?;
    let scale = LogitScale::load_from(&folder, &Device::Cpu)?.logarithm()?;
    config.model.start = TowerStart::ZeroShot;
    config.source_loss.temperature = (-scale).exp();
    if config.optimizer.learning_rate == OptimizerConfig::default().learning_rate {
        config.optimizer.learning_rate = LEARNING_RATE;
    }
    Ok(config)
}

/// Encoders beside `--model` that somebody typed: what the environment says for all commands is no contradiction.
fn refuse_encoders(flags: &TrainFlags) -> Result<(), CliError> {
    let typed = |given: &str, default: &str, variable: &str| {
        given != default && std::env::var(variable).ok().as_deref() != Some(given)
    };
    let image = typed(&flags.image_encoder, DEFAULT_IMAGE_ENCODER, "AEIR_IMAGE_ENCODER");
    let text = typed(&flags.text_encoder, DEFAULT_TEXT_ENCODER, "AEIR_TEXT_ENCODER");
    let flag = match (image, text) {
        (true, _) => "--image-encoder",
        (_, true) if flags.text_encoder == WORDS => "--text-encoder words",
        (_, true) => "--text-encoder",
        _ => return Ok(()),
    };
    Err(CliError::Usage {
        message: format!("{flag} does not go with --model, which brings both encoders"),
        hint: "leave one of the two out".into(),
    })
}

/// Refuses a training without source pairs that has nothing to learn from.
pub(super) fn check(flags: &TrainFlags, config: &TrainConfig) -> Result<(), CliError> {
    if !flags.source.is_empty() || flags.model.is_none() || config.method == MethodName::Adapt {
        return Ok(());
    }
    Err(CliError::Usage {
        message: format!("method `{}` learns from source pairs: --source is missing", config.method.as_str()),
        hint: "add --source, or adapt without any: --method adapt".into(),
    })
}

/// The joint space is as large as that of the encoders.
pub(super) fn fit(config: &mut TrainConfig, backbones: &Backbones) {
    if let (TowerStart::ZeroShot, Some(image)) = (config.model.start, &backbones.image) {
        config.model.embedding_dimension = image.dimension();
    }
}
