//! Finite differences in f64, and where gradients must not go.

use aeir_losses::{
    Bandwidths, ConditionalAdversarialLoss, ConditionalMap, CoralLoss, DeepCcaLoss, Divergence,
    DomainAdversarialLoss, DomainCritic, Estimator, InfoNceLoss, MaximumMeanDiscrepancy, Negatives,
    Reduction, SigLipLoss, SinkhornDivergence, StructureTransferLoss, TripletRankingLoss,
    WassersteinCriticLoss, dann_schedule, fragment_similarity, fragment_similarity_released,
    gradient_reversal, pooled_similarity,
};
use candle_core::{DType, Device, Tensor, Var};

use crate::support::{
    Numbers, assert_close, assert_near, check_gradients, critic, critic_weights, numbers, var,
};

fn scalar(x: f64) -> Tensor {
    Tensor::new(x, &Device::Cpu).unwrap()
}

#[test]
fn infonce() {
    let mut random = Numbers(1);
    let inputs = [random.tensor(&[5, 4]), random.tensor(&[5, 4]), scalar(1.3)];
    check_gradients("InfoNCE", &inputs, |x| InfoNceLoss::default().forward(&x[0], &x[1], &x[2]).unwrap());
}

#[test]
fn siglip() {
    let mut random = Numbers(2);
    let inputs = [random.tensor(&[4, 3]), random.tensor(&[4, 3]), scalar(1.3), scalar(-2.0)];
    check_gradients("SigLIP", &inputs, |x| {
        SigLipLoss::default().forward(&x[0], &x[1], &x[2], &x[3]).unwrap()
    });
}

#[test]
fn triplet() {
    let scores = [Numbers(3).tensor(&[6, 6])];
    for negatives in [Negatives::Hardest, Negatives::All] {
        for reduction in [Reduction::Sum, Reduction::Mean] {
            let loss = TripletRankingLoss { margin: 0.3, negatives, reduction };
            check_gradients("triplet", &scores, |x| loss.from_scores(&x[0]).unwrap());
        }
    }
}

/// At a tie exactly one negative is pushed.
#[test]
fn triplet_at_a_tie() {
    let scores = Tensor::new(&[[0.5f64, 0.4, 0.4], [0.0, 0.9, 0.0], [0.0, 0.0, 0.9]], &Device::Cpu).unwrap();
    let scores = var(&scores, DType::F64);
    let loss = TripletRankingLoss::default().from_scores(&scores).unwrap();
    let gradient = numbers(loss.backward().unwrap().get(&scores).unwrap());
    assert_eq!(&gradient[..3], [-1.0, 1.0, 0.0]);
}

#[test]
fn domain_adversarial() {
    let mut random = Numbers(4);
    let inputs = [random.tensor(&[5]), random.tensor(&[3])];
    check_gradients("critic", &inputs, |x| DomainAdversarialLoss.critic_loss(&x[0], &x[1]).unwrap());
    check_gradients("confusion", &inputs, |x| DomainAdversarialLoss.confusion_loss(&x[0], &x[1]).unwrap());
}

#[test]
fn domain_adversarial_is_finite_at_extreme_logits() {
    for dtype in [DType::F32, DType::F64] {
        let extreme = Tensor::new(&[1e4f64, -1e4, 0.0], &Device::Cpu).unwrap();
        let (source, target) = (var(&extreme, dtype), var(&extreme, dtype));
        let loss = DomainAdversarialLoss.critic_loss(&source, &target).unwrap();
        let gradients = loss.backward().unwrap();
        assert_close("source", gradients.get(&source).unwrap(), &third(&[0.0, -1.0, -0.5]), (1e-6, 1e-6));
        assert_close("target", gradients.get(&target).unwrap(), &third(&[1.0, 0.0, 0.5]), (1e-6, 1e-6));
    }
}

fn third(x: &[f64]) -> Tensor {
    (Tensor::new(x, &Device::Cpu).unwrap() / 3.0).unwrap()
}

