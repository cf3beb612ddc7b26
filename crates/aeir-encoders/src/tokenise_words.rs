//! Treebank-style word tokens.

/// Marks that are a token of their own wherever they stand.
const ALONE: &str = "?!;@#$%&*()[]{}<>«»“”„‘’\u{2012}\u{2013}\u{2014}\u{2015}";
/// Brackets and quotes that may stand between a sentence's full stop and its end.
const CLOSING: &str = ")]}>\"'»”’";
/// Endings that are cut off a word: `it 's`, `do n't`.
const ENDINGS: [&str; 8] = ["'s", "'m", "'d", "'ll", "'re", "'ve", "n't", "'"];
/// What may follow an apostrophe without making it an opening quote.
const CLITICS: [&str; 8] = ["s", "m", "d", "t", "n", "ll", "re", "ve"];
/// Words that are two, with the number of bytes of the first.
const CONTRACTIONS: [(&str, usize); 7] =
    [("cannot", 3), ("d'ye", 1), ("gimme", 3), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("wanna", 3)];
/// Words whose full stop does not end a sentence, beside single letters and words with a full stop inside.
const ABBREVIATIONS: [&str; 19] = [
    "ave", "blvd", "capt", "co", "corp", "dr", "ft", "gen", "inc", "jr", "lt", "ltd", "mr", "mrs", "ms",
    "sgt", "sr", "st", "vs",
];

/// Cuts a sentence into lower-cased words, as the Penn Treebank writes them.
///
/// The rule, after lower-casing (Unicode's):
///
/// 1. White space separates. The marks `?!;@#$%&*`, brackets, typographic quotes and dashes, `--`, and a run of two or more
///    full stops or of backticks, are tokens of their own.
/// 2. A comma or colon is one too, unless a digit follows (`3,500`, `10:30`).
/// 3. A full stop is one at the end of the text, closing quotes and brackets aside, and at the end of a sentence
///    inside: before white space, unless the word is a single letter, has a full stop inside (`u.s.`) or is one of a few
///    abbreviations (`mr.`, `st.`). Other full stops stay (`3.5`).
/// 4. `"` becomes ` `` ` at the start or after white space or an opening bracket, else `''`.
/// 5. An apostrophe that opens a word is a token, unless a clitic follows (`'s`). The endings `'s 'm 'd 'll 're 've n't '`
///    are cut off (`do n't`, `dogs '`).
/// 6. `cannot`, `gimme`, `gonna`, `gotta`, `lemme`, `wanna`, `d'ye` become two (`can not`).
///
/// # Deviations from the released procedure
/// That one calls NLTK's `word_tokenize`, whose words these are on captions. It finds sentences inside a caption with a
/// trained table of abbreviations, and leaves some odd strings uncut, such as the second comma of `a,,b`.
///
/// # Example
/// ```
/// use aeir_encoders::tokenise_words;
///
/// let words = tokenise_words("A man's dog doesn't bark, he said.");
/// assert_eq!(words, ["a", "man", "'s", "dog", "does", "n't", "bark", ",", "he", "said", "."]);
/// ```
#[must_use]
pub fn tokenise_words(sentence: &str) -> Vec<String> {
    let characters: Vec<char> = sentence.to_lowercase().chars().collect();
    let mut scanner = Scanner { rest: &characters, last: None, word: String::new(), tokens: Vec::new() };
    while scanner.step() {}
    scanner.flush();
    scanner.tokens
}

/// Cuts at marks, from left to right.
struct Scanner<'a> {
    rest: &'a [char],
    /// The character before `rest`.
    last: Option<char>,
    /// The word under way.
    word: String,
    tokens: Vec<String>,
}

