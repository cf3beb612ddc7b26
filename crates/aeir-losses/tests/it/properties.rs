//! What must not change a loss, and what must change it in a known way.

use aeir_losses::{
    CanonicalCorrelation, ConditionalAdversarialLoss, ConditionalMap, CoralLoss, DeepCcaLoss, Divergence,
    DomainAdversarialLoss, DomainCritic, InfoNceLoss, LossError, MaximumMeanDiscrepancy, Negatives,
    Reduction, Rows, SigLipLoss, SinkhornDivergence, StructureTransferLoss, TripletRankingLoss,
    fragment_similarity, fragment_similarity_released, neighbour_similarity, pooled_similarity,
    unit_fragment_similarity,
};
use candle_core::{DType, Device, Tensor};

use crate::support::{Numbers, assert_close, assert_near, number, numbers, var};

const SEEDS: std::ops::Range<u64> = 100..120;
const CLOSE: (f64, f64) = (1e-10, 1e-10);

fn triplet(negatives: Negatives) -> TripletRankingLoss {
    TripletRankingLoss { margin: 0.3, negatives, reduction: Reduction::Sum }
}

#[test]
fn permuting_pairs_changes_nothing() {
    for seed in SEEDS {
        let mut random = Numbers(seed);
        let scores = random.tensor(&[7, 7]);
        let order = random.permutation(7);
        let permuted = scores.index_select(&order, 0).unwrap().index_select(&order, 1).unwrap();
        for negatives in [Negatives::Hardest, Negatives::All] {
            let loss = triplet(negatives);
            assert_close(
                "triplet",
                &loss.from_scores(&scores).unwrap(),
                &loss.from_scores(&permuted).unwrap(),
                CLOSE,
            );
        }
        let infonce = InfoNceLoss::default();
        assert_close(
            "InfoNCE",
            &infonce.from_scores(&scores).unwrap(),
            &infonce.from_scores(&permuted).unwrap(),
            CLOSE,
        );
        let siglip = SigLipLoss::default();
        assert_close(
            "SigLIP",
            &siglip.from_logits(&scores).unwrap(),
            &siglip.from_logits(&permuted).unwrap(),
            CLOSE,
        );
    }
}

#[test]
fn permuting_source_pairs_and_target_items_changes_no_structure() {
    for seed in SEEDS {
        let mut random = Numbers(seed);
        let (own, cross) = (random.tensor(&[5, 8]), random.tensor(&[5, 8]));
        let (rows, columns) = (random.permutation(5), random.permutation(8));
        let permute = |x: &Tensor| x.index_select(&rows, 0).unwrap().index_select(&columns, 1).unwrap();
        let loss = StructureTransferLoss::default();
        let (plain, permuted) = (loss.forward(&own, &cross), loss.forward(&permute(&own), &permute(&cross)));
        assert_close("structure", &plain.unwrap(), &permuted.unwrap(), CLOSE);
    }
}

#[test]
fn permuting_rows_changes_no_domain_loss() {
    for seed in SEEDS {
        let mut random = Numbers(seed);
        let (source, target) = (random.tensor(&[6, 3]), random.tensor(&[4, 3]));
        let permuted = source.index_select(&random.permutation(6), 0).unwrap();
        let mmd = MaximumMeanDiscrepancy::default();
        assert_close(
            "MMD",
            &mmd.forward(&source, &target).unwrap(),
            &mmd.forward(&permuted, &target).unwrap(),
            CLOSE,
        );
        let coral = CoralLoss;
        assert_close(
            "CORAL",
            &coral.forward(&source, &target).unwrap(),
            &coral.forward(&permuted, &target).unwrap(),
            CLOSE,
        );
        let sinkhorn = SinkhornDivergence { epsilon: 0.5, iterations: 50 };
        assert_close(
            "Sinkhorn",
            &sinkhorn.forward(&source, &target).unwrap(),
            &sinkhorn.forward(&permuted, &target).unwrap(),
            CLOSE,
        );
    }
}

