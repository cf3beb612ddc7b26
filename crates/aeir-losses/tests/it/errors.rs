//! Bad input is answered with a typed error that names loss, tensor, expected and got.

use std::error::Error;

use aeir_losses::{
    Bandwidths, CanonicalCorrelation, ConditionalAdversarialLoss, CoralLoss, DeepCcaLoss,
    DomainAdversarialLoss, DomainCritic, Estimator, InfoNceLoss, LossError, MaximumMeanDiscrepancy, Rows,
    SigLipLoss, SinkhornDivergence, StructureTransferLoss, TripletRankingLoss, WassersteinCriticLoss,
    fragment_similarity, fragment_similarity_released, gradient_reversal, pooled_similarity, sinkhorn_plan,
};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

fn ones(dims: &[usize]) -> Tensor {
    Tensor::ones(dims, DType::F64, &Device::Cpu).unwrap()
}

#[track_caller]
fn shape(result: Result<Tensor, LossError>, name: &str) {
    match result {
        Err(LossError::Shape { tensor, .. }) => assert_eq!(tensor, name),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn parameter(result: Result<Tensor, LossError>, name: &str) {
    match result {
        Err(LossError::Parameter { parameter, .. }) => assert_eq!(parameter, name),
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_shapes() {
    let infonce = InfoNceLoss::default();
    shape(infonce.forward(&ones(&[3, 4]), &ones(&[2, 4]), &ones(&[])), "sentences");
    shape(infonce.forward(&ones(&[3]), &ones(&[3]), &ones(&[])), "images");
    shape(infonce.forward(&ones(&[3, 4]), &ones(&[3, 4]), &ones(&[2])), "log_scale");
    shape(infonce.from_scores(&ones(&[3, 4])), "scores");
    shape(SigLipLoss::default().from_logits(&ones(&[0, 0])), "logits");
    shape(SigLipLoss::default().forward(&ones(&[2, 2]), &ones(&[2, 2]), &ones(&[]), &ones(&[2])), "bias");
    shape(TripletRankingLoss::default().from_scores(&ones(&[2, 3])), "scores");
    shape(StructureTransferLoss::default().forward(&ones(&[2, 3]), &ones(&[3, 2])), "cross");
    shape(StructureTransferLoss::default().forward(&ones(&[0, 3]), &ones(&[0, 3])), "own");
    shape(DomainAdversarialLoss.critic_loss(&ones(&[2, 2]), &ones(&[2])), "source_logits");
    shape(DomainAdversarialLoss.confusion_loss(&ones(&[2]), &ones(&[0])), "target_logits");
    shape(pooled_similarity(&ones(&[2, 3]), &ones(&[2, 4])), "source");
    shape(fragment_similarity_released(&ones(&[2, 3]), &ones(&[2, 3])), "target");
    shape(fragment_similarity_released(&ones(&[2, 3, 4]), &ones(&[2, 3, 5])), "source");
    let (x, mask) = (ones(&[2, 3, 4]), ones(&[2, 3]));
    shape(fragment_similarity(&x, &ones(&[3, 2]), &x, &mask), "target_mask");
    shape(fragment_similarity(&x, &mask, &x, &ones(&[2])), "source_mask");
    shape(CoralLoss.forward(&ones(&[2, 3]), &ones(&[2, 4])), "target");
    shape(MaximumMeanDiscrepancy::default().forward(&ones(&[2]), &ones(&[2, 4])), "source");
    shape(SinkhornDivergence::default().forward(&ones(&[2, 3]), &ones(&[4])), "target");
    let conditional = ConditionalAdversarialLoss::default();
    shape(conditional.condition(&ones(&[2, 3]), &ones(&[3, 3])), "predictions");
    let (a, b) = (ones(&[2]), ones(&[2, 3]));
    shape(conditional.critic_loss(&a, &b, &a, &ones(&[3, 3])), "target_predictions");
    let marginal = ones(&[2]);
    let plan = sinkhorn_plan(&ones(&[2, 3]), &marginal, &marginal, 0.1, 5).map(|p| p.plan);
    shape(plan, "column_marginal");
}

#[test]
fn wrong_parameters() {
    let scores = ones(&[2, 2]);
    parameter(TripletRankingLoss { margin: f64::NAN, ..Default::default() }.from_scores(&scores), "margin");
    parameter(InfoNceLoss { epsilon: 0.0 }.forward(&scores, &scores, &ones(&[])), "epsilon");
    parameter(
        StructureTransferLoss { neighbours: 0, ..Default::default() }.forward(&scores, &scores),
        "neighbours",
    );
    parameter(
        StructureTransferLoss { temperature: 0.0, ..Default::default() }.forward(&scores, &scores),
        "temperature",
    );
    parameter(gradient_reversal(&scores, -1.0), "strength");
    for values in [vec![], vec![1.0, -1.0]] {
        let loss =
            MaximumMeanDiscrepancy { bandwidths: Bandwidths::Fixed(values), estimator: Estimator::Biased };
        parameter(loss.forward(&scores, &scores), "bandwidths");
    }
    parameter(SinkhornDivergence { epsilon: -1.0, iterations: 3 }.forward(&scores, &scores), "epsilon");
    parameter(SinkhornDivergence { epsilon: 1.0, iterations: 0 }.forward(&scores, &scores), "iterations");
    let plan = |row: &[f64], column: &[f64]| {
        let (row, column) =
            (Tensor::new(row, &Device::Cpu).unwrap(), Tensor::new(column, &Device::Cpu).unwrap());
        sinkhorn_plan(&scores, &row, &column, 0.1, 5).map(|p| p.plan)
    };
    parameter(plan(&[0.5, -0.5], &[0.5, 0.5]), "row_marginal");
    parameter(plan(&[0.5, 0.5], &[0.5, 0.9]), "column_marginal");
    parameter(plan(&[0.0, 0.0], &[0.0, 0.0]), "row_marginal");
    assert!(plan(&[1.0, 0.0], &[0.5, 0.5]).is_ok());
    let builder = VarBuilder::zeros(DType::F64, &Device::Cpu);
    assert!(matches!(
        DomainCritic::new(1, builder),
        Err(LossError::Parameter { parameter: "widths[0]", .. })
    ));
}

#[test]
fn one_row_has_no_covariance() {
    let (one, two) = (ones(&[1, 3]), ones(&[2, 3]));
    let too_few = |r: Result<Tensor, LossError>, name: &str| match r {
        Err(LossError::TooFewRows { tensor, expected: 2, got: 1, .. }) => assert_eq!(tensor, name),
        other => panic!("{other:?}"),
    };
    too_few(CoralLoss.forward(&one, &two), "source");
    too_few(CoralLoss.forward(&two, &one), "target");
    let unbiased = MaximumMeanDiscrepancy { estimator: Estimator::Unbiased, ..Default::default() };
    too_few(unbiased.forward(&two, &one), "target");
}

#[test]
fn wrong_element_types() {
    let (half, single, double) = (DType::BF16, DType::F32, DType::F64);
    let of = |dtype| Tensor::ones((2, 2), dtype, &Device::Cpu).unwrap();
    let results = [
        TripletRankingLoss::default().from_scores(&of(half)),
        TripletRankingLoss::default().from_scores(&of(DType::U32)),
        StructureTransferLoss::default().forward(&of(single), &of(double)),
        CoralLoss.forward(&of(double), &of(single)),
        WassersteinCriticLoss::default().critic_loss(&of(half), &of(half)),
    ];
    for result in results {
        assert!(matches!(result, Err(LossError::ElementType { .. })), "{result:?}");
    }
}

#[test]
fn messages_name_everything_and_keep_the_source() {
    let error = TripletRankingLoss::default().from_scores(&ones(&[2, 3])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "TripletRankingLoss: tensor `scores`: expected shape [B, B], not empty, got [2, 3]"
    );
    let weights = std::collections::HashMap::new();
    let builder = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let error = DomainCritic::new(4, builder).unwrap_err();
    assert!(matches!(error, LossError::Candle { loss: "DomainCritic", .. }));
    assert!(error.source().is_some_and(|source| source.to_string().contains("layers.0.weight")));
}

#[test]
fn a_critic_refuses_another_dimension() {
    let critic = DomainCritic::new(4, VarBuilder::zeros(DType::F64, &Device::Cpu)).unwrap();
    assert_eq!(critic.dimension(), 4);
    shape(critic.forward(&ones(&[2, 5])), "pooled");
    shape(critic.input_gradient(&ones(&[4])), "pooled");
}

#[test]
fn canonical_correlation_refusals() {
    assert!(matches!(Rows::new(&[1.0f32; 5], 3), Err(LossError::Shape { tensor: "values", .. })));
    assert!(matches!(Rows::new(&[1.0f32; 5], 0), Err(LossError::Shape { .. })));
    assert!(matches!(Rows::<f64>::new(&[], 3), Err(LossError::Shape { .. })));
    let values: Vec<f64> = (0..20).map(|i| f64::from(i * i % 7)).collect();
    let (x, y) = (Rows::new(&values, 4).unwrap(), Rows::new(&values[5..], 3).unwrap());
    let fit = |regularisation, dimension| CanonicalCorrelation::fit(x, y, regularisation, dimension);
    let refused = |result: Result<CanonicalCorrelation, LossError>, name: &str| match result {
        Err(LossError::Parameter { parameter, .. }) => assert_eq!(parameter, name),
        other => panic!("{other:?}"),
    };
    for bad in [-0.1, f64::NAN, f64::INFINITY] {
        refused(fit(bad, 1), "regularisation");
    }
    for bad in [0, 4, 100] {
        refused(fit(0.1, bad), "dimension");
    }
    let other_items = CanonicalCorrelation::fit(x, Rows::new(&values, 5).unwrap(), 0.1, 1);
    assert!(matches!(other_items, Err(LossError::Shape { tensor: "y", .. })));
    let one = Rows::new(&values, 20).unwrap();
    let one = CanonicalCorrelation::fit(one, one, 0.1, 1);
    assert!(matches!(one, Err(LossError::TooFewRows { tensor: "x", expected: 2, got: 1, .. })));
    for bad in [f64::NAN, f64::INFINITY, 1e200] {
        let mut values = values[5..].to_vec();
        values[7] = bad;
        let bad = CanonicalCorrelation::fit(x, Rows::new(&values, 3).unwrap(), 0.1, 1);
        assert!(matches!(bad, Err(LossError::NotFinite { tensor: "y", .. })), "{bad:?}");
    }
    let constant = [3.0f64; 15];
    refused(CanonicalCorrelation::fit(x, Rows::new(&constant, 3).unwrap(), 0.0, 1), "dimension");
    let found = fit(0.1, 2).unwrap();
    assert!(matches!(found.project_x(y), Err(LossError::Shape { tensor: "x", .. })));
}

#[test]
fn deep_cca_refusals() {
    let loss = DeepCcaLoss::default();
    shape(loss.forward(&ones(&[3, 2]), &ones(&[4, 2])), "y");
    shape(loss.forward(&ones(&[3]), &ones(&[3, 2])), "x");
    parameter(DeepCcaLoss { regularisation: 0.0 }.forward(&ones(&[3, 2]), &ones(&[3, 2])), "regularisation");
    let one = loss.forward(&ones(&[1, 2]), &ones(&[1, 2]));
    assert!(matches!(one, Err(LossError::TooFewRows { tensor: "x", expected: 2, got: 1, .. })));
    let single = ones(&[3, 2]).to_dtype(DType::F32).unwrap();
    let mixed = loss.forward(&ones(&[3, 2]), &single);
    assert!(matches!(mixed, Err(LossError::ElementType { tensor: "y", .. })));
    let bad = (ones(&[3, 2]) * f64::NAN).unwrap();
    let bad = loss.forward(&ones(&[3, 2]), &bad);
    assert!(matches!(bad, Err(LossError::NotFinite { tensor: "y", got, .. }) if got.is_nan()));
}
