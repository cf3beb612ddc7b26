//! Files that a command writes under a name that the user gives: looked at before anything is computed.

use std::fs;
use std::path::Path;

use crate::failure::CliError;

/// Refuses a file that could not be written in the end, or that holds something else than what the command writes: `what`, as
/// `is_ours` tells by its text. One of its own is replaced.
pub(crate) fn check(file: &Path, what: &str, is_ours: impl Fn(&str) -> bool) -> Result<(), CliError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(CliError::Usage {
            message: format!("there is no folder `{}` to write `{}` into", folder.display(), file.display()),
            hint: "make it first, or name another file".into(),
        });
    }
    let ours = match fs::read_to_string(file) {
        Ok(text) => is_ours(&text),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if ours {
        return Ok(());
    }
    Err(CliError::Usage {
        message: format!("`{}` is there already and is not {what}", file.display()),
        hint: "name another file: nothing is written over it".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_are_replaced_and_others_left() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("list.txt");
        let told = |file: &Path| {
            check(file, "a list", |text| text.starts_with("list")).err().map(|error| error.to_string())
        };
        assert_eq!(told(&file), None);
        fs::write(&file, "list of things").unwrap();
        assert_eq!(told(&file), None);
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(told(&file).unwrap().contains("is there already and is not a list"));
        assert!(told(folder.path()).unwrap().contains("is there already"), "a folder is no list either");
        assert!(told(&folder.path().join("none/list.txt")).unwrap().contains("there is no folder"));
    }
}
