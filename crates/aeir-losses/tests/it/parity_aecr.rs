//! fixtures/parity/aecr: the released procedure's losses on its embeddings (f32).

use aeir_losses::{
    DomainAdversarialLoss, DomainCritic, LossError, StructureTransferLoss, TripletRankingLoss,
    fragment_similarity, fragment_similarity_released,
};
use candle_core::{DType, Tensor, Var};

use crate::support::{Fixture, assert_close, critic, number, numbers, var};

const FILES: [&str; 2] = ["aecr/saf.safetensors", "aecr/sgr.safetensors"];
const EMBEDDINGS: [&str; 4] = ["source_image_emb", "source_text_emb", "target_image_emb", "target_text_emb"];
/// The file's own tolerances: losses 1e-5 relative, gradients 1e-5 absolute.
const LOSS: (f64, f64) = (1e-5, 0.0);
const GRADIENT: (f64, f64) = (0.0, 1e-5);

/// Source images, source texts, target images, target texts.
fn embeddings(file: &Fixture) -> [Var; 4] {
    ["source.image", "source.text", "target.image", "target.text"]
        .map(|name| var(&file.get(&format!("eval.{name}_emb")), DType::F32))
}

fn released_critic(file: &Fixture, modality: &str) -> DomainCritic {
    let mut weights = Vec::new();
    for (ours, theirs) in [(0, 0), (1, 3), (2, 6)] {
        for kind in ["weight", "bias"] {
            let name = format!("weights.disc_{modality}.discriminator.{theirs}.{kind}");
            weights.push((format!("layers.{ours}.{kind}"), file.get(&name)));
        }
    }
    critic(weights, 16, [8, 64])
}

/// Rows that are no padding, 1 or 0, `[B, T]`.
fn mask(embeddings: &Tensor) -> Tensor {
    embeddings.sqr().unwrap().sum(2).unwrap().gt(0f64).unwrap()
}

#[test]
fn fragment_similarities() {
    for name in FILES {
        let file = Fixture::load(name);
        let [source_images, source_texts, target_images, target_texts] = embeddings(&file);
        let (images, texts) =
            (file.get("train.fragment_similarity.image"), file.get("train.fragment_similarity.text"));
        let close = (1e-5, 2e-6);
        let found = fragment_similarity_released(&target_images, &source_images).unwrap();
        assert_close("image", &found, &images, close);
        let found = fragment_similarity_released(&target_texts, &source_texts).unwrap();
        assert_close("text", &found, &texts, close);
        // Images have no padding: the masked form agrees.
        let found =
            fragment_similarity(&target_images, &mask(&target_images), &source_images, &mask(&source_images));
        assert_close("image, masked", &found.unwrap(), &images, close);
    }
}

#[test]
fn triplet() {
    for name in FILES {
        let file = Fixture::load(name);
        let scores = var(&file.get("train.source.similarity"), DType::F32);
        let loss = TripletRankingLoss { margin: file.setting("margin"), ..Default::default() };
        let loss = loss.from_scores(&scores).unwrap();
        assert_close(name, &loss, &file.get("train.loss.triplet"), LOSS);
    }
}

fn structure(file: &Fixture, embeddings: &[Var; 4]) -> Result<Tensor, LossError> {
    let [source_images, source_texts, target_images, target_texts] = embeddings;
    let loss = StructureTransferLoss {
        neighbours: file.setting("K") as usize,
        temperature: file.setting("tau"),
        ..Default::default()
    };
    let images = loss.forward(
        &fragment_similarity_released(target_images, source_images)?,
        &fragment_similarity_released(target_images, source_texts)?,
    )?;
    let texts = loss.forward(
        &fragment_similarity_released(target_texts, source_texts)?,
        &fragment_similarity_released(target_texts, source_images)?,
    )?;
    Ok((images + texts).unwrap())
}

