//! Matrices in panels of 16 columns, and the kernel that multiplies them.
//!
//! A matrix `[rows, columns]` lies as `[columns / 16 rounded up][rows]` blocks of 16 neighbouring values of a row, missing columns
//! being zero: a thread that computes some columns owns one contiguous piece.

use pulp::{Arch, Scalar, Simd, WithSimd};

/// Columns of a panel. Two 8-lane registers.
pub(crate) const PANEL: usize = 16;
/// Rows that are computed together at most.
pub(crate) const TILE: usize = 12;

/// Rows that are computed together. With registers of 8 lanes 6 x 2 sums, 2 weights and a broadcast input fit 16 of them; with
/// registers of 16 lanes, of which there are 32, twelve sums are under way.
#[inline(always)]
pub(crate) fn rows_at_once<S: Simd>() -> usize {
    if S::F32_LANES == PANEL { TILE } else { TILE / 2 }
}

/// Neighbouring values of one row.
pub(crate) type Lanes = [f32; PANEL];

/// Runs a kernel whose tiles are cut for registers of at most 8 lanes: with wider ones too few sums would be under way.
pub(crate) fn dispatch<Kernel: WithSimd>(kernel: Kernel) -> Kernel::Output {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return Simd::vectorize(simd, kernel);
    }
    Arch::new().dispatch(kernel)
}

/// What columns without weights are multiplied with.
const NO_LINES: &[Lanes; PANEL] = &[[0.0; PANEL]; PANEL];

/// The values of `row` in panel `panel`, zeros after its end.
#[inline(always)]
pub(crate) fn load(row: &[f32], panel: usize) -> Lanes {
    let rest = row.get(panel * PANEL..).unwrap_or_default();
    match rest.first_chunk::<PANEL>() {
        Some(lanes) => *lanes,
        None => {
            let mut lanes = [0.0; PANEL];
            lanes.iter_mut().zip(rest).for_each(|(lane, value)| *lane = *value);
            lanes
        }
    }
}

/// Writes lanes to panel `panel` of `row`, as far as it goes.
#[inline(always)]
pub(crate) fn store(row: &mut [f32], panel: usize, lanes: &Lanes) {
    let rest = row.get_mut(panel * PANEL..).unwrap_or_default();
    rest.iter_mut().zip(lanes).for_each(|(slot, value)| *slot = *value);
}

/// The left side of a product: rows `first..first + count` of a matrix in panels.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// All panels of the matrix, `rows` blocks each.
    pub(crate) panels: &'a [Lanes],
    /// Rows of the matrix.
    pub(crate) rows: usize,
    /// First row to multiply.
    pub(crate) first: usize,
    /// How many, up to [`TILE`].
    pub(crate) count: usize,
}

/// Adds the products of some rows and each of some panels of weights to the tiles.
///
/// A panel of weights has a line for each column of the left side, padded to whole panels. Each sum goes over the columns in
/// order, starting from what is in its tile: it depends on no other row. With registers as wide as a panel two panels are worked on
/// together, for which the left side is read once; narrower ones are full with one.
#[inline(always)]
pub(crate) fn multiply_add<S: Simd, const PANELS: usize>(
    simd: S,
    left: Rows<'_>,
    weights: [&[Lanes]; PANELS],
    tiles: &mut [[Lanes; TILE]; PANELS],
) {
    if S::F32_LANES == PANEL {
        by_count::<S, 1, PANELS>(simd, left, weights, tiles);
        return;
    }
    for (weights, tile) in weights.into_iter().zip(tiles) {
        let (weights, tile) = ([weights], std::array::from_mut(tile));
        // Registers wider than a panel would straddle two rows.
        if S::F32_LANES == 8 {
            by_count::<S, 2, 1>(simd, left, weights, tile);
        } else if S::F32_LANES == 4 {
            by_count::<S, 4, 1>(simd, left, weights, tile);
        } else {
            by_count::<Scalar, PANEL, 1>(Scalar::new(), left, weights, tile);
        }
    }
}

#[inline(always)]
fn by_count<S: Simd, const WIDTH: usize, const PANELS: usize>(
    simd: S,
    left: Rows<'_>,
    weights: [&[Lanes]; PANELS],
    tiles: &mut [[Lanes; TILE]; PANELS],
) {
    match left.count {
        12 => sums::<S, WIDTH, PANELS, 12>(simd, left, weights, tiles),
        11 => sums::<S, WIDTH, PANELS, 11>(simd, left, weights, tiles),
        10 => sums::<S, WIDTH, PANELS, 10>(simd, left, weights, tiles),
        9 => sums::<S, WIDTH, PANELS, 9>(simd, left, weights, tiles),
        8 => sums::<S, WIDTH, PANELS, 8>(simd, left, weights, tiles),
        7 => sums::<S, WIDTH, PANELS, 7>(simd, left, weights, tiles),
        6 => sums::<S, WIDTH, PANELS, 6>(simd, left, weights, tiles),
        5 => sums::<S, WIDTH, PANELS, 5>(simd, left, weights, tiles),
        4 => sums::<S, WIDTH, PANELS, 4>(simd, left, weights, tiles),
        3 => sums::<S, WIDTH, PANELS, 3>(simd, left, weights, tiles),
        2 => sums::<S, WIDTH, PANELS, 2>(simd, left, weights, tiles),
        1 => sums::<S, WIDTH, PANELS, 1>(simd, left, weights, tiles),
        _ => {}
    }
}

