//! Exact search where something else makes the fast pass, such as a card: it proposes rows, and they are settled here.
//!
//! Whoever proposes has scored every row with rounding of its own and gives the best of them. Scores are then taken again as every search takes
//! them, and a bound on the rounding says whether a row that was not proposed could be among the best. Where it could, the query is
//! proposed for again in a finer manner, and at last searched here from the beginning: so the answers are those of [`Gallery::search`], bit for
//! bit, whatever was proposed.

use half::f16;
use rayon::prelude::*;

use super::{Gallery, Neighbour, Query};
use crate::{Error, Matrix};

/// Rows and their fast scores (of the unit query, less the penalty by its length), best first.
pub(crate) type Proposed = Vec<(f32, usize)>;

/// What is asked of whoever proposes.
pub(crate) struct Proposal<'a> {
    /// Queries of length 1, `[queries, dimension]`.
    pub(crate) units: Vec<f32>,
    /// What each was divided by.
    pub(crate) lengths: Vec<f32>,
    /// Rows that are wanted for each; fewer where there are not so many.
    pub(crate) rows: usize,
    /// Which of the manners is meant.
    pub(crate) manner: usize,
    /// By which penalties, and among which rows.
    pub(crate) gallery: &'a Gallery<'a>,
}

/// Queries that one task settles at least: waking more threads takes longer.
const QUERIES_OF_TASK: usize = 32;

/// How somebody proposes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Rows that it proposes for the `k` best.
    pub(crate) rows: usize,
    /// The error of its sums, in errors of a sum in `f32`.
    pub(crate) looseness: f64,
    /// Where queries and items are rounded to 16 bits for it: no item is farther from what it is rounded to.
    pub(crate) halved: Option<f64>,
}

/// Neighbours of each query, and how many queries had to be searched here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settled<T> {
    pub(crate) found: Vec<Vec<T>>,
    pub(crate) unsettled: usize,
}

/// What settles a query.
#[derive(Clone, Copy)]
struct Wanted {
    k: usize,
    /// Rows that may be found.
    selected: usize,
    manner: Manner,
}

/// Neighbours of each query, as far as it is settled.
type Places = Vec<Option<Vec<Neighbour>>>;