#[test]
fn transposing_scores_swaps_the_directions() {
    for seed in SEEDS {
        let scores = Numbers(seed).tensor(&[6, 6]);
        let transposed = scores.t().unwrap();
        let (i2t, t2i) = InfoNceLoss::default().directions(&scores).unwrap();
        let (swapped_i2t, swapped_t2i) = InfoNceLoss::default().directions(&transposed).unwrap();
        assert_eq!((number(&i2t), number(&t2i)), (number(&swapped_t2i), number(&swapped_i2t)));
        for negatives in [Negatives::Hardest, Negatives::All] {
            let loss = triplet(negatives);
            assert_close(
                "triplet",
                &loss.from_scores(&scores).unwrap(),
                &loss.from_scores(&transposed).unwrap(),
                CLOSE,
            );
        }
    }
}

/// Appends `extra` padding rows, filled with `value`.
fn padded(x: &Tensor, mask: &Tensor, extra: usize, value: f64) -> (Tensor, Tensor) {
    let (items, _, dimension) = x.dims3().unwrap();
    let more = Tensor::full(value, (items, extra, dimension), &Device::Cpu).unwrap();
    let none = Tensor::zeros((items, extra), mask.dtype(), &Device::Cpu).unwrap();
    (Tensor::cat(&[x, &more], 1).unwrap(), Tensor::cat(&[mask, &none], 1).unwrap())
}

#[test]
fn padding_fragments_changes_nothing() {
    for seed in SEEDS {
        let mut random = Numbers(seed);
        let (target, source) = (random.tensor(&[3, 4, 5]), random.tensor(&[6, 2, 5]));
        let target_mask =
            Tensor::new(&[[1f64, 1., 0., 0.], [1., 1., 1., 1.], [1., 0., 0., 0.]], &Device::Cpu);
        let target_mask = target_mask.unwrap();
        let source_mask = Tensor::ones((6, 2), DType::U8, &Device::Cpu).unwrap();
        let plain = fragment_similarity(&target, &target_mask, &source, &source_mask).unwrap();
        for value in [0.0, 7.0, f64::NAN, f64::INFINITY] {
            let (more_target, more_target_mask) = padded(&target, &target_mask, 3, value);
            let (more_source, more_source_mask) = padded(&source, &source_mask, 2, value);
            let target_var = var(&more_target, DType::F64);
            let found =
                fragment_similarity(&target_var, &more_target_mask, &more_source, &more_source_mask).unwrap();
            assert_close("padded", &found, &plain, CLOSE);
            let gradients = found.sum_all().unwrap().backward().unwrap();
            let padding = gradients.get(&target_var).unwrap().narrow(1, 4, 3).unwrap();
            assert_close("padding's gradient", &padding, &padding.zeros_like().unwrap(), (0.0, 0.0));
        }
    }
}

#[test]
fn one_fragment_is_the_pooled_case() {
    let mut random = Numbers(1);
    let (target, source) = (random.tensor(&[3, 5]), random.tensor(&[6, 5]));
    let pooled = pooled_similarity(&target, &source).unwrap();
    let ones = |n: usize| Tensor::ones((n, 1), DType::F64, &Device::Cpu).unwrap();
    let (target, source) = (target.unsqueeze(1).unwrap(), source.unsqueeze(1).unwrap());
    let fragments = fragment_similarity(&target, &ones(3), &source, &ones(6)).unwrap();
    assert_close("pooled", &pooled, &fragments, CLOSE);
}

