//! Checks of the losses.

use aeir_losses::{
    Bandwidths, ConditionalAdversarialLoss, ConditionalMap, CoralLoss, DeepCcaLoss, Divergence,
    DomainAdversarialLoss, DomainCritic, Estimator, InfoNceLoss, MaximumMeanDiscrepancy, Negatives,
    Reduction, SigLipLoss, SinkhornDivergence, StructureTransferLoss, TripletRankingLoss,
    WassersteinCriticLoss, fragment_similarity, fragment_similarity_released, neighbour_similarity,
    pooled_similarity, sinkhorn_plan, unit_fragment_similarity,
};
use candle_core::{DType, Device, Tensor};

use super::check::{Check, Kind, Parameters, Place, Values, differentiated, with_gradients};
use super::numbers::Numbers;

/// Why a loss is not computed in bfloat16: it refuses the type.
const PRECISE: &str = "losses take f32 and f64 alone";

type Shapes = &'static [(&'static str, &'static [usize])];

fn loss(
    name: &str,
    seed: u64,
    inputs: Shapes,
    work: impl Fn(&[Tensor]) -> anyhow::Result<Tensor> + Send + 'static,
) -> Check {
    Check::new(Kind::Loss, name, move |place| differentiated(place, seed, inputs, &work))
}

fn inputs<const N: usize>(all: &[Tensor]) -> anyhow::Result<[&Tensor; N]> {
    let all: Vec<&Tensor> = all.iter().collect();
    all.try_into().map_err(|_| anyhow::anyhow!("the check has another number of inputs than it reads"))
}

/// The same with a little of its own for each entry: devices break ties in ways of their own.
fn untied(x: &Tensor) -> anyhow::Result<Tensor> {
    let ramp = (Tensor::arange(0f32, x.elem_count() as f32, x.device())? * 1.7e-5)?;
    Ok((x + ramp.reshape(x.shape())?.to_dtype(x.dtype())?)?)
}

const SETS: Shapes = &[("source", &[9, 12]), ("target", &[7, 12])];

pub(super) fn all() -> Vec<Check> {
    let mut checks = rankings();
    checks.extend(domains());
    checks.extend(structures());
    checks.extend(critics());
    checks.into_iter().map(|check| check.single_only(PRECISE)).collect()
}

fn rankings() -> Vec<Check> {
    let mut checks = vec![
        loss("info-nce", 100, &[("images", &[8, 12]), ("sentences", &[8, 12]), ("scale", &[])], |all| {
            let [images, sentences, scale] = inputs(all)?;
            Ok(InfoNceLoss::default().forward(images, sentences, scale)?)
        }),
        loss(
            "siglip",
            101,
            &[("images", &[8, 12]), ("sentences", &[8, 12]), ("scale", &[]), ("bias", &[])],
            |all| {
                let [images, sentences, scale, bias] = inputs(all)?;
                Ok(SigLipLoss::default().forward(images, sentences, scale, bias)?)
            },
        ),
    ];
    for (name, negatives) in [("triplet-hardest", Negatives::Hardest), ("triplet-all", Negatives::All)] {
        checks.push(loss(name, 102, &[("scores", &[9, 9])], move |all| {
            let [scores] = inputs(all)?;
            let loss = TripletRankingLoss { margin: 0.3, negatives, reduction: Reduction::Mean };
            Ok(loss.from_scores(&untied(scores)?)?)
        }));
    }
    checks
}

