//! How fast a data set is listed and gone through: no decoding, no encoder.

use std::path::{Path, PathBuf};
use std::time::Instant;

use aeir_data::{Dataset, ImageLimits, ImageSource, ReadOptions};
use serde::Serialize;

use super::median;
use crate::commands::{print, print_json};
use crate::failure::CliError;

#[derive(Serialize)]
struct Report {
    path: PathBuf,
    format: String,
    items: usize,
    sentences: usize,
    /// Items a second, to the list of the whole set.
    listed_per_second: f64,
    /// Images a second, each read as it is stored: the encoded file, or features as f32.
    read_per_second: f64,
    /// Bytes of them, in units of 10^9.
    gigabytes_per_second: f64,
    /// Images that can't be read.
    failed: usize,
}

/// Lists and reads a data set on one thread, once to have it in the system's cache and then as often as asked.
pub(super) fn run(path: &Path, repeats: usize, json: bool) -> anyhow::Result<()> {
    let (mut listed, mut read, mut bytes_read) = (Vec::new(), Vec::new(), Vec::new());
    let mut report = None;
    for _ in 0..=repeats {
        let started = Instant::now();
        let data = Dataset::open(path, &ReadOptions::default())?;
        listed.push(data.items.len() as f64 / started.elapsed().as_secs_f64());
        let images = data.images();
        let started = Instant::now();
        let (mut bytes, mut failed) = (0, 0);
        let mut values = Vec::new();
        for image in &images {
            match read_one(image, &mut values) {
                Ok(length) => bytes += length,
                Err(_) => failed += 1,
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        read.push((images.len() - failed) as f64 / seconds);
        bytes_read.push(bytes as f64 / 1e9 / seconds);
        report =
            Some((data.format.to_string(), data.items.len(), data.sentence_count(), images.len(), failed));
    }
    let Some((format, items, sentences, images, failed)) = report else { return Ok(()) };
    if failed > 0 && failed == images {
        return Err(CliError::Data {
            message: format!("`{}`: no image of it can be read", path.display()),
            hint: format!("`aeir data check {}` says why", path.display()),
        }
        .into());
    }
    let report = Report {
        path: path.to_owned(),
        format,
        items,
        sentences,
        listed_per_second: median(listed.split_off(1)),
        read_per_second: median(read.split_off(1)),
        gigabytes_per_second: median(bytes_read.split_off(1)),
        failed,
    };
    if json {
        return print_json(&report);
    }
    let mut text = format!(
        "{}: {}, {} items, {} sentences\nlisted  {:12.0} items/s\nread    {:12.0} images/s  {:8.2} GB/s\n",
        path.display(),
        report.format,
        report.items,
        report.sentences,
        report.listed_per_second,
        report.read_per_second,
        report.gigabytes_per_second
    );
    if failed > 0 {
        text.push_str(&format!("failed  {failed:12}\n"));
    }
    print(&text)
}

/// Reads an image, and gives its bytes.
fn read_one(image: &ImageSource, values: &mut Vec<f32>) -> Result<usize, aeir_data::DataError> {
    let Some(row) = image.features() else {
        return Ok(std::hint::black_box(image.read(ImageLimits::default().max_bytes)?).len());
    };
    values.resize(row.features.image_len(), 0.0);
    row.features.read_into(row.image, values)?;
    std::hint::black_box(&values);
    Ok(size_of_val(values.as_slice()))
}
