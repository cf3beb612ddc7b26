//! The demo's report: what it says, as one self-contained page and as text.

mod page;

use std::path::{Path, PathBuf};

use aeir_retrieve::RetrievalMetrics;
use aeir_train::EpochRecord;

use super::summary::Summary;

/// Everything the report shows.
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    pub(crate) chance: RetrievalMetrics,
    pub(crate) searches: Vec<Example>,
    pub(crate) galleries: Vec<Gallery>,
    /// Title of the row whose model is shown.
    pub(crate) shown: &'static str,
    pub(crate) config: String,
    pub(crate) encoding_seconds: f64,
    pub(crate) training_seconds: f64,
    pub(crate) total_seconds: f64,
    /// Images and sentences to train on, the target's unpaired, the test's.
    pub(crate) source: (usize, usize),
    pub(crate) target: (usize, usize),
    pub(crate) test: (usize, usize),
}

/// One row of the table: a method, once for each seed.
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) what: &'static str,
    pub(crate) runs: Vec<RunResult>,
}

/// One trained and scored model.
pub(crate) struct RunResult {
    pub(crate) seed: u64,
    pub(crate) epoch: usize,
    pub(crate) metrics: RetrievalMetrics,
    pub(crate) history: Vec<EpochRecord>,
}

/// A query with what was found.
pub(crate) struct Example {
    pub(crate) query: Query,
    pub(crate) results: Vec<Found>,
    /// Rank of the right item, where one is known.
    pub(crate) right_rank: Option<usize>,
    /// The right image, where one is known.
    pub(crate) right_image: Option<PathBuf>,
}

/// What was asked.
pub(crate) enum Query {
    Sentence(String),
    Image(PathBuf),
}

impl Query {
    pub(crate) fn is_image(&self, path: &Path) -> bool {
        matches!(self, Self::Image(image) if image == path)
    }
}

/// An image's path, or a sentence, with its score.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) score: f32,
    pub(crate) right: Option<bool>,
}

/// Examples under a heading.
pub(crate) struct Gallery {
    pub(crate) title: String,
    pub(crate) what: String,
    pub(crate) examples: Vec<Example>,
}

impl Row {
    fn summary(&self, value: impl Fn(&RetrievalMetrics) -> f64) -> Summary {
        Summary::of(&self.runs.iter().map(|run| value(&run.metrics)).collect::<Vec<_>>())
    }

    fn rsum(&self) -> Summary {
        self.summary(|metrics| metrics.rsum)
    }
}

/// The six recalls of a table row, in order.
const RECALLS: [fn(&RetrievalMetrics) -> f64; 6] = [
    |metrics| metrics.i2t.r1,
    |metrics| metrics.i2t.r5,
    |metrics| metrics.i2t.r10,
    |metrics| metrics.t2i.r1,
    |metrics| metrics.t2i.r5,
    |metrics| metrics.t2i.r10,
];

