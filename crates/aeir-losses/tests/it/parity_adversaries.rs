//! fixtures/parity/losses: losses with a critic, value and gradients, f64 and f32.

use aeir_losses::{
    ConditionalAdversarialLoss, ConditionalMap, DomainAdversarialLoss, DomainCritic, WassersteinCriticLoss,
    dann_schedule, gradient_reversal,
};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::support::{Fixture, assert_close, assert_near, critic, numbers, tolerance, var};

const TYPES: [DType; 2] = [DType::F64, DType::F32];
/// Hidden widths of the recorded critics.
const WIDTHS: [usize; 2] = [5, 4];
const SIDES: [&str; 2] = ["source", "target"];

/// The recorded weights under `prefix` as variables, with their names, and a critic on them.
fn recorded_critic(
    file: &Fixture,
    prefix: &str,
    dimension: usize,
    dtype: DType,
) -> (Vec<(String, Var)>, DomainCritic) {
    let names = (0..3).flat_map(|layer| ["weight", "bias"].map(|part| format!("layers.{layer}.{part}")));
    let weights: Vec<(String, Var)> =
        names.map(|name| (name.clone(), var(&file.get(&format!("{prefix}{name}")), dtype))).collect();
    let tensors = weights.iter().map(|(name, weight)| (name.clone(), weight.as_tensor().clone()));
    let critic = critic(tensors, dimension, WIDTHS);
    (weights, critic)
}

fn sides(file: &Fixture, suffix: &str, dtype: DType) -> [Var; 2] {
    SIDES.map(|side| var(&file.get(&format!("{side}{suffix}")), dtype))
}

/// Every recorded `PREFIX.grad_NAME` against the gradient of the variable of that name.
fn assert_gradients<'a>(
    file: &Fixture,
    prefix: &str,
    found: &GradStore,
    inputs: impl IntoIterator<Item = (&'a str, &'a Var)>,
    dtype: DType,
) {
    for (name, of) in inputs {
        let key = format!("{prefix}.grad_{name}");
        let gradient = found.get(of).unwrap_or_else(|| panic!("no {key}"));
        assert_close(&key, gradient, &file.get(&key), tolerance(dtype));
    }
}

fn named<'a>(weights: &'a [(String, Var)], sides: &'a [Var; 2]) -> Vec<(&'a str, &'a Var)> {
    let weights = weights.iter().map(|(name, weight)| (name.as_str(), weight));
    weights.chain(SIDES.into_iter().zip(sides)).collect()
}

#[test]
fn domain_adversarial() {
    let file = Fixture::load("losses/domain_adversarial.safetensors");
    for dtype in TYPES {
        let (weights, critic) = recorded_critic(&file, "", 6, dtype);
        let vectors = sides(&file, "", dtype);
        let logits = vectors.each_ref().map(|x| critic.forward(x).unwrap());
        for (side, logits) in SIDES.iter().zip(&logits) {
            let key = format!("{side}_logits");
            assert_close(&key, logits, &file.get(&key), tolerance(dtype));
        }
        let [source, target] = &logits;
        for (kind, loss) in [
            ("critic", DomainAdversarialLoss.critic_loss(source, target).unwrap()),
            ("confusion", DomainAdversarialLoss.confusion_loss(source, target).unwrap()),
        ] {
            assert_close(kind, &loss, &file.get(&format!("{kind}.loss")), tolerance(dtype));
            let found = loss.backward().unwrap();
            assert_gradients(&file, kind, &found, named(&weights, &vectors), dtype);
        }
    }
}

/// The schedule, and the game in one step: the critic's own gradient for the critic, its reverse for the encoder.
#[test]
fn gradient_reversal_with_its_schedule() {
    let file = Fixture::load("losses/domain_adversarial.safetensors");
    let progress = numbers(&file.get("progress"));
    let schedule = numbers(&file.get("schedule"));
    for (progress, expected) in progress.iter().zip(&schedule) {
        assert_near("schedule", dann_schedule(*progress), *expected, 1e-15);
    }
    for dtype in TYPES {
        let (weights, critic) = recorded_critic(&file, "", 6, dtype);
        let vectors = sides(&file, "", dtype);
        let [source, target] = vectors
            .each_ref()
            .map(|x| critic.forward(&gradient_reversal(x, dann_schedule(progress[2])).unwrap()).unwrap());
        let loss = DomainAdversarialLoss.critic_loss(&source, &target).unwrap();
        assert_close("reversed", &loss, &file.get("reversed.loss"), tolerance(dtype));
        let found = loss.backward().unwrap();
        assert_gradients(&file, "reversed", &found, named(&weights, &vectors), dtype);
    }
}

