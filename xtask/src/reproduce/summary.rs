//! `results/report.md` and `results/report.html`: what was run beside what is published, and what was not run.

use std::path::Path;

use anyhow::Context;

use super::page::{Block, Chart, markdown, page};
use super::paper::{self, Part, Setting};
use super::published::{Figure, Published, Verdict};
use super::report::{deviation, mean};
use super::trial::{Record, Scores};
use super::zero_shot;

const RECALLS: [&str; 6] = ["i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10"];

/// Writes both files from all records that lie under `results`; their paths.
pub(super) fn write(root: &Path, results: &Path) -> anyhow::Result<String> {
    let mut records = Vec::new();
    for folder in [results.to_owned(), results.join("check")] {
        for suite in ["paper", "zero-shot"] {
            read_all(&folder.join(suite), &mut records)?;
        }
    }
    let blocks = Summary { published: &Published::read(root)?, records: &records }.blocks();
    std::fs::create_dir_all(results)?;
    let (text, html) = (results.join("report.md"), results.join("report.html"));
    std::fs::write(&text, markdown(&blocks))
        .with_context(|| format!("could not write `{}`", text.display()))?;
    std::fs::write(&html, page("aeir: results beside published figures", &blocks))
        .with_context(|| format!("could not write `{}`", html.display()))?;
    Ok(format!("{}\n        {}", text.display(), html.display()))
}

/// The records in the folders of a suite's scenarios.
fn read_all(suite: &Path, records: &mut Vec<Record>) -> anyhow::Result<()> {
    let Ok(scenarios) = std::fs::read_dir(suite) else { return Ok(()) };
    for scenario in scenarios.flatten() {
        let Ok(files) = std::fs::read_dir(scenario.path()) else { continue };
        for file in files
            .flatten()
            .map(|file| file.path())
            .filter(|file| file.extension().is_some_and(|it| it == "json"))
        {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("could not read `{}`", file.display()))?;
            records.push(
                serde_json::from_str(&text).with_context(|| format!("`{}`: remove it", file.display()))?,
            );
        }
    }
    records.sort_by(|a, b| (&a.scenario, &a.row, a.seed).cmp(&(&b.scenario, &b.row, b.seed)));
    Ok(())
}

struct Summary<'a> {
    published: &'a Published,
    records: &'a [Record],
}

/// A row of ours in a table.
struct Ours {
    name: String,
    title: String,
}

