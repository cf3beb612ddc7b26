//! `aeir embed`: a data set to files of embeddings.

pub(super) mod arrays;
mod encoders;
mod folder;
mod output;
mod part;

use std::path::Path;
use std::time::{Duration, Instant};

use aeir_data::{
    DataError, Dataset, DecodedImage, FeatureRow, ImageSource, Item, LoadOptions, Prepared, ReadOptions,
    Skipped, for_each_prepared_batch, hash_bytes, hash_text, write_skipped,
};
use aeir_encoders::{ImagePreprocessor, PreparedImage};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{print, print_json, tell_skipped};
use crate::failure::CliError;
use crate::flags::{EmbedFlags, Only, SplitFlag};
use crate::terminal::Terminal;
use encoders::Encoders;
use folder::{EmbeddingFolder, Finished, Identity, Opened};
use output::Output;
use part::{Kind, Part};

/// Images encoded at once.
const IMAGE_BATCH: usize = 16;
/// Sentences encoded at once.
const SENTENCE_BATCH: usize = 256;

/// Embeds a data set, or a part of it, into the output.
pub(crate) fn run(flags: &EmbedFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let device = flags.device.device.open(terminal)?;
    let encoders = Encoders::load(flags, &device, terminal)?;
    let data = read(flags)?;
    data.notes.iter().for_each(|note| terminal.warn(note));
    let kinds = Kinds::of(&data, flags, &encoders)?;
    let shard = flags.shard.of(data.items.len());
    let first = shard.start;
    let items = data.items.get(shard).unwrap_or_default();
    let output = Output::of(&flags.output, flags.format, kinds.images && kinds.sentences)?;
    let identity = Identity::new(flags, output.format, &encoders, kinds, &digest(items), first, items.len());
    let skipped_file = output.skipped();
    let mut folder = match EmbeddingFolder::open(output, &identity, flags)? {
        Opened::Ready(folder) => folder,
        Opened::Finished(finished) => {
            terminal.note(&format!("`{}` is finished: nothing to do", flags.output.display()));
            return tell(flags, &finished, None);
        }
    };
    // What the readers left out is told once, not by every machine.
    let of_data = if flags.shard.number == 1 { data.skipped.as_slice() } else { &[] };

    let started = Instant::now();
    let mut done = Done::default();
    if let Some(part) = folder.part(Kind::Images) {
        done.images = embed_images(flags, &encoders, items, first, part, terminal)?;
    }
    if let Some(part) = folder.part(Kind::Sentences) {
        done.sentences = embed_sentences(flags, &encoders, items, first, part, terminal)?;
    }
    done.seconds = started.elapsed().as_secs_f64();

    let skipped: Vec<Skipped> = of_data.iter().cloned().chain(folder.skipped()?).collect();
    write_skipped(&skipped_file, &skipped)?;
    tell_skipped(terminal, &skipped, Some(&skipped_file));
    if folder.rows() == 0 && !items.is_empty() {
        folder.give_up();
        return Err(CliError::Data {
            message: format!("`{}`: nothing could be embedded", flags.data.display()),
            hint: format!("`{}` says why", skipped_file.display()),
        }
        .into());
    }
    let finished = folder.finish(&identity, skipped.len())?;
    tell(flags, &finished, Some(&done))
}

/// The data set, in the role that the flags give it.
fn read(flags: &EmbedFlags) -> anyhow::Result<Dataset> {
    let split = flags.split.map(SplitFlag::split);
    let options = ReadOptions { split_files: split.map(|split| vec![split]), ..flags.reading.options() };
    let only = flags.only.or(match (&flags.image_encoder, &flags.text_encoder) {
        (Some(_), None) => Some(Only::Images),
        (None, Some(_)) => Some(Only::Sentences),
        _ => None,
    });
    let mut data = match only {
        None => Dataset::open(&flags.data, &options)?,
        Some(Only::Images) => Dataset::open_images(&flags.data, &options)?,
        Some(Only::Sentences) => Dataset::open_sentences(&flags.data, &options)?,
    };
    data.items.retain(|item| split.is_none_or(|split| item.effective_split() == split));
    Ok(data)
}

/// What is embedded.
#[derive(Clone, Copy)]
struct Kinds {
    images: bool,
    sentences: bool,
}