#[test]
fn wasserstein() {
    let file = Fixture::load("losses/wasserstein.safetensors");
    let loss = WassersteinCriticLoss::default();
    for dtype in TYPES {
        let (weights, critic) = recorded_critic(&file, "", 6, dtype);
        let vectors = sides(&file, "", dtype);
        let [source, target] = vectors.each_ref().map(|x| critic.forward(x).unwrap());
        let distance = loss.encoder_loss(&source, &target).unwrap();
        assert_close("encoder", &distance, &file.get("encoder.loss"), tolerance(dtype));
        let found = distance.backward().unwrap();
        // A mean of differences does not depend on the last bias.
        let moved = named(&weights, &vectors).into_iter().filter(|(name, _)| *name != "layers.2.bias");
        assert_gradients(&file, "encoder", &found, moved, dtype);
        let game = loss.critic_loss(&source, &target).unwrap();
        assert_close("critic", &game, &file.get("critic.loss"), tolerance(dtype));

        let [source, target] = vectors.each_ref().map(Var::as_tensor);
        let mix = file.get("mix").to_dtype(dtype).unwrap();
        let penalty = loss.gradient_penalty(&critic, source, target, &mix).unwrap();
        assert_close("penalty", &penalty, &file.get("penalty.loss"), tolerance(dtype));
        let found = penalty.backward().unwrap();
        let matrices = weights.iter().filter(|(name, _)| name.ends_with("weight"));
        let matrices = matrices.map(|(name, weight)| (name.as_str(), weight));
        assert_gradients(&file, "penalty", &found, matrices, dtype);
    }
}

#[test]
fn conditional_adversarial() {
    let file = Fixture::load("losses/conditional_adversarial.safetensors");
    for dtype in TYPES {
        let get = |name: &str| file.get(name).to_dtype(dtype).unwrap();
        let randomised =
            ConditionalMap::Randomised { features: get("map.features"), predictions: get("map.predictions") };
        for (kind, map, width) in
            [("multilinear", ConditionalMap::Multilinear, 12), ("randomised", randomised, 7)]
        {
            let (weights, critic) = recorded_critic(&file, &format!("{kind}."), width, dtype);
            let features = sides(&file, ".features", dtype);
            let predictions = SIDES.map(|side| get(&format!("{side}.predictions")));
            for entropy_conditioning in [true, false] {
                let loss = ConditionalAdversarialLoss {
                    map: map.clone(),
                    entropy_conditioning,
                    detach_predictions: true,
                };
                let logits = [0, 1].map(|side| {
                    let joint = loss.condition(&features[side], &predictions[side]).unwrap();
                    let key = format!("{kind}.{}.joint", SIDES[side]);
                    assert_close(&key, &joint, &file.get(&key), tolerance(dtype));
                    critic.forward(&joint).unwrap()
                });
                let ([source, target], [of_source, of_target]) = (&logits, &predictions);
                let how = if entropy_conditioning { "entropy" } else { "plain" };
                for (game, found) in [
                    ("critic", loss.critic_loss(source, of_source, target, of_target).unwrap()),
                    ("confusion", loss.confusion_loss(source, of_source, target, of_target).unwrap()),
                ] {
                    let key = format!("{kind}.{game}.{how}");
                    assert_close(&key, &found, &file.get(&format!("{key}.loss")), tolerance(dtype));
                    let found = found.backward().unwrap();
                    assert_gradients(&file, &key, &found, named(&weights, &features), dtype);
                }
            }
        }
    }
}

#[test]
fn conditional_predictions_where_they_are_wanted() {
    let file = Fixture::load("losses/conditional_adversarial.safetensors");
    let loss = ConditionalAdversarialLoss { detach_predictions: false, ..Default::default() };
    for dtype in TYPES {
        let features: Tensor = file.get("source.features").to_dtype(dtype).unwrap();
        let predictions = var(&file.get("source.predictions"), dtype);
        let upstream = file.get("through.upstream").to_dtype(dtype).unwrap();
        let joint = loss.condition(&features, &predictions).unwrap();
        let found = (joint * upstream).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = file.get("through.grad_predictions");
        assert_close("predictions", found.get(&predictions).unwrap(), &expected, tolerance(dtype));
    }
}
