//! The figures of a diagnosis.

use aeir_data::ImageSource;
use aeir_retrieve::{
    FeatureScale, Hubness, Matrix, MeanDiscrepancy, MeanDiscrepancyOptions, ModalityGap, OverlapOptions,
    ProxyADistance, ProxyADistanceOptions, RetrievalMetrics, SetOverlap, k_occurrence_embeddings,
    maximum_mean_discrepancy, proxy_a_distance, set_overlap,
};
use aeir_train::joint_space::JointSpace;
use aeir_train::{ItemTable, TrainingData};
use serde::Serialize;

use super::verdict::{Verdict, verdict};

/// Neighbours in hubness, as the field counts them.
const NEIGHBOURS: usize = 10;
/// Hub items that are named.
const HUBS_SHOWN: usize = 8;

/// What is to be measured.
pub(super) struct Request<'a> {
    pub(super) data: &'a TrainingData,
    pub(super) space: &'a JointSpace,
    /// What the joint space is, in words.
    pub(super) joint: String,
    pub(super) names: &'a Names,
    pub(super) seed: u64,
}

/// The target's items.
pub(super) struct Names {
    pub(super) images: Vec<ImageSource>,
    pub(super) sentences: Vec<String>,
}

/// Everything that was found.
#[derive(Serialize)]
pub(super) struct Diagnosis {
    pub(super) joint_space: String,
    pub(super) items: Items,
    /// None without source pairs.
    pub(super) domains: Option<Domains>,
    pub(super) modalities: Modalities,
    pub(super) hubness: BothHubness,
    pub(super) overlap: SetOverlap,
    /// Recall on held-out source pairs in the joint space.
    pub(super) source_validation: Option<RetrievalMetrics>,
    pub(super) verdict: Verdict,
}

/// How many items were looked at.
#[derive(Serialize)]
pub(super) struct Items {
    pub(super) source_images: usize,
    pub(super) source_sentences: usize,
    pub(super) target_images: usize,
    pub(super) target_sentences: usize,
}

/// Source against target.
#[derive(Serialize)]
pub(super) struct Domains {
    pub(super) images: Differences,
    pub(super) sentences: Differences,
}

/// One modality's difference of the domains in three spaces.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Differences {
    /// Frozen features; none where words have no features.
    pub(super) features: Option<Difference>,
    /// The same, each domain standardised by itself.
    pub(super) standardised: Option<Difference>,
    /// In the joint space.
    pub(super) joint: Difference,
}

/// How far two sets are apart.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Difference {
    pub(super) proxy_a_distance: ProxyADistance,
    pub(super) mean_discrepancy: MeanDiscrepancy,
}

impl Difference {
    /// Of unit vectors, so that figures of different encoders compare.
    fn of(source: &Matrix, target: &Matrix, seed: u64) -> anyhow::Result<Self> {
        let (source, target) = (source.l2_normalised()?, target.l2_normalised()?);
        let options = ProxyADistanceOptions { seed, ..ProxyADistanceOptions::default() };
        Ok(Self {
            proxy_a_distance: proxy_a_distance(&source, &target, &options)?,
            mean_discrepancy: discrepancy(&source, &target, seed)?,
        })
    }

    /// Of features that are standardised by domain. The classifier is tested on items that the statistics were not taken of.
    fn of_standardised(source: &Matrix, target: &Matrix, seed: u64) -> anyhow::Result<Self> {
        let options = ProxyADistanceOptions { seed, standardise: true, ..ProxyADistanceOptions::default() };
        let whole =
            |set: &Matrix| Ok::<_, anyhow::Error>(FeatureScale::of(set).applied(set)?.l2_normalised()?);
        Ok(Self {
            proxy_a_distance: proxy_a_distance(source, target, &options)?,
            mean_discrepancy: discrepancy(&whole(source)?, &whole(target)?, seed)?,
        })
    }

