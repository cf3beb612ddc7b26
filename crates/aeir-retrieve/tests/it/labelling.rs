//! Which images are planned for labels, and recall of a few labelled queries.

use std::collections::BTreeSet;

use aeir_retrieve::{
    Error, LabelPlanOptions, Matrix, PlannedLabel, plan_labels, ranks_in_gallery, sampled_recalls,
};
use proptest::prelude::*;

fn unit(rows: &[[f32; 3]]) -> Matrix {
    Matrix::from_rows(rows).unwrap().l2_normalised().unwrap()
}

fn learn(count: usize) -> LabelPlanOptions {
    LabelPlanOptions { learn: count, measure: 0, candidates: 3, seed: 0 }
}

fn images_of(planned: &[PlannedLabel]) -> Vec<usize> {
    planned.iter().map(|label| label.image).collect()
}

/// Pseudo-random unit vectors.
fn scattered(count: usize, salt: u32) -> Matrix {
    let value = |at: u32| ((at.wrapping_mul(2_654_435_761) ^ salt) % 1_000) as f32 / 500.0 - 1.0;
    let rows: Vec<[f32; 3]> =
        (0..count as u32).map(|row| [3 * row, 3 * row + 1, 3 * row + 2].map(|at| value(at + salt))).collect();
    unit(&rows)
}

#[test]
fn the_undecided_that_something_fits_come_first_and_not_from_one_corner() {
    let sentences = unit(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.02], [0.0, 0.98, 0.0]]);
    // 0 is sure. 1 and 2 are undecided and alike. 3 is as far from everything.
    let images = unit(&[[1.0, 0.05, 0.0], [0.1, 1.0, 0.01], [0.1, 1.0, 0.011], [0.0, 0.05, -1.0]]);
    let plan = plan_labels(&images, &sentences, &learn(4)).unwrap().learn;
    let order = images_of(&plan);
    assert!(order[0] == 1 || order[0] == 2, "{plan:?}");
    assert_eq!(order[3], 3 - order[0], "its twin adds the least: {plan:?}");
    let uncertainty = |image: usize| plan.iter().find(|label| label.image == image).unwrap().uncertainty;
    assert!(uncertainty(0) < 0.1 && uncertainty(1) > 0.4, "{plan:?}");
    let best: Vec<usize> = plan[0].candidates.iter().map(|candidate| candidate.position).collect();
    assert_eq!(best.len(), 3);
    assert!(best.iter().all(|sentence| *sentence > 0), "{best:?}");
    assert!(plan[0].candidates.windows(2).all(|pair| pair[0].score >= pair[1].score));
}

#[test]
fn greedy_growth_is_that_of_the_definition() {
    let (images, sentences) = (scattered(60, 7), scattered(40, 91));
    let plan = plan_labels(&images, &sentences, &learn(60)).unwrap().learn;
    let best = |label: &PlannedLabel| label.candidates[0].score;
    let mut weights = vec![0.0_f64; 60];
    for label in &plan {
        let not_above = plan.iter().filter(|other| best(other) <= best(label)).count();
        weights[label.image] = label.uncertainty * not_above as f64 / 60.0;
    }
    let cosine = |a: usize, b: usize| -> f64 {
        images.row(a).unwrap().iter().zip(images.row(b).unwrap()).map(|(x, y)| f64::from(x * y)).sum()
    };
    let value = |set: &[usize]| -> f64 {
        (0..60).map(|i| weights[i] * set.iter().map(|c| cosine(i, *c)).fold(0.0, f64::max)).sum()
    };
    let mut set = Vec::new();
    for chosen in images_of(&plan).into_iter().take(8) {
        let with = |image: usize| value(&[set.as_slice(), &[image]].concat());
        let most = (0..60).map(with).fold(f64::MIN, f64::max);
        assert!(with(chosen) >= most - 1e-5, "{chosen} after {set:?}");
        set.push(chosen);
    }
    assert_eq!(images_of(&plan).into_iter().collect::<BTreeSet<_>>().len(), 60, "in the end all of them");
}

#[test]
fn the_part_to_measure_with_is_a_uniform_sample() {
    let (images, sentences) = (scattered(20, 3), scattered(10, 5));
    let mut counts = [0_usize; 20];
    for seed in 0..400 {
        let options = LabelPlanOptions { learn: 3, measure: 5, candidates: 2, seed };
        let plan = plan_labels(&images, &sentences, &options).unwrap();
        images_of(&plan.measure).into_iter().for_each(|image| counts[image] += 1);
        assert!(images_of(&plan.learn).iter().all(|image| !images_of(&plan.measure).contains(image)));
    }
    // 100 of 400 each, standard deviation 8.7.
    assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
}

