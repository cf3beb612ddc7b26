//! Transformer encoders of sentences.

mod backbone;
mod batch;
mod bert;
mod clip;
mod model;
mod modern_bert;
mod pooling;
mod sentence_transformers;
mod tokenizer;

pub use backbone::TextTransformer;
pub use batch::TokenBatch;
pub use model::TextModel;
pub use pooling::Pooling;
pub use tokenizer::SentenceTokenizer;

pub(crate) use model::TextSetup;
pub(crate) use sentence_transformers::transformer_folder;
