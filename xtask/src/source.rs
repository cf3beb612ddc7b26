//! Rust sources in parts: what is code, comment or literal, and what is compiled for tests alone.

/// What a character of a source belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Literal,
}

/// A Rust source with its parts told apart.
pub(crate) struct Source<'a> {
    text: &'a str,
    /// One a byte.
    parts: Vec<Part>,
    /// Byte ranges of items behind `#[cfg(test)]`.
    tests: Vec<(usize, usize)>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let parts = parts(text.as_bytes());
        let tests = test_items(text.as_bytes(), &parts);
        Self { text, parts, tests }
    }

    /// Lines of what is shipped, each with its number from 1: items for tests blanked, and with `code_alone` comments
    /// and literals as well.
    pub(crate) fn shipped_lines(&self, code_alone: bool) -> Vec<(usize, String)> {
        let mut kept = String::with_capacity(self.text.len());
        for (offset, character) in self.text.char_indices() {
            let test = self.tests.iter().any(|(start, end)| (*start..*end).contains(&offset));
            let other = code_alone && self.parts.get(offset).is_some_and(|part| *part != Part::Code);
            kept.push(if (test || other) && character != '\n' { ' ' } else { character });
        }
        kept.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect()
    }
}

/// Whether `pattern` stands in `line` and is not the end of a longer name.
pub(crate) fn mentions(line: &str, pattern: &str) -> bool {
    let in_name = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(pattern).any(|(at, _)| !line.get(..at).is_some_and(|before| before.ends_with(in_name)))
}

fn parts(bytes: &[u8]) -> Vec<Part> {
    let mut parts = Vec::with_capacity(bytes.len());
    while let Some(rest) = bytes.get(parts.len()..).filter(|rest| !rest.is_empty()) {
        let in_name = parts.last() == Some(&Part::Code)
            && bytes.get(parts.len() - 1).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
        let (part, length) = next_part(rest, in_name);
        parts.resize(parts.len() + length.clamp(1, rest.len()), part);
    }
    parts
}

/// The kind and length of what `rest` begins with. `in_name`: the byte before belongs to a name.
fn next_part(rest: &[u8], in_name: bool) -> (Part, usize) {
    match rest {
        [b'/', b'/', ..] => {
            (Part::Comment, rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()))
        }
        [b'/', b'*', ..] => (Part::Comment, block_comment(rest)),
        [b'"', ..] => (Part::Literal, quoted(rest, b'"')),
        [b'\'', ..] => match character(rest) {
            Some(length) => (Part::Literal, length),
            None => (Part::Code, 1),
        },
        [b'r' | b'b' | b'c', ..] if !in_name => match raw_string(rest) {
            Some(length) => (Part::Literal, length),
            None => (Part::Code, 1),
        },
        _ => (Part::Code, 1),
    }
}

/// Block comments nest.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        let step = if tail.starts_with(b"/*") {
            depth += 1;
            2
        } else if tail.starts_with(b"*/") {
            depth = depth.saturating_sub(1);
            2
        } else {
            1
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length up to the closing `quote`, past escaped characters.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(byte) = rest.get(at) {
        at += if *byte == b'\\' { 2 } else { 1 };
        if *byte == quote {
            break;
        }
    }
    at
}

/// Length of a character literal; `None` for a lifetime.
fn character(rest: &[u8]) -> Option<usize> {
    match rest.get(1)? {
        b'\\' => Some(quoted(rest, b'\'')),
        first => {
            let width = match first {
                0xf0.. => 4,
                0xe0.. => 3,
                0xc0.. => 2,
                _ => 1,
            };
            (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
        }
    }
}

/// Length of `r"…"`, `br#"…"#` and the like; `None` where something else begins.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let raw = rest.iter().position(|byte| *byte == b'r').filter(|at| *at <= 1)?;
    let hashes = rest.get(raw + 1..)?.iter().take_while(|byte| **byte == b'#').count();
    let open = raw + 1 + hashes;
    if rest.get(open) != Some(&b'"') {
        return None;
    }
    let closes = |at: &usize| {
        rest.get(*at) == Some(&b'"')
            && rest.get(at + 1..at + 1 + hashes).is_some_and(|tail| tail.iter().all(|byte| *byte == b'#'))
    };
    let end = (open + 1..rest.len()).find(closes).map_or(rest.len(), |at| at + 1 + hashes);
    Some(end)
}

/// Ranges from a `#[cfg(test)]` to the end of its item.
fn test_items(bytes: &[u8], parts: &[Part]) -> Vec<(usize, usize)> {
    let mut items: Vec<(usize, usize)> = Vec::new();
    for at in 0..bytes.len() {
        let tail = bytes.get(at..).unwrap_or_default();
        let starts = |text: &[u8]| tail.starts_with(text);
        let behind = items.last().is_some_and(|(_, end)| at < *end);
        if behind || parts.get(at) != Some(&Part::Code) {
            continue;
        }
        if starts(b"#![cfg(test)]") {
            items.push((at, bytes.len()));
        } else if starts(b"#[cfg(test)]") || starts(b"#[cfg(all(test") || starts(b"#[test]") {
            items.push((at, item_end(bytes, parts, at)));
        }
    }
    items
}

/// The end of the item at `start`: its first `;` outside brackets, or the `}` of its first block.
fn item_end(bytes: &[u8], parts: &[Part], start: usize) -> usize {
    let (mut brackets, mut braces) = (0_usize, 0_usize);
    for at in start..bytes.len() {
        if parts.get(at) != Some(&Part::Code) {
            continue;
        }
        match bytes.get(at) {
            Some(b'(' | b'[') => brackets += 1,
            Some(b')' | b']') => brackets = brackets.saturating_sub(1),
            Some(b'{') => braces += 1,
            Some(b'}') if braces <= 1 => return at + 1,
            Some(b'}') => braces -= 1,
            Some(b';') if brackets == 0 && braces == 0 => return at + 1,
            _ => {}
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        Source::new(text)
            .shipped_lines(true)
            .into_iter()
            .map(|(_, line)| line.trim_end().to_owned())
            .collect()
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        assert_eq!(code("a // b\nc /* d /* e */ f */ g"), ["a", "c                   g"]);
        assert_eq!(code(r#"let s = "a \" // b"; c"#), ["let s =            ; c"]);
        assert_eq!(code("r#\"a \" b\"# c"), ["           c"]);
        assert_eq!(code("br\"a\" b\"c\\\"\" d"), ["      b      d"]);
        assert_eq!(code("'a' 'b: loop '\\'' '\"' 'ü' x<'a> \"y\""), ["    'b: loop              x<'a>"]);
    }

    #[test]
    fn items_for_tests_are_not_shipped() {
        let text = "a\n#[cfg(test)]\nmod tests {\n  fn f() { \"}\" }\n}\nb\n#[cfg(test)]\nuse x::y;\nc\n#[test]\nfn g(a: [u8; 2]) {}\nd";
        let kept: Vec<String> = code(text).into_iter().filter(|line| !line.is_empty()).collect();
        assert_eq!(kept, ["a", "b", "c", "d"]);
        assert!(code("#![cfg(test)]\nfn f() {}").iter().all(String::is_empty));
        assert_eq!(Source::new(text).shipped_lines(false).len(), text.lines().count());
    }

    #[test]
    fn names_are_whole() {
        assert!(mentions("  println!(\"\")", "println!"));
        assert!(!mentions("eprintln!(\"\")", "println!"));
        assert!(mentions("std::env::var(name)", "env::var"));
    }
}
