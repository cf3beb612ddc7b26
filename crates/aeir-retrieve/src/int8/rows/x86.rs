//! With the byte products of AVX-512 (VNNI) and of AVX2.

use std::arch::x86_64::*;

use super::Coded;
use crate::ask_for::ask_for;
use crate::int8::Codes;
use crate::storage::ZERO_CODE;

/// Rows that are scored at once: their sums do not wait for each other.
const ROWS: usize = 4;
/// Rows whose memory is asked for before they are scored.
const AHEAD: usize = 8;

type Kernel = fn(Coded<'_>, Codes<'_>, &[u32], &mut Vec<f32>) -> bool;

/// Every kernel, fastest first; each says whether this machine has its instructions.
pub(super) const KERNELS: [Kernel; 2] = [with_vnni, with_avx2];

/// Appends scores with the best instructions of this machine; false where it has none of them. The vector's codes are as long as a row's.
pub(super) fn scores_of(one: Coded<'_>, items: Codes<'_>, rows: &[u32], out: &mut Vec<f32>) -> bool {
    KERNELS.iter().any(|kernel| kernel(one, items, rows, out))
}

fn with_vnni(one: Coded<'_>, items: Codes<'_>, rows: &[u32], out: &mut Vec<f32>) -> bool {
    let here = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni");
    if here {
        // SAFETY: the machine has the instructions.
        unsafe { vnni(one, items, rows, out) };
    }
    here
}

fn with_avx2(one: Coded<'_>, items: Codes<'_>, rows: &[u32], out: &mut Vec<f32>) -> bool {
    let here = is_x86_feature_detected!("avx2");
    if here {
        // SAFETY: the machine has the instructions.
        unsafe { avx2(one, items, rows, out) };
    }
    here
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn vnni(one: Coded<'_>, items: Codes<'_>, rows: &[u32], out: &mut Vec<f32>) {
    let offset = _mm_set1_epi32(i32::from(ZERO_CODE) * one.sum);
    in_groups(one, items, rows, out, |vector, group| {
        let mut sums = [_mm512_setzero_si512(); ROWS];
        let middle = _mm512_set1_epi8(i8::MIN);
        for (part, codes) in vector.as_chunks::<64>().0.iter().enumerate() {
            // SAFETY: 64 bytes; the load needs no alignment.
            let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
            // 1 to 255: less 128 they are -127 to 127.
            let signed = _mm512_xor_si512(codes, middle);
            for (sum, row) in sums.iter_mut().zip(group) {
                // SAFETY: a row is as long as the vector: `in_groups` passes no others.
                let row = unsafe { _mm512_loadu_si512(row.as_ptr().add(64 * part).cast()) };
                *sum = _mm512_dpbusd_epi32(*sum, row, signed);
            }
        }
        let [a, b, c, d] = sums
            .map(|sum| _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum)));
        _mm_sub_epi32(folded(a, b, c, d), offset)
    });
}

#[target_feature(enable = "avx2")]
fn avx2(one: Coded<'_>, items: Codes<'_>, rows: &[u32], out: &mut Vec<f32>) {
    in_groups(one, items, rows, out, |vector, group| {
        let mut sums = [_mm256_setzero_si256(); ROWS];
        let (middle, ones) = (_mm256_set1_epi8(i8::MIN), _mm256_set1_epi16(1));
        for (part, codes) in vector.as_chunks::<32>().0.iter().enumerate() {
            // SAFETY: 32 bytes; the load needs no alignment.
            let codes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
            let signed = _mm256_xor_si256(codes, middle);
            let magnitude = _mm256_abs_epi8(signed);
            for (sum, row) in sums.iter_mut().zip(group) {
                // SAFETY: a row is as long as the vector: `in_groups` passes no others.
                let row = unsafe { _mm256_loadu_si256(row.as_ptr().add(32 * part).cast()) };
                let row = _mm256_sign_epi8(_mm256_xor_si256(row, middle), signed);
                // Two products of 127 x 127 at most fit 16 bits.
                let products = _mm256_maddubs_epi16(magnitude, row);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, ones));
            }
        }
        let [a, b, c, d] = sums;
        folded(a, b, c, d)
    });
}

/// The sums of four registers, side by side.
#[target_feature(enable = "avx2")]
#[inline]
fn folded(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m128i {
    let four = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four))
}

/// Scores rows four at a time, by what gives the dot products of a vector with four rows of its length.
#[inline(always)]
fn in_groups(
    one: Coded<'_>,
    items: Codes<'_>,
    rows: &[u32],
    out: &mut Vec<f32>,
    dots: impl Fn(&[u8], [&[u8]; ROWS]) -> __m128i,
) {
    rows.iter().take(AHEAD).for_each(|row| ask_for_row(items, *row));
    for (place, group) in rows.chunks(ROWS).enumerate() {
        let later = rows.get(place * ROWS + AHEAD..).unwrap_or_default();
        later.iter().take(ROWS).for_each(|row| ask_for_row(items, *row));
        let codes: [&[u8]; ROWS] =
            std::array::from_fn(|i| group.get(i).map_or(&[][..], |row| items.row(*row)));
        // What is not there is scored as the vector itself, and its score replaced.
        let there = codes.map(|codes| codes.len() == one.codes.len());
        let safe = std::array::from_fn(|i| if there[i] { codes[i] } else { one.codes });
        let mut products = [0_i32; ROWS];
        // SAFETY: four numbers of four bytes.
        unsafe { _mm_storeu_si128(products.as_mut_ptr().cast(), dots(one.codes, safe)) };
        out.extend(group.iter().zip(products).zip(there).map(|((row, dot), there)| {
            if there { dot as f32 * (one.scale * items.scale(*row)) } else { f32::NEG_INFINITY }
        }));
    }
}

#[inline(always)]
fn ask_for_row(items: Codes<'_>, row: u32) {
    ask_for(items.row(row));
    ask_for(items.scales.get(row as usize..).and_then(|scales| scales.first_chunk::<1>()).unwrap_or(&[0.0]));
}