impl Kinds {
    /// What is asked for and there. A data set without anything that was asked for by name is an error.
    fn of(data: &Dataset, flags: &EmbedFlags, encoders: &Encoders) -> anyhow::Result<Self> {
        let lacks = |what: &str, hint: &str| CliError::Data {
            message: format!("`{}` has no {what} to embed", flags.data.display()),
            hint: hint.to_owned(),
        };
        let there = Self { images: data.image_count() > 0, sentences: data.sentence_count() > 0 };
        let wanted = |only| flags.only.is_none_or(|wanted| wanted == only);
        let takes = |image: &ImageSource| match image.features() {
            Some(_) => encoders.takes_features(),
            None => encoders.preprocessor().is_some(),
        };
        let taken = data.items.iter().any(|item| item.image.as_ref().is_some_and(takes));
        let kinds = Self {
            images: taken && wanted(Only::Images),
            sentences: there.sentences && wanted(Only::Sentences) && encoders.takes_sentences(),
        };
        if !there.images && flags.image_encoder.is_some() {
            return Err(lacks("images", "leave out --image-encoder").into());
        }
        if !there.sentences && flags.text_encoder.is_some() {
            return Err(lacks("sentences", "leave out --text-encoder").into());
        }
        if !kinds.images && !kinds.sentences {
            return Err(lacks(
                "images and no sentences of the kind that was asked for",
                "see --only; a model of region features embeds no image files, and every other encoder nothing else",
            )
            .into());
        }
        Ok(kinds)
    }
}

/// A hash of what is embedded, in its order: names and sentences, not the content of image files.
fn digest(items: &[Item]) -> String {
    let of_item = |item: &Item| {
        let image = item.image.as_ref().map(ToString::to_string);
        hash_text(&format!("{:?} {image:?} {:?}", item.id, item.sentences)).0
    };
    hash_bytes(&items.iter().flat_map(of_item).collect::<Vec<u8>>()).to_string()
}

/// What this call did, which may be less than all of it.
#[derive(Default, Serialize)]
struct Done {
    images: usize,
    sentences: usize,
    seconds: f64,
}

/// The name of a row.
#[derive(Serialize)]
struct ImageRow<'a> {
    /// Position in the whole data set.
    item: usize,
    id: &'a str,
}

#[derive(Serialize)]
struct SentenceRow<'a> {
    /// Position of its image, or of itself, in the whole data set.
    item: usize,
    id: &'a str,
    sentence: &'a str,
}

/// An image of the data set, with its position there.
struct Named<'a> {
    number: usize,
    id: &'a str,
    source: &'a ImageSource,
}

/// Gives the number of images that were tried.
fn embed_images(
    flags: &EmbedFlags,
    encoders: &Encoders,
    items: &[Item],
    first: usize,
    part: &mut Part,
    terminal: &Terminal,
) -> anyhow::Result<usize> {
    let named: Vec<Named<'_>> = items
        .iter()
        .enumerate()
        .filter_map(|(at, item)| {
            Some(Named { number: first + at, id: &item.id, source: item.image.as_ref()? })
        })
        .collect();
    let mut progress = Progress::new(terminal, "images", named.len(), part.done());
    let left = named.get(part.done()..).unwrap_or_default();
    match encoders.preprocessor() {
        Some(preprocessor) => embed_files(flags, encoders, preprocessor, left, part, &mut progress)?,
        None => embed_features(flags, encoders, left, part, &mut progress)?,
    }
    part.save()?;
    progress.finish();
    Ok(left.len())
}

