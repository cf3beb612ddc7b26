//! The card that exact searches are made on, where one is asked for and `aeir` was built for it.

use aeir_retrieve::{Hit, Index, Matrix, SearchOptions, Storage};
use candle_core::{Device, DeviceLocation};

use crate::device::{DeviceName, Gpu};
use crate::terminal::Terminal;

/// The number of the card to search on; none where the processor searches. The card is opened and tried, as for every other work.
pub(crate) fn card_of(device: DeviceName, terminal: &Terminal) -> anyhow::Result<Option<usize>> {
    if matches!(device, DeviceName::Cpu) || (device == DeviceName::Auto && !Gpu::Cuda.is_built()) {
        return Ok(None);
    }
    let device = device.open(terminal)?;
    if matches!(device, Device::Metal(_)) {
        terminal.warn("searches are not made on Metal: the processor searches");
    }
    Ok(number_of(&device))
}

/// The number of a card.
pub(crate) fn number_of(device: &Device) -> Option<usize> {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => Some(gpu_id),
        DeviceLocation::Cpu | DeviceLocation::Metal { .. } => None,
    }
}

/// Where an index is put, and what of the card's memory is taken beside its vectors.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(crate) struct Room {
    /// The card's number.
    pub(crate) card: usize,
    /// For scores.
    pub(crate) score_bytes: usize,
    /// Whether 32-bit vectors have 16-bit copies, with which the first pass is made.
    pub(crate) rough_first: bool,
}

/// Whether a card takes vectors that are kept so.
pub(crate) fn takes(storage: Storage) -> bool {
    match storage {
        Storage::F32 | Storage::F16 => true,
        Storage::Int8 => false,
    }
}

#[cfg(feature = "cuda")]
pub(crate) use built::{MOST_RESULTS, OnCard, hint_of};
#[cfg(not(feature = "cuda"))]
pub(crate) use not_built::{MOST_RESULTS, OnCard};

/// With the feature `cuda`.
#[cfg(feature = "cuda")]
mod built {
    use aeir_retrieve::{CardError, CardIndex, CardOptions};

    use super::{Hit, Index, Matrix, Room, SearchOptions};

    /// Results of one query that a card gives at most.
    pub(crate) const MOST_RESULTS: usize = aeir_retrieve::MOST_ON_CARD;

    /// An index whose vectors lie on a card.
    pub(crate) struct OnCard(CardIndex);

    impl OnCard {
        /// Copies the vectors of an index to a card.
        pub(crate) fn load(index: &Index, room: &Room) -> anyhow::Result<Self> {
            let Room { card, score_bytes, rough_first } = *room;
            let options = CardOptions { card, score_bytes, rough_first };
            Ok(Self(CardIndex::new(index, &options).map_err(unwrapped)?))
        }

        /// As [`Index::find`] does it exactly, bit for bit.
        pub(crate) fn find(
            &self,
            index: &Index,
            queries: &Matrix,
            k: usize,
            options: &SearchOptions<'_>,
        ) -> anyhow::Result<Vec<Vec<Hit>>> {
            self.0.find(index, queries, k, options).map_err(unwrapped)
        }

        /// Whether a card gives so many results of a query.
        pub(crate) fn gives(k: usize) -> bool {
            k <= MOST_RESULTS
        }

        /// Bytes on the card.
        pub(crate) fn bytes(&self) -> u64 {
            self.0.bytes()
        }

        /// Queries that the processor had to search for.
        pub(crate) fn unsettled(&self) -> u64 {
            self.0.unsettled()
        }
    }

    /// What every search refuses is told as by every search.
    fn unwrapped(error: CardError) -> anyhow::Error {
        match error {
            CardError::Search(error) => error.into(),
            error => error.into(),
        }
    }

    /// What to do about an error of a card.
    pub(crate) fn hint_of(error: &CardError) -> String {
        match error {
            CardError::OutOfMemory { .. } => {
                "an index with `--storage f16` takes half, a smaller --score-memory less; `nvidia-smi` shows what other programs hold \
                 there; --device cpu does without a card"
            }
            CardError::TooMany { .. } | CardError::Storage { .. } => "--device cpu searches it",
            _ => "`nvidia-smi` shows card and driver; docs/cuda.md says what each error means; --device cpu does without",
        }
        .to_owned()
    }
}

/// Without the feature: there is none of these.
#[cfg(not(feature = "cuda"))]
mod not_built {
    use std::convert::Infallible;

    use super::{Hit, Index, Matrix, Room, SearchOptions};

    pub(crate) const MOST_RESULTS: usize = 0;

    pub(crate) struct OnCard(Infallible);

    impl OnCard {
        pub(crate) fn load(_: &Index, _: &Room) -> anyhow::Result<Self> {
            anyhow::bail!("this aeir was built without CUDA")
        }

        pub(crate) fn find(
            &self,
            _: &Index,
            _: &Matrix,
            _: usize,
            _: &SearchOptions<'_>,
        ) -> anyhow::Result<Vec<Vec<Hit>>> {
            match self.0 {}
        }

        pub(crate) fn gives(_: usize) -> bool {
            false
        }

        pub(crate) fn bytes(&self) -> u64 {
            match self.0 {}
        }

        pub(crate) fn unsettled(&self) -> u64 {
            match self.0 {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_searches_unless_a_card_is_asked_for() {
        let terminal = Terminal::new(true);
        assert_eq!(card_of(DeviceName::Cpu, &terminal).unwrap(), None);
        if !Gpu::Cuda.is_built() {
            assert_eq!(card_of(DeviceName::Auto, &terminal).unwrap(), None);
            let error = card_of(DeviceName::Cuda(0), &terminal).unwrap_err();
            assert!(error.to_string().contains("built without CUDA"), "{error}");
        }
        assert!(takes(Storage::F16) && !takes(Storage::Int8));
    }
}
