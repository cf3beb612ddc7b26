//! Pages compressed with zstd, unpacked in Rust: the codec of the `parquet` crate is a C library.
//!
//! The crate's page reader is told that the column is not compressed, and hands its pages over as they are stored.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::serialized_reader::SerializedPageReader;
use ruzstd::decoding::StreamingDecoder;

/// A page's size is a 32-bit signed number: a footer that claims more lies.
const LARGEST_PAGE: u64 = i32::MAX as u64;

/// The pages of a column chunk.
pub(super) struct ZstdPages {
    stored: SerializedPageReader<File>,
    /// No page has more: the bytes of all pages of the chunk as the footer says, and at most [`LARGEST_PAGE`].
    most: u64,
}

impl ZstdPages {
    pub(super) fn new(file: Arc<File>, chunk: &ColumnChunkMetaData, rows: usize) -> Result<Self> {
        let plain = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        let most = u64::try_from(chunk.uncompressed_size()).unwrap_or(0).min(LARGEST_PAGE);
        Ok(Self { stored: SerializedPageReader::new(file, &plain, rows, None)?, most })
    }

    fn unpacked(&self, page: Page) -> Result<Page> {
        Ok(match page {
            Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                statistics,
            } => Page::DataPage {
                buf: unpack(&buf, 0, self.most)?.into(),
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                statistics,
            },
            Page::DictionaryPage { buf, num_values, encoding, is_sorted } => {
                let buf = unpack(&buf, 0, self.most)?.into();
                Page::DictionaryPage { buf, num_values, encoding, is_sorted }
            }
            Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                num_nulls,
                num_rows,
                def_levels_byte_len,
                rep_levels_byte_len,
                is_compressed,
                statistics,
            } => {
                // The levels stand before the values and are never compressed.
                let levels = def_levels_byte_len.saturating_add(rep_levels_byte_len) as usize;
                let buf = if is_compressed { unpack(&buf, levels, self.most)?.into() } else { buf };
                Page::DataPageV2 {
                    buf,
                    num_values,
                    encoding,
                    num_nulls,
                    num_rows,
                    def_levels_byte_len,
                    rep_levels_byte_len,
                    is_compressed,
                    statistics,
                }
            }
        })
    }
}

impl Iterator for ZstdPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for ZstdPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.stored.get_next_page()?;
        page.map(|page| self.unpacked(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.stored.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.stored.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.stored.at_record_boundary()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.stored.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        let page = self.stored.take_deferred_dictionary()?;
        page.map(|page| self.unpacked(page)).transpose()
    }
}

/// The bytes behind the first `before` ones unpacked; nothing stays nothing.
fn unpack(stored: &[u8], before: usize, most: u64) -> Result<Vec<u8>> {
    let broken = |what: String| ParquetError::General(format!("a page compressed with zstd: {what}"));
    let (levels, packed) =
        stored.split_at_checked(before).ok_or_else(|| broken("shorter than its levels".to_owned()))?;
    let mut page = levels.to_vec();
    // Several frames may stand one after the other.
    let mut rest = packed;
    while !rest.is_empty() {
        let decoder = StreamingDecoder::new(&mut rest).map_err(|error| broken(error.to_string()))?;
        let room = most.saturating_sub(page.len() as u64);
        decoder
            .take(room.saturating_add(1))
            .read_to_end(&mut page)
            .map_err(|error| broken(error.to_string()))?;
        if page.len() as u64 > most {
            return Err(broken(format!("more than the {most} bytes that its column has")));
        }
    }
    Ok(page)
}