#[test]
fn an_item_without_fragments_is_like_nothing() {
    let mut random = Numbers(2);
    let (target, source) = (random.tensor(&[2, 3, 4]), random.tensor(&[5, 2, 4]));
    let target_mask = Tensor::new(&[[0u8, 0, 0], [1, 1, 0]], &Device::Cpu).unwrap();
    let source_mask = Tensor::ones((5, 2), DType::U8, &Device::Cpu).unwrap();
    let found = fragment_similarity(&target, &target_mask, &source, &source_mask).unwrap();
    assert!(found.to_vec2::<f64>().unwrap()[0].iter().all(|s| *s == 0.0));
}

#[test]
fn a_batch_of_one_is_zero_or_defined() {
    let one = Tensor::new(&[[0.7f64]], &Device::Cpu).unwrap();
    for negatives in [Negatives::Hardest, Negatives::All] {
        let scores = var(&one, DType::F64);
        let loss = triplet(negatives).from_scores(&scores).unwrap();
        assert_eq!(number(&loss), 0.0);
        assert_eq!(number(loss.backward().unwrap().get(&scores).unwrap()), 0.0);
    }
    assert_eq!(number(&InfoNceLoss::default().from_scores(&one).unwrap()), 0.0);
    assert_near(
        "SigLIP",
        number(&SigLipLoss::default().from_logits(&one).unwrap()),
        (-0.7f64).exp().ln_1p(),
        1e-12,
    );
    assert_eq!(number(&StructureTransferLoss::default().forward(&one, &one).unwrap()), 0.0);
    let (x, y) = (Tensor::new(&[[0f64, 0.]], &Device::Cpu), Tensor::new(&[[3f64, 4.]], &Device::Cpu));
    let apart = SinkhornDivergence::default().forward(&x.unwrap(), &y.unwrap()).unwrap();
    assert_near("Sinkhorn", number(&apart), 12.5, 1e-9);
    assert_near("MMD", number(&MaximumMeanDiscrepancy::default().forward(&one, &one).unwrap()), 0.0, 1e-12);
}

#[test]
fn more_neighbours_than_items_are_all_items() {
    let mut random = Numbers(3);
    let (own, cross) = (random.tensor(&[4, 3]), random.tensor(&[4, 3]));
    let with = |neighbours| {
        let loss = StructureTransferLoss { neighbours, ..Default::default() };
        number(&loss.forward(&own, &cross).unwrap())
    };
    assert_eq!(with(3), with(1000));
    assert_eq!(with(1), 0.0);
    assert!(with(2) > 0.0);
}