fn domains() -> Vec<Check> {
    vec![
        loss("domain-adversarial", 110, &[("source", &[9]), ("target", &[7])], |all| {
            let [source, target] = inputs(all)?;
            Ok((DomainAdversarialLoss.critic_loss(source, target)?
                + (DomainAdversarialLoss.confusion_loss(source, target)? * 0.5)?)?)
        }),
        loss("mmd", 111, SETS, |all| {
            let [source, target] = inputs(all)?;
            Ok(MaximumMeanDiscrepancy::default().forward(source, target)?)
        }),
        loss("mmd-unbiased", 112, SETS, |all| {
            let [source, target] = inputs(all)?;
            let loss = MaximumMeanDiscrepancy {
                bandwidths: Bandwidths::Fixed(vec![4.0, 9.0]),
                estimator: Estimator::Unbiased,
            };
            Ok(loss.forward(source, target)?)
        }),
        loss("coral", 113, SETS, |all| {
            let [source, target] = inputs(all)?;
            Ok(CoralLoss.forward(source, target)?)
        }),
        loss("sinkhorn", 114, SETS, |all| {
            let [source, target] = inputs(all)?;
            Ok(SinkhornDivergence { epsilon: 0.5, iterations: 100 }.forward(source, target)?)
        }),
        loss("sinkhorn-plan", 115, &[("cost", &[6, 5])], |all| {
            let [cost] = inputs(all)?;
            let even = |count: usize| Tensor::full(1.0 / count as f32, count, cost.device());
            let (rows, columns) = (even(6)?.to_dtype(cost.dtype())?, even(5)?.to_dtype(cost.dtype())?);
            Ok(sinkhorn_plan(cost, &rows, &columns, 0.5, 100)?.plan)
        }),
        loss("deep-cca", 116, &[("x", &[20, 5]), ("y", &[20, 5])], |all| {
            let [x, y] = inputs(all)?;
            Ok(DeepCcaLoss::default().forward(x, y)?)
        }),
    ]
}

fn structures() -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, divergence) in
        [("structure-kl", Divergence::KullbackLeibler), ("structure-js", Divergence::JensenShannon)]
    {
        checks.push(loss(name, 120, &[("own", &[6, 9]), ("cross", &[6, 9])], move |all| {
            let [own, cross] = inputs(all)?;
            let loss = StructureTransferLoss { divergence, temperature: 0.8, ..Default::default() };
            Ok(loss.forward(&untied(own)?, cross)?)
        }));
    }
    let of_fragments: Shapes = &[("target", &[4, 3, 12]), ("source", &[6, 5, 12])];
    checks.push(loss("pooled-similarity", 121, SETS, |all| {
        let [source, target] = inputs(all)?;
        Ok(pooled_similarity(target, source)?)
    }));
    checks.push(loss("fragment-similarity", 122, of_fragments, |all| {
        let [target, source] = inputs(all)?;
        Ok(fragment_similarity(target, &mask(target, 2)?, source, &mask(source, 3)?)?)
    }));
    checks.push(loss("fragment-similarity-released", 123, of_fragments, |all| {
        let [target, source] = inputs(all)?;
        Ok(fragment_similarity_released(target, source)?)
    }));
    checks.push(loss("unit-fragment-similarity", 124, of_fragments, |all| {
        let [target, source] = inputs(all)?;
        Ok(unit_fragment_similarity(target, Some(&mask(target, 2)?), source, Some(&mask(source, 3)?))?)
    }));
    checks.push(loss("neighbour-similarity", 125, of_fragments, |all| {
        let [target, source] = inputs(all)?;
        let nearest = Tensor::new(&[[0u32, 5], [1, 1], [3, 2], [4, 0]], target.device())?;
        Ok(neighbour_similarity(target, Some(&mask(target, 2)?), source, Some(&mask(source, 3)?), &nearest)?)
    }));
    // More pairs than a card's threads look at together, and rows that do not fill them.
    let many: Shapes = &[("target", &[20, 3, 40]), ("source", &[6, 20, 40])];
    checks.push(loss("neighbour-similarity-of-many", 126, many, |all| {
        let [target, source] = inputs(all)?;
        let nearest: Vec<u32> = (0..20).flat_map(|item| [item % 6, (item * 5 + 1) % 6]).collect();
        let nearest = Tensor::from_vec(nearest, (20, 2), target.device())?;
        Ok(neighbour_similarity(target, Some(&mask(target, 2)?), source, None, &nearest)?)
    }));
    checks
}