/// Image files: resized where they are decoded, so that no more is kept of a photograph than the network looks at.
fn embed_files(
    flags: &EmbedFlags,
    encoders: &Encoders,
    preprocessor: &ImagePreprocessor,
    images: &[Named<'_>],
    part: &mut Part,
    progress: &mut Progress<'_>,
) -> anyhow::Result<()> {
    let sources: Vec<ImageSource> = images.iter().map(|image| image.source.clone()).collect();
    let options = LoadOptions {
        limits: flags.loading.limits(),
        batch_size: flags.batch_size.unwrap_or(IMAGE_BATCH),
        ..LoadOptions::default()
    };
    let prepare = |index: usize, decoded: Result<DecodedImage, DataError>| {
        let prepared = decoded.map(|decoded| preprocessor.prepare(&decoded.image));
        let bytes = match &prepared {
            Ok(Ok(image)) => image.bytes().len(),
            _ => 0,
        };
        Prepared { value: (index, prepared), bytes }
    };
    for_each_prepared_batch(&sources, &options, prepare, |batch| -> anyhow::Result<()> {
        let count = batch.len();
        let (mut names, mut prepared): (Vec<ImageRow<'_>>, Vec<PreparedImage>) = Default::default();
        for (index, image) in batch {
            let Some(Named { number, id, source }) = images.get(index) else { continue };
            match image {
                Ok(image) => {
                    names.push(ImageRow { item: *number, id });
                    prepared.push(image?);
                }
                Err(error) => part.skip(&Skipped::image(source, &error))?,
            }
        }
        part.add(&names, |name| name.id, encoders.images(&prepared)?)?;
        part.batch_done(count)?;
        progress.add(count);
        Ok(())
    })
}

/// Region features, for a model that was trained on them.
fn embed_features(
    flags: &EmbedFlags,
    encoders: &Encoders,
    images: &[Named<'_>],
    part: &mut Part,
    progress: &mut Progress<'_>,
) -> anyhow::Result<()> {
    for batch in images.chunks(flags.batch_size.unwrap_or(IMAGE_BATCH)) {
        let (mut names, mut features): (Vec<ImageRow<'_>>, Vec<&FeatureRow>) = Default::default();
        for Named { number, id, source } in batch {
            match source.features() {
                Some(row) => {
                    names.push(ImageRow { item: *number, id });
                    features.push(row);
                }
                None => {
                    let reason = "an image file, and the model takes region features".to_owned();
                    part.skip(&Skipped { item: source.to_string(), line: None, file: None, reason })?;
                }
            }
        }
        part.add(&names, |name| name.id, encoders.features(&features)?)?;
        part.batch_done(batch.len())?;
        progress.add(batch.len());
    }
    Ok(())
}

/// Gives the number of sentences that were tried.
fn embed_sentences(
    flags: &EmbedFlags,
    encoders: &Encoders,
    items: &[Item],
    first: usize,
    part: &mut Part,
    terminal: &Terminal,
) -> anyhow::Result<usize> {
    let named: Vec<SentenceRow<'_>> = items
        .iter()
        .enumerate()
        .flat_map(|(at, item)| {
            let row = move |sentence| SentenceRow { item: first + at, id: &item.id, sentence };
            item.sentences.iter().map(String::as_str).map(row)
        })
        .collect();
    let mut progress = Progress::new(terminal, "sentences", named.len(), part.done());
    let left = named.get(part.done()..).unwrap_or_default();
    for batch in left.chunks(flags.batch_size.unwrap_or(SENTENCE_BATCH)) {
        let texts: Vec<&str> = batch.iter().map(|row| row.sentence).collect();
        part.add(batch, |row| row.sentence, encoders.sentences(&texts)?)?;
        part.batch_done(batch.len())?;
        progress.add(batch.len());
    }
    part.save()?;
    progress.finish();
    Ok(left.len())
}

/// A bar with the rate beside it; on a stderr that is no terminal a line now and then.
struct Progress<'a> {
    terminal: &'a Terminal,
    bar: ProgressBar,
    what: &'a str,
    started: Instant,
    told: Instant,
    done: usize,
    total: usize,
    before: usize,
}

impl<'a> Progress<'a> {
    /// How often a line is written where bars are not drawn.
    const EVERY: Duration = Duration::from_secs(30);

    fn new(terminal: &'a Terminal, what: &'a str, total: usize, done: usize) -> Self {
        if done > 0 {
            terminal.note(&format!("{what}: going on after {done} of {total}"));
        }
        let bar = terminal.bar(what, total);
        bar.set_position(done as u64);
        let now = Instant::now();
        Self { terminal, bar, what, started: now, told: now, done, total, before: done }
    }

    fn add(&mut self, count: usize) {
        self.done += count;
        let rate = (self.done - self.before) as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        self.bar.set_position(self.done as u64);
        self.bar.set_message(format!("{rate:.1}/s"));
        if self.bar.is_hidden() && self.told.elapsed() > Self::EVERY {
            self.told = Instant::now();
            self.terminal.note(&format!("{}: {} of {}, {rate:.1}/s", self.what, self.done, self.total));
        }
    }

    fn finish(&self) {
        self.bar.finish();
    }
}

/// Says what lies in the folder now, and how long this call took.
fn tell(flags: &EmbedFlags, finished: &Finished, done: Option<&Done>) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Told<'a> {
        output: &'a Path,
        #[serde(flatten)]
        finished: &'a Finished,
        this_call: Option<&'a Done>,
    }
    if flags.json {
        return print_json(&Told { output: &flags.output, finished, this_call: done });
    }
    let mut text = format!("output     {}\n", flags.output.display());
    for (name, rows) in [("images", finished.images.as_ref()), ("sentences", finished.sentences.as_ref())] {
        if let Some(rows) = rows {
            text.push_str(&format!("{name:9}  {} x {} in {}\n", rows.rows, rows.dimension, rows.file));
        }
    }
    if let Some(done) = done {
        let rate = (done.images + done.sentences) as f64 / done.seconds.max(1e-9);
        text.push_str(&format!(
            "time       {:.1} s for {} images and {} sentences, {rate:.1} a second\n",
            done.seconds, done.images, done.sentences
        ));
    }
    print(&text)
}
