//! Figures from papers, and how ours compare.

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

const FILE: &str = "xtask/published.toml";

/// All figures.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Published {
    version: u32,
    /// Points within which a re-run is a reproduction.
    pub(super) tolerance: f64,
    #[serde(rename = "figure")]
    pub(super) figures: Vec<Figure>,
}

/// What a paper says of one model in one scenario.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Figure {
    pub(super) model: String,
    pub(super) scenario: String,
    pub(super) protocol: String,
    /// The row of ours that is the same experiment.
    pub(super) row: Option<String>,
    #[serde(default)]
    i2t: Vec<f64>,
    #[serde(default)]
    t2i: Vec<f64>,
    /// Recall@1 both ways, where that is all there is.
    #[serde(default)]
    only: Vec<f64>,
    pub(super) source: String,
}

/// How a value of ours stands to a published one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Within,
    Above,
    Below,
    NotRun,
    /// There is no published value to compare with.
    NoFigure,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Within => "within tolerance",
            Self::Above => "above",
            Self::Below => "below",
            Self::NotRun => "not run",
            Self::NoFigure => "no figure at hand",
        })
    }
}

impl Published {
    pub(super) fn read(root: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(root.join(FILE)).with_context(|| format!("could not read `{FILE}`"))?;
        Self::parse(&text).with_context(|| format!("`{FILE}`"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let published: Self = toml::from_str(text)?;
        if published.version != 1 {
            bail!("expected version 1, got {}", published.version);
        }
        for figure in &published.figures {
            let lengths = [figure.i2t.len(), figure.t2i.len()];
            let values = figure.i2t.iter().chain(&figure.t2i).chain(&figure.only);
            let wrong =
                lengths.iter().any(|length| ![0, 3].contains(length)) || ![0, 2].contains(&figure.only.len());
            if wrong || values.clone().any(|value| !(0.0..=100.0).contains(value)) {
                bail!(
                    "`{}` in `{}`: expected three recalls in per cent or none each way, or two in `only`",
                    figure.model,
                    figure.scenario
                );
            }
        }
        Ok(published)
    }

    /// What is published of a scenario under a protocol.
    pub(super) fn of<'a>(&'a self, scenario: &'a str, protocol: &'a str) -> impl Iterator<Item = &'a Figure> {
        self.figures.iter().filter(move |figure| figure.scenario == scenario && figure.protocol == protocol)
    }

    pub(super) fn verdict(&self, ours: Option<f64>, published: Option<f64>) -> Verdict {
        match (ours, published) {
            (_, None) => Verdict::NoFigure,
            (None, _) => Verdict::NotRun,
            // Rounded as they are printed: 1.5 is within 1.5.
            (Some(ours), Some(published)) => match ((ours - published) * 10.0).round() / 10.0 {
                difference if difference.abs() <= self.tolerance => Verdict::Within,
                difference if difference > 0.0 => Verdict::Above,
                _ => Verdict::Below,
            },
        }
    }
}

impl Figure {
    /// Recall@1, 5, 10 from image to text, then from text to image; none where it is not at hand.
    pub(super) fn recalls(&self) -> [Option<f64>; 6] {
        let (i2t, t2i) = (self.only.first().copied(), self.only.get(1).copied());
        let at = |list: &[f64], place: usize| list.get(place).copied();
        [
            at(&self.i2t, 0).or(i2t),
            at(&self.i2t, 1),
            at(&self.i2t, 2),
            at(&self.t2i, 0).or(t2i),
            at(&self.t2i, 1),
            at(&self.t2i, 2),
        ]
    }

    /// Whether nothing of it is at hand.
    pub(super) fn is_blank(&self) -> bool {
        self.recalls().iter().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::workspace_root;

    #[test]
    fn the_figures_of_this_repository_are_in_order() {
        let published = Published::read(&workspace_root().unwrap()).unwrap();
        let blank: Vec<_> = published.figures.iter().filter(|figure| figure.is_blank()).collect();
        assert!(blank.len() == 3 && blank.iter().all(|figure| figure.source.contains("not at hand")));
        let saf = published.of("f30k", "1k").find(|figure| figure.row.as_deref() == Some("saf")).unwrap();
        assert_eq!(saf.recalls()[3], Some(56.1));
        let bank = published.of("query-bank", "5k").last().unwrap();
        assert_eq!(bank.recalls(), [None, None, None, Some(34.8), Some(59.9), Some(70.4)]);
    }

    #[test]
    fn verdicts_have_a_tolerance_to_both_sides() {
        let published = Published { version: 1, tolerance: 1.5, figures: Vec::new() };
        let of = |ours, theirs| published.verdict(ours, theirs);
        assert_eq!(of(Some(75.2), Some(73.7)), Verdict::Within);
        assert_eq!(of(Some(75.3), Some(73.7)), Verdict::Above);
        assert_eq!(of(Some(72.1), Some(73.7)), Verdict::Below);
        assert_eq!(of(None, Some(73.7)), Verdict::NotRun);
        assert_eq!(of(Some(1.0), None), Verdict::NoFigure);
    }

    #[test]
    fn half_filled_figures_are_refused() {
        let text = |lists: &str| {
            format!(
                "version = 1\ntolerance = 1\n[[figure]]\nmodel = \"m\"\nscenario = \"s\"\nprotocol = \"p\"\nsource = \"x\"\n{lists}"
            )
        };
        assert!(Published::parse(&text("i2t = [1, 2, 3]\n")).is_ok());
        for wrong in ["i2t = [1.0]\n", "only = [1.0]\n", "t2i = [1, 2, 300]\n", "typo = 1\n"] {
            assert!(Published::parse(&text(wrong)).is_err(), "{wrong}");
        }
    }
}