impl Scanner<'_> {
    /// Takes the next character or run; false at the end.
    fn step(&mut self) -> bool {
        let Some(&first) = self.rest.first() else { return false };
        // Only what is consumed is counted, so that the time stays linear.
        let longest = if ".`".contains(first) { usize::MAX } else { 2 };
        let run = self.rest.iter().take(longest).take_while(|character| **character == first).count();
        match (first, run) {
            (space, _) if space.is_whitespace() => {
                self.flush();
                self.skip(1);
            }
            ('"', _) => self.quote(1),
            ('\'', 2..) => self.quote(2),
            ('`', _) | ('.', 2..) => self.mark(run),
            ('-', 2..) => self.mark(2),
            (mark, _) if ALONE.contains(mark) => self.mark(1),
            (',' | ':', _) if !self.rest.get(1).is_some_and(|next| next.is_numeric()) => self.mark(1),
            ('.', _) if self.ends_a_sentence() => self.mark(1),
            ('\'', _) if self.opens_a_word() => self.mark(1),
            _ => {
                self.word.push(first);
                self.skip(1);
            }
        }
        true
    }

    fn skip(&mut self, count: usize) {
        let (skipped, rest) = self.rest.split_at_checked(count).unwrap_or((self.rest, &[]));
        self.last = skipped.last().copied();
        self.rest = rest;
    }

    /// Ends the word and makes a token of the next `count` characters.
    fn mark(&mut self, count: usize) {
        self.flush();
        self.tokens.push(self.rest.iter().take(count).collect());
        self.skip(count);
    }

    fn quote(&mut self, count: usize) {
        let opens = self.last.is_none_or(|last| last.is_whitespace() || "([{<".contains(last));
        self.flush();
        self.tokens.push(if opens { "``" } else { "''" }.to_owned());
        self.skip(count);
    }

    fn ends_a_sentence(&self) -> bool {
        let mut after = self.rest.iter().skip(1).skip_while(|next| CLOSING.contains(**next)).peekable();
        let spaced = after.peek().is_none_or(|next| next.is_whitespace());
        let closing = |next: &char| next.is_whitespace() || CLOSING.contains(*next);
        spaced && (after.all(closing) || !is_abbreviation(&self.word))
    }

    fn opens_a_word(&self) -> bool {
        let is_word = |character: char| character.is_alphanumeric() || character == '_';
        if self.last.is_some_and(is_word) {
            return false;
        }
        let longest = 1 + CLITICS.iter().map(|clitic| clitic.len()).max().unwrap_or(0);
        let next: String =
            self.rest.iter().skip(1).take(longest).take_while(|next| is_word(**next)).collect();
        !next.is_empty() && !CLITICS.contains(&next.as_str())
    }

    /// Ends the word under way and cuts its ending or contraction.
    fn flush(&mut self) {
        if self.word.is_empty() {
            return;
        }
        let word = std::mem::take(&mut self.word);
        // A closing quote hides another ending: `don't'`.
        let (word, quote) = match cut(&word) {
            Some((stem, "'")) => (stem, Some("'")),
            _ => (word.as_str(), None),
        };
        match cut(word) {
            Some((first, second)) => self.tokens.extend([first, second].map(str::to_owned)),
            None => self.tokens.push(word.to_owned()),
        }
        self.tokens.extend(quote.map(str::to_owned));
    }
}

fn is_abbreviation(word: &str) -> bool {
    let mut characters = word.chars();
    let is_letter = characters.next().is_some_and(char::is_alphabetic) && characters.next().is_none();
    is_letter || word.contains('.') || ABBREVIATIONS.contains(&word)
}

/// The two tokens of a word that is two.
fn cut(word: &str) -> Option<(&str, &str)> {
    if let Some((_, first)) = CONTRACTIONS.iter().find(|(contraction, _)| *contraction == word) {
        return word.split_at_checked(*first);
    }
    let ending = ENDINGS.iter().find(|ending| word.ends_with(**ending))?;
    let (stem, ending) = word.split_at_checked(word.len() - ending.len())?;
    (!stem.is_empty() && !stem.ends_with('\'')).then_some((stem, ending))
}
