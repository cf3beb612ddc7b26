//! fixtures/parity/losses: value and gradient, f64 and f32; of fixtures/parity/metrics, canonical correlation.

use aeir_losses::{
    Bandwidths, CanonicalCorrelation, CoralLoss, DeepCcaLoss, Divergence, Estimator, InfoNceLoss,
    MaximumMeanDiscrepancy, Negatives, Reduction, Rows, SigLipLoss, SinkhornDivergence,
    StructureTransferLoss, TripletRankingLoss, sinkhorn_plan,
};
use candle_core::{DType, Device, Tensor};

use crate::support::{Fixture, assert_close, numbers, tolerance, var};

const TYPES: [DType; 2] = [DType::F64, DType::F32];

fn scalar(x: f64, dtype: DType) -> Tensor {
    Tensor::new(x, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

#[test]
fn infonce() {
    let file = Fixture::load("losses/infonce.safetensors");
    for dtype in TYPES {
        let close = tolerance(dtype);
        for tau in ["0.07", "0.5"] {
            let key = |name: &str| format!("tau_{tau}.{name}");
            let (images, texts) = (var(&file.get("image"), dtype), var(&file.get("text"), dtype));
            let log_scale = var(&scalar((1.0 / tau.parse::<f64>().unwrap()).ln(), dtype), dtype);
            let loss = InfoNceLoss::default().forward(&images, &texts, &log_scale).unwrap();
            assert_close(&key("loss"), &loss, &file.get(&key("loss")), close);
            let gradients = loss.backward().unwrap();
            for (name, of) in [("grad_image", &images), ("grad_text", &texts)] {
                assert_close(&key(name), gradients.get(of).unwrap(), &file.get(&key(name)), close);
            }
            if tau == "0.07" {
                let name = key("grad_log_scale");
                assert_close(&name, gradients.get(&log_scale).unwrap(), &file.get(&name), close);
            }
            let norm = |x: &Tensor| {
                x.broadcast_div(&x.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap()).unwrap()
            };
            let scores = norm(&images).matmul(&norm(&texts).t().unwrap()).unwrap();
            let scores = (scores / tau.parse::<f64>().unwrap()).unwrap();
            let (i2t, t2i) = InfoNceLoss::default().directions(&scores).unwrap();
            assert_close("i2t", &i2t, &file.get(&key("loss_image_to_text")), close);
            assert_close("t2i", &t2i, &file.get(&key("loss_text_to_image")), close);
        }
    }
}

#[test]
fn siglip() {
    let file = Fixture::load("losses/siglip.safetensors");
    for dtype in TYPES {
        let close = tolerance(dtype);
        let inputs = ["image", "text", "log_scale", "bias"].map(|name| var(&file.get(name), dtype));
        let [images, texts, log_scale, bias] = &inputs;
        let loss = SigLipLoss::default().forward(images, texts, log_scale, bias).unwrap();
        assert_close("loss", &loss, &file.get("loss"), close);
        let gradients = loss.backward().unwrap();
        for (name, of) in ["grad_image", "grad_text", "grad_log_scale", "grad_bias"].iter().zip(&inputs) {
            assert_close(name, gradients.get(of).unwrap(), &file.get(name), close);
        }
        let logits = file.get("logits").to_dtype(dtype).unwrap();
        let loss = SigLipLoss::default().from_logits(&logits).unwrap();
        assert_close("loss from logits", &loss, &file.get("loss"), close);
    }
}

#[test]
fn triplet() {
    let file = Fixture::load("losses/triplet.safetensors");
    for dtype in TYPES {
        let close = tolerance(dtype);
        for (margin, text) in [(0.2, "0.2"), (0.05, "0.05")] {
            for (negatives, kind) in [(Negatives::Hardest, "hardest"), (Negatives::All, "sum")] {
                let key = |name: &str| format!("margin_{text}.{kind}.{name}");
                let scores = var(&file.get("scores"), dtype);
                let loss = TripletRankingLoss { margin, negatives, reduction: Reduction::Sum };
                let loss = loss.from_scores(&scores).unwrap();
                assert_close(&key("loss"), &loss, &file.get(&key("loss")), close);
                let gradients = loss.backward().unwrap();
                assert_close(&key("grad"), gradients.get(&scores).unwrap(), &file.get(&key("grad")), close);
            }
        }
        for negatives in [Negatives::Hardest, Negatives::All] {
            let scores = var(&file.get("inactive.scores"), dtype);
            let loss = TripletRankingLoss { negatives, ..Default::default() }.from_scores(&scores).unwrap();
            assert_close("inactive", &loss, &file.get("inactive.loss"), (0.0, 0.0));
            let gradients = loss.backward().unwrap();
            assert_close("inactive", gradients.get(&scores).unwrap(), &file.get("inactive.grad"), (0.0, 0.0));
        }
    }
}

#[test]
fn mmd() {
    let file = Fixture::load("losses/mmd.safetensors");
    let bandwidths = [
        ("fixed", Bandwidths::Fixed(numbers(&file.get("fixed.sigma_squared")))),
        ("scaled", Bandwidths::Scaled(vec![0.25, 0.5, 1.0, 2.0, 4.0])),
    ];
    for dtype in TYPES {
        let close = tolerance(dtype);
        for (kind, bandwidths) in &bandwidths {
            for (estimator, how) in [(Estimator::Biased, "biased"), (Estimator::Unbiased, "unbiased")] {
                let name = format!("{kind}.{how}");
                let (x, y) = (var(&file.get("x"), dtype), var(&file.get("y"), dtype));
                let loss = MaximumMeanDiscrepancy { bandwidths: bandwidths.clone(), estimator };
                let loss = loss.forward(&x, &y).unwrap();
                assert_close(&name, &loss, &file.get(&name), close);
                let gradients = loss.backward().unwrap();
                for (side, of) in [("grad_x", &x), ("grad_y", &y)] {
                    let name = format!("{name}.{side}");
                    assert_close(&name, gradients.get(of).unwrap(), &file.get(&name), close);
                }
            }
        }
    }
}

/// The scaled bandwidths are the recorded ones: fixed bandwidths of that size give the same value.
#[test]
fn mmd_scaled_bandwidths() {
    let file = Fixture::load("losses/mmd.safetensors");
    let recorded = numbers(&file.get("scaled.sigma_squared"));
    let mean = file.number("mean_squared_distance");
    for (recorded, multiple) in recorded.iter().zip([0.25, 0.5, 1.0, 2.0, 4.0]) {
        assert!((recorded / mean - multiple).abs() < 1e-12);
    }
    let loss =
        MaximumMeanDiscrepancy { bandwidths: Bandwidths::Fixed(recorded), estimator: Estimator::Unbiased };
    let loss = loss.forward(&file.get("x"), &file.get("y")).unwrap();
    assert_close("fixed at scaled", &loss, &file.get("scaled.unbiased"), (1e-9, 1e-9));
}

#[test]
fn coral() {
    let file = Fixture::load("losses/coral.safetensors");
    for dtype in TYPES {
        let close = tolerance(dtype);
        let (source, target) = (var(&file.get("source"), dtype), var(&file.get("target"), dtype));
        let loss = CoralLoss.forward(&source, &target).unwrap();
        assert_close("loss", &loss, &file.get("loss"), close);
        let gradients = loss.backward().unwrap();
        assert_close("grad_source", gradients.get(&source).unwrap(), &file.get("grad_source"), close);
        assert_close("grad_target", gradients.get(&target).unwrap(), &file.get("grad_target"), close);
    }
    let covariances = (file.get("cov_source") - file.get("cov_target")).unwrap();
    let loss = (covariances.sqr().unwrap().sum_all().unwrap() / 144.0).unwrap();
    assert_close("recorded covariances", &loss, &file.get("loss"), (1e-9, 1e-9));
}

#[test]
fn sinkhorn() {
    let file = Fixture::load("losses/sinkhorn.safetensors");
    let cost = file.get("cost");
    let (rows, columns) = (file.get("row_marginal"), file.get("column_marginal"));
    let close = (1e-9, 1e-9);
    for epsilon in ["0.5", "0.05"] {
        for iterations in [1, 10, 2000] {
            let key = |name: &str| format!("eps_{epsilon}.iterations_{iterations}.{name}");
            let found = sinkhorn_plan(&cost, &rows, &columns, epsilon.parse().unwrap(), iterations).unwrap();
            assert_close(&key("plan"), &found.plan, &file.get(&key("plan")), close);
            assert_close(&key("f"), &found.row_potential, &file.get(&key("f")), close);
            assert_close(&key("g"), &found.column_potential, &file.get(&key("g")), close);
            let transport = (&found.plan * &cost).unwrap().sum_all().unwrap();
            assert_close(&key("cost"), &transport, &file.get(&key("transport_cost")), close);
            let error = (found.plan.sum(1).unwrap() - &rows).unwrap().abs().unwrap().max_all().unwrap();
            assert_close(&key("row_error"), &error, &file.get(&key("row_error")), close);
        }
    }
    let fifth = Tensor::full(0.2f64, 5, &Device::Cpu).unwrap();
    let square = cost.narrow(0, 0, 5).unwrap();
    let found = sinkhorn_plan(&square, &fifth, &fifth, 0.1, 50).unwrap();
    assert_close("square", &found.plan, &file.get("square_uniform.eps_0.1.iterations_50.plan"), close);
}

/// f32 stays within its tolerance, also after thousands of iterations.
#[test]
fn sinkhorn_f32() {
    let file = Fixture::load("losses/sinkhorn.safetensors");
    let [cost, rows, columns] =
        ["cost", "row_marginal", "column_marginal"].map(|n| file.get(n).to_dtype(DType::F32).unwrap());
    for (epsilon, text) in [(0.5, "0.5"), (0.05, "0.05")] {
        for iterations in [1, 10, 2000] {
            let found = sinkhorn_plan(&cost, &rows, &columns, epsilon, iterations).unwrap();
            let key = format!("eps_{text}.iterations_{iterations}.plan");
            assert_close(&key, &found.plan, &file.get(&key), tolerance(DType::F32));
        }
    }
}

#[test]
fn sinkhorn_divergence() {
    let file = Fixture::load("losses/sinkhorn_divergence.safetensors");
    for dtype in TYPES {
        let close = tolerance(dtype);
        for epsilon in ["2.0", "1.0"] {
            let key = |name: &str| format!("eps_{epsilon}.{name}");
            let (source, target) = (var(&file.get("source"), dtype), var(&file.get("target"), dtype));
            let loss = SinkhornDivergence { epsilon: epsilon.parse().unwrap(), iterations: 1000 };
            let loss = loss.forward(&source, &target).unwrap();
            assert_close(&key("loss"), &loss, &file.get(&key("loss")), close);
            let gradients = loss.backward().unwrap();
            for (name, of) in [("grad_source", &source), ("grad_target", &target)] {
                assert_close(&key(name), gradients.get(of).unwrap(), &file.get(&key(name)), close);
            }
        }
    }
}

#[test]
fn structure_transfer() {
    let file = Fixture::load("losses/structure_transfer.safetensors");
    let kinds = [("kl", Divergence::KullbackLeibler), ("js", Divergence::JensenShannon)];
    for dtype in TYPES {
        let close = tolerance(dtype);
        for (kind, divergence) in kinds {
            for detach_reference in [false, true] {
                let prefix = if detach_reference { format!("{kind}.detached") } else { kind.to_owned() };
                let (own, cross) = (var(&file.get("own"), dtype), var(&file.get("cross"), dtype));
                let loss = StructureTransferLoss {
                    neighbours: file.setting("K") as usize,
                    temperature: file.setting("tau"),
                    divergence,
                    detach_reference,
                    reduction: Reduction::Sum,
                };
                let loss = loss.forward(&own, &cross).unwrap();
                assert_close(&prefix, &loss, &file.get(&format!("{prefix}.loss")), close);
                let gradients = loss.backward().unwrap();
                let key = format!("{prefix}.grad_cross");
                assert_close(&key, gradients.get(&cross).unwrap(), &file.get(&key), close);
                match gradients.get(&own) {
                    Some(found) => {
                        assert_close("own", found, &file.get(&format!("{prefix}.grad_own")), close);
                    }
                    None => assert!(detach_reference, "{prefix}: no gradient"),
                }
            }
        }
    }
}

/// The file's signs are the largest entry's of each column, as ours: nothing to turn round.
#[test]
fn canonical_correlation() {
    let file = Fixture::load("metrics/cca.safetensors");
    let (x, y) = (numbers(&file.get("x")), numbers(&file.get("y")));
    let (x, y) = (Rows::new(&x, 12).unwrap(), Rows::new(&y, 9).unwrap());
    let near = |what: &str, got: &[f64], expected: &Tensor| {
        let got = Tensor::new(got, &Device::Cpu).unwrap();
        assert_close(what, &got, expected, (0.0, 1e-7));
    };
    for (regularisation, text) in [(0.0, "0.0"), (0.1, "0.1")] {
        let key = |name: &str| format!("reg_{text}.{name}");
        let found = CanonicalCorrelation::fit(x, y, regularisation, 9).unwrap();
        near("x_mean", found.mean_x(), &file.get("x_mean"));
        near("y_mean", found.mean_y(), &file.get("y_mean"));
        let projected = (found.project_x(x).unwrap(), found.project_y(y).unwrap());
        let pairs = [
            ("correlations", found.correlations()),
            ("wx", found.wx()),
            ("wy", found.wy()),
            ("projected_x", &projected.0),
            ("projected_y", &projected.1),
        ];
        for (name, got) in pairs {
            near(&key(name), got, &file.get(&key(name)));
        }
        let few = CanonicalCorrelation::fit(x, y, regularisation, 4).unwrap();
        near("fewer", few.wx(), &file.get(&key("wx")).narrow(1, 0, 4).unwrap());
    }
}

#[test]
fn deep_cca() {
    let file = Fixture::load("metrics/cca.safetensors");
    let expected = numbers(&file.get("reg_0.1.correlations")).iter().sum::<f64>();
    for dtype in TYPES {
        let (x, y) = (var(&file.get("x"), dtype), var(&file.get("y"), dtype));
        let loss = DeepCcaLoss { regularisation: 0.1 }.forward(&x, &y).unwrap();
        assert_eq!(loss.dtype(), dtype);
        assert_close("sum of correlations", &loss, &scalar(-expected, DType::F64), tolerance(dtype));
    }
}