#[test]
fn what_can_not_be_planned_is_refused() {
    let (images, sentences) = (scattered(4, 1), scattered(4, 2));
    for options in [learn(0), LabelPlanOptions { candidates: 0, ..learn(1) }] {
        assert!(matches!(plan_labels(&images, &sentences, &options), Err(Error::Setting { .. })));
    }
    let none = Matrix::new(Vec::new(), 0, 3).unwrap();
    assert!(matches!(plan_labels(&none, &sentences, &learn(1)), Err(Error::Empty { .. })));
    assert!(matches!(plan_labels(&images, &none, &learn(1)), Err(Error::Empty { .. })));
    let wide = Matrix::new(vec![0.5; 8], 2, 4).unwrap();
    assert!(matches!(plan_labels(&images, &wide, &learn(1)), Err(Error::Shape { .. })));
    let broken = Matrix::new(vec![f32::NAN, 0.0, 1.0], 1, 3).unwrap();
    assert!(matches!(plan_labels(&broken, &sentences, &learn(1)), Err(Error::NotFinite { .. })));
    // Alike in everything: any order, but all of them.
    let same = unit(&[[1.0, 0.0, 0.0]; 5]);
    assert_eq!(plan_labels(&same, &same, &learn(9)).unwrap().learn.len(), 5);
    let one = LabelPlanOptions { learn: 1, measure: 1, candidates: 9, seed: 4 };
    let plan = plan_labels(&unit(&[[1.0, 0.0, 0.0]]), &sentences, &one).unwrap();
    assert_eq!((plan.measure.len(), plan.learn.len()), (1, 0), "measuring comes first");
}

proptest! {
    #[test]
    fn a_smaller_plan_is_the_beginning_of_a_larger_one(salt in 0_u32..1_000, few in 1_usize..12) {
        let (images, sentences) = (scattered(30, salt), scattered(20, salt + 1));
        let all = plan_labels(&images, &sentences, &learn(30)).unwrap().learn;
        let some = plan_labels(&images, &sentences, &learn(few)).unwrap().learn;
        prop_assert_eq!(&some[..], &all[..few]);
    }

    #[test]
    fn ranks_are_the_naive_count(values in prop::collection::vec(0_u8..6, 24), right in prop::collection::vec(0_usize..6, 1..4)) {
        let scores = Matrix::new(values.iter().map(|value| f32::from(*value)).collect(), 4, 6).unwrap();
        let ranks = ranks_in_gallery(&scores, &vec![right.clone(); 4]).unwrap();
        for (row, rank) in ranks.iter().enumerate() {
            let score = |column: usize| scores.get(row, column).unwrap();
            let best = right.iter().map(|column| score(*column)).fold(f32::MIN, f32::max);
            let before = (0..6).filter(|column| !right.contains(column) && score(*column) >= best).count();
            prop_assert_eq!(*rank, before + 1);
        }
    }
}

#[test]
fn recalls_of_a_sample_have_a_median_and_intervals_of_the_images() {
    let ranks = [1, 1, 4, 9, 30];
    let recalls = sampled_recalls(&ranks, 5).unwrap();
    assert_eq!((recalls.r1.value, recalls.r5.value, recalls.r10.value), (40.0, 60.0, 80.0));
    assert_eq!((recalls.medr, recalls.queries), (4.0, 5));
    let fewer = sampled_recalls(&ranks, 3).unwrap();
    assert!(fewer.r1.interval.low < recalls.r1.interval.low, "sentences of one image are no new evidence");
    assert!(matches!(sampled_recalls(&[], 0), Err(Error::Empty { .. })));
    let scores = Matrix::new(vec![0.0; 4], 2, 2).unwrap();
    assert!(matches!(ranks_in_gallery(&scores, &[vec![0]]), Err(Error::Shape { .. })));
    assert!(matches!(ranks_in_gallery(&scores, &[vec![0], vec![2]]), Err(Error::Shape { .. })));
    assert!(matches!(ranks_in_gallery(&scores, &[vec![0], Vec::new()]), Err(Error::Empty { .. })));
}