/// Of every other item the first `kept` fragments are real, of the others all.
fn mask(fragments: &Tensor, kept: usize) -> anyhow::Result<Tensor> {
    let (items, count, _) = fragments.dims3()?;
    let real = |index: usize| (index / count) % 2 == 1 || index % count < kept;
    let mask: Vec<u8> = (0..items * count).map(|index| u8::from(real(index))).collect();
    Ok(Tensor::from_vec(mask, (items, count), &Device::Cpu)?.to_device(fragments.device())?)
}

fn critics() -> Vec<Check> {
    let randomised = |all: &[Tensor]| -> anyhow::Result<Tensor> {
        let [features, predictions] = inputs(all)?;
        let mut numbers = Numbers::new(131);
        let mut draw = |rows: usize| -> anyhow::Result<Tensor> {
            let x = numbers.tensor(&[rows, 10])?;
            Ok(x.to_dtype(features.dtype())?.to_device(features.device())?)
        };
        let map = ConditionalMap::Randomised { features: draw(8)?, predictions: draw(4)? };
        let loss = ConditionalAdversarialLoss { map, detach_predictions: false, ..Default::default() };
        Ok(loss.condition(features, predictions)?)
    };
    let conditioned: Shapes = &[("features", &[6, 8]), ("predictions", &[6, 4])];
    vec![
        Check::new(Kind::Loss, "domain-critic", domain_critic),
        Check::new(Kind::Loss, "wasserstein", wasserstein),
        loss("conditional-map", 130, conditioned, |all| {
            let [features, predictions] = inputs(all)?;
            let loss = ConditionalAdversarialLoss { detach_predictions: false, ..Default::default() };
            Ok(loss.condition(features, predictions)?)
        }),
        loss("conditional-map-randomised", 131, conditioned, randomised),
        loss(
            "conditional-adversarial",
            132,
            &[
                ("source", &[6]),
                ("source predictions", &[6, 4]),
                ("target", &[6]),
                ("target predictions", &[6, 4]),
            ],
            |all| {
                let [source, source_predictions, target, target_predictions] = inputs(all)?;
                let loss = ConditionalAdversarialLoss { detach_predictions: false, ..Default::default() };
                let spread = |x: &Tensor| candle_nn::ops::softmax(x, candle_core::D::Minus1);
                Ok(loss.critic_loss(
                    source,
                    &spread(source_predictions)?,
                    target,
                    &spread(target_predictions)?,
                )?)
            },
        ),
    ]
}

fn domain_critic(place: &Place) -> anyhow::Result<Values> {
    let parameters = Parameters::of(place, |builder| Ok(DomainCritic::with_widths(12, [8, 6], builder)?))?;
    let critic = DomainCritic::with_widths(12, [8, 6], parameters.builder())?;
    let x = place.variable(&Numbers::new(133).tensor(&[9, 12])?)?;
    let logits = critic.forward(x.as_tensor())?;
    let mut variables = parameters.variables;
    variables.push(("x".into(), x));
    with_gradients(&logits, &variables)
}

fn wasserstein(place: &Place) -> anyhow::Result<Values> {
    let parameters = Parameters::of(place, |builder| Ok(DomainCritic::with_widths(12, [8, 6], builder)?))?;
    let critic = DomainCritic::with_widths(12, [8, 6], parameters.builder())?;
    let mut numbers = Numbers::new(134);
    let mut draw = |shape: &[usize]| place.tensor(&numbers.tensor(shape)?);
    let (source, target, mix) = (draw(&[9, 12])?, draw(&[7, 12])?, draw(&[5])?.abs()?);
    let loss = WassersteinCriticLoss::default();
    let apart = loss.critic_loss(&critic.forward(&source)?, &critic.forward(&target)?)?;
    let penalty = loss.gradient_penalty(&critic, &source, &target, &mix)?;
    with_gradients(&Tensor::stack(&[apart, penalty], 0)?.to_dtype(DType::F32)?, &parameters.variables)
}
