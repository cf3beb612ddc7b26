//! Convolutions over pictures.

use candle_core::Tensor;

use super::linear::checked;
use crate::error::{EncoderError, Result};

/// Convolution of pictures, channels first.
///
/// # Shapes
/// `x [B, C, H, W]`, `weight [O, C / groups, k, k]`, `bias [O]` to `[B, O, h, w]`, with `padding` zeros on each side.
///
/// # Errors
/// [`EncoderError::Shape`] when `bias` does not fit, [`EncoderError::Tensor`] from candle.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (stride, padding, groups): (usize, usize, usize),
) -> Result<Tensor> {
    let outputs = weight.dim(0)?;
    let y = x.conv2d(weight, padding, stride, 1, groups)?;
    match bias {
        Some(bias) => {
            checked("convolution bias", bias, &[outputs])?;
            Ok(y.broadcast_add(&bias.reshape((1, outputs, 1, 1))?)?)
        }
        None => Ok(y),
    }
}

/// Depthwise convolution of pictures, channels last: each channel has a filter of its own. Stride 1; the size stays.
///
/// # Shapes
/// `x [B, H, W, C]`, `weight [C, 1, k, k]` with an odd k, `bias [C]` to `[B, H, W, C]`. Beyond its border a picture is zero.
///
/// # Errors
/// [`EncoderError::Shape`] when the sizes do not fit, [`EncoderError::Tensor`] from candle.
pub fn depthwise(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let &[_, _, _, channels] = x.dims() else {
        return Err(EncoderError::Shape {
            what: "depthwise input",
            expected: "[batch, height, width, channels]".to_owned(),
            got: x.dims().to_vec(),
        });
    };
    let kernel = weight.dim(candle_core::D::Minus1)?;
    if kernel % 2 == 0 {
        return Err(EncoderError::Shape {
            what: "depthwise weight",
            expected: format!("[{channels}, 1, k, k], k odd"),
            got: weight.dims().to_vec(),
        });
    }
    checked("depthwise weight", weight, &[channels, 1, kernel, kernel])?;
    bias.map(|bias| checked("depthwise bias", bias, &[channels])).transpose()?;
    composed(x, weight, bias)
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (channels, kernel) = (weight.dim(0)?, weight.dim(2)?);
    let x = x.permute((0, 3, 1, 2))?.contiguous()?;
    let y = conv2d(&x, weight, bias, (1, kernel / 2, channels))?;
    Ok(y.permute((0, 2, 3, 1))?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{assert_gradients, flat, noise};

    #[test]
    fn depthwise_equals_the_plain_loop() {
        for (batch, height, width, channels, kernel) in
            [(2, 5, 6, 3, 3), (1, 9, 8, 37, 7), (2, 1, 1, 16, 7), (1, 3, 20, 8, 5)]
        {
            let x = noise(1, &[batch, height, width, channels]);
            let (weight, bias) = (noise(2, &[channels, 1, kernel, kernel]), noise(3, &[channels]));
            let y = depthwise(&x, &weight, Some(&bias)).unwrap();
            assert_eq!(y.dims(), x.dims());
            let (x, weight, bias) = (flat(&x), flat(&weight), flat(&bias));
            for (index, got) in flat(&y).iter().enumerate() {
                let (channel, pixel) = (index % channels, index / channels);
                let (column, row, item) = (pixel % width, pixel / width % height, pixel / width / height);
                let mut sum = bias[channel];
                for (tap, weight) in weight[channel * kernel * kernel..][..kernel * kernel].iter().enumerate()
                {
                    let row = (row + tap / kernel).wrapping_sub(kernel / 2);
                    let column = (column + tap % kernel).wrapping_sub(kernel / 2);
                    if row < height && column < width {
                        sum += weight * x[((item * height + row) * width + column) * channels + channel];
                    }
                }
                assert!((got - sum).abs() < 1e-12, "{got} {sum}");
            }
        }
    }

    #[test]
    fn gradients_by_finite_differences() {
        let inputs = [noise(1, &[2, 4, 5, 4]), noise(2, &[4, 1, 3, 3]), noise(3, &[4])];
        assert_gradients("depthwise", &inputs, |inputs| depthwise(&inputs[0], &inputs[1], Some(&inputs[2])));
        let inputs = [noise(1, &[2, 4, 5, 5]), noise(2, &[6, 2, 3, 3]), noise(3, &[6])];
        assert_gradients("convolution", &inputs, |inputs| {
            conv2d(&inputs[0], &inputs[1], Some(&inputs[2]), (2, 1, 2))
        });
    }

    #[test]
    fn sizes_that_do_not_fit_are_told() {
        let x = noise(1, &[1, 4, 4, 3]);
        let error = depthwise(&x, &noise(2, &[3, 1, 4, 4]), None).unwrap_err();
        assert_eq!(error.to_string(), "depthwise weight: expected [3, 1, k, k], k odd, got [3, 1, 4, 4]");
        assert!(depthwise(&x, &noise(2, &[2, 1, 3, 3]), None).is_err());
        assert!(depthwise(&x, &noise(2, &[3, 1, 3, 3]), Some(&noise(2, &[2]))).is_err());
    }
}