    /// The standard error of the distance: it is four times that of a share.
    pub(super) fn standard_error(&self) -> f64 {
        let ProxyADistance { error, n_test, .. } = self.proxy_a_distance;
        // Half a wrong item at least: a share of exactly 0 is not known to no error at all.
        let tests = 2.0 * n_test.max(1) as f64;
        let share = error.clamp(0.5 / tests, 1.0 - 0.5 / tests);
        4.0 * (share * (1.0 - share) / tests).sqrt()
    }

    /// Whether both figures say that the domains differ.
    pub(super) fn is_there(&self) -> bool {
        self.mean_discrepancy.p_value < 0.05 && self.proxy_a_distance.distance > 2.0 * self.standard_error()
    }
}

/// How images and sentences lie to each other.
#[derive(Serialize)]
pub(super) struct Modalities {
    /// None without source pairs.
    pub(super) source: Option<ModalityGap>,
    pub(super) target: ModalityGap,
}

impl Modalities {
    /// Those there are, with whose they are.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &ModalityGap)> {
        let source = self.source.iter().map(|gap| ("source", gap));
        source.chain([("target", &self.target)])
    }
}

/// Of both galleries.
#[derive(Serialize)]
pub(super) struct BothHubness {
    /// Images as the gallery, asked with sentences.
    pub(super) images: GalleryHubness,
    /// Sentences as the gallery, asked with images.
    pub(super) sentences: GalleryHubness,
}

/// Hubness of one gallery with its hubs by name.
#[derive(Serialize)]
pub(super) struct GalleryHubness {
    #[serde(flatten)]
    pub(super) figures: Hubness,
    /// Share of the gallery that is in nobody's first ten.
    pub(super) anti_hub_share: f64,
    pub(super) hubs: Vec<Hub>,
    #[serde(skip)]
    pub(super) occurrences: Vec<usize>,
}

/// An item that is found too often.
#[derive(Serialize)]
pub(super) struct Hub {
    pub(super) item: String,
    pub(super) occurrences: usize,
    #[serde(skip)]
    pub(super) position: usize,
}

/// Measures everything.
pub(super) fn diagnose(request: &Request<'_>) -> anyhow::Result<Diagnosis> {
    let Request { data, space, joint, names, seed } = request;
    let has_source = !data.sources.is_empty();
    let domains = has_source.then(|| domains(data, space, *seed)).transpose()?;
    let hubness = BothHubness {
        images: gallery(&space.target_sentences, &space.target_images, |i| {
            names.images.get(i).map_or_else(String::new, ToString::to_string)
        })?,
        sentences: gallery(&space.target_images, &space.target_sentences, |i| {
            names.sentences.get(i).cloned().unwrap_or_default()
        })?,
    };
    let options = OverlapOptions { seed: *seed, ..OverlapOptions::default() };
    let overlap = set_overlap(&space.target_images, &space.target_sentences, &options)?;
    let verdict = verdict(domains.as_ref(), &hubness, &overlap, space.source_validation.as_ref());
    Ok(Diagnosis {
        joint_space: joint.clone(),
        items: Items {
            source_images: space.source_images.rows(),
            source_sentences: space.source_sentences.rows(),
            target_images: space.target_images.rows(),
            target_sentences: space.target_sentences.rows(),
        },
        domains,
        modalities: Modalities {
            source: has_source
                .then(|| ModalityGap::measure(&space.source_images, &space.source_sentences))
                .transpose()?,
            target: ModalityGap::measure(&space.target_images, &space.target_sentences)?,
        },
        hubness,
        overlap,
        source_validation: space.source_validation,
        verdict,
    })
}

fn discrepancy(source: &Matrix, target: &Matrix, seed: u64) -> anyhow::Result<MeanDiscrepancy> {
    let options = MeanDiscrepancyOptions { seed, ..MeanDiscrepancyOptions::default() };
    Ok(maximum_mean_discrepancy(source, target, &options)?)
}