impl Summary<'_> {
    fn blocks(&self) -> Vec<Block> {
        let tolerance = self.published.tolerance;
        let mut blocks = vec![
            Block::Heading(1, "Results beside published figures".into()),
            Block::Text(format!(
                "Recall in per cent on the test split; image to text (i2t) and text to image (t2i), any right item among the first K. Ours: mean ± sample \
                 standard deviation over seeds, and in brackets how it stands to the published figure of the same experiment: within tolerance (± {tolerance} points), \
                 above or below. Published rows are quoted and were not measured here. A cell that was not run says so."
            )),
        ];
        for scenario in &paper::SCENARIOS {
            blocks.push(Block::Heading(2, scenario.title.into()));
            let rows = scenario.rows();
            let main: Vec<Ours> = rows.iter().filter(|row| row.part == Part::Main).map(Ours::of).collect();
            for (protocol, ..) in scenario.scored().protocols() {
                blocks.push(Block::Heading(3, format!("{}, {}", scenario.name, protocol_title(protocol))));
                blocks.push(self.table(scenario.name, protocol, &main, false));
            }
            if scenario.is_transfer() {
                blocks.extend(self.ablation(scenario, &rows));
                blocks.extend(self.sensitivity(scenario, &rows));
                blocks.extend(self.convergence(scenario.name, false));
                blocks.extend(self.examples(scenario.name, false));
            }
        }
        for (scenario, title) in zero_shot::SCENARIOS {
            let protocol = zero_shot::protocol(scenario);
            blocks.push(Block::Heading(2, title.into()));
            blocks.push(self.table(scenario, protocol, &self.zero_shot_rows(scenario), false));
        }
        blocks.push(Block::Heading(2, "Verdicts, cell by cell".into()));
        blocks.push(self.verdicts());
        blocks.push(Block::Heading(2, "Where the published figures are from".into()));
        blocks.push(self.sources());
        blocks.extend(self.stand_ins());
        blocks.push(Block::Heading(2, "Cells".into()));
        blocks.push(self.cells());
        blocks
    }

    fn zero_shot_rows(&self, scenario: &str) -> Vec<Ours> {
        let place = zero_shot::Place {
            assets: Path::new(""),
            stand_in: false,
            results: Path::new(""),
            settings: &[],
        };
        let of = place.candidates().into_iter().filter(|candidate| candidate.scenario == scenario);
        of.map(|candidate| Ours { title: candidate.row.clone(), name: candidate.row }).collect()
    }

    /// The scores of a row under a protocol, one a seed.
    fn scores(&self, scenario: &str, row: &str, protocol: &str, stand_in: bool) -> Vec<&Scores> {
        let of = |record: &&Record| {
            record.scenario == scenario && record.row == row && record.stand_in == stand_in
        };
        self.records
            .iter()
            .filter(of)
            .flat_map(|record| &record.scores)
            .filter(|it| it.protocol == protocol)
            .collect()
    }

    fn table(&self, scenario: &str, protocol: &str, rows: &[Ours], stand_in: bool) -> Block {
        let mut header = vec!["model".to_owned()];
        header.extend(RECALLS.map(str::to_owned));
        header.extend(["rSum".to_owned(), "seeds".to_owned()]);
        let mut lines = Vec::new();
        if !stand_in {
            lines.extend(self.published.of(scenario, protocol).map(published_line));
        }
        for row in rows {
            let figure = self
                .published
                .of(scenario, protocol)
                .find(|figure| figure.row.as_deref() == Some(row.name.as_str()) && !stand_in);
            lines.push(self.line(row, &self.scores(scenario, &row.name, protocol, stand_in), figure));
        }
        Block::Table(header, lines)
    }

    fn line(&self, row: &Ours, scores: &[&Scores], figure: Option<&Figure>) -> Vec<String> {
        let mut line = vec![format!("**{}**", row.title)];
        for place in 0..RECALLS.len() {
            let values: Vec<f64> = scores.iter().filter_map(|it| it.recalls.get(place).copied()).collect();
            let theirs = figure.and_then(|figure| figure.recalls().get(place).copied().flatten());
            let verdict = match self.published.verdict(average(&values), theirs) {
                Verdict::NoFigure | Verdict::NotRun => String::new(),
                verdict => format!(" ({verdict})"),
            };
            line.push(cell(&values) + &verdict);
        }
        let sums: Vec<f64> = scores.iter().map(|it| it.rsum).collect();
        line.push(cell(&sums));
        line.push(scores.len().to_string());
        line
    }

    fn ablation(&self, scenario: &paper::Scenario, rows: &[paper::Row]) -> Vec<Block> {
        let mut chosen: Vec<Ours> = rows
            .iter()
            .filter(|row| ["aeir", "source-only"].contains(&row.name.as_str()))
            .map(Ours::of)
            .collect();
        chosen.extend(rows.iter().filter(|row| row.part == Part::Ablation).map(Ours::of));
        let protocol = scenario.scored().protocols().first().map_or("1k", |(protocol, ..)| protocol);
        vec![
            Block::Heading(
                3,
                format!("{}: what each transfer term brings, {}", scenario.name, protocol_title(protocol)),
            ),
            self.table(scenario.name, protocol, &chosen, false),
        ]
    }

    /// rSum over the values of each setting.
    fn sensitivity(&self, scenario: &paper::Scenario, rows: &[paper::Row]) -> Vec<Block> {
        let mut blocks = vec![Block::Heading(3, format!("{}: sensitivity", scenario.name))];
        let protocol = scenario.scored().protocols().first().map_or("1k", |(protocol, ..)| protocol);
        for setting in Setting::ALL {
            let points = self.points(scenario.name, rows, setting, protocol, false);
            let all =
                rows.iter().filter(|row| matches!(row.part, Part::Curve(of, _) if of == setting)).count() + 1;
            blocks.push(match points.len() {
                0 => Block::Text(format!("{}: not run ({all} cells).", setting.name())),
                _ => sensitivity_chart(setting, vec![(scenario.name.to_owned(), points)]),
            });
        }
        blocks
    }

    fn points(
        &self,
        scenario: &str,
        rows: &[paper::Row],
        setting: Setting,
        protocol: &str,
        stand_in: bool,
    ) -> Vec<(f64, f64)> {
        let of_rows = rows.iter().filter_map(|row| match row.part {
            Part::Curve(of, value) if of == setting => Some((value, row.name.as_str())),
            _ => None,
        });
        let mut points: Vec<(f64, f64)> = of_rows
            .chain([(setting.paper(), "aeir")])
            .filter_map(|(value, row)| {
                let sums: Vec<f64> =
                    self.scores(scenario, row, protocol, stand_in).iter().map(|it| it.rsum).collect();
                Some((value, average(&sums)?))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }

    /// Validation on the source over epochs, of the first seed.
    fn convergence(&self, scenario: &str, stand_in: bool) -> Vec<Block> {
        let curves = ["source-only", "aeir", "dann", "oracle"].iter().filter_map(|row| {
            let record = self
                .records
                .iter()
                .find(|it| it.scenario == scenario && it.row == *row && it.stand_in == stand_in)?;
            (!record.curve.is_empty()).then(|| ((*row).to_owned(), record.curve.clone()))
        });
        let series: Vec<_> = curves.collect();
        let heading = Block::Heading(3, format!("{scenario}: convergence"));
        if series.is_empty() {
            return vec![heading, Block::Text("Not run.".into())];
        }
        let chart = Chart {
            title: "Convergence".into(),
            x: "epoch".into(),
            y: "rSum on the source's validation split".into(),
            logarithmic: false,
            series,
        };
        vec![heading, Block::Chart(chart)]
    }

    /// What was found for a few sentences.
    fn examples(&self, scenario: &str, stand_in: bool) -> Vec<Block> {
        let heading = Block::Heading(3, format!("{scenario}: retrieval examples"));
        let of = |record: &&Record| {
            record.scenario == scenario && record.stand_in == stand_in && !record.examples.is_empty()
        };
        let shown = self
            .records
            .iter()
            .filter(of)
            .filter(|record| ["source-only", "aeir"].contains(&record.row.as_str()));
        let lines: Vec<Vec<String>> = shown
            .flat_map(|record| record.examples.iter().map(move |example| (record, example)))
            .map(|(record, example)| {
                let found: Vec<String> = example
                    .found
                    .iter()
                    .map(|(row, own)| if *own { format!("**{row}**") } else { row.clone() })
                    .collect();
                vec![example.sentence.clone(), record.row.clone(), found.join(", ")]
            })
            .collect();
        if lines.is_empty() {
            return vec![heading, Block::Text("Not run.".into())];
        }
        let note = "Places of the images in the test array, the best first; the sentence's own is bold.";
        vec![
            heading,
            Block::Text(note.into()),
            Block::Table(["sentence", "row", "found"].map(str::to_owned).to_vec(), lines),
        ]
    }

    /// Every published value that a row of ours repeats.
    fn verdicts(&self) -> Block {
        let mut lines = Vec::new();
        for figure in &self.published.figures {
            let Some(row) = &figure.row else { continue };
            let scores = self.scores(&figure.scenario, row, &figure.protocol, false);
            let mut line = vec![format!("{}, {}, {}", figure.scenario, figure.protocol, figure.model)];
            for (place, theirs) in figure.recalls().into_iter().enumerate() {
                let values: Vec<f64> =
                    scores.iter().filter_map(|it| it.recalls.get(place).copied()).collect();
                line.push(self.published.verdict(average(&values), theirs).to_string());
            }
            lines.push(line);
        }
        let mut header = vec!["experiment".to_owned()];
        header.extend(RECALLS.map(str::to_owned));
        Block::Table(header, lines)
    }

    fn sources(&self) -> Block {
        let mut lines: Vec<Vec<String>> = self
            .published
            .figures
            .iter()
            .map(|figure| vec![figure.model.clone(), figure.source.clone()])
            .collect();
        lines.sort();
        lines.dedup();
        Block::Table(vec!["model".into(), "source".into()], lines)
    }

    /// What `--check` ran, in tables of its own.
    fn stand_ins(&self) -> Vec<Block> {
        let mut blocks = vec![
            Block::Heading(2, "Stand-ins".into()),
            Block::Text(
                "What `cargo xtask reproduce --check` ran: every suite and method on small sets made from the fixtures in the published formats, with small \
                 models and two epochs. It shows that the machinery works. **The figures say nothing about the methods.**"
                    .into(),
            ),
        ];
        let mut tables: Vec<(String, String)> = Vec::new();
        for record in self.records.iter().filter(|record| record.stand_in) {
            for scores in &record.scores {
                let table = (record.scenario.clone(), scores.protocol.clone());
                if !tables.contains(&table) {
                    tables.push(table);
                }
            }
        }
        if tables.is_empty() {
            blocks.push(Block::Text("Not run.".into()));
        }
        for (scenario, protocol) in &tables {
            let mut names: Vec<&str> = self
                .records
                .iter()
                .filter(|it| it.stand_in && it.scenario == *scenario)
                .map(|it| it.row.as_str())
                .collect();
            names.dedup();
            let rows: Vec<Ours> = names
                .into_iter()
                .map(|name| Ours { name: name.to_owned(), title: name.to_owned() })
                .collect();
            blocks.push(Block::Heading(3, format!("Stand-in of {scenario}, {protocol}")));
            blocks.push(self.table(scenario, protocol, &rows, true));
        }
        for scenario in paper::SCENARIOS
            .iter()
            .filter(|it| it.is_transfer() && tables.iter().any(|(name, _)| name == it.name))
        {
            let rows = scenario.rows();
            let protocol = scenario.scored().protocols().first().map_or("1k", |(protocol, ..)| protocol);
            let curves = Setting::ALL
                .into_iter()
                .map(|setting| (setting, self.points(scenario.name, &rows, setting, protocol, true)));
            blocks.extend(curves.filter(|(_, points)| points.len() > 1).map(|(setting, points)| {
                sensitivity_chart(setting, vec![(format!("stand-in of {}", scenario.name), points)])
            }));
            blocks.extend(self.convergence(scenario.name, true));
            blocks.extend(self.examples(scenario.name, true));
        }
        blocks
    }

    fn cells(&self) -> Block {
        let header = ["cell", "seed", "device", "time", "commit", "settings"].map(str::to_owned).to_vec();
        let short = |text: &str| format!("`{}`", text.chars().take(10).collect::<String>());
        let lines = self.records.iter().map(|record| {
            let stand_in = if record.stand_in { "stand-in of " } else { "" };
            vec![
                format!("{stand_in}{} / {}", record.scenario, record.row),
                record.seed.to_string(),
                record.device.clone(),
                format!("{:.1} s", record.seconds),
                short(&record.commit),
                short(&record.config_sha256),
            ]
        });
        Block::Table(header, lines.collect())
    }
}

impl Ours {
    fn of(row: &paper::Row) -> Self {
        Self { name: row.name.clone(), title: row.title.clone() }
    }
}

fn published_line(figure: &Figure) -> Vec<String> {
    let mut line = vec![format!("{} (published)", figure.model)];
    let recalls = figure.recalls();
    line.extend(recalls.iter().map(|value| match value {
        Some(value) => format!("{value:.1}"),
        None if figure.is_blank() => "not at hand".to_owned(),
        None => String::new(),
    }));
    let all: Option<Vec<f64>> = recalls.into_iter().collect();
    line.push(all.map(|all| format!("{:.1}", all.iter().sum::<f64>())).unwrap_or_default());
    line.push(String::new());
    line
}

fn sensitivity_chart(setting: Setting, series: Vec<(String, Vec<(f64, f64)>)>) -> Block {
    let title = format!("Sensitivity to {}", setting.name());
    Block::Chart(Chart {
        title,
        x: setting.name().into(),
        y: "rSum on the target's test".into(),
        logarithmic: true,
        series,
    })
}

fn protocol_title(protocol: &str) -> String {
    match protocol {
        "1k" => "the 1,000 test images".into(),
        "5k" => "the 5,000 test images".into(),
        "five-fold-1k" => "mean of five folds of 1,000 images".into(),
        other => other.into(),
    }
}

fn average(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| mean(values))
}

