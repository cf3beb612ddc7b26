//! With the byte products of AVX-512 (VNNI) and of AVX2.

use std::arch::x86_64::*;

use super::{Codes, QueryCodes};

/// Items in a packed block: two registers of 16.
const BLOCK: usize = 32;
/// Queries that a block is multiplied with at once: 16 sums stay in registers.
const AT_ONCE: usize = 8;
/// Up to this many queries a block is not worth packing.
const FEW_QUERIES: usize = 3;

type Kernel = fn(&QueryCodes, Codes<'_>, &mut [f32]) -> bool;

/// Every kernel, fastest first; each says whether this machine has its instructions.
pub(super) const KERNELS: [Kernel; 2] = [with_vnni, with_avx2];

/// Scores with the best instructions of this machine; false where it has none of them. Sizes fit.
pub(super) fn scores(queries: &QueryCodes, items: Codes<'_>, out: &mut [f32]) -> bool {
    KERNELS.iter().any(|kernel| kernel(queries, items, out))
}

fn with_vnni(queries: &QueryCodes, items: Codes<'_>, out: &mut [f32]) -> bool {
    let here = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni");
    if here {
        // SAFETY: the machine has the instructions.
        unsafe {
            if queries.scales.len() <= FEW_QUERIES {
                vnni_by_row(queries, items, out);
            } else {
                vnni_in_blocks(queries, items, out);
            }
        }
    }
    here
}

fn with_avx2(queries: &QueryCodes, items: Codes<'_>, out: &mut [f32]) -> bool {
    let here = is_x86_feature_detected!("avx2");
    if here {
        // SAFETY: the machine has the instructions.
        unsafe { avx2_by_row(queries, items, out) };
    }
    here
}

/// One item with one query after the other.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn vnni_by_row(queries: &QueryCodes, items: Codes<'_>, out: &mut [f32]) {
    let columns = items.scales.len();
    for (column, (item, item_scale)) in items.codes.chunks_exact(items.stride).zip(items.scales).enumerate() {
        for ((query, scale, offset), row) in queries.each().zip(out.chunks_mut(columns)) {
            let mut sums = [_mm512_setzero_si512(); 2];
            let parts = item.chunks_exact(64).zip(query.chunks_exact(64));
            for (part, (item, query)) in parts.enumerate() {
                // SAFETY: both chunks hold 64 bytes; the loads need no alignment.
                let (item, query) = unsafe {
                    (_mm512_loadu_si512(item.as_ptr().cast()), _mm512_loadu_si512(query.as_ptr().cast()))
                };
                sums[part % 2] = _mm512_dpbusd_epi32(sums[part % 2], item, query);
            }
            let dot = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]));
            if let Some(slot) = row.get_mut(column) {
                *slot = (dot - offset) as f32 * (scale * item_scale);
            }
        }
    }
}

/// Items in blocks whose bytes are interleaved, four of each item side by side: a lane is an item, and sums need no folding.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn vnni_in_blocks(queries: &QueryCodes, items: Codes<'_>, out: &mut [f32]) {
    let (stride, columns) = (items.stride, items.scales.len());
    let mut packed = vec![0_u32; stride / 4 * BLOCK];
    let numbers: Vec<(&[i8], f32, i32)> = queries.each().collect();
    for first in (0..columns).step_by(BLOCK) {
        let count = BLOCK.min(columns - first);
        pack(
            items.codes.get(first * stride..(first + count) * stride).unwrap_or_default(),
            stride,
            &mut packed,
        );
        let scales = items.scales.get(first..first + count).unwrap_or_default();
        let (groups, rest) = numbers.as_chunks::<AT_ONCE>();
        for (group, asked) in groups.iter().enumerate() {
            let sums = block_sums(asked, &packed);
            for (i, ((_, scale, offset), sums)) in asked.iter().zip(&sums).enumerate() {
                let start = (group * AT_ONCE + i) * columns + first;
                put(sums, *scale, *offset, scales, out.get_mut(start..start + count).unwrap_or_default());
            }
        }
        for (i, (query, scale, offset)) in rest.iter().enumerate() {
            let [sums] = block_sums(&[(*query, *scale, *offset)], &packed);
            let start = (groups.len() * AT_ONCE + i) * columns + first;
            put(&sums, *scale, *offset, scales, out.get_mut(start..start + count).unwrap_or_default());
        }
    }
}

