//! The vocabulary of the trainable text encoder.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::atomic_file::write_atomically;
use crate::error::{EncoderError, Result};
use crate::fingerprint::sha256_parts;
use crate::tokenise_words::tokenise_words;

/// The file's name in a bundle.
pub const VOCABULARY_FILE: &str = "vocabulary.json";
/// How often a word is seen at least in the released procedure.
pub const DEFAULT_MINIMUM_COUNT: usize = 4;
/// Ids a sentence has at most unless told otherwise, `<start>` and `<end>` counted in. Captions have some ten to twenty words.
pub const DEFAULT_MAXIMUM_LENGTH: usize = 128;

const FORMAT: &str = "aeir-vocabulary";
/// Goes up with the layout of the file and with the rule of [`tokenise_words`]: both decide what an id means.
const VERSION: u32 = 1;
const SPECIALS: [&str; 4] = ["<pad>", "<start>", "<end>", "<unk>"];
const START: u32 = 1;
const END: u32 = 2;
const UNKNOWN: u32 = 3;
/// `<start>`, one word, `<end>`.
const SHORTEST: usize = 3;

/// Words and their ids.
///
/// Words are those of [`tokenise_words`], lower-cased. Ids 0 to 3 are `<pad>`, `<start>`, `<end>`, `<unk>`; the others go by
/// count, the most frequent first, and by code points among equals. Build it from the training sentences of both domains,
/// never from test sentences.
///
/// # Example
/// ```
/// use aeir_encoders::Vocabulary;
///
/// let vocabulary = Vocabulary::build(["A red ball.", "A red kite."].into_iter(), 2);
/// assert_eq!(vocabulary.words()[4..], [".", "a", "red"]);
/// assert_eq!(vocabulary.ids("a blue ball."), [1, 5, 3, 3, 4, 2]);
/// let coverage = vocabulary.coverage(["a blue ball."].into_iter());
/// assert_eq!((coverage.known, coverage.words, coverage.unknown_share()), (2, 4, 0.5));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    minimum_count: usize,
    maximum_length: usize,
    words: Vec<String>,
    ids: HashMap<String, u32>,
}

/// How many words of some sentences a vocabulary knows; marks count as words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Coverage {
    /// All words.
    pub words: usize,
    /// Those that are in the vocabulary.
    pub known: usize,
}

impl Coverage {
    /// The share of words that become `<unk>`; 0 without any word.
    #[must_use]
    pub fn unknown_share(&self) -> f64 {
        (self.words - self.known.min(self.words)) as f64 / self.words.max(1) as f64
    }
}

/// The file as it lies on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VocabularyFile {
    format: String,
    version: u32,
    minimum_count: usize,
    maximum_length: usize,
    words: Vec<String>,
}

