//! `aeir data`: look at data sets, and write them anew.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use aeir_data::{
    CheckReport, Dataset, Exported, Finding, PartReport, Shares, Split, Spread, check, write_json_lines,
    write_skipped, write_splits, write_unpaired, write_webdataset,
};
use aeir_train::run::SKIPPED_FILE;
use anyhow::Context;

use super::{print, print_json, tell_skipped};
use crate::failure::CliError;
use crate::flags::data::{
    CheckFlags, ConvertFlags, DataCommand, DataFlags, DrawFlags, TargetFormat, UnpairFlags, WritingFlags,
};
use crate::terminal::Terminal;

/// Runs the command that the flags name.
pub(crate) fn run(flags: &DataFlags, terminal: &Terminal) -> anyhow::Result<()> {
    match &flags.command {
        DataCommand::Check(flags) => run_check(flags, terminal),
        DataCommand::Split(flags) => run_split(flags, terminal),
        DataCommand::Convert(flags) => run_convert(flags, terminal),
        DataCommand::Unpair(flags) => run_unpair(flags, terminal),
    }
}

fn run_check(flags: &CheckFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let options = flags.reading.options();
    let data: Vec<Dataset> =
        flags.paths.iter().map(|path| Dataset::open(path, &options)).collect::<Result<_, _>>()?;
    let bar = terminal.bar("looking at images", 0);
    let report = check(&data, &flags.loading.limits(), |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish();
    if flags.json {
        print_json(&report)?;
    } else {
        print(&told(&report))?;
    }
    if report.usable {
        return Ok(());
    }
    let failed: usize = report.parts.iter().map(|part| part.missing.count + part.broken.count).sum();
    Err(CliError::Data {
        message: format!("no image can be used: {failed} are missing or broken"),
        hint: "paths are relative to the file that names them; --image-root names another folder".into(),
    }
    .into())
}

fn run_split(flags: &DrawFlags, terminal: &Terminal) -> anyhow::Result<()> {
    if flags.validation + flags.test >= 1.0 {
        return Err(CliError::Usage {
            message: format!(
                "--val {} and --test {} leave nothing to train on",
                flags.validation, flags.test
            ),
            hint: "their sum must be below 1".into(),
        }
        .into());
    }
    let data = open(&flags.path, &flags.reading, terminal)?;
    let folder = output(&flags.writing)?;
    let shares = Shares { validation: flags.validation, test: flags.test };
    let written = write_splits(&data, folder, shares, flags.seed, &flags.loading.limits())?;
    finish(&written, &flags.writing, terminal)
}

fn run_convert(flags: &ConvertFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let data = open(&flags.path, &flags.reading, terminal)?;
    let folder = output(&flags.writing)?;
    let limits = flags.loading.limits();
    let written = match flags.to {
        TargetFormat::JsonLines => write_json_lines(&data, folder, &limits)?,
        TargetFormat::WebDataset => write_webdataset(&data, folder, flags.per_shard, &limits)?,
    };
    finish(&written, &flags.writing, terminal)
}

fn run_unpair(flags: &UnpairFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let data = open(&flags.path, &flags.reading, terminal)?;
    let written = write_unpaired(&data, output(&flags.writing)?, flags.seed)?;
    finish(&written, &flags.writing, terminal)
}

fn open(path: &Path, reading: &crate::flags::ReadingFlags, terminal: &Terminal) -> anyhow::Result<Dataset> {
    let data = Dataset::open(path, &reading.options())?;
    data.notes.iter().for_each(|note| terminal.warn(note));
    Ok(data)
}

/// The output folder, made where it is not there; one that holds something is refused.
fn output(flags: &WritingFlags) -> anyhow::Result<&Path> {
    let folder = flags.output.as_path();
    let failed = || format!("could not make `{}`", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    if fs::read_dir(folder).with_context(failed)?.next().is_some() {
        return Err(CliError::Usage {
            message: format!("`{}` is not empty", folder.display()),
            hint: "name another --output, or remove it first".into(),
        }
        .into());
    }
    Ok(folder)
}

fn finish(written: &Exported, flags: &WritingFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let list = flags.output.join(SKIPPED_FILE);
    if !written.skipped.is_empty() {
        write_skipped(&list, &written.skipped)?;
    }
    tell_skipped(terminal, &written.skipped, Some(&list));
    if flags.json {
        return print_json(written);
    }
    let counts: Vec<String> = Split::ALL
        .iter()
        .zip(written.images)
        .filter(|(_, count)| *count > 0)
        .map(|(split, count)| format!("{count} {split}"))
        .collect();
    let mut text = format!("images     {}\nsentences  {}\n", counts.join(", "), written.sentences);
    for file in written.files.iter().take(FILES_SHOWN) {
        let _ = writeln!(text, "file       {}", file.display());
    }
    if written.files.len() > FILES_SHOWN {
        let _ = writeln!(text, "           and {} more", written.files.len() - FILES_SHOWN);
    }
    print(&text)
}

/// Files that are named; of many archives the others are only counted.
const FILES_SHOWN: usize = 8;

fn told(report: &CheckReport) -> String {
    let mut text: String = report.parts.iter().map(part).collect();
    let findings = [
        ("the same image several times", &report.duplicate_images),
        ("LEAK: images of training that are also held out", &report.leaked_images),
        ("LEAK: held-out sentences that are also in training", &report.leaked_sentences),
        ("names of training and held-out images that are nearly the same", &report.near_names),
    ];
    for (what, finding) in findings {
        text.push_str(&line_of(what, finding));
    }
    if findings.iter().all(|(_, finding)| finding.count == 0) {
        text.push_str("no duplicate image, no leak between training and held-out items\n");
    }
    text
}

fn line_of(what: &str, finding: &Finding) -> String {
    if finding.count == 0 {
        return String::new();
    }
    let mut text = format!("{what}: {}\n", finding.count);
    finding.examples.iter().for_each(|example| text.push_str(&format!("  {example}\n")));
    text
}

// Writing to a String can't fail.
fn part(part: &PartReport) -> String {
    let mut text = format!("{} [{}], {}\n", part.path.display(), part.split, part.format);
    let _ = writeln!(text, "  images             {} ({} can be used)", part.images, part.usable_images);
    let _ =
        writeln!(text, "  sentences          {} ({} different)", part.sentences, part.different_sentences);
    let _ = writeln!(text, "  images with some   {}", part.pairs);
    let rows = [
        ("sentences an image", part.captions_per_image),
        ("words a sentence", part.words),
        ("characters", part.characters),
        (if part.features { "regions" } else { "width" }, part.width),
        (if part.features { "values a region" } else { "height" }, part.height),
    ];
    for (name, spread) in rows {
        if let Some(Spread { min, median, mean, max }) = spread {
            let _ = writeln!(text, "  {name:18} {min} to {max}, median {median}, mean {mean:.1}");
        }
    }
    let findings = [
        ("missing", &part.missing),
        ("broken", &part.broken),
        ("left out by the reader", &part.skipped),
        ("wrong letters", &part.encoding),
    ];
    for (what, finding) in findings {
        for line in line_of(what, finding).lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
    part.notes.iter().for_each(|note| text.push_str(&format!("  note: {note}\n")));
    text.push('\n');
    text
}