/// Word `w` of item `i` goes to `packed[w * BLOCK + i]`. Items that are not there keep what was there: nobody reads their sums.
fn pack(codes: &[u8], stride: usize, packed: &mut [u32]) {
    for (item, codes) in codes.chunks_exact(stride).enumerate() {
        let places = packed.iter_mut().skip(item).step_by(BLOCK);
        places.zip(codes.as_chunks::<4>().0).for_each(|(place, word)| *place = u32::from_ne_bytes(*word));
    }
}

/// The sums of a block of items with some queries: 32 each.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn block_sums<const QUERIES: usize>(
    queries: &[(&[i8], f32, i32); QUERIES],
    packed: &[u32],
) -> [[__m512i; 2]; QUERIES] {
    let mut sums = [[_mm512_setzero_si512(); 2]; QUERIES];
    for (word, items) in packed.as_chunks::<BLOCK>().0.iter().enumerate() {
        // SAFETY: 32 words are two registers; the loads need no alignment.
        let items = unsafe {
            let start = items.as_ptr();
            [_mm512_loadu_si512(start.cast()), _mm512_loadu_si512(start.add(16).cast())]
        };
        for (sums, (query, ..)) in sums.iter_mut().zip(queries) {
            debug_assert!(query.len() >= 4 * (word + 1), "queries and items have one stride");
            // SAFETY: a query has as many words as a packed item: `scores` compares the strides.
            let four = unsafe { query.as_ptr().add(4 * word).cast::<i32>().read_unaligned() };
            let four = _mm512_set1_epi32(four);
            sums[0] = _mm512_dpbusd_epi32(sums[0], items[0], four);
            sums[1] = _mm512_dpbusd_epi32(sums[1], items[1], four);
        }
    }
    sums
}

/// Sums of codes as scores.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn put(sums: &[__m512i; 2], scale: f32, offset: i32, scales: &[f32], out: &mut [f32]) {
    let (offset, scale) = (_mm512_set1_epi32(offset), _mm512_set1_ps(scale));
    for ((sums, scales), out) in sums.iter().zip(scales.chunks(16)).zip(out.chunks_mut(16)) {
        let mask = (u32::from(u16::MAX) >> (16 - scales.len().min(out.len()))) as __mmask16;
        // SAFETY: the mask leaves out what lies beyond either slice.
        unsafe {
            let scales = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(mask, scales.as_ptr()));
            let dots = _mm512_cvtepi32_ps(_mm512_sub_epi32(*sums, offset));
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_mul_ps(dots, scales));
        }
    }
}

/// Products of magnitudes by signed bytes: two of them, 127 x 127 at most, fit 16 bits.
#[target_feature(enable = "avx2")]
fn avx2_by_row(queries: &QueryCodes, items: Codes<'_>, out: &mut [f32]) {
    let columns = items.scales.len();
    let (middle, ones) = (_mm256_set1_epi8(i8::MIN), _mm256_set1_epi16(1));
    for (column, (item, item_scale)) in items.codes.chunks_exact(items.stride).zip(items.scales).enumerate() {
        for ((query, scale, _), row) in queries.each().zip(out.chunks_mut(columns)) {
            let mut sums = _mm256_setzero_si256();
            for (item, query) in item.chunks_exact(32).zip(query.chunks_exact(32)) {
                // SAFETY: both chunks hold 32 bytes; the loads need no alignment.
                let (item, query) = unsafe {
                    (_mm256_loadu_si256(item.as_ptr().cast()), _mm256_loadu_si256(query.as_ptr().cast()))
                };
                // The codes are 1 to 255: less 128 they are -127 to 127.
                let item = _mm256_xor_si256(item, middle);
                let products = _mm256_maddubs_epi16(_mm256_abs_epi8(item), _mm256_sign_epi8(query, item));
                sums = _mm256_add_epi32(sums, _mm256_madd_epi16(products, ones));
            }
            let mut lanes = [0_i32; 8];
            // SAFETY: eight numbers of four bytes.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
            if let Some(slot) = row.get_mut(column) {
                *slot = lanes.iter().sum::<i32>() as f32 * (scale * item_scale);
            }
        }
    }
}
