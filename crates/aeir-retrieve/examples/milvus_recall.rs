//! How much of what a local index finds a Milvus collection finds too.
//!
//! ```sh
//! aeir embed --model RUN --data test.jsonl --format safetensors --output queries
//! cargo run --release -p aeir-retrieve --features milvus --example milvus_recall -- \
//!     INDEX queries/embeddings.safetensors milvus://127.0.0.1:19530/photos
//! ```

#![allow(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;

use aeir_retrieve::{Index, Matrix, MilvusAccess, MilvusCollection, MilvusSearch};
use safetensors::SafeTensors;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next =
        || arguments.next().ok_or("expected INDEX EMBEDDINGS.safetensors milvus://HOST:PORT/COLLECTION");
    let (index, queries, place) = (Index::open(next()?)?, sentences(&next()?)?, next()?.parse()?);
    let access = MilvusAccess { token: std::env::var("AEIR_MILVUS_TOKEN").ok(), ..MilvusAccess::default() };
    let collection = MilvusCollection::open(&place, &access)?;
    collection.check_model(index.model_fingerprint())?;
    let exact = index.search_batch(&queries, 10)?;
    let found = collection.find(&queries, 10, &MilvusSearch::default())?;
    let identical = exact.iter().zip(&found).filter(|(exact, found)| {
        let same = |(exact, found): (&aeir_retrieve::Hit, &aeir_retrieve::Hit)| {
            exact.item == found.item && exact.score == found.score
        };
        exact.len() == found.len() && exact.iter().zip(found.iter()).all(same)
    });
    println!(
        "{} queries, {} items: recall@10 {:.4}; {} lists have the same items with the same scores in the same order",
        queries.rows(),
        collection.len(),
        collection.recall(&index, &queries, 10)?,
        identical.count(),
    );
    Ok(())
}

/// The embeddings of sentences that `aeir embed` wrote.
fn sentences(file: &str) -> Result<Matrix, Box<dyn Error>> {
    let bytes = std::fs::read(file)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let tensor = tensors.tensor("sentences")?;
    let [rows, columns] = tensor.shape() else { return Err("expected two dimensions".into()) };
    let decode = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
    Ok(Matrix::new(tensor.data().chunks_exact(4).map(decode).collect(), *rows, *columns)?)
}