#[test]
fn critic_reaches_weights_and_input() {
    let mut random = Numbers(5);
    let weights = critic_weights(&mut random, 6, [3, 4]);
    let names: Vec<String> = weights.iter().map(|(name, _)| name.clone()).collect();
    let mut inputs: Vec<Tensor> = weights.into_iter().map(|(_, weight)| weight).collect();
    inputs.push(random.tensor(&[5, 6]));
    inputs.push(random.tensor(&[4, 6]));
    check_gradients("critic", &inputs, |x| {
        let critic = critic(names.iter().cloned().zip(x.iter().cloned()), 6, [3, 4]);
        let (source, target) = (critic.forward(&x[6]).unwrap(), critic.forward(&x[7]).unwrap());
        DomainAdversarialLoss.critic_loss(&source, &target).unwrap()
    });
}

#[test]
fn reversal_keeps_the_value_and_turns_the_gradient() {
    for dtype in [DType::F32, DType::F64] {
        let x = var(&(Numbers(6).tensor(&[4, 3]) * 1e3).unwrap(), dtype);
        let y = gradient_reversal(&x, 0.7).unwrap();
        assert_eq!(numbers(&y), numbers(&x));
        let plain = x.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let reversed = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let expected = (plain.get(&x).unwrap() * -0.7).unwrap();
        assert_close("reversed", reversed.get(&x).unwrap(), &expected, (1e-6, 0.0));
    }
    assert_eq!(dann_schedule(0.0), 0.0);
    assert_near("half", dann_schedule(0.5), 2.0 / (1.0 + (-5.0f64).exp()) - 1.0, 1e-15);
    assert_eq!(dann_schedule(-3.0), 0.0);
    assert_eq!(dann_schedule(9.0), dann_schedule(1.0));
    assert_eq!(dann_schedule(f64::NAN), 0.0);
}

#[test]
fn structure_transfer() {
    let mut random = Numbers(7);
    let inputs = [random.tensor(&[4, 7]), random.tensor(&[4, 7])];
    for divergence in [Divergence::KullbackLeibler, Divergence::JensenShannon] {
        for reduction in [Reduction::Sum, Reduction::Mean] {
            let loss =
                StructureTransferLoss { divergence, reduction, temperature: 0.8, ..Default::default() };
            check_gradients("structure", &inputs, |x| loss.forward(&x[0], &x[1]).unwrap());
        }
    }
}

#[test]
fn structure_transfer_with_a_constant_reference() {
    let mut random = Numbers(8);
    let (own, cross) = (var(&random.tensor(&[4, 7]), DType::F64), var(&random.tensor(&[4, 7]), DType::F64));
    let loss = StructureTransferLoss { detach_reference: true, ..Default::default() };
    let gradients = loss.forward(&own, &cross).unwrap().backward().unwrap();
    assert!(gradients.get(&own).is_none());
    assert!(gradients.get(&cross).is_some());
}

#[test]
fn structure_transfer_through_fragments() {
    let mut random = Numbers(9);
    let inputs = [random.tensor(&[3, 4, 5]), random.tensor(&[6, 2, 5]), random.tensor(&[6, 3, 5])];
    let loss = StructureTransferLoss { temperature: 0.5, ..Default::default() };
    check_gradients("released", &inputs, |x| {
        let own = fragment_similarity_released(&x[0], &x[1]).unwrap();
        loss.forward(&own, &fragment_similarity_released(&x[0], &x[2]).unwrap()).unwrap()
    });
    let ones = |x: &Tensor| Tensor::ones((x.dims()[0], x.dims()[1]), DType::U8, &Device::Cpu).unwrap();
    check_gradients("masked", &inputs, |x| {
        let own = fragment_similarity(&x[0], &ones(&x[0]), &x[1], &ones(&x[1])).unwrap();
        let cross = fragment_similarity(&x[0], &ones(&x[0]), &x[2], &ones(&x[2])).unwrap();
        loss.forward(&own, &cross).unwrap()
    });
    let pooled = [random.tensor(&[3, 5]), random.tensor(&[6, 5]), random.tensor(&[6, 5])];
    check_gradients("pooled", &pooled, |x| {
        let own = pooled_similarity(&x[0], &x[1]).unwrap();
        loss.forward(&own, &pooled_similarity(&x[0], &x[2]).unwrap()).unwrap()
    });
}

