//! The data sets of the repository.

use std::collections::HashSet;

use aeir_data::{
    AlignedTarget, ImageSource, LoadOptions, ParallelDomain, Prepared, TargetImages, TargetSentences,
    TestPairs, for_each_prepared_batch, hash_file,
};

use crate::dataset;

fn all_decode(images: &[ImageSource]) {
    let mut seen = 0;
    let keep = |index, decoded| Prepared { value: (index, decoded), bytes: 0 };
    for_each_prepared_batch(images, &LoadOptions { batch_size: 64, ..Default::default() }, keep, |batch| {
        for (index, decoded) in batch {
            assert_eq!(index, seen);
            seen += 1;
            let decoded: aeir_data::DecodedImage = decoded.unwrap();
            assert!(decoded.image.width() > 0);
            if index % 100 == 0 {
                assert_eq!(decoded.hash, hash_file(images[index].path()).unwrap());
            }
        }
        Ok::<_, aeir_data::DataError>(())
    })
    .unwrap();
    assert_eq!(seen, images.len());
}

#[test]
fn the_source_set() {
    let domain = ParallelDomain::read(&dataset("noto-cldr/captions.jsonl")).unwrap();
    assert_eq!(domain.name, "noto-cldr");
    assert_eq!((domain.train.len(), domain.validation.len(), domain.test_left_out), (1262, 141, 0));
    assert!(domain.skipped.is_empty());
    let images: Vec<_> =
        domain.train.iter().chain(&domain.validation).map(|item| item.image.clone()).collect();
    all_decode(&images);
}

#[test]
fn the_target_set() {
    let images = TargetImages::read(&dataset("openclipart/train_images.txt")).unwrap();
    let sentences = TargetSentences::read(&dataset("openclipart/train_sentences.txt")).unwrap();
    let aligned = AlignedTarget::read(&dataset("openclipart/train_alignment.jsonl")).unwrap();
    let test = TestPairs::read(&dataset("openclipart/test.jsonl"), None).unwrap();
    assert_eq!((images.images().len(), sentences.sentences().len(), aligned.items().len()), (366, 366, 366));
    assert_eq!((test.images().len(), test.captions().len(), test.notes().len()), (365, 365, 0));
    assert!(images.skipped().is_empty() && sentences.skipped().is_empty());
    let training: HashSet<_> = images.images().iter().collect();
    assert!(test.images().iter().all(|image| !training.contains(image)));
    assert!(aligned.items().iter().all(|item| training.contains(&item.image)));
    let folder = TargetImages::read(&dataset("openclipart/images")).unwrap();
    assert_eq!(folder.images().len(), 731);
    all_decode(folder.images());
}
