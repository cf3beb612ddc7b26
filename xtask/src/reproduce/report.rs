//! The report: what was run, and what was not.

use std::fmt::Write;

use super::cell::{CRITERIA, Outcome};
use super::suite::{Row, Suite, Table};

/// Quantiles of Student's t at 97.5 % for 1, 2, .. degrees of freedom.
const STUDENT: [f64; 9] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26];

/// The tables of a suite in Markdown.
pub(super) fn markdown(suite: &Suite, outcomes: &[Outcome]) -> String {
    let mut text = format!("# Suite `{}`\n\n", suite.name);
    let transfers: Vec<&str> = suite
        .transfers
        .iter()
        .map(|transfer| transfer.name)
        .filter(|name| outcomes.iter().any(|outcome| outcome.transfer == *name))
        .collect();
    text += "rSum on the target's test pairs, mean ± sample standard deviation (seeds); below it the gap closed, \
             (row - source-only) / (oracle - source-only), with its 95 % interval over seeds.\n\n";
    for table in Table::ALL {
        let title = table.title();
        let rows: Vec<&Row> = suite.rows.iter().filter(|row| row.table == table).collect();
        let _ = writeln!(text, "## {title}\n\n| row | {} | mean gap closed |", transfers.join(" | "));
        let _ = writeln!(text, "| --- |{} --- |", " --- |".repeat(transfers.len()));
        for row in rows {
            text += &line(row, &transfers, outcomes);
        }
        text.push('\n');
    }
    text += &correlations(&transfers, outcomes);
    text
}

fn line(row: &Row, transfers: &[&str], outcomes: &[Outcome]) -> String {
    let mut gaps = Vec::new();
    let mut text = format!("| {} |", row.name);
    for transfer in transfers {
        let values = rsums(outcomes, transfer, row.name);
        if values.is_empty() {
            text += " not run |";
            continue;
        }
        let _ = write!(text, " {:.1} ± {:.1} ({})", mean(&values), deviation(&values), values.len());
        if let Some((closed, half)) = gap(outcomes, transfer, &values).filter(|_| !is_reference(row)) {
            gaps.push(closed);
            let _ = match half {
                Some(half) => write!(text, "<br>{closed:.0} % ± {half:.0}"),
                None => write!(text, "<br>{closed:.0} %, one seed"),
            };
        }
        text += " |";
    }
    let all = gaps.len() == transfers.len() && !gaps.is_empty();
    text + &if all { format!(" {:.0} % |\n", mean(&gaps)) } else { " |\n".to_owned() }
}

/// What gaps are measured by has none itself.
fn is_reference(row: &Row) -> bool {
    row.name == "oracle" || row.name == "source-only"
}

fn rsums(outcomes: &[Outcome], transfer: &str, row: &str) -> Vec<f64> {
    let of_row = |outcome: &&Outcome| outcome.transfer == transfer && outcome.row == row;
    outcomes.iter().filter(of_row).map(|outcome| outcome.rsum).collect()
}

/// The gap closed in per cent and half the width of its 95 % interval, to which the spread of the references belongs as well
/// (first order, as many degrees of freedom as the row with the fewest seeds has). No interval where one of the three has one
/// seed; no gap where the oracle is not above source only.
fn gap(outcomes: &[Outcome], transfer: &str, values: &[f64]) -> Option<(f64, Option<f64>)> {
    let (source, oracle) = (rsums(outcomes, transfer, "source-only"), rsums(outcomes, transfer, "oracle"));
    let whole = mean(&oracle) - mean(&source);
    if source.is_empty() || oracle.is_empty() || whole <= 0.0 {
        return None;
    }
    let closed = (mean(values) - mean(&source)) / whole;
    let squared_error = |values: &[f64]| deviation(values).powi(2) / values.len() as f64;
    let error = (squared_error(values)
        + (1.0 - closed).powi(2) * squared_error(&source)
        + closed.powi(2) * squared_error(&oracle))
    .sqrt();
    let fewest = values.len().min(source.len()).min(oracle.len());
    let quantile = fewest.checked_sub(2).map(|place| STUDENT.get(place).copied().unwrap_or(1.96));
    Some((100.0 * closed, quantile.map(|quantile| 100.0 * quantile * error / whole)))
}

