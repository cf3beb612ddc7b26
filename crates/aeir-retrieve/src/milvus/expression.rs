//! Milvus's filter expressions, with everything that comes from outside quoted.

use super::MilvusError;
use super::error::Result;
use super::layout::{ITEM, TAGS, shortened, tag};
use crate::Filter;

/// Bytes of an expression: below what servers read, with room for the rest of a request.
const LONGEST_EXPRESSION: usize = 2 << 20;

/// A text as a literal of an expression: what is between its quotes can end neither it nor the line.
pub(super) fn quoted(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    for character in text.chars() {
        match character {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            other => literal.push(other),
        }
    }
    literal.push('"');
    literal
}

/// Whether an item is among some.
pub(super) fn among<T: AsRef<str>>(names: &[T]) -> String {
    let names: Vec<String> = names.iter().map(|name| quoted(name.as_ref())).collect();
    format!("{ITEM} in [{}]", names.join(", "))
}

/// Names after one, in the server's order.
pub(super) fn after(name: &str) -> String {
    format!("{ITEM} > {}", quoted(name))
}

/// What a filter lets through; empty where it asks for nothing.
pub(super) fn filtering(filter: &Filter) -> Result<String> {
    let mut asked = Vec::new();
    if let Some(items) = filter.items() {
        let mut items: Vec<&String> = items.iter().collect();
        items.sort_unstable();
        asked.push(among(&items));
    }
    for (key, value) in filter.equal() {
        asked.push(format!("array_contains({TAGS}, {})", quoted(&tag(key, value))));
    }
    let expression = asked.join(" and ");
    if expression.len() > LONGEST_EXPRESSION {
        return Err(MilvusError::TooLong {
            item: shortened(&expression),
            what: "bytes of the filter",
            limit: LONGEST_EXPRESSION,
            got: expression.len(),
        });
    }
    Ok(expression)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a server makes of a literal.
    fn unquoted(literal: &str) -> Option<String> {
        let mut characters = literal.strip_prefix('"')?.chars();
        let mut text = String::new();
        loop {
            match characters.next()? {
                '"' => return characters.as_str().is_empty().then_some(text),
                '\n' | '\r' => return None,
                '\\' => text.push(match characters.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    same @ ('"' | '\\') => same,
                    _ => return None,
                }),
                other => text.push(other),
            }
        }
    }

    proptest! {
        #[test]
        fn a_literal_holds_its_text_and_ends_nowhere_else(text in r#"[\\"'\n\r a-z\]()%=é]{0,24}"#) {
            prop_assert_eq!(unquoted(&quoted(&text)), Some(text));
        }
    }

    #[test]
    fn a_filter_asks_for_all_of_it() {
        let filter = Filter::default()
            .with_items(["b".to_owned(), "a\"] or item != \"".to_owned()])
            .with_equal("licence", "cc0");
        let expected = r#"item in ["a\"] or item != \"", "b"] and array_contains(tags, "licence=cc0")"#;
        assert_eq!(filtering(&filter).unwrap(), expected);
        assert_eq!(filtering(&Filter::default()).unwrap(), "");
        assert_eq!(filtering(&Filter::default().with_items([])).unwrap(), "item in []");
    }
}