fn cell(values: &[f64]) -> String {
    match values {
        [] => "not run".into(),
        [value] => format!("{value:.1}"),
        values => format!("{:.1} ± {:.1}", mean(values), deviation(values)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::workspace_root;

    fn record(scenario: &str, row: &str, seed: u64, stand_in: bool, protocol: &str, recall: f64) -> Record {
        let scores = Scores { protocol: protocol.into(), recalls: [recall; 6], rsum: 6.0 * recall };
        Record {
            suite: "paper".into(),
            scenario: scenario.into(),
            row: row.into(),
            seed,
            stand_in,
            config_sha256: "ab".repeat(32),
            commit: "cd".repeat(20),
            device: "cpu".into(),
            seconds: 1.0,
            scores: vec![scores],
            curve: vec![(1.0, 2.0)],
            examples: Vec::new(),
        }
    }

    fn text(records: &[Record]) -> String {
        let published = Published::read(&workspace_root().unwrap()).unwrap();
        markdown(&Summary { published: &published, records }.blocks())
    }

    #[test]
    fn what_was_not_run_says_so_beside_what_is_published() {
        let text = text(&[]);
        for part in [
            "| AEIR (published) | not at hand",
            "| **AEIR** | not run",
            "VSRN, source only (published) | 53.1",
            "with a query bank (published) |  |  |  | 34.8",
        ] {
            assert!(text.contains(part), "`{part}` is not in\n{text}");
        }
        assert!(!text.contains("NaN") && text.contains("| f30k, 1k, SAF | not run |"));
        assert!(text.contains("| coco-to-f30k, 1k, AEIR | no figure at hand |"));
    }

    #[test]
    fn seeds_give_a_mean_a_spread_and_a_verdict() {
        let records =
            [record("f30k", "saf", 1, false, "1k", 73.0), record("f30k", "saf", 2, false, "1k", 75.0)];
        let text = text(&records);
        assert!(text.contains("| **SAF** | 74.0 ± 1.4 (within tolerance) | 74.0 ± 1.4 (below)"), "{text}");
        assert!(
            text.contains("| f30k, 1k, SAF | within tolerance | below | below | above | below | below |"),
            "{text}"
        );
    }

    #[test]
    fn stand_ins_never_stand_for_a_cell() {
        let text = text(&[record("f30k", "saf", 1, true, "1k", 73.7)]);
        assert!(
            text.contains("Stand-in of f30k, 1k") && text.contains("| f30k, 1k, SAF | not run |"),
            "{text}"
        );
        assert!(text.contains("| **SAF** | not run"));
    }

    #[test]
    fn curves_are_made_of_their_cells_and_the_papers() {
        let records = [
            record("coco-to-f30k", "aeir", 1, false, "1k", 10.0),
            record("coco-to-f30k", "aeir-k-5", 1, false, "1k", 11.0),
        ];
        let text = text(&records);
        assert!(text.contains("| 3 | 60.0 |\n| 5 | 66.0 |"), "{text}");
    }
}