/// How well each label-free criterion ranks the runs of a transfer.
fn correlations(transfers: &[&str], outcomes: &[Outcome]) -> String {
    let mut text = "## Do the label-free criteria rank runs by their true recall?\n\n\
                    Spearman's rank correlation of a criterion's figure, in the epoch that became the model, and rSum over all runs of a \
                    transfer, the oracle's left out.\n\n"
        .to_owned();
    let _ = writeln!(text, "| criterion | {} | mean |", transfers.join(" | "));
    let _ = writeln!(text, "| --- |{} --- |", " --- |".repeat(transfers.len()));
    for (place, (criterion, _)) in CRITERIA.iter().enumerate() {
        let _ = write!(text, "| `{criterion}` |");
        let mut found = Vec::new();
        for transfer in transfers {
            let pairs: Vec<(f64, f64)> = outcomes
                .iter()
                .filter(|outcome| outcome.transfer == *transfer && !outcome.row.starts_with("oracle"))
                .filter_map(|outcome| Some(((*outcome.criteria.get(place)?)?, outcome.rsum)))
                .collect();
            let _ = match spearman(&pairs) {
                Some(rho) => {
                    found.push(rho);
                    write!(text, " {rho:.2} ({} runs) |", pairs.len())
                }
                None => write!(text, " too few runs |"),
            };
        }
        let all = found.len() == transfers.len() && !found.is_empty();
        text += &if all { format!(" {:.2} |\n", mean(&found)) } else { " |\n".to_owned() };
    }
    text
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

pub(super) fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    if values.len() < 2 { 0.0 } else { (squares / (values.len() - 1) as f64).sqrt() }
}

/// Spearman's rank correlation; ties share their mean rank. None below three pairs, or where one side is all the same.
fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 3 {
        return None;
    }
    let (left, right): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let (left, right) = (ranks(&left), ranks(&right));
    let (mean_left, mean_right) = (mean(&left), mean(&right));
    let sum = |of: fn(f64, f64) -> f64| -> f64 {
        left.iter().zip(&right).map(|(a, b)| of(a - mean_left, b - mean_right)).sum()
    };
    let (cross, first, second) = (sum(|a, b| a * b), sum(|a, _| a * a), sum(|_, b| b * b));
    (first > 0.0 && second > 0.0).then(|| cross / (first * second).sqrt())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |value: &f64| {
        let below = values.iter().filter(|other| *other < value).count();
        let equal = values.iter().filter(|other| *other == value).count();
        below as f64 + (equal as f64 - 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_correlate_as_they_should() {
        let pairs = |right: [f64; 4]| [1.0, 2.0, 3.0, 4.0].into_iter().zip(right).collect::<Vec<_>>();
        assert_eq!(spearman(&pairs([10.0, 20.0, 30.0, 90.0])), Some(1.0));
        assert_eq!(spearman(&pairs([9.0, 7.0, 3.0, 1.0])), Some(-1.0));
        assert!((spearman(&pairs([1.0, 3.0, 2.0, 4.0])).unwrap() - 0.8).abs() < 1e-9);
        assert!((spearman(&pairs([1.0, 1.0, 2.0, 2.0])).unwrap() - 0.894).abs() < 1e-3);
        assert_eq!(spearman(&pairs([5.0; 4])), None);
        assert_eq!(spearman(&[(1.0, 1.0)]), None);
    }

    fn outcomes(row: &str, values: &[f64]) -> Vec<Outcome> {
        let of = |value: &f64| Outcome::for_tests("t", row, *value);
        values.iter().map(of).collect()
    }

    #[test]
    fn the_interval_has_the_spread_of_all_three() {
        let mut all = outcomes("source-only", &[99.0, 101.0]);
        all.extend(outcomes("oracle", &[199.0, 201.0]));
        let (closed, half) = gap(&all, "t", &[150.0, 150.0]).unwrap();
        // Variance of each reference's mean 1, each half counted: sqrt(0.5) of 100, times t with one degree of freedom.
        assert!((closed - 50.0).abs() < 1e-9 && (half.unwrap() - 12.71 * 0.5f64.sqrt()).abs() < 1e-9);
        assert_eq!(gap(&all, "t", &[150.0]).unwrap().1, None, "one seed has no spread");
        let mut low = outcomes("source-only", &[99.0, 101.0]);
        low.extend(outcomes("oracle", &[90.0, 91.0]));
        assert!(gap(&low, "t", &[95.0, 95.0]).is_none(), "an oracle below source only measures nothing");
    }

    #[test]
    fn what_was_not_run_says_so() {
        let suite = Suite::named("adapt").unwrap();
        let text = markdown(suite, &[]);
        assert!(text.contains("| adapt |") && !text.contains("NaN"), "{text}");
    }

    #[test]
    fn spreads_are_of_samples() {
        assert!((deviation(&[1.0, 3.0]) - 2f64.sqrt()).abs() < 1e-9);
        assert_eq!(deviation(&[4.0]), 0.0);
    }
}
