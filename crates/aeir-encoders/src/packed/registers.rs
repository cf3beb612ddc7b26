//! Vector registers: those of pulp, and the 16 lanes of AVX-512.
//!
//! pulp has AVX-512 behind a feature that all its users in a build share; the kernel asks for it here, whatever others chose.

use pulp::Simd;

use crate::lanes::{Lanes, PANEL};

/// What the kernel needs of a register.
pub(super) trait Registers: Copy {
    type Register: Copy;
    const LANES: usize;

    fn splat(self, value: f32) -> Self::Register;
    /// Part `index` of a line.
    fn part(self, line: &Lanes, index: usize) -> Self::Register;
    /// Up to [`Registers::LANES`] values; the rest is zero.
    fn load(self, values: &[f32]) -> Self::Register;
    /// Writes the first lanes.
    fn store(self, out: &mut [f32], value: Self::Register);
    /// `a b + c`.
    fn multiply_add(self, a: Self::Register, b: Self::Register, c: Self::Register) -> Self::Register;
    fn add(self, a: Self::Register, b: Self::Register) -> Self::Register;
    fn minimum(self, a: Self::Register, b: Self::Register) -> Self::Register;
    fn maximum(self, a: Self::Register, b: Self::Register) -> Self::Register;
}

impl<S: Simd> Registers for S {
    type Register = S::f32s;
    const LANES: usize = S::F32_LANES;

    #[inline(always)]
    fn splat(self, value: f32) -> S::f32s {
        self.splat_f32s(value)
    }

    #[inline(always)]
    fn part(self, line: &Lanes, index: usize) -> S::f32s {
        S::as_simd_f32s(line).0[index]
    }

    #[inline(always)]
    fn load(self, values: &[f32]) -> S::f32s {
        match S::as_simd_f32s(values).0.first() {
            Some(full) => *full,
            None => self.partial_load_f32s(values),
        }
    }

    #[inline(always)]
    fn store(self, out: &mut [f32], value: S::f32s) {
        if let Some(full) = S::as_mut_simd_f32s(out).0.first_mut() {
            *full = value;
        } else {
            self.partial_store_f32s(out, value);
        }
    }

    #[inline(always)]
    fn multiply_add(self, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        self.mul_add_e_f32s(a, b, c)
    }

    #[inline(always)]
    fn add(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.add_f32s(a, b)
    }

    #[inline(always)]
    fn minimum(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.min_f32s(a, b)
    }

    #[inline(always)]
    fn maximum(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.max_f32s(a, b)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use self::wide::{compute_wide, has_wide};

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn has_wide() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn compute_wide(_band: super::Band<'_>) {}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
        _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_set1_ps,
    };

    use super::{Lanes, PANEL, Registers};
    use crate::packed::Band;

    /// Exists only where AVX-512 was found.
    #[derive(Clone, Copy)]
    struct Wide(());

    /// Whether this machine has AVX-512.
    pub(in crate::packed) fn has_wide() -> bool {
        std::arch::is_x86_feature_detected!("avx512f")
    }

    /// Computes a band with registers of 16 lanes. Only where [`has_wide`]; elsewhere nothing is computed.
    pub(in crate::packed) fn compute_wide(band: Band<'_>) {
        if has_wide() {
            // SAFETY: the machine has AVX-512, as was just asked.
            unsafe { compute(band) }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn compute(band: Band<'_>) {
        // 12 x 2 sums, 2 weights and a broadcast input fit 32 registers.
        band.run::<Wide, 2, 2, 1, 12>(Wide(()));
    }

    /// A bit for each of the first lanes.
    #[inline(always)]
    fn mask(count: usize) -> u16 {
        ((1u32 << count.min(PANEL)) - 1) as u16
    }

    // SAFETY of all that follows: a `Wide` is made in `compute` alone, which runs where there is AVX-512.
    impl Registers for Wide {
        type Register = __m512;
        const LANES: usize = PANEL;

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        fn part(self, line: &Lanes, _index: usize) -> __m512 {
            // SAFETY: as said above; a line has 16 values.
            unsafe { _mm512_loadu_ps(line.as_ptr()) }
        }

        #[inline(always)]
        fn load(self, values: &[f32]) -> __m512 {
            // SAFETY: as said above; no more lanes are read than there are values.
            unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, out: &mut [f32], value: __m512) {
            // SAFETY: as said above; no more lanes are written than there is room for.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask(out.len()), value) }
        }

        #[inline(always)]
        fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn minimum(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_min_ps(a, b) }
        }

        #[inline(always)]
        fn maximum(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_max_ps(a, b) }
        }
    }
}
