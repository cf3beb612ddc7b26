//! Computing on the CPU as a GPU would, to find on any machine what a GPU would refuse.
//!
//! On the CPU the hot operations are fused and candle multiplies matrices of any layout. Other devices get the same operations
//! composed of candle's own, but where an NVIDIA card has a kernel of ours, and their matrix products refuse some layouts. A rehearsal takes
//! the composed way on the CPU.

use std::cell::Cell;

use candle_core::{DType, Layout, Result, Tensor};

/// Looks at the operands of a matrix product before it is computed; an error ends the computation.
pub type Inspect = fn(&Layout, &Layout) -> Result<()>;

thread_local! {
    static INSPECT: Cell<Option<Inspect>> = const { Cell::new(None) };
}

/// Runs `work` with all operations of this crate composed of candle's own, and each of its matrix products shown to `inspect`.
///
/// It holds for this thread; a thread that `work` starts has to be told ([`current`]). Without an `inspect`, `work` runs as ever.
pub fn rehearse<T>(inspect: Option<Inspect>, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Inspect>);
    impl Drop for Restore {
        fn drop(&mut self) {
            INSPECT.set(self.0);
        }
    }
    let _restore = Restore(INSPECT.replace(inspect));
    work()
}

/// What looks at the products of this thread, where it rehearses.
#[must_use]
pub fn current() -> Option<Inspect> {
    INSPECT.get()
}

/// Whether the fused operations take these: f32 on the CPU, and no rehearsal.
pub(crate) fn is_fused(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32)
        && INSPECT.get().is_none()
}

/// Whether the values of `x` are at hand: on the CPU, where no other device is rehearsed, which would have to be waited for.
pub(crate) fn is_at_hand(x: &Tensor) -> bool {
    x.device().is_cpu() && INSPECT.get().is_none()
}

/// Matrix products that a rehearsal sees. Our crates make matrix products by nothing else; what candle's convolutions multiply inside
/// is not seen.
pub trait Product {
    /// The matrix product, as [`Tensor::matmul`].
    ///
    /// # Errors
    /// When the shapes don't fit, or in a rehearsal where a GPU would not take the layouts.
    fn product(&self, other: &Tensor) -> Result<Tensor>;
}

impl Product for Tensor {
    fn product(&self, other: &Tensor) -> Result<Tensor> {
        if let Some(inspect) = INSPECT.get() {
            inspect(self.layout(), other.layout())?;
        }
        self.matmul(other)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, bail};

    use super::*;

    #[test]
    fn a_rehearsal_sees_products_and_ends() {
        let x = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
        let refuse: Inspect = |_, _| bail!("seen");
        assert!(is_fused(&[&x]));
        rehearse(Some(refuse), || {
            assert!(!is_fused(&[&x]));
            assert!(x.product(&x).unwrap_err().to_string().contains("seen"));
            rehearse(None, || assert!(is_fused(&[&x])));
            assert!(current().is_some());
        });
        assert!(is_fused(&[&x]) && x.product(&x).is_ok());
    }
}
