//! Resizing in Pillow's arithmetic: the same bytes, not only the same filter.

use pulp::Arch;

use crate::preprocess::{Filter, Size};

const CHANNELS: usize = 3;
/// Fraction bits of a weight: 32 bits less 8 for the value and 2 for sums that overshoot.
const PRECISION: u32 = 22;
const HALF: i32 = 1 << (PRECISION - 1);

/// A window of a resized picture: what a centre crop leaves over is never computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Size of the whole picture after resizing, width and height.
    pub(crate) target: (u64, u64),
    /// First column and row of the window.
    pub(crate) first: (u64, u64),
    /// Size of the window.
    pub(crate) size: Size,
}

/// Resizes `[source.height, source.width, 3]` bytes and gives the window, `[H, W, 3]`.
///
/// Two passes as in Pillow up to version 12: the columns of every row that is needed, rounded to bytes, then the
/// rows. The weights are rounded to fixed point.
pub(crate) fn resample(rgb: &[u8], source: Size, window: &Window, filter: Filter) -> Vec<u8> {
    let columns =
        Axis::new(u64::from(source.width), window.target.0, window.first.0, window.size.width, filter);
    let rows =
        Axis::new(u64::from(source.height), window.target.1, window.first.1, window.size.height, filter);
    let (from, to) = rows.range();
    let line = source.width as usize * CHANNELS;
    let between: Vec<u8> = rgb
        .chunks_exact(line.max(1))
        .skip(from)
        .take(to.saturating_sub(from))
        .flat_map(|row| columns.taps.iter().flat_map(move |taps| taps.pixel(row)))
        .collect();
    let line = window.size.width as usize * CHANNELS;
    let mut output = vec![0; line * window.size.height as usize];
    // Integer products of a whole row are quick only with newer instructions than the baseline of x86-64.
    Arch::new().dispatch(|| {
        let mut sums = vec![0; line];
        for (taps, output) in rows.taps.iter().zip(output.chunks_exact_mut(line.max(1))) {
            taps.row(&between, from, &mut sums, output);
        }
    });
    output
}

/// The filter along one axis: what each output value is made of.
struct Axis {
    taps: Vec<Taps>,
}

struct Taps {
    start: usize,
    weights: Vec<i32>,
}

impl Axis {
    fn new(source: u64, target: u64, first: u64, count: u32, filter: Filter) -> Self {
        let scale = source as f64 / target as f64;
        // Shrinking widens the filter: that is the antialiasing.
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let taps = (first..first + u64::from(count))
            .map(|index| {
                let centre = (index as f64 + 0.5) * scale;
                let start = (centre - support + 0.5).max(0.0) as u64;
                let end = ((centre + support + 0.5) as u64).min(source);
                let weights: Vec<f64> = (start..end)
                    .map(|position| filter.weight((position as f64 - centre + 0.5) / stretch))
                    .collect();
                let total: f64 = weights.iter().sum();
                let total = if total == 0.0 { 1.0 } else { total };
                Taps {
                    start: start as usize,
                    weights: weights.iter().map(|weight| fixed(weight / total)).collect(),
                }
            })
            .collect();
        Self { taps }
    }

    /// The source positions that are needed, first and one past the last.
    fn range(&self) -> (usize, usize) {
        let from = self.taps.iter().map(|taps| taps.start).min().unwrap_or(0);
        let to = self.taps.iter().map(|taps| taps.start + taps.weights.len()).max().unwrap_or(0);
        (from, to)
    }
}

impl Taps {
    #[inline(always)]
    fn pixel(&self, row: &[u8]) -> [u8; CHANNELS] {
        let mut sums = [HALF; CHANNELS];
        let pixels = row.get(self.start * CHANNELS..).unwrap_or_default().as_chunks::<CHANNELS>().0;
        for (pixel, weight) in pixels.iter().zip(&self.weights) {
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum = sum.wrapping_add(i32::from(*value).wrapping_mul(*weight));
            }
        }
        sums.map(to_byte)
    }

    /// A row of the output from rows that begin with number `from`.
    #[inline(always)]
    fn row(&self, rows: &[u8], from: usize, sums: &mut [i32], output: &mut [u8]) {
        sums.fill(HALF);
        let rows = rows.chunks_exact(output.len().max(1)).skip(self.start.saturating_sub(from));
        for (row, weight) in rows.zip(&self.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(i32::from(*value).wrapping_mul(*weight));
            }
        }
        for (output, sum) in output.iter_mut().zip(sums) {
            *output = to_byte(*sum);
        }
    }
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bilinear if x < 1.0 => 1.0 - x,
            _ => 0.0,
        }
    }
}

/// Rounded half away from zero.
fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION)).round() as i32
}

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_same_picture() {
        let size = Size { width: 7, height: 5 };
        let rgb: Vec<u8> = (0..105).map(|i| (i * 53 % 256) as u8).collect();
        let window = Window { target: (7, 5), first: (0, 0), size };
        for filter in [Filter::Bicubic, Filter::Bilinear] {
            assert_eq!(resample(&rgb, size, &window, filter), rgb);
        }
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let source = Size { width: 9, height: 11 };
        let rgb: Vec<u8> = (0..297).map(|i| (i * 101 % 256) as u8).collect();
        let whole = Window { target: (20, 6), first: (0, 0), size: Size { width: 20, height: 6 } };
        let part = Window { target: (20, 6), first: (4, 1), size: Size { width: 3, height: 4 } };
        let whole = resample(&rgb, source, &whole, Filter::Bicubic);
        let expected: Vec<u8> =
            (1..5).flat_map(|y| whole[(y * 20 + 4) * 3..(y * 20 + 7) * 3].to_vec()).collect();
        assert_eq!(resample(&rgb, source, &part, Filter::Bicubic), expected);
    }
}
