//! Small stand-ins for the published data sets, made from the fixtures in the same file formats: so that all of the machinery runs.
//!
//! Their figures say nothing about the methods.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::paper::FIVE_FOLD_STAND_IN;
use crate::binary::output;

/// As in the paper.
const REGIONS: usize = 36;
const REGION_VALUES: usize = 32;
/// The paper's width, for estimates.
pub(super) const FULL_REGION_VALUES: usize = 2048;
const SENTENCES: usize = 5;
/// What the protocol of five folds expects.
const FIVE_FOLD_IMAGES: usize = 5_000;
const PARTS: [(&str, usize); 3] = [("train", 64), ("dev", 16), ("test", 32)];
/// What COCO's test split is called in SCAN's layout.
const COCO_TEST: &str = "testall";

/// An image with its sentences.
struct Item {
    image: String,
    captions: Vec<String>,
}

/// Makes all of them in a folder laid out as fetched assets are.
pub(super) fn make(root: &Path, binary: &Path, folder: &Path) -> anyhow::Result<()> {
    let data = root.join("fixtures").join("datasets");
    let emoji = read(&data.join("noto-cldr").join("captions.jsonl"))?;
    let clip_art = read(&data.join("openclipart").join("train_alignment.jsonl"))?;
    let sets = folder.join("datasets");
    regions(binary, &sets.join("f30k_precomp"), &emoji, REGION_VALUES)?;
    let coco = sets.join("coco_precomp");
    regions(binary, &coco, &clip_art, REGION_VALUES)?;
    many(&coco)?;
    karpathy(&sets.join("coco"), &clip_art)?;
    parquet(root, &sets.join("flickr30k-parquet"))?;
    clip(root, &folder.join("backbones").join("clip-stand-in"), &clip_art)
}

/// A set with the paper's shapes and few images, to time a step with.
pub(super) fn make_for_timing(root: &Path, binary: &Path, folder: &Path) -> anyhow::Result<()> {
    let data = root.join("fixtures").join("datasets");
    let emoji = read(&data.join("noto-cldr").join("captions.jsonl"))?;
    for name in ["f30k_precomp", "coco_precomp"] {
        regions(binary, &folder.join(name), &emoji, FULL_REGION_VALUES)?;
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<Vec<Item>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("could not read `{}`", file.display()))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let item = |line: &str| {
        let value: Value = serde_json::from_str(line)?;
        let captions = value["captions"].as_array().context("no `captions`")?;
        Ok::<_, anyhow::Error>(Item {
            image: folder.join(value["image"].as_str().context("no `image`")?).display().to_string(),
            captions: captions.iter().filter_map(|caption| Some(caption.as_str()?.to_owned())).collect(),
        })
    };
    let all: usize = PARTS.iter().map(|(_, count)| count).sum();
    let items = text.lines().take(all).map(item).collect::<anyhow::Result<Vec<_>>>()?;
    if items.len() < all {
        bail!("`{}`: expected {all} lines, got {}", file.display(), items.len());
    }
    Ok(items)
}

/// Region features in SCAN's layout: a picture's regions are windows of the vector that the small backbone gives it.
fn regions(binary: &Path, folder: &Path, items: &[Item], values: usize) -> anyhow::Result<()> {
    // What an earlier run left would be gone on with.
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).with_context(|| format!("could not make `{}`", folder.display()))?;
    let (list, vectors) = (folder.join("images.jsonl"), folder.join("vectors.npy"));
    let lines: String = items
        .iter()
        .map(|item| json!({ "image": item.image, "captions": item.captions }).to_string() + "\n")
        .collect();
    std::fs::write(&list, lines)?;
    let mut embed = Command::new(binary);
    embed.args(["embed", "--quiet", "--image-encoder", "efficientnet-lite0", "--data"]).arg(&list);
    output(embed.arg("--output").arg(&vectors))?;
    let (width, vectors) = read_npy(&vectors)?;
    let vectors: Vec<&[f32]> = vectors.chunks_exact(width.max(1)).collect();
    if vectors.len() != items.len() {
        bail!("`aeir embed`: expected {} vectors, got {}", items.len(), vectors.len());
    }
    let mut start = 0;
    for (split, count) in PARTS {
        let range = start..start + count;
        let part = vectors.get(range.clone()).unwrap_or_default();
        let rows: Vec<f32> = part.iter().flat_map(|vector| windows(vector, values)).collect();
        write_npy(&folder.join(format!("{split}_ims.npy")), &[count, REGIONS, values], &rows)?;
        let captions = items.get(range).unwrap_or_default().iter().flat_map(five);
        std::fs::write(
            folder.join(format!("{split}_caps.txt")),
            captions.map(|caption| caption + "\n").collect::<String>(),
        )?;
        start += count;
    }
    Ok(())
}

