//! Checks of the similarity heads.

use aeir_encoders::{
    Fragments, HeadConfig, HeadKind, Mode, ScanPooling, SimilarityHead, UnitNorm, l2_normalise,
};
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::check::{Check, Kind, Parameters, Place, Values, with_gradients};
use super::numbers::{Numbers, rounded};

const REGIONS: usize = 5;
const DIMENSION: usize = 24;

pub(super) fn all() -> Vec<Check> {
    let kinds = [HeadKind::Saf, HeadKind::Sgr, HeadKind::ScanT2i, HeadKind::ScanI2t];
    let mut checks: Vec<Check> =
        kinds.into_iter().map(|kind| check(kind.as_str(), config(kind), Manner::Training)).collect();
    for kind in [HeadKind::Saf, HeadKind::Sgr] {
        checks.push(check(&format!("{}-evaluation", kind.as_str()), config(kind), Manner::Evaluation));
        checks.push(check(&format!("{}-dropout", kind.as_str()), config(kind), Manner::Dropout));
        let released = HeadConfig { norm: UnitNorm::Released, ..config(kind) };
        checks.push(check(&format!("{}-released", kind.as_str()), released, Manner::Training));
    }
    for kind in [HeadKind::ScanT2i, HeadKind::ScanI2t] {
        let mut mean = config(kind);
        mean.scan.pooling = ScanPooling::Mean;
        checks.push(check(&format!("{}-mean", kind.as_str()), mean, Manner::Training));
    }
    checks
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Evaluation,
    /// With the batch's statistics, and nothing dropped.
    Training,
    Dropout,
}

fn config(kind: HeadKind) -> HeadConfig {
    HeadConfig { similarity_dimension: 16, graph_steps: 2, ..HeadConfig::new(kind, DIMENSION, REGIONS) }
}

fn check(name: &str, config: HeadConfig, manner: Manner) -> Check {
    Check::new(Kind::Head, name, move |place| scores(place, &config, manner))
}

fn scores(place: &Place, config: &HeadConfig, manner: Manner) -> anyhow::Result<Values> {
    let dropout = if manner == Manner::Dropout { 0.4 } else { 0.0 };
    let config = HeadConfig { dropout, ..config.clone() };
    let parameters = Parameters::of(place, |builder| Ok(SimilarityHead::new(&config, builder)?))?;
    let head = SimilarityHead::new(&config, parameters.builder())?;
    let mut numbers = Numbers::new(70);
    let mut unit =
        |shape: &[usize]| -> anyhow::Result<Tensor> { Ok(rounded(&l2_normalise(&numbers.tensor(shape)?)?)?) };
    let images = place.variable(&unit(&[6, REGIONS, DIMENSION])?)?;
    let sentences = place.variable(&unit(&[7, 4, DIMENSION])?)?;
    // Sentences of one to four words.
    let mask: Vec<f32> = (0..28).map(|word| if word % 4 <= (word / 4) % 4 { 1.0 } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (7, 4), &Device::Cpu)?.to_device(&place.device)?;
    let sides = (
        Fragments::unpadded(images.as_tensor().clone())?,
        Fragments::new(sentences.as_tensor().clone(), mask)?,
    );
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mode = &mut match manner {
        Manner::Evaluation => Mode::Evaluation,
        _ => Mode::Training(&mut random),
    };
    let scores = head.scores(&sides.0, &sides.1, mode)?;
    let mut variables = parameters.variables;
    variables.push(("images".into(), images));
    variables.push(("sentences".into(), sentences));
    with_gradients(&scores, &variables)
}
