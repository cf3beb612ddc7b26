//! Asking for memory before it is needed: where it is far away, its way takes longer than the work on it.

/// Starts to fetch what a slice holds, while the machine goes on with something else.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn ask_for<T>(values: &[T]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let start = values.as_ptr().cast::<i8>();
    for offset in (0..size_of_val(values)).step_by(64) {
        // SAFETY: a hint, of an address inside the slice; it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(offset)) };
    }
}

/// Elsewhere memory comes when it is needed.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn ask_for<T>(_values: &[T]) {}
