//! Which sentences can be used.

/// Captions and sentences longer than this (in characters) are skipped: no encoder reads that far, and such a line
/// is a document that got into the list.
pub const MAX_SENTENCE_CHARACTERS: usize = 10_000;

/// The trimmed sentence, or why it can't be used.
pub(crate) fn sentence(text: &str) -> Result<&str, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("empty caption".to_owned());
    }
    if text.contains('\0') {
        return Err("contains a NUL character".to_owned());
    }
    if text.chars().nth(MAX_SENTENCE_CHARACTERS).is_some() {
        return Err(format!("longer than {MAX_SENTENCE_CHARACTERS} characters"));
    }
    Ok(text)
}
