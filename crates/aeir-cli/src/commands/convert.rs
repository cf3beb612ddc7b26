//! `aeir convert`.

use aeir_encoders::{TorchCheckpoint, TorchTensor};
use serde::Serialize;

use super::{print, print_json};
use crate::failure::CliError;
use crate::flags::ConvertFlags;
use crate::terminal::Terminal;

/// Lists what a PyTorch checkpoint holds, or writes its tensors as safetensors.
pub(crate) fn run(flags: &ConvertFlags, terminal: &Terminal) -> anyhow::Result<()> {
    if !flags.checkpoint.exists() {
        let message = format!("no such file: `{}`", flags.checkpoint.display());
        return Err(CliError::Missing { message, hint: String::new() }.into());
    }
    let checkpoint = TorchCheckpoint::open(&flags.checkpoint)?;
    match &flags.output {
        Some(output) if !flags.list => {
            if output.exists() && !flags.overwrite {
                return Err(CliError::Usage {
                    message: format!("`{}` exists", output.display()),
                    hint: "name another file, or add --overwrite".into(),
                }
                .into());
            }
            let tensors = checkpoint.select(flags.key.as_deref())?;
            checkpoint.save(&tensors, output)?;
            let left_out = checkpoint.left_out().len() + checkpoint.tensors().len() - tensors.len();
            if left_out > 0 {
                let values = if left_out == 1 { "value was" } else { "values were" };
                terminal.note(&format!("{left_out} other {values} left out; --list shows them"));
            }
            if flags.json {
                return print_json(&Listing::of(&tensors, &checkpoint));
            }
            print(&format!("{} tensors in `{}`\n", tensors.len(), output.display()))
        }
        _ => list(&checkpoint, flags),
    }
}

fn list(checkpoint: &TorchCheckpoint, flags: &ConvertFlags) -> anyhow::Result<()> {
    let tensors = match &flags.key {
        Some(key) => checkpoint.select(Some(key))?,
        None => checkpoint.tensors().iter().map(|tensor| (tensor.name(), tensor)).collect(),
    };
    let listing = Listing::of(&tensors, checkpoint);
    if flags.json {
        return print_json(&listing);
    }
    let mut lines = String::new();
    for TensorLine { name, dtype, shape } in &listing.tensors {
        lines.push_str(&format!("{name}\t{dtype}\t{shape:?}\n"));
    }
    for ValueLine { name, what } in &listing.others {
        lines.push_str(&format!("{name}\tno tensor\t{what}\n"));
    }
    print(&lines)
}

/// What a checkpoint holds, for programs.
#[derive(Serialize)]
struct Listing<'a> {
    tensors: Vec<TensorLine<'a>>,
    others: Vec<ValueLine<'a>>,
}

#[derive(Serialize)]
struct TensorLine<'a> {
    name: &'a str,
    dtype: String,
    shape: &'a [usize],
}

#[derive(Serialize)]
struct ValueLine<'a> {
    name: &'a str,
    what: &'a str,
}

impl<'a> Listing<'a> {
    fn of(tensors: &'a [(String, &'a TorchTensor)], checkpoint: &'a TorchCheckpoint) -> Self {
        let tensor = |(name, tensor): &'a (String, &'a TorchTensor)| TensorLine {
            name,
            dtype: format!("{:?}", tensor.dtype()),
            shape: tensor.shape(),
        };
        let others = checkpoint.left_out().iter();
        Self {
            tensors: tensors.iter().map(tensor).collect(),
            others: others.map(|other| ValueLine { name: &other.name, what: &other.what }).collect(),
        }
    }
}
