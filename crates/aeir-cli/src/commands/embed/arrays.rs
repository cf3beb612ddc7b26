//! The headers of array files.

use crate::flags::PrecisionFlag;

/// Room for the header of a `.npy` file: it is written last, when the number of rows is known.
pub(in crate::commands) const NPY_HEADER: usize = 128;

impl PrecisionFlag {
    /// Bytes a value.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }
}

/// The header of a `.npy` file of format 1.0, padded with blanks.
pub(in crate::commands) fn npy_header(
    rows: usize,
    dimension: usize,
    precision: PrecisionFlag,
) -> [u8; NPY_HEADER] {
    let mut header = [b' '; NPY_HEADER];
    // The length counts from behind itself, and the last byte is a line end.
    let length = (NPY_HEADER - 10) as u16;
    let text = format!(
        "{{'descr': '<f{}', 'fortran_order': False, 'shape': ({rows}, {dimension}), }}",
        precision.bytes()
    );
    let parts = b"\x93NUMPY\x01\x00".iter().copied().chain(length.to_le_bytes()).chain(text.bytes());
    header.iter_mut().zip(parts).for_each(|(place, byte)| *place = byte);
    if let Some(last) = header.last_mut() {
        *last = b'\n';
    }
    header
}

/// One tensor of a safetensors file.
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
    pub(super) rows: usize,
    pub(super) dimension: usize,
}

/// The beginning of a safetensors file whose tensors follow in this order. `metadata` are texts.
pub(super) fn safetensors_header(
    tensors: &[Named<'_>],
    precision: PrecisionFlag,
    metadata: &serde_json::Map<String, serde_json::Value>,
) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), metadata.clone().into());
    let mut offset = 0;
    for Named { name, rows, dimension } in tensors {
        let end = offset + rows * dimension * precision.bytes();
        let entry = serde_json::json!({
            "dtype": precision.name().to_uppercase(),
            "shape": [rows, dimension],
            "data_offsets": [offset, end],
        });
        entries.insert((*name).to_owned(), entry);
        offset = end;
    }
    let mut text = serde_json::Value::Object(entries).to_string().into_bytes();
    // The values begin at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    [(text.len() as u64).to_le_bytes().to_vec(), text].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_header_fits() {
        let header = npy_header(usize::MAX, usize::MAX, PrecisionFlag::F16);
        assert!(
            String::from_utf8_lossy(&header).ends_with(", }  \n") || header.ends_with(b" \n"),
            "{header:?}"
        );
        assert_eq!(header.len() % 64, 0);
    }
}