impl Gallery<'_> {
    /// Neighbours by row, the same as [`Gallery::search`] finds. Manners are tried in their order, each for the queries that those before it
    /// have left.
    pub(crate) fn search_proposed<E: From<Error>>(
        &self,
        queries: &Matrix,
        k: usize,
        manners: &[Manner],
        propose: impl Fn(&Proposal<'_>) -> Result<Vec<Proposed>, E>,
    ) -> Result<Settled<Neighbour>, E> {
        let prepared = self.prepared(queries, k)?;
        let selected = self.selected();
        let k = k.min(selected);
        if k == 0 || queries.rows() == 0 || self.is_few(selected) || self.has_codes() {
            return Ok(Settled { found: self.search(queries, k.max(1))?, unsettled: 0 });
        }
        let mut places: Places = vec![None; prepared.len()];
        for (number, manner) in manners.iter().enumerate() {
            let left: Vec<(usize, &Query<'_>)> =
                prepared.iter().enumerate().filter(|(place, _)| is_open(&places, *place)).collect();
            if left.is_empty() {
                break;
            }
            let proposed = propose(&self.proposal(&left, number, *manner))?;
            let wanted = Wanted { k, selected, manner: *manner };
            let settle = |(number, (place, query)): (usize, &(usize, &Query<'_>))| {
                let rows = proposed.get(number).map_or(&[][..], Vec::as_slice);
                (*place, self.settled(query, rows, wanted))
            };
            let settled: Vec<(usize, Option<Vec<Neighbour>>)> =
                left.par_iter().with_min_len(QUERIES_OF_TASK).enumerate().map(settle).collect();
            settled.into_iter().for_each(|(place, found)| put(&mut places, place, found));
        }
        self.completed(queries, k, places)
    }

    fn proposal(&self, queries: &[(usize, &Query<'_>)], number: usize, manner: Manner) -> Proposal<'_> {
        Proposal {
            units: queries.iter().map(|(_, query)| query.unit.as_slice()).collect::<Vec<_>>().concat(),
            lengths: queries.iter().map(|(_, query)| query.length as f32).collect(),
            rows: manner.rows,
            manner: number,
            gallery: self,
        }
    }

    /// The best `k`, where `proposed` holds them for certain.
    fn settled(
        &self,
        query: &Query<'_>,
        proposed: &[(f32, usize)],
        Wanted { k, selected, manner }: Wanted,
    ) -> Option<Vec<Neighbour>> {
        let expected = manner.rows.min(selected);
        let (kth, _) = proposed.get(k.checked_sub(1)?).filter(|_| proposed.len() == expected)?;
        let slack = manner.looseness * query.slack + self.slack_of_halves(query, manner);
        let threshold = ((f64::from(*kth) - slack) as f32).next_down();
        let possible = proposed.partition_point(|(score, _)| *score >= threshold);
        // What was not proposed scores no more than the last that was.
        let is_closed = possible < expected || expected == selected;
        is_closed.then(|| self.exact(query, proposed.get(..possible).unwrap_or_default(), k))
    }

    /// Twice what rounding to 16 bits can change of a score: `|q x - q' x'| <= |q - q'| |x| + |q'| |x - x'|`.
    fn slack_of_halves(&self, query: &Query<'_>, manner: Manner) -> f64 {
        let of_items = |items: f64| {
            let own = distance_of_halves(&query.unit);
            2.0 * (own * self.longest + (1.0 + 1e-6 + own) * items)
        };
        manner.halved.map_or(0.0, of_items)
    }

    /// Searches for the queries that are not settled.
    fn completed<E: From<Error>>(
        &self,
        queries: &Matrix,
        k: usize,
        mut places: Places,
    ) -> Result<Settled<Neighbour>, E> {
        let left: Vec<usize> = (0..places.len()).filter(|place| is_open(&places, *place)).collect();
        if !left.is_empty() {
            let found = self.search(&queries.select_rows(&left)?, k)?;
            left.iter().zip(found).for_each(|(place, found)| put(&mut places, *place, Some(found)));
        }
        Ok(Settled {
            found: places.into_iter().map(Option::unwrap_or_default).collect(),
            unsettled: left.len(),
        })
    }
}

fn is_open(places: &Places, place: usize) -> bool {
    places.get(place) == Some(&None)
}

fn put(places: &mut Places, place: usize, found: Option<Vec<Neighbour>>) {
    if let Some(slot) = places.get_mut(place) {
        *slot = found;
    }
}

/// How far a vector is from what it is rounded to in 16 bits; infinite where it does not fit.
pub(crate) fn distance_of_halves(values: &[f32]) -> f64 {
    let square = |value: &f32| (f64::from(*value) - f16::from_f32(*value).to_f64()).powi(2);
    let distance = values.iter().map(square).sum::<f64>().sqrt();
    if distance.is_finite() { distance } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bits::Bits;
    use crate::hubness::by_score;
    use crate::search::Vectors;
    use crate::{
        Correction, Filter, GalleryCorrection, Index, IndexBuilder, IndexContent, IndexWriter, SearchOptions,
        Storage,
    };

    /// Scores every row as a card does, with an error, and gives the best.
    fn proposed(proposal: &Proposal<'_>, error: f32) -> Vec<Proposed> {
        let gallery = proposal.gallery;
        let items: Vec<f32> = (gallery.runs.iter())
            .flat_map(|run| match run.vectors {
                Vectors::F32(values) => values.to_vec(),
                Vectors::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
                Vectors::Int8(..) => Vec::new(),
            })
            .collect();
        let of = |(unit, length): (&[f32], &f32)| {
            let score = |(row, item): (usize, &[f32])| {
                let dot: f32 = unit.iter().zip(item).map(|(a, b)| a * b).sum();
                let penalty = gallery.penalties.map_or(0.0, |penalties| penalties[row] / length);
                (dot - penalty + if row % 2 == 0 { error } else { -error }, row)
            };
            let mut scored: Proposed = items.chunks(gallery.dimension).enumerate().map(score).collect();
            scored.retain(|(_, row)| gallery.selected.is_none_or(|rows| rows.contains(*row)));
            scored.sort_unstable_by(|a, b| by_score(*a, *b));
            scored.truncate(proposal.rows);
            scored
        };
        proposal.units.chunks(gallery.dimension).zip(&proposal.lengths).map(of).collect()
    }

    fn matrix(rows: usize, columns: usize, values: &[i8], scale: f32) -> Matrix {
        let values = values.iter().cycle().take(rows * columns).map(|value| f32::from(*value) * scale);
        Matrix::new(values.collect(), rows, columns).unwrap()
    }

    proptest! {
        #[test]
        fn answers_are_those_of_a_search_whatever_is_proposed(
            values in prop::collection::vec(-3_i8..4, 7..80),
            rows in 1_usize..60,
            k in 1_usize..12,
            spare in 0_usize..8,
            penalised in any::<bool>(),
            selected in prop::option::of(prop::collection::vec(any::<bool>(), 60)),
        ) {
            let items = matrix(rows, 5, &values, 0.25);
            let queries = matrix(4, 5, &values[3..], 1.7);
            let penalties: Vec<f32> = (0..rows).map(|row| (row % 3) as f32 * 0.1).collect();
            let selected = selected.map(|set| {
                let mut bits = Bits::none(rows);
                (0..rows).filter(|row| set[*row]).for_each(|row| bits.insert(row));
                bits
            });
            let mut gallery = Gallery::of_matrix(&items).unwrap();
            gallery.penalties = penalised.then_some(penalties.as_slice());
            gallery.selected = selected.as_ref();
            let rough = Manner { rows: k + spare, looseness: 1.0, halved: Some(0.01) };
            let manner = [rough, Manner { rows: k + spare + 3, halved: None, ..rough }];
            let settled = gallery
                .search_proposed(&queries, k, &manner, |asked| Ok::<_, Error>(proposed(asked, 0.0)))
                .unwrap();
            prop_assert_eq!(settled.found, gallery.search(&queries, k).unwrap());
        }
    }

    #[test]
    fn copies_beyond_what_was_proposed_are_searched_for_and_others_are_not() {
        let mut values = vec![1.0, 0.0, 0.8, 0.6, 0.6, 0.8, 0.0, 1.0];
        values.extend([0.8, 0.6].repeat(9));
        let items = Matrix::new(values, 13, 2).unwrap();
        let queries = Matrix::from_rows(&[[1.0, 0.0], [0.8, 0.6]]).unwrap();
        let gallery = Gallery::of_matrix(&items).unwrap();
        let manner = [Manner { rows: 4, looseness: 1.0, halved: None }];
        let of = |k| {
            let propose = |asked: &Proposal<'_>| Ok::<_, Error>(proposed(asked, 1e-7));
            gallery.search_proposed(&queries, k, &manner, propose).unwrap()
        };
        // Ten copies of the second item: four proposals do not hold the lowest of them for certain.
        let settled = of(1);
        assert_eq!(settled.unsettled, 1);
        assert_eq!(settled.found, gallery.search(&queries, 1).unwrap());
        assert_eq!(settled.found[1][0].position, 1);
        assert_eq!(of(2).unsettled, 2);
        assert_eq!(of(2).found, gallery.search(&queries, 2).unwrap());
    }

    #[test]
    fn an_index_with_segments_and_deleted_items_answers_the_same() {
        let place = tempfile::tempdir().unwrap();
        let names = |rows: std::ops::Range<usize>| rows.map(|row| format!("{row}")).collect::<Vec<_>>();
        let values: Vec<i8> = (0..97).map(|value| (value * 31 % 13) as i8 - 6).collect();
        let items = matrix(60, 6, &values, 0.3).l2_normalised().unwrap();
        let more = matrix(25, 6, &values[5..], 0.3).l2_normalised().unwrap();
        let queries = matrix(7, 6, &values[11..], 0.7);
        for storage in [Storage::F32, Storage::F16] {
            let folder = place.path().join(storage.name());
            let (first, second) = (names(0..60), names(60..85));
            let content = IndexContent::new(&items, &first, "m");
            IndexBuilder::begin(&folder).unwrap().with_storage(storage).commit(content).unwrap();
            let mut writer = IndexWriter::open(&folder).unwrap();
            writer.add(IndexContent::new(&more, &second, "m")).unwrap();
            let gone = ["3", "17", "61", "84"].map(String::from);
            writer.remove(&gone).unwrap();
            writer.commit().unwrap();
            let index = Index::open(&folder).unwrap();
            assert_eq!((index.segments(), index.deleted()), (2, 4));
            let corrections = [Correction::Csls { k: 3 }, Correction::DynamicInvertedSoftmax { beta: 9.0 }]
                .map(|correction| {
                    GalleryCorrection::of_bank(correction, &index.embeddings().unwrap(), &queries).unwrap()
                });
            let some = index.select(&Filter::default().with_items(names(0..40))).unwrap();
            for (correction, selection) in [
                (None, None),
                (Some(&corrections[0]), None),
                (Some(&corrections[1]), Some(&some)),
                (None, Some(&some)),
            ] {
                let options =
                    SearchOptions { exact: true, selection, correction, ..SearchOptions::default() };
                let manner = |k| vec![Manner { rows: k + 6, looseness: 1.0, halved: None }];
                let propose = |asked: &Proposal<'_>| Ok::<_, Error>(proposed(asked, 1e-8));
                let settled = index.find_proposed(&queries, 5, &options, manner, propose).unwrap();
                assert_eq!(settled.found, index.find(&queries, 5, &options).unwrap());
            }
        }
    }

    #[test]
    fn a_rough_manner_settles_what_it_can_and_leaves_the_rest_to_a_finer_one() {
        let (items, queries) = (matrix(50, 6, &[7, -3, 1, 5, -6, 2, 0], 0.1), matrix(9, 6, &[1, 4, -2], 0.3));
        let gallery = Gallery::of_matrix(&items).unwrap();
        let settled = |rough: f64| {
            let asked = std::cell::RefCell::new(Vec::new());
            let fine = Manner { rows: 50, looseness: 1.0, halved: None };
            let propose = |proposal: &Proposal<'_>| {
                asked.borrow_mut().push((proposal.manner, proposal.lengths.len()));
                Ok::<_, Error>(proposed(proposal, 0.0))
            };
            let manners = [Manner { rows: 20, halved: Some(rough), ..fine }, fine];
            let settled = gallery.search_proposed(&queries, 2, &manners, propose).unwrap();
            assert_eq!(settled, Settled { found: gallery.search(&queries, 2).unwrap(), unsettled: 0 });
            asked.into_inner()
        };
        assert_eq!(settled(f64::INFINITY), [(0, 9), (1, 9)]);
        assert_eq!(settled(10.0), [(0, 9), (1, 9)]);
        assert!(settled(0.0).iter().map(|(_, queries)| queries).sum::<usize>() < 18);
    }

    #[test]
    fn rounding_to_16_bits_moves_a_vector_no_farther_than_is_said() {
        assert_eq!(distance_of_halves(&[0.5, -0.25, 0.0]), 0.0);
        let third = distance_of_halves(&[1.0 / 3.0, 0.0]);
        assert!(third > 0.0 && third < 2.0_f64.powi(-12), "{third}");
        assert_eq!(distance_of_halves(&[1e6, 0.0]), f64::INFINITY);
    }

    #[test]
    fn too_few_proposals_settle_nothing() {
        let items = matrix(30, 3, &[1, 2, -3, 0, 2], 0.3);
        let queries = matrix(2, 3, &[1, 1, 2], 1.0);
        let gallery = Gallery::of_matrix(&items).unwrap();
        let manner = [Manner { rows: 8, looseness: 1.0, halved: None }];
        for given in [vec![], vec![vec![]; 2], vec![vec![(1.0, 3), (f32::NAN, 4)]; 2]] {
            let settled =
                gallery.search_proposed(&queries, 2, &manner, |_| Ok::<_, Error>(given.clone())).unwrap();
            assert_eq!(settled.unsettled, 2);
            assert_eq!(settled.found, gallery.search(&queries, 2).unwrap());
        }
    }

    #[test]
    fn what_a_search_refuses_is_refused_and_no_card_is_asked() {
        let items = matrix(30, 3, &[1, 2, -3], 0.3);
        let gallery = Gallery::of_matrix(&items).unwrap();
        let manner = [Manner { rows: 8, looseness: 1.0, halved: None }];
        let refused = |queries: &Matrix, k: usize| {
            gallery
                .search_proposed(queries, k, &manner, |_| -> Result<_, Error> { panic!("it was asked") })
                .unwrap_err()
        };
        assert!(matches!(refused(&matrix(1, 3, &[1], 1.0), 0), Error::Setting { name: "k", .. }));
        assert!(matches!(refused(&matrix(1, 2, &[1], 1.0), 1), Error::Shape { expected: 3, got: 2, .. }));
        assert!(matches!(refused(&matrix(1, 3, &[1], f32::NAN), 1), Error::NotFinite { .. }));
    }
}
