//! `aeir index export`: vectors, names and metadata as other software loads them.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use aeir_retrieve::Index;
use anyhow::Context;
use half::f16;

use crate::commands::embed::arrays::npy_header;
use crate::commands::print;
use crate::failure::CliError;
use crate::flags::PrecisionFlag;
use crate::flags::index::ExportFlags;

const ARRAY: &str = "embeddings.npy";
#[cfg(feature = "parquet")]
const TABLE: &str = "items.parquet";

/// Writes both files, in the order of the index.
pub(super) fn run(flags: &ExportFlags) -> anyhow::Result<()> {
    let index = Index::open(&flags.index)?;
    let folder = &flags.output;
    let failed = || format!("could not write into `{}`", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    if fs::read_dir(folder).with_context(failed)?.next().is_some() {
        return Err(CliError::Usage {
            message: format!("`{}` is not empty", folder.display()),
            hint: "name a new folder for --output".into(),
        }
        .into());
    }
    // The table first: a build without Parquet refuses before anything is written.
    write_table(&index, flags.precision, folder)?;
    write_array(&index, flags.precision, &folder.join(ARRAY)).with_context(failed)?;
    print(&format!(
        "exported  {} items of {} numbers\narray     {}\ntable     {}\n",
        index.len(),
        index.dimension(),
        folder.join(ARRAY).display(),
        folder.join("items.parquet").display()
    ))
}

fn write_array(index: &Index, precision: PrecisionFlag, file: &Path) -> std::io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 20, File::create(file)?);
    writer.write_all(&npy_header(index.len(), index.dimension(), precision))?;
    for vector in (0..index.len()).filter_map(|i| index.embedding(i)) {
        match precision {
            PrecisionFlag::F32 => {
                vector.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes()))?;
            }
            PrecisionFlag::F16 => {
                vector.iter().try_for_each(|value| writer.write_all(&f16::from_f32(*value).to_le_bytes()))?;
            }
        }
    }
    writer.into_inner()?.sync_all()
}

#[cfg(feature = "parquet")]
fn write_table(index: &Index, precision: PrecisionFlag, folder: &Path) -> anyhow::Result<()> {
    let columns = aeir_data::EmbeddingColumns {
        sentences: false,
        item_metadata: index.has_metadata(),
        half_precision: precision == PrecisionFlag::F16,
        metadata: vec![("aeir.model_fingerprint", index.model_fingerprint().to_owned())],
    };
    let mut writer = aeir_data::EmbeddingWriter::create(&folder.join(TABLE), &columns)?;
    for i in 0..index.len() {
        let name = aeir_data::EmbeddingName {
            item: i as u64,
            id: index.item(i).unwrap_or_default().to_owned(),
            sentence: None,
            metadata: index.metadata(i).map(serde_json::Value::Object).map(|metadata| metadata.to_string()),
        };
        writer.add(&name, &index.embedding(i).unwrap_or_default())?;
    }
    Ok(writer.finish()?)
}

#[cfg(not(feature = "parquet"))]
fn write_table(_: &Index, _: PrecisionFlag, _: &Path) -> anyhow::Result<()> {
    Err(CliError::Usage {
        message: "this build writes no Parquet".into(),
        hint: "build with `--features parquet`".into(),
    }
    .into())
}