/// Overlapping windows of a vector, wrapped at its end.
fn windows(vector: &[f32], values: usize) -> impl Iterator<Item = f32> {
    let step = vector.len() / REGIONS;
    (0..REGIONS).flat_map(move |region| vector.iter().cycle().skip(region * step).take(values).copied())
}

/// Five sentences, as published sets have them: those there are, again from the first.
fn five(item: &Item) -> Vec<String> {
    item.captions.iter().cycle().take(SENTENCES).map(|caption| caption.replace('\n', " ")).collect()
}

/// COCO's name of the test split; and as many test images as five folds take, with one sentence each: those of the test split, slightly changed each time.
fn many(folder: &Path) -> anyhow::Result<()> {
    for suffix in ["ims.npy", "caps.txt"] {
        std::fs::copy(folder.join(format!("test_{suffix}")), folder.join(format!("{COCO_TEST}_{suffix}")))?;
    }
    let text = std::fs::read_to_string(folder.join("test_caps.txt"))?;
    let captions: Vec<&str> = text.lines().step_by(SENTENCES).collect();
    let (width, rows) = read_npy(&folder.join("test_ims.npy"))?;
    let images: Vec<&[f32]> = rows.chunks_exact(width.max(1)).collect();
    let (mut all, mut lines) = (Vec::with_capacity(FIVE_FOLD_IMAGES * width), String::new());
    for (place, (image, caption)) in images.iter().zip(&captions).cycle().take(FIVE_FOLD_IMAGES).enumerate() {
        let round = (place / images.len().max(1)) as f32;
        all.extend(
            image.iter().enumerate().map(|(at, value)| value + 0.05 * (round * (at % 7) as f32).sin()),
        );
        let _ = writeln!(lines, "{caption}");
    }
    write_npy(
        &folder.join(format!("{FIVE_FOLD_STAND_IN}_ims.npy")),
        &[FIVE_FOLD_IMAGES, REGIONS, width / REGIONS],
        &all,
    )?;
    Ok(std::fs::write(folder.join(format!("{FIVE_FOLD_STAND_IN}_caps.txt")), lines)?)
}

/// Karpathy's JSON with its pictures beside it.
fn karpathy(folder: &Path, items: &[Item]) -> anyhow::Result<()> {
    let pictures = folder.join("val2014");
    std::fs::create_dir_all(&pictures)?;
    let (mut images, mut sentence) = (Vec::new(), 0);
    for (place, item) in items.iter().enumerate() {
        let name = Path::new(&item.image)
            .file_name()
            .and_then(|name| name.to_str())
            .context("an image has no name")?;
        std::fs::copy(&item.image, pictures.join(name))?;
        let sentences: Vec<Value> = five(item).iter().enumerate().map(|(at, raw)| {
            json!({ "raw": raw, "tokens": raw.split_whitespace().collect::<Vec<_>>(), "imgid": place, "sentid": sentence + at })
        }).collect();
        sentence += sentences.len();
        let split = if place < 64 { "train" } else { "test" };
        let ids: Vec<usize> = (sentence - sentences.len()..sentence).collect();
        images.push(
            json!({ "filepath": "val2014", "filename": name, "imgid": place, "cocoid": place, "split": split,
            "sentids": ids, "sentences": sentences }),
        );
    }
    let text = json!({ "dataset": "coco", "images": images }).to_string();
    Ok(std::fs::write(folder.join("dataset_coco.json"), text)?)
}

/// The fixture in the hub's Parquet columns.
fn parquet(root: &Path, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let original = root.join("fixtures").join("formats").join("parquet").join("flickr30k");
    for entry in
        std::fs::read_dir(&original).with_context(|| format!("could not read `{}`", original.display()))?
    {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    Ok(())
}

/// The small random CLIP of the fixtures, with a tokenizer of as many words as it has.
fn clip(root: &Path, folder: &Path, items: &[Item]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let original = root.join("fixtures").join("parity").join("tiny-models").join("clip");
    for name in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        std::fs::copy(original.join(name), folder.join(name))
            .with_context(|| format!("could not copy `{name}` of the small CLIP"))?;
    }
    let config: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let id = |key: &str| {
        config["text_config"][key].as_u64().with_context(|| format!("the small CLIP has no `{key}`"))
    };
    let (begin, end) = (id("bos_token_id")?, id("eos_token_id")?);
    std::fs::write(folder.join("tokenizer.json"), tokenizer(items, begin, end).to_string())?;
    Ok(())
}