#[test]
fn structure_transfer_is_finite_at_extreme_similarities() {
    let far = Tensor::new(&[[1e4f32, -1e4, 0.0], [0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
    for divergence in [Divergence::KullbackLeibler, Divergence::JensenShannon] {
        let (own, cross) = (var(&far, DType::F32), var(&far.neg().unwrap(), DType::F32));
        let loss = StructureTransferLoss { divergence, temperature: 0.1, ..Default::default() };
        let loss = loss.forward(&own, &cross).unwrap();
        let gradients = loss.backward().unwrap();
        for x in [&loss, gradients.get(&own).unwrap(), gradients.get(&cross).unwrap()] {
            assert!(numbers(x).iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn mean_discrepancy() {
    let mut random = Numbers(10);
    let inputs = [random.tensor(&[5, 3]), random.tensor(&[4, 3])];
    for estimator in [Estimator::Biased, Estimator::Unbiased] {
        let loss = MaximumMeanDiscrepancy { bandwidths: Bandwidths::Fixed(vec![0.7, 3.0]), estimator };
        check_gradients("MMD", &inputs, |x| loss.forward(&x[0], &x[1]).unwrap());
    }
}

/// One point repeated: no 0/0 in value or gradient.
#[test]
fn mean_discrepancy_of_one_point() {
    let x = var(&Tensor::full(0.3f32, (3, 2), &Device::Cpu).unwrap(), DType::F32);
    let loss = MaximumMeanDiscrepancy::default().forward(&x, &x).unwrap();
    assert_near("value", numbers(&loss)[0], 0.0, 1e-6);
    assert_close(
        "gradient",
        loss.backward().unwrap().get(&x).unwrap(),
        &x.zeros_like().unwrap(),
        (0.0, 1e-6),
    );
}

#[test]
fn coral() {
    let mut random = Numbers(11);
    let inputs = [random.tensor(&[5, 3]), random.tensor(&[4, 3])];
    check_gradients("CORAL", &inputs, |x| CoralLoss.forward(&x[0], &x[1]).unwrap());
}

#[test]
fn sinkhorn_divergence() {
    let mut random = Numbers(12);
    let inputs = [random.tensor(&[5, 3]), random.tensor(&[4, 3])];
    let loss = SinkhornDivergence { epsilon: 0.8, iterations: 600 };
    check_gradients("Sinkhorn", &inputs, |x| loss.forward(&x[0], &x[1]).unwrap());
}

#[test]
fn conditional_adversarial() {
    let mut random = Numbers(13);
    let projections =
        ConditionalMap::Randomised { features: random.tensor(&[3, 5]), predictions: random.tensor(&[2, 5]) };
    let weights = [random.tensor(&[1, 6]), random.tensor(&[1, 5])];
    let predictions = candle_nn::ops::softmax(&random.tensor(&[4, 2]), 1).unwrap();
    let target_predictions = candle_nn::ops::softmax(&random.tensor(&[5, 2]), 1).unwrap();
    let inputs = [random.tensor(&[4, 3]), random.tensor(&[5, 3])];
    for (map, weight) in [ConditionalMap::Multilinear, projections].into_iter().zip(&weights) {
        let loss = ConditionalAdversarialLoss { map, ..Default::default() };
        let logits = |features: &Tensor, predictions: &Tensor| {
            loss.condition(features, predictions).unwrap().matmul(&weight.t().unwrap()).unwrap()
        };
        check_gradients("critic", &inputs, |x| {
            let (source, target) = (logits(&x[0], &predictions), logits(&x[1], &target_predictions));
            loss.critic_loss(&source, &predictions, &target, &target_predictions).unwrap()
        });
        check_gradients("confusion", &inputs, |x| {
            let (source, target) = (logits(&x[0], &predictions), logits(&x[1], &target_predictions));
            loss.confusion_loss(&source, &predictions, &target, &target_predictions).unwrap()
        });
    }
}

#[test]
fn conditional_predictions() {
    let mut random = Numbers(14);
    let features = random.tensor(&[4, 3]);
    let predictions = var(&candle_nn::ops::softmax(&random.tensor(&[4, 2]), 1).unwrap(), DType::F64);
    for detach_predictions in [true, false] {
        let loss = ConditionalAdversarialLoss { detach_predictions, ..Default::default() };
        let joint = loss.condition(&features, &predictions).unwrap();
        let gradients = joint.sqr().unwrap().sum_all().unwrap().backward();
        // With constant features and detached predictions nothing is recorded at all.
        let reached = gradients.is_ok_and(|g| g.get(&predictions).is_some());
        assert_eq!(reached, !detach_predictions);
    }
}

/// The written-out input gradient is candle's own first derivative.
#[test]
fn critic_input_gradient() {
    let mut random = Numbers(15);
    let critic = critic(critic_weights(&mut random, 6, [5, 7]), 6, [5, 7]);
    let x = var(&random.tensor(&[9, 6]), DType::F64);
    let gradients = critic.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close(
        "input gradient",
        &critic.input_gradient(&x).unwrap(),
        gradients.get(&x).unwrap(),
        (1e-12, 1e-12),
    );
}

#[test]
fn gradient_penalty() {
    let mut random = Numbers(16);
    let weights = critic_weights(&mut random, 5, [4, 6]);
    let (biases, weights): (Vec<_>, Vec<_>) =
        weights.into_iter().partition(|(name, _)| name.ends_with("bias"));
    let names: Vec<String> = weights.iter().map(|(name, _)| name.clone()).collect();
    let inputs: Vec<Tensor> = weights.into_iter().map(|(_, weight)| weight).collect();
    let (source, target) = (random.tensor(&[3, 5]), random.tensor(&[4, 5]));
    let mix = Tensor::new(&[0.1f64, 0.35, 0.6, 0.8, 0.95], &Device::Cpu).unwrap();
    check_gradients("penalty", &inputs, |x| {
        let all = names.iter().cloned().zip(x.iter().cloned()).chain(biases.iter().cloned());
        let critic = critic(all, 5, [4, 6]);
        WassersteinCriticLoss::default().gradient_penalty(&critic, &source, &target, &mix).unwrap()
    });
}

/// The penalty trains the critic's weight matrices alone; the scores' losses reach both domains.
#[test]
fn wasserstein_reach() {
    let mut random = Numbers(17);
    let vars: Vec<(String, Var)> = critic_weights(&mut random, 4, [3, 3])
        .into_iter()
        .map(|(name, weight)| (name, var(&weight, DType::F64)))
        .collect();
    let critic: DomainCritic =
        critic(vars.iter().map(|(name, v)| (name.clone(), v.as_tensor().clone())), 4, [3, 3]);
    let (source, target) =
        (var(&random.tensor(&[3, 4]), DType::F64), var(&random.tensor(&[2, 4]), DType::F64));
    let mix = Tensor::new(&[0.3f64, 0.6], &Device::Cpu).unwrap();
    let loss = WassersteinCriticLoss::default();
    let gradients = loss.gradient_penalty(&critic, &source, &target, &mix).unwrap().backward().unwrap();
    assert!(gradients.get(&source).is_none() && gradients.get(&target).is_none());
    for (name, v) in &vars {
        assert_eq!(gradients.get(v).is_some(), name.ends_with("weight"), "{name}");
    }
    let inputs = [random.tensor(&[3]), random.tensor(&[5])];
    check_gradients("critic", &inputs, |x| loss.critic_loss(&x[0], &x[1]).unwrap());
    check_gradients("encoder", &inputs, |x| loss.encoder_loss(&x[0], &x[1]).unwrap());
}

/// Rows of zeros have finite gradients.
#[test]
fn rows_of_zeros() {
    let zeros = Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap();
    let (images, sentences) = (var(&zeros, DType::F32), var(&zeros, DType::F32));
    let log_scale = Tensor::new(1f32, &Device::Cpu).unwrap();
    let loss = InfoNceLoss::default().forward(&images, &sentences, &log_scale).unwrap();
    let gradients = loss.backward().unwrap();
    assert!(numbers(&loss).iter().chain(&numbers(gradients.get(&images).unwrap())).all(|v| v.is_finite()));
}

/// More items than features, fewer, and more than one side's only; and a feature that never changes.
#[test]
fn deep_cca() {
    let mut random = Numbers(31);
    for (items, features, others) in [(20, 4, 3), (20, 3, 5), (6, 8, 7), (6, 3, 9), (2, 3, 2)] {
        for regularisation in [1e-2, 1.0] {
            let inputs = [random.tensor(&[items, features]), random.tensor(&[items, others])];
            let loss = DeepCcaLoss { regularisation };
            check_gradients("deep CCA", &inputs, |x| loss.forward(&x[0], &x[1]).unwrap());
        }
    }
    let x = random.tensor(&[12, 4]);
    let y = (x.matmul(&random.tensor(&[4, 4])).unwrap() + random.tensor(&[12, 4])).unwrap();
    // Three times the loss: the gradient scales with what comes after.
    check_gradients("deep CCA, scaled", &[x, y], |x| {
        (DeepCcaLoss { regularisation: 0.1 }.forward(&x[0], &x[1]).unwrap() * 3.0).unwrap()
    });
}

/// In f32 the gradient is the one of f64.
#[test]
fn deep_cca_in_single_precision() {
    let mut random = Numbers(32);
    let (x, y) = (random.tensor(&[16, 5]), random.tensor(&[16, 4]));
    let gradient = |dtype| {
        let (x, y) = (var(&x, dtype), var(&y, dtype));
        let gradients = DeepCcaLoss::default().forward(&x, &y).unwrap().backward().unwrap();
        gradients.get(&x).unwrap().clone()
    };
    let (single, double) = (gradient(DType::F32), gradient(DType::F64));
    assert_eq!(single.dtype(), DType::F32);
    assert_close("f32", &single, &double, (1e-4, 1e-6));
}

/// Batches without any correlation to find: finite, and nothing pushes.
#[test]
fn deep_cca_of_singular_batches() {
    let mut random = Numbers(33);
    let alive = random.tensor(&[8, 3]);
    let constant = Tensor::full(2.0f64, (8, 3), &Device::Cpu).unwrap();
    let (x, y) = (var(&constant, DType::F64), var(&alive, DType::F64));
    let loss = DeepCcaLoss::default().forward(&x, &y).unwrap();
    assert_near("constant", numbers(&loss)[0], 0.0, 1e-12);
    let gradients = loss.backward().unwrap();
    for of in [&x, &y] {
        assert!(numbers(gradients.get(of).unwrap()).iter().all(|g| *g == 0.0));
    }
    // One constant feature and one repeated: the others keep the gradient they have alone.
    let dead = Tensor::cat(&[&alive, &constant.narrow(1, 0, 1).unwrap()], 1).unwrap();
    let other = random.tensor(&[8, 4]);
    let of = |x: &Tensor| {
        let (x, y) = (var(x, DType::F64), var(&other, DType::F64));
        let loss = DeepCcaLoss::default().forward(&x, &y).unwrap();
        let gradients = loss.backward().unwrap();
        (numbers(&loss)[0], gradients.get(&x).unwrap().clone(), gradients.get(&y).unwrap().clone())
    };
    let (alone, with_dead) = (of(&alive), of(&dead));
    assert_near("value", with_dead.0, alone.0, 1e-9);
    assert_close("alive", &with_dead.1.narrow(1, 0, 3).unwrap(), &alone.1, (1e-7, 1e-9));
    assert_close(
        "dead",
        &with_dead.1.narrow(1, 3, 1).unwrap(),
        &Tensor::zeros((8, 1), DType::F64, &Device::Cpu).unwrap(),
        (0.0, 1e-9),
    );
    assert_close("other", &with_dead.2, &alone.2, (1e-7, 1e-9));
    let twice = Tensor::cat(&[&alive, &alive], 1).unwrap();
    let (value, gradient, _) = of(&twice);
    assert!(value.is_finite() && numbers(&gradient).iter().all(|g| g.is_finite()));
}