impl Report {
    fn row(&self, key: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.key == key)
    }

    /// (method - source only) / (oracle - source only), in per cent; none for those two and where the oracle is no better.
    fn gap_closed(&self, row: &Row) -> Option<f64> {
        let (source, oracle) = (self.row("source-only")?.rsum().mean, self.row("oracle")?.rsum().mean);
        if matches!(row.key, "source-only" | "oracle") || oracle <= source {
            return None;
        }
        Some(100.0 * (row.rsum().mean - source) / (oracle - source))
    }

    /// What the table says, in words; computed from it.
    fn verdicts(&self) -> Vec<String> {
        let Some(source) = self.row("source-only").map(Row::rsum) else { return Vec::new() };
        let adapted = self.rows.iter().filter(|row| !matches!(row.key, "source-only" | "oracle"));
        adapted
            .map(|row| {
                let rsum = row.rsum();
                let change = 100.0 * (rsum.mean / source.mean - 1.0);
                let spread = source.deviation.unwrap_or(0.0).max(rsum.deviation.unwrap_or(0.0));
                let single = source.deviation.is_none() || rsum.deviation.is_none();
                let word = match rsum.mean - source.mean {
                    difference if single && difference > 0.0 => "is higher with one seed, which says little",
                    _ if single => "is not higher with one seed, which says little",
                    difference if difference.abs() <= spread => {
                        "makes no difference beyond the spread between seeds"
                    }
                    difference if difference > 0.0 => "helps",
                    _ => "does not help here: it lowers recall",
                };
                let gap = self.gap_closed(row).map_or_else(String::new, |gap| {
                    format!(", {gap:.0} % of the gap between source only and oracle")
                });
                let standardising = self
                    .row("source-only-standardised")
                    .filter(|_| row.key == "adapt")
                    .map(|alone| 100.0 * (rsum.mean / alone.rsum().mean - 1.0))
                    .map_or_else(String::new, |change| {
                        format!(" Against source only, standardised: {change:+.1} %.")
                    });
                format!("{} {word} (rSum {change:+.1} % against source only{gap}).{standardising}", row.title)
            })
            .collect()
    }

    /// The table as text.
    pub(crate) fn table(&self) -> String {
        let seeds = self.rows.first().map_or(0, |row| row.runs.len());
        let mut text = format!(
            "Target test: {} images, {} sentences. Mean of {seeds} seed{}, ± sample standard deviation.\n\n",
            self.test.0,
            self.test.1,
            if seeds == 1 { "" } else { "s" }
        );
        text.push_str(&format!("{:31}{:^24}{:^24}\n", "", "image to text", "text to image"));
        text.push_str(&format!(
            "{:31}{:>7} {:>7} {:>7} {:>8} {:>7} {:>7} {:>15} {:>11}\n",
            "", "R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "rSum", "gap closed"
        ));
        let mut line = |title: &str, recalls: [f64; 6], rsum: String, gap: Option<f64>| {
            let [a, b, c, d, e, f] = recalls;
            let gap = gap.map_or_else(|| "-".to_owned(), |gap| format!("{gap:.0} %"));
            text.push_str(&format!(
                "{title:31}{a:7.1} {b:7.1} {c:7.1} {d:8.1} {e:7.1} {f:7.1} {rsum:>15} {gap:>11}\n"
            ));
        };
        line("Chance", RECALLS.map(|recall| recall(&self.chance)), format!("{:.1}", self.chance.rsum), None);
        for row in &self.rows {
            let recalls = RECALLS.map(|recall| row.summary(recall).mean);
            line(row.title, recalls, row.rsum().text(), self.gap_closed(row));
        }
        text.push('\n');
        for verdict in self.verdicts() {
            text.push_str(&verdict);
            text.push('\n');
        }
        text
    }

    /// The example queries as text.
    pub(crate) fn searches_text(&self) -> String {
        let mut text = String::new();
        for example in &self.searches {
            match &example.query {
                Query::Sentence(sentence) => text.push_str(&format!("\"{sentence}\"\n")),
                Query::Image(path) => text.push_str(&format!("{}\n", from_here(path).display())),
            }
            for (index, found) in example.results.iter().take(3).enumerate() {
                text.push_str(&format!(
                    "{:>4}  {:.4}  {}\n",
                    index + 1,
                    found.score,
                    from_here(&found.path).display()
                ));
            }
        }
        text
    }

    /// The report as one page.
    pub(crate) fn html(&self) -> anyhow::Result<String> {
        page::html(self)
    }
}

/// The path as seen from the working folder, where it lies below it.
fn from_here(path: &Path) -> &Path {
    std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use aeir_retrieve::DirectionMetrics;

    fn metrics(recall: f64) -> RetrievalMetrics {
        let direction =
            DirectionMetrics { r1: recall, r5: recall, r10: recall, medr: 3.0, meanr: 4.0, map: None };
        RetrievalMetrics { n_images: 9, n_sentences: 9, i2t: direction, t2i: direction, rsum: 6.0 * recall }
    }

    fn row(key: &'static str, title: &'static str, recalls: &[f64]) -> Row {
        let runs = recalls.iter().enumerate().map(|(index, recall)| RunResult {
            seed: index as u64 + 1,
            epoch: 1,
            metrics: metrics(*recall),
            history: Vec::new(),
        });
        Row { key, title, what: "", runs: runs.collect() }
    }

    fn report(adapted: &[f64]) -> Report {
        Report {
            rows: vec![
                row("source-only", "Source only", &[10.0, 11.0]),
                row("aeir", "AEIR", adapted),
                row("oracle", "Oracle", &[20.0, 21.0]),
            ],
            chance: metrics(1.0),
            searches: Vec::new(),
            galleries: Vec::new(),
            shown: "AEIR",
            config: "seed = 1 # <script>".into(),
            encoding_seconds: 1.0,
            training_seconds: 1.0,
            total_seconds: 2.0,
            source: (1, 1),
            target: (1, 1),
            test: (9, 9),
        }
    }

    #[test]
    fn a_method_that_hurts_is_said_to_hurt() {
        let worse = report(&[5.0, 6.0]);
        assert!(worse.verdicts()[0].contains("does not help"), "{:?}", worse.verdicts());
        assert!((worse.gap_closed(&worse.rows[1]).unwrap() + 50.0).abs() < 1e-9);
        assert!(report(&[15.0, 16.0]).verdicts()[0].contains("helps (rSum +47.6 %"));
        assert!(report(&[10.2, 11.2]).verdicts()[0].contains("no difference"));
    }

    #[test]
    fn the_page_escapes_what_it_quotes() {
        let page = report(&[15.0, 16.0]).html().unwrap();
        assert!(!page.contains("# <script>") && page.contains("# &lt;script&gt;"));
        // Namespaces of the charts are names, not places.
        let elsewhere = page.matches("http://").count() - page.matches("http://www.w3.org").count();
        assert!(elsewhere == 0 && !page.contains("https://"), "the page must not need the network");
    }
}