/// Whole words: the most frequent of the sentences, below the ids of begin and end.
fn tokenizer(items: &[Item], begin: u64, end: u64) -> Value {
    let mut counts = BTreeMap::<String, usize>::new();
    for word in items
        .iter()
        .flat_map(|item| &item.captions)
        .flat_map(|caption| caption.split(|it: char| !it.is_alphanumeric()))
    {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    counts.remove("");
    let mut words: Vec<(String, usize)> = counts.into_iter().collect();
    words.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut vocabulary = serde_json::Map::new();
    vocabulary.insert("<unk>".into(), 0.into());
    vocabulary.insert("<pad>".into(), 1.into());
    for ((word, _), id) in words.into_iter().zip(2..begin.min(end)) {
        vocabulary.insert(word, id.into());
    }
    vocabulary.insert("<|startoftext|>".into(), begin.into());
    vocabulary.insert("<|endoftext|>".into(), end.into());
    let special = |id: u64, content: &str| json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let token = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let sequence = |name: &str, kind: u64| json!({ "Sequence": { "id": name, "type_id": kind } });
    let known = |name: &str, id: u64| json!({ "id": name, "ids": [id], "tokens": [name] });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(begin, "<|startoftext|>"), special(end, "<|endoftext|>")],
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": { "type": "TemplateProcessing",
            "single": [token("<|startoftext|>"), sequence("A", 0), token("<|endoftext|>")],
            "pair": [token("<|startoftext|>"), sequence("A", 0), token("<|endoftext|>"), sequence("B", 1), token("<|endoftext|>")],
            "special_tokens": { "<|startoftext|>": known("<|startoftext|>", begin), "<|endoftext|>": known("<|endoftext|>", end) } },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" }
    })
}

/// Values of an array of little-endian f32 in C order, and how many an item of its first axis has.
fn read_npy(file: &Path) -> anyhow::Result<(usize, Vec<f32>)> {
    let bytes = std::fs::read(file).with_context(|| format!("could not read `{}`", file.display()))?;
    let read = || {
        let length = u16::from_le_bytes([*bytes.get(8)?, *bytes.get(9)?]) as usize;
        let header = std::str::from_utf8(bytes.get(10..10 + length)?).ok()?;
        let shape = header.split_once("'shape': (")?.1.split(')').next()?;
        let shape: Vec<usize> = shape.split(',').filter_map(|axis| axis.trim().parse().ok()).collect();
        let fits = bytes.starts_with(b"\x93NUMPY\x01")
            && header.contains("'<f4'")
            && header.contains("'fortran_order': False");
        let values: Vec<f32> = bytes
            .get(10 + length..)?
            .chunks_exact(4)
            .map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]))
            .collect();
        (fits && shape.iter().product::<usize>() == values.len())
            .then(|| (shape.iter().skip(1).product(), values))
    };
    read().with_context(|| format!("`{}`: expected an array of `<f4` in C order", file.display()))
}

fn write_npy(file: &Path, shape: &[usize], values: &[f32]) -> anyhow::Result<()> {
    let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.join(", "));
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len())?.to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    std::fs::write(file, bytes).with_context(|| format!("could not write `{}`", file.display()))
}

/// Where the zero-shot stand-ins lie, from the folder of [`make`].
pub(super) fn clip_folder(folder: &Path) -> PathBuf {
    folder.join("backbones").join("clip-stand-in")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.npy");
        let values: Vec<f32> = (0..24).map(|value| value as f32 / 7.0).collect();
        write_npy(&file, &[2, 3, 4], &values).unwrap();
        assert_eq!(read_npy(&file).unwrap(), (12, values));
        assert_eq!(std::fs::read(&file).unwrap().len() % 64, 24 * 4 % 64);
        std::fs::write(&file, "no array").unwrap();
        assert!(read_npy(&file).unwrap_err().to_string().contains("a.npy"));
    }

    #[test]
    fn regions_are_windows_of_the_vector() {
        let vector: Vec<f32> = (0..72).map(|value| value as f32).collect();
        let rows: Vec<f32> = windows(&vector, 3).collect();
        assert_eq!(rows.len(), REGIONS * 3);
        assert_eq!((&rows[..3], &rows[105..]), (&[0.0, 1.0, 2.0][..], &[70.0, 71.0, 0.0][..]));
    }

    #[test]
    fn a_vocabulary_fits_the_model() {
        let items =
            [Item { image: String::new(), captions: (0..99).map(|word| format!("word{word} a")).collect() }];
        let tokenizer = tokenizer(&items, 62, 63);
        let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
        assert_eq!(vocabulary.len(), 64);
        assert_eq!((vocabulary["a"].as_u64(), vocabulary["<|endoftext|>"].as_u64()), (Some(2), Some(63)));
        assert!(vocabulary.values().all(|id| id.as_u64().unwrap() < 64));
    }
}