#[test]
fn structure_transfer() {
    for name in FILES {
        let file = Fixture::load(name);
        let embeddings = embeddings(&file);
        let loss = structure(&file, &embeddings).unwrap();
        assert_close(name, &loss, &file.get("train.loss.structure"), LOSS);
        let gradients = loss.backward().unwrap();
        for (label, of) in EMBEDDINGS.iter().zip(&embeddings) {
            let found = gradients.get(of).unwrap();
            let expected = file.get(&format!("train.grad.structure.{label}"));
            // Rows of zeros: the reference's gradient is huge there and its encoder drops it; ours is 0.
            let real = mask(of).unsqueeze(2).unwrap().broadcast_as(of.dims()).unwrap();
            let expected = real.where_cond(&expected, &expected.zeros_like().unwrap()).unwrap();
            assert_close(&format!("{name} {label}"), found, &expected, GRADIENT);
            assert!(numbers(&expected).iter().any(|g| g.abs() > 1e-3));
        }
    }
}

/// Critic logits on the mean over all positions, padding counted: source images, source texts, target images, target texts.
fn logits(file: &Fixture, embeddings: &[Var; 4]) -> [Tensor; 4] {
    let critics = [released_critic(file, "img"), released_critic(file, "txt")];
    let [a, b, c, d] = embeddings;
    [(a, 0), (b, 1), (c, 0), (d, 1)]
        .map(|(x, modality): (&Var, usize)| critics[modality].forward(&x.mean(1).unwrap()).unwrap())
}

#[test]
fn critics() {
    for name in FILES {
        let file = Fixture::load(name);
        let embeddings = embeddings(&file);
        let logits = logits(&file, &embeddings);
        for (logits, label) in
            logits.iter().zip(["source_image", "source_text", "target_image", "target_text"])
        {
            let expected = file.get(&format!("train.domain_prob.{label}"));
            assert_close(label, &candle_nn::ops::sigmoid(logits).unwrap(), &expected, (1e-5, 1e-6));
        }
        let [source_images, source_texts, target_images, target_texts] = &logits;
        let images = DomainAdversarialLoss.critic_loss(source_images, target_images).unwrap();
        let texts = DomainAdversarialLoss.critic_loss(source_texts, target_texts).unwrap();
        assert_close(name, &(images + texts).unwrap(), &file.get("train.loss.discriminator"), LOSS);
        let accuracy = DomainCritic::accuracy(source_images, target_images).unwrap();
        let right = |label: &str, source: bool| {
            let probabilities = numbers(&file.get(&format!("train.domain_prob.{label}")));
            probabilities.iter().filter(|p| (**p > 0.5) == source).count() as f64 / 6.0
        };
        let expected = (right("source_image", true) + right("target_image", false)) / 2.0;
        assert_eq!(accuracy, expected);
    }
}

#[test]
fn confusion() {
    for name in FILES {
        let file = Fixture::load(name);
        let embeddings = embeddings(&file);
        let [source_images, source_texts, target_images, target_texts] = logits(&file, &embeddings);
        let images = DomainAdversarialLoss.confusion_loss(&source_images, &target_images).unwrap();
        let texts = DomainAdversarialLoss.confusion_loss(&source_texts, &target_texts).unwrap();
        let loss = (images + texts).unwrap();
        assert_close(name, &loss, &file.get("train.loss.confusion"), LOSS);
        let gradients = loss.backward().unwrap();
        for (label, of) in EMBEDDINGS.iter().zip(&embeddings) {
            let expected = file.get(&format!("train.grad.confusion.{label}"));
            assert_close(&format!("{name} {label}"), gradients.get(of).unwrap(), &expected, GRADIENT);
        }
    }
}

/// The masked default is another number than the released one where there is padding.
#[test]
fn padding_changes_the_released_similarity() {
    let file = Fixture::load(FILES[0]);
    let [_, source_texts, _, target_texts] = embeddings(&file);
    // -source: all cosines change sign, so a floor of 0 from padding shows.
    let turned = source_texts.neg().unwrap();
    let masked = fragment_similarity(&target_texts, &mask(&target_texts), &turned, &mask(&turned)).unwrap();
    let with_padding = fragment_similarity_released(&target_texts, &turned).unwrap();
    assert!(number(&(with_padding - masked).unwrap().abs().unwrap().max_all().unwrap()) > 0.1);
}
