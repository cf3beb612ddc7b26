//! `aeir bench data`: JPEG files decoded and resized, as it is done before an encoder.
//!
//! `benches/peers/decode.py` times Pillow and OpenCV on the same files, in turn with this command.

mod picture;
mod reading;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use aeir_data::{ImageLimits, decode_file};
use aeir_encoders::preprocess::{Alpha, Filter, Resize, Size};
use aeir_encoders::{ImagePreprocessor, PreprocessorConfig};
use anyhow::Context;
use rayon::prelude::*;
use serde::Serialize;

use crate::commands::{print, print_json};
use crate::failure::CliError;
use crate::flags::BenchDataFlags;
use crate::temporary_folder::TemporaryFolder;
use crate::terminal::Terminal;

/// Side of the network input.
const SIDE: u32 = 224;

#[derive(Serialize)]
struct Report {
    images: usize,
    bytes_per_image: u64,
    results: Vec<Measured>,
}

#[derive(Serialize)]
struct Measured {
    threads: usize,
    decoded_per_second: f64,
    decoded_and_resized_per_second: f64,
}

/// Makes the files where they are missing, and times them.
pub(crate) fn run(flags: &BenchDataFlags, terminal: &Terminal) -> anyhow::Result<()> {
    if let Some(path) = &flags.read {
        return reading::run(path, flags.repeats, flags.json);
    }
    let temporary;
    let folder: &Path = match &flags.folder {
        Some(folder) => folder,
        None => {
            temporary = TemporaryFolder::new("bench")?;
            &temporary.0
        }
    };
    let files = files(folder, flags.images, terminal)?;
    if flags.make_only {
        return print(&format!("{} files in {}\n", files.len(), folder.display()));
    }
    let mut bytes = 0;
    for file in &files {
        bytes += fs::metadata(file).with_context(|| format!("`{}`", file.display()))?.len();
    }
    let preprocessor = ImagePreprocessor::new(PreprocessorConfig {
        resize: Resize::Exact(Size { width: SIDE, height: SIDE }),
        filter: Filter::Bicubic,
        crop: None,
        rescale: 1.0 / 255.0,
        mean: [0.5; 3],
        std: [0.5; 3],
        alpha: Alpha::Drop,
    })?;
    let mut results = Vec::new();
    for threads in flags.threads.iter().copied() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let rate = |resize: bool| -> anyhow::Result<f64> {
            // Once for the caches of the system, then as often as asked.
            let mut rates = Vec::new();
            for _ in 0..=flags.repeats {
                let started = Instant::now();
                pool.install(|| {
                    files.par_iter().try_for_each(|file| {
                        let image = decode_file(file, &ImageLimits::default())?.image;
                        if resize {
                            std::hint::black_box(preprocessor.prepare(&image)?);
                        }
                        anyhow::Ok(())
                    })
                })?;
                rates.push(files.len() as f64 / started.elapsed().as_secs_f64());
            }
            Ok(median(rates.split_off(1)))
        };
        results.push(Measured {
            threads,
            decoded_per_second: rate(false)?,
            decoded_and_resized_per_second: rate(true)?,
        });
    }
    let report = Report { images: files.len(), bytes_per_image: bytes / files.len().max(1) as u64, results };
    if flags.json {
        return print_json(&report);
    }
    let mut text = format!(
        "{} JPEG files of about 500x375, {} bytes each; resized to {SIDE}x{SIDE}, bicubic, with Pillow's bytes\n\n\
         threads   decoded/s   decoded and resized/s\n",
        report.images, report.bytes_per_image
    );
    for Measured { threads, decoded_per_second, decoded_and_resized_per_second } in &report.results {
        text.push_str(&format!(
            "{threads:7} {decoded_per_second:11.0} {decoded_and_resized_per_second:23.0}\n"
        ));
    }
    print(&text)
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The JPEG files of a folder; in a new or empty one they are made.
fn files(folder: &Path, count: usize, terminal: &Terminal) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("could not make `{}`", folder.display()))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("could not read `{}`", folder.display()))? {
        files.push(entry.with_context(|| format!("could not read `{}`", folder.display()))?.path());
    }
    if files.is_empty() {
        let bar = terminal.bar("making JPEG files", count);
        files = (0..count).map(|number| folder.join(format!("{number:05}.jpg"))).collect();
        files.par_iter().enumerate().try_for_each(|(number, file)| {
            let jpeg = picture::jpeg(number as u64)?;
            bar.inc(1);
            fs::write(file, jpeg).with_context(|| format!("could not write `{}`", file.display()))
        })?;
        bar.finish();
    }
    files.retain(|file| file.extension().is_some_and(|suffix| suffix == "jpg"));
    files.sort();
    if files.is_empty() {
        return Err(CliError::Data {
            message: format!("`{}` has no .jpg files", folder.display()),
            hint: "name an empty folder, and they are made".into(),
        }
        .into());
    }
    Ok(files)
}
