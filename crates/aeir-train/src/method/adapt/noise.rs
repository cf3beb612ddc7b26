//! Which matches are noise: a mixture of two on their losses.

/// Rounds of expectation and maximisation; a mixture of two in one dimension settles long before.
const ROUNDS: usize = 50;
/// Matches below which a mixture says nothing.
const FEWEST: usize = 8;

/// How probably each match belongs to those that the towers can fit, by the loss it has under them.
///
/// Networks fit what is right before what is wrong, so that right matches have the smaller losses.
///
/// Equation: two Gaussians are fitted to the losses; the answer is the posterior of the one with the smaller mean. Losses below that mean
/// get 1: the wider of the two would claim them again.
///
/// Source: Arazo et al., *Unsupervised label noise modeling and loss correction*, ICML 2019; with Gaussians: Li et al., *DivideMix*, ICLR 2020.
pub(super) fn probably_right(losses: &[f64]) -> Vec<f32> {
    let (low, high) = losses
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), loss| (low.min(*loss), high.max(*loss)));
    if losses.len() < FEWEST || high - low < 1e-9 {
        return vec![1.0; losses.len()];
    }
    let scaled: Vec<f64> = losses.iter().map(|loss| (loss - low) / (high - low)).collect();
    let mut right = Component { share: 0.5, mean: 0.25, variance: 0.05 };
    let mut wrong = Component { share: 0.5, mean: 0.75, variance: 0.05 };
    for _ in 0..ROUNDS {
        let posterior: Vec<f64> = scaled.iter().map(|x| share(&right, &wrong, *x)).collect();
        right = Component::fit(&scaled, posterior.iter().copied());
        wrong = Component::fit(&scaled, posterior.iter().map(|p| 1.0 - p));
    }
    if right.mean > wrong.mean {
        std::mem::swap(&mut right, &mut wrong);
    }
    let weight = |x: &f64| if *x <= right.mean { 1.0 } else { share(&right, &wrong, *x) as f32 };
    scaled.iter().map(weight).collect()
}

/// A Gaussian with its share of the mixture.
struct Component {
    share: f64,
    mean: f64,
    variance: f64,
}

impl Component {
    fn fit(values: &[f64], weights: impl Iterator<Item = f64> + Clone) -> Self {
        let total: f64 = weights.clone().sum::<f64>().max(1e-9);
        let mean = values.iter().zip(weights.clone()).map(|(x, w)| w * x).sum::<f64>() / total;
        let square = values.iter().zip(weights).map(|(x, w)| w * (x - mean).powi(2)).sum::<f64>() / total;
        // Equal losses must not make a spike of infinite height.
        Self { share: total / values.len() as f64, mean, variance: square.max(1e-4) }
    }

    fn density(&self, x: f64) -> f64 {
        self.share * (-(x - self.mean).powi(2) / (2.0 * self.variance)).exp() / self.variance.sqrt()
    }
}

/// The posterior of `right`.
fn share(right: &Component, wrong: &Component, x: f64) -> f64 {
    let (right, wrong) = (right.density(x), wrong.density(x));
    if right + wrong > 0.0 { right / (right + wrong) } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_heaps_of_losses_are_told_apart() {
        let losses: Vec<f64> = (0..40)
            .map(|i| if i < 25 { 1.0 + 0.02 * f64::from(i) } else { 6.0 + 0.05 * f64::from(i) })
            .collect();
        let found = probably_right(&losses);
        assert!(found[..25].iter().all(|p| *p > 0.95), "{found:?}");
        assert!(found[25..].iter().all(|p| *p < 0.05), "{found:?}");
    }

    #[test]
    fn equal_or_few_losses_are_all_kept() {
        assert_eq!(probably_right(&[2.0; 20]), vec![1.0; 20]);
        assert_eq!(probably_right(&[1.0, 9.0]), vec![1.0; 2]);
        assert!(probably_right(&[]).is_empty());
    }
}
