//! The diagnosis as one page: no scripts, no network, pictures inside.

use std::io::Cursor;

use aeir_data::{ImageLimits, ImageSource};
use aeir_retrieve::{AgainstNull, Matrix, PrincipalAxes, nearest};
use aeir_train::joint_space::JointSpace;
use base64::Engine;
use image::ImageFormat;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::style::RGBColor;

use super::measure::{Diagnosis, Difference, Differences, Domains, GalleryHubness, Names};
use super::plots::{Group, Mark, histogram, scatter};
use super::verdict::p_value;
use crate::report::{GENERATOR, worded};

const STYLE: &str = include_str!("../../report/style.css");
const SOURCE: RGBColor = RGBColor(123, 135, 148);
const TARGET: RGBColor = RGBColor(42, 127, 158);
/// Points of a set that are drawn.
const POINTS: usize = 600;
/// Longer side of a hub's picture.
const THUMBNAIL: u32 = 96;

/// The page.
pub(super) fn html(
    diagnosis: &Diagnosis,
    space: &JointSpace,
    names: &Names,
    limits: &ImageLimits,
) -> anyhow::Result<String> {
    let plots = plots(diagnosis, space)?;
    let hubs: Vec<Markup> = (diagnosis.hubness.images.hubs.iter())
        .filter_map(|hub| Some((hub, names.images.get(hub.position)?)))
        .map(|(hub, image)| picture(image, hub.occurrences, limits))
        .collect();
    let (first, rest) = diagnosis.verdict.text.split_first().map_or(("", &[][..]), |(a, b)| (a.as_str(), b));
    let items = &diagnosis.items;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content=(GENERATOR);
                title { "aeir diagnose" }
                style { (PreEscaped(STYLE)) }
            }
            body { main {
                header {
                    h1 { "Can adaptation help here?" }
                    p.lead { (worded(first)) }
                    ul.verdicts { @for sentence in rest { li { (worded(sentence)) } } }
                    p.note {
                        (items.source_images) " source images with " (items.source_sentences) " sentences, "
                        (items.target_images) " target images, " (items.target_sentences) " target sentences. Joint space: "
                        (diagnosis.joint_space) ". No pairing of the target was used."
                    }
                }
                section {
                    h2 { "How they lie" }
                    div.charts { @for plot in &plots { (plot) } }
                }
                @if let Some(found) = &diagnosis.domains { (domains(found)) }
                (overlap(diagnosis))
                (hubness(diagnosis, &hubs))
                section {
                    h2 { "Images and sentences" }
                    div.scroll { table {
                        thead { tr { th scope="col" {} th scope="col" { "gap" } th scope="col" { "uniformity, images" } th scope="col" { "uniformity, sentences" } } }
                        tbody { @for (name, gap) in diagnosis.modalities.named() { tr {
                            th scope="row" { (name) }
                            td { (format!("{:.2}", gap.gap)) } td { (format!("{:.2}", gap.uniformity_images)) }
                            td { (format!("{:.2}", gap.uniformity_sentences)) }
                        } } }
                    } }
                    p.note { "Gap: distance of the two means of unit vectors, 0 to 2. Uniformity: 0 where all are one point, about −4 where they are spread evenly." }
                }
            } }
        }
    };
    Ok(page.into_string())
}