fn domains(data: &TrainingData, space: &JointSpace, seed: u64) -> anyhow::Result<Domains> {
    let one_each = first_sentences(data);
    let target = data.target.as_ref();
    let images: Vec<&ItemTable> = data.sources.iter().map(|source| &source.images).collect();
    let sentences: Vec<&ItemTable> = data.sources.iter().map(|source| &source.sentences).collect();
    let differences = |of_source: Option<Matrix>, of_target: Option<Matrix>, joint: (Matrix, &Matrix)| {
        let (features, standardised) = match of_source.zip(of_target) {
            Some((source, target)) => (
                Some(Difference::of(&source, &target, seed)?),
                Some(Difference::of_standardised(&source, &target, seed)?),
            ),
            None => (None, None),
        };
        anyhow::Ok(Differences { features, standardised, joint: Difference::of(&joint.0, joint.1, seed)? })
    };
    let of_target = |table: Option<&ItemTable>| table.map_or(Ok(None), |table| vectors(&[table]));
    let source_sentences = vectors(&sentences)?.map(|all| all.select_rows(&one_each)).transpose()?;
    Ok(Domains {
        images: differences(
            vectors(&images)?,
            of_target(target.map(|target| &target.images))?,
            (space.source_images.clone(), &space.target_images),
        )?,
        sentences: differences(
            source_sentences,
            of_target(target.map(|target| &target.sentences))?,
            (space.source_sentences.select_rows(&one_each)?, &space.target_sentences),
        )?,
    })
}

/// One sentence an image, among the sentences of all sources: two of one image are not independent. Image after image takes its
/// next one, as first captions are often of another kind than second ones.
fn first_sentences(data: &TrainingData) -> Vec<usize> {
    let mut chosen = Vec::new();
    let mut offset = 0;
    for source in &data.sources {
        for (image, sentences) in source.sentences_of.iter().enumerate() {
            chosen.extend(sentences.get(image % sentences.len().max(1)).map(|row| offset + row));
        }
        offset += source.sentences.len();
    }
    chosen
}

/// One vector an item: pooled features, or the mean of its fragments; none for words.
fn vectors(tables: &[&ItemTable]) -> anyhow::Result<Option<Matrix>> {
    let (mut values, mut rows, mut columns) = (Vec::new(), 0, 0);
    for table in tables {
        let counts: Vec<usize> = match table {
            ItemTable::Words(_) => return Ok(None),
            ItemTable::Pooled(_) | ItemTable::Tuned(_) => vec![1; table.len()],
            ItemTable::Fragments(table) => (0..table.len()).map(|item| table.fragments(item)).collect(),
        };
        let mut counts = counts.into_iter();
        let (mut left, mut of_item, mut sum) = (0, 0, vec![0.0_f32; table.dimension()]);
        table.each_row(&mut |row| {
            if left == 0 {
                of_item = counts.next().unwrap_or(1).max(1);
                left = of_item;
                sum.fill(0.0);
            }
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            left -= 1;
            if left == 0 {
                values.extend(sum.iter().map(|sum| sum / of_item as f32));
            }
        })?;
        rows += table.len();
        columns = table.dimension();
    }
    Ok(Some(Matrix::new(values, rows, columns)?))
}

fn gallery(
    queries: &Matrix,
    gallery: &Matrix,
    name: impl Fn(usize) -> String,
) -> anyhow::Result<GalleryHubness> {
    let k = NEIGHBOURS.min(gallery.rows());
    let occurrences = k_occurrence_embeddings(queries, gallery, k)?;
    let figures = Hubness::of(&occurrences, queries.rows(), k);
    let mut order: Vec<(usize, usize)> = occurrences.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    // What is found as often as chance would is no hub.
    let often = order.into_iter().filter(|(_, count)| count * gallery.rows() > 2 * k * queries.rows());
    let hubs = often
        .take(HUBS_SHOWN)
        .map(|(position, occurrences)| Hub { item: name(position), occurrences, position })
        .collect();
    let anti_hub_share = figures.anti_hubs as f64 / gallery.rows().max(1) as f64;
    Ok(GalleryHubness { figures, anti_hub_share, hubs, occurrences })
}