#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "loops over constants are unrolled; with iterators the sums go to the stack"
)]
fn sums<S: Simd, const WIDTH: usize, const PANELS: usize, const COUNT: usize>(
    simd: S,
    left: Rows<'_>,
    weights: [&[Lanes]; PANELS],
    tiles: &mut [[Lanes; TILE]; PANELS],
) {
    let mut sums = [[[simd.splat_f32s(0.0); WIDTH]; PANELS]; COUNT];
    for row in 0..COUNT {
        for panel in 0..PANELS {
            for column in 0..WIDTH {
                sums[row][panel][column] = S::as_simd_f32s(&tiles[panel][row]).0[column];
            }
        }
    }
    let blocks = left.panels.chunks_exact(left.rows.max(1));
    for (index, block) in blocks.enumerate() {
        let Some(block) = block.get(left.first..).and_then(|rows| rows.first_chunk::<COUNT>()) else {
            return;
        };
        let lines = weights.map(|weights| {
            weights.get(index * PANEL..).and_then(|lines| lines.first_chunk::<PANEL>()).unwrap_or(NO_LINES)
        });
        for k in 0..PANEL {
            let weights = lines.map(|lines| S::as_simd_f32s(&lines[k]).0);
            for row in 0..COUNT {
                let value = simd.splat_f32s(block[row][k]);
                for panel in 0..PANELS {
                    for column in 0..WIDTH {
                        sums[row][panel][column] =
                            simd.mul_add_e_f32s(value, weights[panel][column], sums[row][panel][column]);
                    }
                }
            }
        }
    }
    for row in 0..COUNT {
        for panel in 0..PANELS {
            for column in 0..WIDTH {
                S::as_mut_simd_f32s(&mut tiles[panel][row]).0[column] = sums[row][panel][column];
            }
        }
    }
}

/// `1 / (1 + exp(-x))` of each lane, to two units in the last place.
#[inline(always)]
pub(crate) fn sigmoid(x: &Lanes) -> Lanes {
    x.map(|x| 1.0 / (2.0 + exponential_minus_one((-x).clamp(-87.0, 87.0))))
}

/// The hyperbolic tangent of each lane, to four units in the last place, near zero as well.
#[inline(always)]
pub(crate) fn tanh(x: &Lanes) -> Lanes {
    x.map(|x| {
        // From 20 on the result rounds to one.
        let y = exponential_minus_one((2.0 * x).clamp(-40.0, 40.0));
        y / (y + 2.0)
    })
}

/// `exp(x) - 1` for `|x| < 88`; NaN stays NaN.
///
/// With `x = n ln 2 + r`, `|r| <= ln 2 / 2`: `2^n (exp(r) - 1) + (2^n - 1)`. No branch and no table, so that it vectorises.
#[inline(always)]
pub(crate) fn exponential_minus_one(x: f32) -> f32 {
    // ln 2 in two parts, the first with few enough digits that n times it is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    // 1.5 * 2^23: adding it rounds to an integer and leaves that in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * HIGH) - n * LOW;
    // 1/2! .. 1/8!: what is left out is below 2^-27 of r.
    let tail = 1.0 / 5040.0 + r * (1.0 / 40320.0);
    let tail = 1.0 / 120.0 + r * (1.0 / 720.0 + r * tail);
    let tail = 0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * tail));
    let small = r + r * r * tail;
    let power = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    power * small + (power - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_are_those_of_the_standard_library() {
        for index in -400_000..=400_000 {
            let x = index as f32 * 2.5e-4 + 1e-7;
            let exact = f64::from(x);
            let [got, ..] = tanh(&[x; PANEL]);
            let expected = exact.tanh();
            assert!(
                (f64::from(got) - expected).abs() <= 5e-7 * expected.abs(),
                "tanh({x}): {got} {expected}"
            );
            let [got, ..] = sigmoid(&[x; PANEL]);
            let expected = 1.0 / (1.0 + (-exact).exp());
            // Below -87 the value is that of -87, 1e-38.
            assert!(
                (f64::from(got) - expected).abs() <= 3e-7 * expected + 2e-38,
                "sigmoid({x}): {got} {expected}"
            );
        }
        for x in [f32::INFINITY, f32::MAX, f32::NEG_INFINITY, f32::MIN, 0.0] {
            assert_eq!(tanh(&[x; PANEL]), [x.tanh(); PANEL]);
            assert!((sigmoid(&[x; PANEL])[0] - 1.0 / (1.0 + (-x).exp())).abs() < 1e-30);
        }
        assert!(tanh(&[f32::NAN; PANEL])[0].is_nan() && sigmoid(&[f32::NAN; PANEL])[0].is_nan());
    }

    #[test]
    fn rows_come_and_go_through_panels() {
        let row: Vec<f32> = (0..37).map(|value| value as f32).collect();
        let mut back = vec![-1.0; 37];
        for panel in 0..3 {
            store(&mut back, panel, &load(&row, panel));
        }
        assert_eq!(row, back);
        assert_eq!(load(&row, 2)[5..], [0.0; 11]);
        assert_eq!(load(&row, 3), [0.0; PANEL]);
    }
}