fn plots(diagnosis: &Diagnosis, space: &JointSpace) -> anyhow::Result<Vec<Markup>> {
    let sets = [
        ("source images", SOURCE, Mark::Dot, &space.source_images),
        ("source sentences", SOURCE, Mark::Cross, &space.source_sentences),
        ("target images", TARGET, Mark::Dot, &space.target_images),
        ("target sentences", TARGET, Mark::Cross, &space.target_sentences),
    ];
    // Without source pairs there are two.
    let sets: Vec<_> = sets.into_iter().filter(|(.., set)| set.rows() > 0).collect();
    let drawn: Vec<Matrix> = sets.iter().map(|(.., set)| spread(set)).collect::<anyhow::Result<_>>()?;
    let values: Vec<f32> = drawn.iter().flat_map(|set| set.values()).copied().collect();
    let rows = drawn.iter().map(Matrix::rows).sum();
    let axes = PrincipalAxes::fit(&Matrix::new(values, rows, space.target_images.columns())?, 2)?;
    let mut groups = Vec::new();
    for ((name, colour, mark, _), set) in sets.into_iter().zip(&drawn) {
        let points = axes.project(set)?;
        let points =
            points.iter_rows().filter_map(|row| Some((f64::from(*row.first()?), f64::from(*row.get(1)?))));
        groups.push(Group { name, colour, mark, points: points.collect() });
    }
    let title = format!(
        "Both domains and modalities along the two longest principal axes of the joint space ({:.0} % of the variance)",
        100.0 * axes.explained()
    );
    let projection = scatter(&title, &groups)?;
    let best = |queries: &Matrix, gallery: &Matrix| -> anyhow::Result<Vec<f64>> {
        Ok(nearest(queries, gallery, 1)?.iter().flatten().map(|found| f64::from(found.score)).collect())
    };
    let skewness = &diagnosis.overlap.skewness;
    let occurrences =
        |gallery: &GalleryHubness| -> Vec<f64> { gallery.occurrences.iter().map(|c| *c as f64).collect() };
    let bars = [
        (
            "Do the sentences speak of the images? Skewness of their scores (line) against turned copies"
                .to_owned(),
            histogram(
                "Skewness of scores under the null, with the observed value as a line",
                "skewness",
                &skewness.null,
                Some(skewness.observed),
                SOURCE,
            )?,
        ),
        (
            "The best cosine of each target sentence among the target images".to_owned(),
            histogram(
                "Best cosine of each target sentence",
                "cosine",
                &best(&space.target_sentences, &space.target_images)?,
                None,
                TARGET,
            )?,
        ),
        (
            "How often each target image is among the first ten".to_owned(),
            histogram(
                "Occurrences of target images among the first ten",
                "occurrences",
                &occurrences(&diagnosis.hubness.images),
                None,
                TARGET,
            )?,
        ),
    ];
    let mut figures = vec![html! {
        figure {
            figcaption { (title) span.legend { @for group in &groups { span {
                i style=(format!("border-color:rgb({},{},{})", group.colour.0, group.colour.1, group.colour.2)) {}
                (match group.mark { Mark::Dot => "● ", Mark::Cross => "✕ " }) (group.name)
            } } } }
            (PreEscaped(projection))
        }
    }];
    figures.extend(
        bars.into_iter().map(|(title, svg)| html! { figure { figcaption { (title) } (PreEscaped(svg)) } }),
    );
    Ok(figures)
}

/// At most so many rows, evenly spaced.
fn spread(set: &Matrix) -> anyhow::Result<Matrix> {
    let count = POINTS.min(set.rows());
    let rows: Vec<usize> = (0..count).map(|index| index * set.rows() / count.max(1)).collect();
    Ok(set.select_rows(&rows)?)
}

fn domains(found: &Domains) -> Markup {
    let rows = |name: &str, differences: &Differences| {
        let spaces = [
            ("features", differences.features),
            ("each domain standardised", differences.standardised),
            ("joint space", Some(differences.joint)),
        ];
        html! { @for (space, difference) in spaces { @if let Some(difference) = difference {
            tr { th scope="row" { (name) span { (space) } } (cells(&difference)) }
        } } }
    };
    html! {
        section {
            h2 { "Source and target" }
            div.scroll { table {
                thead { tr { th scope="col" {} th scope="col" { "proxy A-distance" } th scope="col" {} th scope="col" { "MMD²" } th scope="col" { "p" } } }
                tbody { (rows("images", &found.images)) (rows("sentences", &found.sentences)) }
            } }
            p.note {
                "Proxy A-distance: how well a linear classifier tells the domains apart on items it has not seen; 0 not at all, 2 always; ± its standard error. "
                "MMD²: squared maximum mean discrepancy; p from " (found.images.joint.mean_discrepancy.permutations) " shuffles of the labels, conservative for standardised features. "
                "Of the source one sentence an image; target sentences are taken as given."
            }
        }
    }
}

