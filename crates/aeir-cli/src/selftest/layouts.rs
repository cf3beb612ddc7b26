//! Which layouts the matrix products of GPUs take.

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Layout, bail};

/// Products so far, on all threads.
static LOOKED_AT: AtomicUsize = AtomicUsize::new(0);

/// How many products this process has looked at.
pub(crate) fn looked_at() -> usize {
    LOOKED_AT.load(Ordering::Relaxed)
}

/// Refuses what candle 0.11 refuses on CUDA and Metal: each operand has to be row-major, or the transpose of a row-major matrix,
/// without gaps between its rows, and the matrices of a batch have to lie at equal distances.
///
/// Products in a backward pass need no look of their own: gradients are without gaps, and an operand that was taken is also taken
/// transposed.
pub(crate) fn taken_by_gpus(left: &Layout, right: &Layout) -> candle_core::Result<()> {
    LOOKED_AT.fetch_add(1, Ordering::Relaxed);
    if is_taken(left) && is_taken(right) {
        return Ok(());
    }
    bail!(
        "a GPU does not multiply these layouts: {:?} with strides {:?} by {:?} with strides {:?}; `.contiguous()` is missing",
        left.dims(),
        left.stride(),
        right.dims(),
        right.stride()
    )
}

fn is_taken(layout: &Layout) -> bool {
    let (&[ref batch @ .., rows, columns], &[ref batch_strides @ .., down, along]) =
        (layout.dims(), layout.stride())
    else {
        return false;
    };
    let plain = (along == 1 || columns == 1) && (down == columns || rows == 1);
    let turned = (along == rows || columns == 1) && (down == 1 || rows == 1);
    let even = match (batch, batch_strides) {
        ([], _) | ([_], _) => true,
        (&[outer, inner], &[outer_stride, inner_stride]) => {
            outer == 1 || inner == 1 || outer_stride == inner_stride * inner
        }
        _ => false,
    };
    (plain || turned) && even
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    fn zeros(shape: &[usize]) -> Tensor {
        Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn rows_and_their_transposes_are_taken() {
        for x in [zeros(&[3, 4]), zeros(&[4, 3]).t().unwrap(), zeros(&[2, 5, 3, 4])] {
            assert!(is_taken(x.layout()), "{:?}", x.layout());
        }
        // Rows of one batch for all: a stride of zero.
        assert!(is_taken(zeros(&[1, 3, 4]).broadcast_as((6, 3, 4)).unwrap().layout()));
        // One row has no distance to the next.
        assert!(is_taken(zeros(&[3, 8]).narrow(1, 0, 4).unwrap().narrow(0, 1, 1).unwrap().layout()));
    }

    #[test]
    fn gaps_and_mixed_axes_are_refused() {
        let gaps = zeros(&[3, 8]).narrow(1, 0, 4).unwrap();
        let mixed = zeros(&[2, 3, 5, 4]).transpose(1, 2).unwrap();
        let heads = zeros(&[2, 3, 4, 5]).transpose(0, 1).unwrap();
        for x in [&gaps, &mixed, &heads, &zeros(&[2, 2, 2, 3, 4])] {
            assert!(!is_taken(x.layout()), "{:?}", x.layout());
            let error = taken_by_gpus(x.layout(), x.layout()).unwrap_err().to_string();
            assert!(error.contains("contiguous"), "{error}");
        }
        // Their copies are taken, and so would the CPU take them as they are.
        assert!(is_taken(gaps.contiguous().unwrap().layout()));
        assert!(gaps.matmul(&zeros(&[4, 2])).is_ok());
    }
}