impl Vocabulary {
    /// The words seen at least `minimum_count` times in `sentences`.
    ///
    /// Sentences get at most [`DEFAULT_MAXIMUM_LENGTH`] ids: [`Vocabulary::with_maximum_length`] changes that.
    #[must_use]
    pub fn build<'a>(sentences: impl Iterator<Item = &'a str>, minimum_count: usize) -> Self {
        let mut counts = HashMap::<String, usize>::new();
        for word in sentences.flat_map(tokenise_words) {
            *counts.entry(word).or_default() += 1;
        }
        let mut counted: Vec<_> = counts.into_iter().filter(|(_, count)| *count >= minimum_count).collect();
        counted.sort_unstable_by(|(a, a_count), (b, b_count)| b_count.cmp(a_count).then_with(|| a.cmp(b)));
        let specials = SPECIALS.iter().map(|special| (*special).to_owned());
        let words = specials.chain(counted.into_iter().map(|(word, _)| word)).collect();
        Self::from_words(words, minimum_count, DEFAULT_MAXIMUM_LENGTH)
    }

    fn from_words(words: Vec<String>, minimum_count: usize, maximum_length: usize) -> Self {
        // No word is a special one: the tokeniser cuts at angle brackets.
        let ids = words.iter().cloned().zip(0u32..).skip(SPECIALS.len()).collect();
        Self { minimum_count, maximum_length, words, ids }
    }

    /// The same words with another bound on the ids of a sentence, `<start>` and `<end>` counted in.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] below 3.
    pub fn with_maximum_length(self, maximum_length: usize) -> Result<Self> {
        if maximum_length < SHORTEST {
            return Err(EncoderError::Argument {
                what: "maximum length of a sentence",
                expected: format!("at least {SHORTEST}"),
                got: maximum_length.to_string(),
            });
        }
        Ok(Self { maximum_length, ..self })
    }

    /// The ids of a sentence's words between `<start>` and `<end>`.
    ///
    /// A word that is not known is `<unk>`. Of a sentence that is too long the first words are taken, and `<end>` follows them.
    /// A sentence without words gives `<start> <end>`.
    #[must_use]
    pub fn ids(&self, sentence: &str) -> Vec<u32> {
        let words = tokenise_words(sentence);
        let id = |word: &String| self.id(word).unwrap_or(UNKNOWN);
        let words = words.iter().take(self.maximum_length - 2).map(id);
        std::iter::once(START).chain(words).chain(std::iter::once(END)).collect()
    }

    /// The id of a word, none if it is not known.
    #[must_use]
    pub fn id(&self, word: &str) -> Option<u32> {
        self.ids.get(word).copied()
    }

    /// How many words of `sentences` are known.
    #[must_use]
    pub fn coverage<'a>(&self, sentences: impl Iterator<Item = &'a str>) -> Coverage {
        sentences.flat_map(tokenise_words).fold(Coverage::default(), |coverage, word| Coverage {
            words: coverage.words + 1,
            known: coverage.known + usize::from(self.ids.contains_key(&word)),
        })
    }

    /// All words by id, the four special ones included.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Number of ids: the rows an embedding table needs. At least 4.
    #[must_use]
    pub fn size(&self) -> usize {
        self.words.len()
    }

    /// How often a word was seen at least.
    #[must_use]
    pub fn minimum_count(&self) -> usize {
        self.minimum_count
    }

    /// Ids of a sentence at most, `<start>` and `<end>` counted in.
    #[must_use]
    pub fn maximum_length(&self) -> usize {
        self.maximum_length
    }

    /// A hash of all that decides which ids a sentence has.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let version = VERSION.to_le_bytes();
        let maximum_length = (self.maximum_length as u64).to_le_bytes();
        let settings = [("version", &version[..]), ("maximum_length", &maximum_length[..])];
        sha256_parts(settings.into_iter().chain(self.words.iter().map(|word| ("word", word.as_bytes()))))
    }

    /// Writes the vocabulary as JSON, whole or not at all.
    ///
    /// # Errors
    /// [`EncoderError::Write`] naming the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = VocabularyFile {
            format: FORMAT.to_owned(),
            version: VERSION,
            minimum_count: self.minimum_count,
            maximum_length: self.maximum_length,
            words: self.words.clone(),
        };
        let fail = EncoderError::write(path);
        match serde_json::to_vec_pretty(&file) {
            Ok(bytes) => write_atomically(path, &bytes).map_err(fail),
            Err(error) => Err(fail(error.into())),
        }
    }

    /// Reads what [`Vocabulary::save`] wrote.
    ///
    /// # Errors
    /// [`EncoderError::MissingFile`], [`EncoderError::Read`], [`EncoderError::Json`]; [`EncoderError::Config`] for another
    /// format or version, a bound below 3, special words that are not in their places and words that come twice. Each names
    /// the file.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(EncoderError::read(path))?;
        let json = |source| EncoderError::Json { file: path.to_owned(), source };
        // Another version may have other fields: the header is looked at first.
        let header: serde_json::Value = serde_json::from_slice(&bytes).map_err(json)?;
        let check = Check { file: path };
        check.equal("format", header.get("format"), FORMAT.into())?;
        check.equal("version", header.get("version"), VERSION.into())?;
        let file: VocabularyFile = serde_json::from_slice(&bytes).map_err(json)?;
        if file.maximum_length < SHORTEST {
            let expected = format!("at least {SHORTEST}");
            return Err(check.error("maximum_length", expected, file.maximum_length.to_string()));
        }
        check.words(&file.words)?;
        Ok(Self::from_words(file.words, file.minimum_count, file.maximum_length))
    }
}

/// Refuses what a file should not hold.
struct Check<'a> {
    file: &'a Path,
}

impl Check<'_> {
    fn error(&self, key: &str, expected: String, got: String) -> EncoderError {
        EncoderError::Config { file: self.file.to_owned(), key: key.to_owned(), expected, got }
    }

    fn equal(&self, key: &str, got: Option<&serde_json::Value>, expected: serde_json::Value) -> Result<()> {
        match got {
            Some(got) if *got == expected => Ok(()),
            Some(got) => Err(self.error(key, expected.to_string(), got.to_string())),
            None => Err(self.error(key, expected.to_string(), "nothing".to_owned())),
        }
    }

    fn words(&self, words: &[String]) -> Result<()> {
        for (index, special) in SPECIALS.iter().enumerate() {
            let got = words.get(index).map_or("nothing", String::as_str);
            if got != *special {
                return Err(self.error(
                    &format!("words[{index}]"),
                    format!("`{special}`"),
                    format!("`{got}`"),
                ));
            }
        }
        let mut seen = HashSet::new();
        for (index, word) in words.iter().enumerate() {
            if !seen.insert(word) {
                let expected = "a word that comes once".to_owned();
                return Err(self.error(&format!("words[{index}]"), expected, format!("`{word}` again")));
            }
        }
        Ok(())
    }
}