/// The divergence by its definition, over the K largest entries found by sorting.
/// On unit rows all forms are one, and the neighbours alone are the same entries with the same gradient.
#[test]
fn neighbours_are_entries_of_all_pairs() {
    let mut random = Numbers(11);
    let mut rows = |dims: &[usize]| {
        let x = random.tensor(dims);
        x.broadcast_div(&x.sqr().unwrap().sum_keepdim(2).unwrap().sqrt().unwrap()).unwrap()
    };
    let (target, source) = (rows(&[4, 3, 5]), rows(&[6, 2, 5]));
    let target_mask = Tensor::new(&[[1u8, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], &Device::Cpu).unwrap();
    let source_mask = Tensor::new(&[[1u8, 1], [1, 0], [1, 1], [1, 1], [1, 0], [1, 1]], &Device::Cpu).unwrap();
    let loss = StructureTransferLoss { temperature: 0.5, ..StructureTransferLoss::default() };
    let weights = random.tensor(&[4, 3]);
    let masked = Some((&target_mask, &source_mask));
    // In single precision it is an operation of its own.
    let runs = [(DType::F64, 1e-12), (DType::F32, 1e-5)].map(|run| [(run, None), (run, masked)]);
    for ((dtype, tolerance), masks) in runs.into_iter().flatten() {
        let (x, y) = (var(&target, dtype), var(&source, dtype));
        let (of_target, of_source) = (masks.map(|masks| masks.0), masks.map(|masks| masks.1));
        let all = unit_fragment_similarity(&x, of_target, &y, of_source).unwrap();
        let general = match masks {
            None => fragment_similarity_released(&x, &y).unwrap(),
            Some(_) => fragment_similarity(&x, &target_mask, &y, &source_mask).unwrap(),
        };
        let near = f64::max(tolerance, 1e-9);
        assert_close("all", &all, &general, (near, near));
        let nearest = loss.neighbours(&all).unwrap();
        let some = neighbour_similarity(&x, of_target, &y, of_source, &nearest).unwrap();
        let expected = all.gather(&nearest, 1).unwrap();
        assert_close("some", &some, &expected, (tolerance, tolerance));
        let gradient = |scores: &Tensor| {
            let store =
                (scores * weights.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
            [&x, &y].map(|variable| store.get(variable).unwrap().clone())
        };
        for (found, expected) in gradient(&some).iter().zip(&gradient(&expected)) {
            assert_close("gradient", found, expected, (tolerance, tolerance));
        }
    }
    let wrong = Tensor::new(&[[0u32, 1]], &Device::Cpu).unwrap();
    assert!(neighbour_similarity(&target, None, &source, None, &wrong).is_err());
}

#[test]
fn structure_by_hand() {
    for seed in SEEDS {
        let mut random = Numbers(seed);
        let (own, cross) = (random.tensor(&[4, 6]), random.tensor(&[4, 6]));
        let (mut kl_sum, mut js_sum) = (0.0, 0.0);
        let rows = own.to_vec2::<f64>().unwrap().into_iter().zip(cross.to_vec2::<f64>().unwrap());
        for (own, cross) in rows {
            let mut order: Vec<usize> = (0..6).collect();
            order.sort_by(|a, b| own[*b].total_cmp(&own[*a]));
            let softmax = |x: &[f64]| {
                let terms: Vec<f64> = order[..3].iter().map(|k| (x[*k] / 0.7).exp()).collect();
                let sum: f64 = terms.iter().sum();
                terms.into_iter().map(|t| t / sum).collect::<Vec<f64>>()
            };
            let (p, q) = (softmax(&own), softmax(&cross));
            let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
            let m: Vec<f64> = p.iter().zip(&q).map(|(p, q)| (p + q) / 2.0).collect();
            kl_sum += kl(&p, &q);
            js_sum += (kl(&p, &m) + kl(&q, &m)) / 2.0;
        }
        let loss = |divergence| {
            let loss = StructureTransferLoss { temperature: 0.7, divergence, ..Default::default() };
            number(&loss.forward(&own, &cross).unwrap())
        };
        assert_near("KL", loss(Divergence::KullbackLeibler), kl_sum, 1e-12);
        assert_near("JS", loss(Divergence::JensenShannon), js_sum, 1e-12);
    }
}

#[test]
fn means_are_sums_over_rows() {
    let mut random = Numbers(4);
    let scores = random.tensor(&[5, 5]);
    let sum = TripletRankingLoss::default();
    let mean = TripletRankingLoss { reduction: Reduction::Mean, ..sum };
    assert_near(
        "triplet",
        number(&mean.from_scores(&scores).unwrap()) * 5.0,
        number(&sum.from_scores(&scores).unwrap()),
        1e-12,
    );
    let (own, cross) = (random.tensor(&[4, 6]), random.tensor(&[4, 6]));
    let sum = StructureTransferLoss::default();
    let mean = StructureTransferLoss { reduction: Reduction::Mean, ..sum };
    assert_near(
        "structure",
        number(&mean.forward(&own, &cross).unwrap()) * 4.0,
        number(&sum.forward(&own, &cross).unwrap()),
        1e-12,
    );
}

#[test]
fn warm_up_goes_from_all_to_hardest() {
    let loss = TripletRankingLoss::default();
    assert_eq!(loss.at_step(0, 2).negatives, Negatives::All);
    assert_eq!(loss.at_step(1, 2).negatives, Negatives::All);
    assert_eq!(loss.at_step(2, 2).negatives, Negatives::Hardest);
    assert_eq!(Negatives::warm_up(0, 0), Negatives::Hardest);
}

#[test]
fn exchanging_the_domains_turns_critic_into_confusion() {
    let mut random = Numbers(5);
    let (a, b) = (random.tensor(&[4]), random.tensor(&[6, 1]));
    let critic = DomainAdversarialLoss.critic_loss(&a, &b).unwrap();
    let confusion = DomainAdversarialLoss.confusion_loss(&b, &a).unwrap();
    assert_eq!(number(&critic), number(&confusion));
}

#[test]
fn accuracy_counts_both_domains_alike() {
    let logits = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
    let accuracy = |s: &[f32], t: &[f32]| DomainCritic::accuracy(&logits(s), &logits(t)).unwrap();
    assert_eq!(accuracy(&[1.0, 2.0, 3.0], &[-1.0]), 1.0);
    assert_eq!(accuracy(&[1.0, 2.0, 3.0], &[1.0]), 0.5);
    assert_eq!(accuracy(&[0.0, 0.0], &[0.0]), 0.5);
    assert_eq!(accuracy(&[1.0, -1.0], &[-1.0, -1.0, 1.0, 1.0]), 0.5);
}

/// Equal weights: the conditional loss is the plain one; and with its projections the randomised map estimates the exact inner product.
#[test]
fn conditional_reduces_to_the_plain_loss() {
    let mut random = Numbers(6);
    let (source, target) = (random.tensor(&[4]), random.tensor(&[3]));
    let uniform = |n: usize| Tensor::full(0.25f64, (n, 4), &Device::Cpu).unwrap();
    let plain = DomainAdversarialLoss.critic_loss(&source, &target).unwrap();
    for entropy_conditioning in [true, false] {
        let loss = ConditionalAdversarialLoss { entropy_conditioning, ..Default::default() };
        let found = loss.critic_loss(&source, &uniform(4), &target, &uniform(3)).unwrap();
        assert_close("uniform", &found, &plain, CLOSE);
    }
}

#[test]
fn randomised_map_estimates_the_multilinear_one() {
    let mut random = Numbers(7);
    let (features, predictions) = (random.tensor(&[2, 3]), random.tensor(&[2, 4]));
    let map = ConditionalMap::Randomised {
        features: random.tensor(&[3, 40_000]),
        predictions: random.tensor(&[4, 40_000]),
    };
    let inner = |map| {
        let loss = ConditionalAdversarialLoss { map, ..Default::default() };
        let joint = loss.condition(&features, &predictions).unwrap().to_vec2::<f64>().unwrap();
        joint[0].iter().zip(&joint[1]).map(|(a, b)| a * b).sum::<f64>()
    };
    let (exact, estimate) = (inner(ConditionalMap::Multilinear), inner(map));
    let size = number(&features.sqr().unwrap().sum_all().unwrap())
        * number(&predictions.sqr().unwrap().sum_all().unwrap());
    assert_near("inner product", estimate, exact, 0.05 * size);
}

#[test]
fn confident_items_weigh_more() {
    let logits = Tensor::new(&[0.0f64, 3.0], &Device::Cpu).unwrap();
    let target = Tensor::new(&[-50.0f64], &Device::Cpu).unwrap();
    let predictions = Tensor::new(&[[1.0f64, 0.0], [0.5, 0.5]], &Device::Cpu).unwrap();
    let target_predictions = Tensor::new(&[[0.5f64, 0.5]], &Device::Cpu).unwrap();
    let loss = ConditionalAdversarialLoss::default();
    let found = loss.critic_loss(&logits, &predictions, &target, &target_predictions).unwrap();
    // weights 1 + exp(0) and 1 + exp(-ln 2)
    let expected = (2.0 * 2f64.ln() + 1.5 * (-3f64).exp().ln_1p()) / 3.5;
    assert_near("weighted", number(&found), expected, 1e-9);
}

#[test]
fn equal_sets_are_zero_apart() {
    let x = Numbers(8).tensor(&[6, 3]);
    assert_near("MMD", number(&MaximumMeanDiscrepancy::default().forward(&x, &x).unwrap()), 0.0, 1e-12);
    assert_near("CORAL", number(&CoralLoss.forward(&x, &x).unwrap()), 0.0, 1e-12);
    assert_near("Sinkhorn", number(&SinkhornDivergence::default().forward(&x, &x).unwrap()), 0.0, 1e-12);
}

/// Far from the origin f32 keeps its figures.
#[test]
fn distances_far_from_the_origin() {
    let mut random = Numbers(9);
    let (x, y) = (random.tensor(&[6, 3]), random.tensor(&[5, 3]));
    let loss = MaximumMeanDiscrepancy::default();
    let near = number(&loss.forward(&x, &y).unwrap());
    let moved = |x: &Tensor| (x + 100.0).unwrap().to_dtype(DType::F32).unwrap();
    let far = number(&loss.forward(&moved(&x), &moved(&y)).unwrap());
    assert_near("MMD", far, near, 1e-4);
}

/// Views with other strides, as a transpose leaves them, are as good as copies: value and gradient.
#[test]
fn strides_do_not_matter() {
    type Loss = fn(&Tensor, &Tensor) -> Result<Tensor, LossError>;
    let losses: [(&str, Loss); 10] = [
        ("triplet", |x, _| triplet(Negatives::Hardest).from_scores(x)),
        ("all triplets", |x, _| triplet(Negatives::All).from_scores(x)),
        ("InfoNCE", |x, _| InfoNceLoss::default().from_scores(x)),
        ("SigLIP", |x, _| SigLipLoss::default().from_logits(x)),
        ("structure", |x, y| StructureTransferLoss::default().forward(x, y)),
        ("pooled", |x, y| StructureTransferLoss::default().forward(&pooled_similarity(x, y)?, y)),
        ("MMD", |x, y| MaximumMeanDiscrepancy::default().forward(x, y)),
        ("CORAL", |x, y| CoralLoss.forward(x, y)),
        ("Sinkhorn", |x, y| SinkhornDivergence { epsilon: 1.0, iterations: 5 }.forward(x, y)),
        ("fragments", |x, y| {
            let mask = Tensor::ones((5, 5), DType::U8, &Device::Cpu).unwrap();
            let (x, y) = (x.unsqueeze(0).unwrap(), y.unsqueeze(0).unwrap());
            let x = x.broadcast_as((5, 5, 5)).unwrap();
            let y = y.broadcast_as((5, 5, 5)).unwrap();
            let similarity = fragment_similarity(&x, &mask, &y, &mask)?;
            StructureTransferLoss::default()
                .forward(&similarity, &y.narrow(0, 0, 1).unwrap().squeeze(0).unwrap())
        }),
    ];
    let mut random = Numbers(10);
    let (x, y) = (var(&random.tensor(&[5, 5]), DType::F64), var(&random.tensor(&[5, 5]), DType::F64));
    for (name, loss) in losses {
        let (xt, yt) = (x.t().unwrap(), y.t().unwrap());
        let view = loss(&xt, &yt).unwrap();
        let copy = loss(&xt.contiguous().unwrap(), &yt.contiguous().unwrap()).unwrap();
        assert_close(name, &view, &copy, CLOSE);
        let (view, copy) = (view.backward().unwrap(), copy.backward().unwrap());
        assert_close(name, view.get(&x).unwrap(), copy.get(&x).unwrap(), CLOSE);
    }
}

/// Known in closed form: a set moved by t is |t|^2 / 2 away, at any epsilon.
#[test]
fn a_moved_set_is_half_the_squared_distance_away() {
    let x = Numbers(11).tensor(&[12, 4]);
    let moved = x.broadcast_add(&Tensor::new(&[1.0f64, -2.0, 0.5, 3.0], &Device::Cpu).unwrap()).unwrap();
    let found = |epsilon, iterations| {
        number(&SinkhornDivergence { epsilon, iterations }.forward(&x, &moved).unwrap())
    };
    for epsilon in [0.05, 0.5, 5.0] {
        // What is left is a matter of iterations.
        assert_near("after 100", found(epsilon, 100), 7.125, 1e-5);
        assert_near("after 3000", found(epsilon, 3000), 7.125, 1e-9);
    }
}

/// Two views that share something, `[items, features]` and `[items, others]`.
fn views(random: &mut Numbers, items: usize, features: usize, others: usize) -> (Tensor, Tensor) {
    let shared = random.tensor(&[items, 3]);
    let mut view = |width: usize| {
        let seen = shared.matmul(&random.tensor(&[3, width])).unwrap();
        (seen + random.tensor(&[items, width])).unwrap()
    };
    (view(features), view(others))
}

fn fit(x: &Tensor, y: &Tensor, regularisation: f64, dimension: usize) -> CanonicalCorrelation {
    let (x_values, y_values) = (numbers(x), numbers(y));
    let x = Rows::new(&x_values, x.dim(1).unwrap()).unwrap();
    let y = Rows::new(&y_values, y.dim(1).unwrap()).unwrap();
    CanonicalCorrelation::fit(x, y, regularisation, dimension).unwrap()
}

/// `left^T right / (n - 1)`
fn covariance(left: &Tensor, right: &Tensor) -> Tensor {
    (left.t().unwrap().matmul(right).unwrap() / (left.dim(0).unwrap() as f64 - 1.0)).unwrap()
}

/// More than one block of items: the projections have the covariances of their definition.
#[test]
fn canonical_projections_are_white_and_correlate_as_told() {
    let mut random = Numbers(41);
    let (x, y) = views(&mut random, 2_500, 6, 4);
    let found = fit(&x, &y, 0.0, 4);
    let (x_values, y_values) = (numbers(&x), numbers(&y));
    let projected_x = found.project_x(Rows::new(&x_values, 6).unwrap()).unwrap();
    let projected_y = found.project_y(Rows::new(&y_values, 4).unwrap()).unwrap();
    let matrix = |values: Vec<f64>| Tensor::from_vec(values, (2_500, 4), &Device::Cpu).unwrap();
    let (projected_x, projected_y) = (matrix(projected_x), matrix(projected_y));
    let identity = Tensor::eye(4, DType::F64, &Device::Cpu).unwrap();
    let correlations = Tensor::new(found.correlations(), &Device::Cpu).unwrap();
    assert_close("x", &covariance(&projected_x, &projected_x), &identity, CLOSE);
    assert_close("y", &covariance(&projected_y, &projected_y), &identity, CLOSE);
    let expected = identity.broadcast_mul(&correlations).unwrap();
    assert_close("between", &covariance(&projected_x, &projected_y), &expected, CLOSE);
    assert!(found.correlations().is_sorted_by(|a, b| a >= b));
    assert!(found.correlations()[0] > 0.5 && found.correlations()[3] < 0.2);
    let single: Vec<f32> = x_values.iter().map(|value| *value as f32).collect();
    let other: Vec<f32> = y_values.iter().map(|value| *value as f32).collect();
    let (single, other) = (Rows::new(&single, 6).unwrap(), Rows::new(&other, 4).unwrap());
    let single = CanonicalCorrelation::fit(single, other, 0.0, 4).unwrap();
    assert_near("f32", single.correlations()[0], found.correlations()[0], 1e-6);
}

#[test]
fn canonical_correlations_know_no_order_and_no_basis() {
    for seed in SEEDS.take(5) {
        let mut random = Numbers(seed);
        let (x, y) = views(&mut random, 40, 5, 4);
        let order = random.permutation(40);
        let found = fit(&x, &y, 0.0, 4);
        let mixed = (x.matmul(&random.tensor(&[5, 5])).unwrap() + 7.0).unwrap();
        let close = |what: &str, other: &CanonicalCorrelation| {
            for (a, b) in other.correlations().iter().zip(found.correlations()) {
                assert_near(what, *a, *b, 1e-8);
            }
        };
        close("basis", &fit(&mixed, &y, 0.0, 4));
        let permuted = fit(&x.index_select(&order, 0).unwrap(), &y.index_select(&order, 0).unwrap(), 0.0, 4);
        close("order", &permuted);
        close("exchanged", &fit(&y, &x, 0.0, 4));
    }
}

/// Repeated and constant features add nothing; with fewer items than features everything correlates unless regularised.
#[test]
fn canonical_correlation_of_deficient_features() {
    let mut random = Numbers(42);
    let (x, y) = views(&mut random, 60, 5, 4);
    let constant = Tensor::full(3.0f64, (60, 2), &Device::Cpu).unwrap();
    let more = Tensor::cat(&[&x, &x.narrow(1, 1, 2).unwrap(), &constant], 1).unwrap();
    let (plain, deficient) = (fit(&x, &y, 0.0, 4), fit(&more, &y, 0.0, 4));
    for (a, b) in plain.correlations().iter().zip(deficient.correlations()) {
        assert_near("deficient", *a, *b, 1e-8);
    }
    assert!(deficient.wx().iter().all(|weight| weight.is_finite()));
    let (x, y) = views(&mut random, 10, 30, 20);
    assert!(fit(&x, &y, 0.0, 9).correlations().iter().all(|c| (c - 1.0).abs() < 1e-8));
    let regularised = fit(&x, &y, 1.0, 20);
    assert!(regularised.correlations().iter().all(|c| (0.0..1.0).contains(c)));
    assert!(regularised.wx().iter().chain(regularised.wy()).all(|weight| weight.is_finite()));
}

/// Through covariances or through inner products of items: the loss is the sum of the fitted correlations.
#[test]
fn deep_cca_is_the_sum_of_all_correlations() {
    let mut random = Numbers(43);
    for (items, features, others) in [(30, 6, 4), (6, 8, 5), (7, 3, 12), (2, 4, 4), (9, 9, 8), (9, 8, 9)] {
        let (x, y) = views(&mut random, items, features, others);
        let all = fit(&x, &y, 0.3, features.min(others));
        let loss = DeepCcaLoss { regularisation: 0.3 }.forward(&x, &y).unwrap();
        assert_near("sum", -number(&loss), all.correlations().iter().sum(), 1e-9);
        let view = DeepCcaLoss { regularisation: 0.3 }
            .forward(&x, &y.t().unwrap().contiguous().unwrap().t().unwrap());
        assert_close("strides", &view.unwrap(), &loss, CLOSE);
    }
}

/// Steps down the gradient lead a linear tower to the correlations that the closed form finds.
#[test]
fn deep_cca_trains_a_linear_tower() {
    let mut random = Numbers(44);
    let (x, y) = views(&mut random, 64, 6, 3);
    let loss = DeepCcaLoss { regularisation: 1e-3 };
    let tower = var(&random.tensor(&[6, 2]), DType::F64);
    let found = || loss.forward(&x.matmul(&tower).unwrap(), &y).unwrap();
    let before = number(&found());
    for _ in 0..200 {
        let gradients = found().backward().unwrap();
        let step = (gradients.get(&tower).unwrap() * 0.5).unwrap();
        tower.set(&(tower.as_tensor() - step).unwrap()).unwrap();
    }
    let best: f64 = fit(&x, &y, 0.0, 2).correlations().iter().sum();
    let after = -number(&found());
    assert!(-before < 0.9 * best && after > 0.98 * best && after < best + 1e-6, "{before}, {after}, {best}");
}