fn cells(difference: &Difference) -> Markup {
    let distance = difference.proxy_a_distance.distance;
    html! {
        td.sum { (format!("{distance:.2} ± {:.2}", difference.standard_error())) }
        td { div.bar { div style=(format!("width:{:.0}%;background:#2a7f9e", 50.0 * distance.clamp(0.0, 2.0))) {} } }
        td { (format!("{:.4}", difference.mean_discrepancy.squared)) }
        td { (p_value(difference.mean_discrepancy.p_value)) }
    }
}

fn overlap(diagnosis: &Diagnosis) -> Markup {
    let overlap = &diagnosis.overlap;
    let row = |name: &str, what: &str, figure: &AgainstNull| {
        html! { tr {
            th scope="row" { (name) span { (what) } }
            td.sum { (format!("{:.3}", figure.observed)) }
            td { (format!("{:.3} ± {:.3}", figure.null_mean, figure.null_deviation)) }
            td { (p_value(figure.p_value)) }
        } }
    };
    html! {
        section {
            h2 { "Do the sentences speak of these images?" }
            div.scroll { table {
                thead { tr { th scope="col" {} th scope="col" { "observed" } th scope="col" { "turned away" } th scope="col" { "p" } } }
                tbody {
                    (row("skewness of all scores", "a long upper tail: some pairs fit far better than most; the figure to go by", &overlap.skewness))
                    (row("mean CSLS of mutual neighbours", "how well those fit that choose each other", &overlap.mutual_similarity))
                    (row("share with a mutual neighbour", "any two sets have many: alone it says little", &overlap.mutual_share))
                }
            } }
            p.note {
                "Turned away: " (overlap.draws) " copies of the sentences, mirrored along a random half of the common principal axes. That keeps "
                "everything within the sentences and loses which side stands for what. Without labels nothing can tell true pairs from "
                "sets that merely share their topics."
            }
        }
    }
}

fn hubness(diagnosis: &Diagnosis, hubs: &[Markup]) -> Markup {
    let row = |name: &str, gallery: &GalleryHubness| {
        html! { tr {
            th scope="row" { (name) }
            td.sum { (format!("{:.2}", gallery.figures.skewness)) }
            td { (format!("{:.1} %", 100.0 * gallery.anti_hub_share)) }
            td { (gallery.figures.hubs_above_2k) } td { (gallery.figures.max_occurrence) }
        } }
    };
    html! {
        section {
            h2 { "Hubs" }
            div.scroll { table {
                thead { tr { th scope="col" {} th scope="col" { "skewness" } th scope="col" { "found for nothing" } th scope="col" { "found over 20 times" } th scope="col" { "most" } } }
                tbody {
                    (row("images, asked with sentences", &diagnosis.hubness.images))
                    (row("sentences, asked with images", &diagnosis.hubness.sentences))
                }
            } }
            p.note { "Skewness of how often an item is among the first ten: 0 where all are found alike, above 1 where hubs crowd the rest out." }
            @if !hubs.is_empty() { h3 { "Images found most often" } div.tiles { @for hub in hubs { (hub) } } }
            @if !diagnosis.hubness.sentences.hubs.is_empty() {
                h3 { "Sentences found most often" }
                div.sentences { @for hub in &diagnosis.hubness.sentences.hubs { p.unknown { (hub.item) span.score { (hub.occurrences) } } } }
            }
        }
    }
}

/// A small copy of a hub; its name where it can't be shown, as with features.
fn picture(image: &ImageSource, occurrences: usize, limits: &ImageLimits) -> Markup {
    let encoded = image.decode(limits).ok().and_then(|decoded| {
        let mut bytes = Cursor::new(Vec::new());
        decoded.image.thumbnail(THUMBNAIL, THUMBNAIL).write_to(&mut bytes, ImageFormat::Png).ok()?;
        Some(base64::engine::general_purpose::STANDARD.encode(bytes.into_inner()))
    });
    html! {
        figure.tile {
            @match encoded {
                Some(encoded) => img src=(format!("data:image/png;base64,{encoded}")) alt=(image.to_string()) loading="lazy";,
                None => span { (image.to_string()) },
            }
            figcaption { (occurrences) " times" }
        }
    }
}
