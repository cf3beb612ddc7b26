//! Convolution over channels-last pictures as one graph node: matrix products over patches, on all threads.
//!
//! candle's own convolution runs its backward pass several times slower and has no activation or residual inside.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::depthwise::Plane;
use crate::ops::Activation;
use crate::packed::{After, Packed};
use crate::product::{Matrix, column_sums, held_values, multiply, values};
use crate::rehearsal::is_fused;

/// Values of the patches of a band: they stay in the second-level cache.
const BAND_VALUES: usize = 128 * 1024;
/// Values of the patches that a backward pass holds at a time: 64 MB.
const PATCH_VALUES: usize = 1 << 24;

/// A square filter that slides over a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sliding {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Zeros on every side.
    pub(crate) padding: usize,
}

impl Sliding {
    /// Size of the result, `None` if the filter is larger than the padded picture.
    pub(crate) fn output(self, plane: Plane) -> Option<Plane> {
        let side = |side: usize| {
            let room = (side + 2 * self.padding).checked_sub(self.kernel)?;
            (self.stride > 0).then(|| room / self.stride + 1)
        };
        Some(Plane { height: side(plane.height)?, width: side(plane.width)? })
    }

    /// Whether a patch is just a pixel.
    fn is_pointwise(self) -> bool {
        self == Self { kernel: 1, stride: 1, padding: 0 }
    }
}

/// A convolution layer, `weight [O, I, kernel, kernel]`, `bias [O]`.
///
/// Takes and gives channels-last pictures, `[B, H, W, I]` to `[B, H', W', O]`. In f32 on the CPU each output is one sum in a fixed
/// order, whatever else is in the batch. Weights outside of any graph are packed once.
#[derive(Debug, Clone)]
pub(crate) struct Convolution {
    weight: Tensor,
    bias: Tensor,
    sliding: Sliding,
    activation: Option<Activation>,
    packed: Option<Arc<Packed>>,
}

impl Convolution {
    pub(crate) fn new(
        weight: Tensor,
        bias: Option<Tensor>,
        stride: usize,
        padding: usize,
        activation: Option<Activation>,
    ) -> Result<Self> {
        let (outputs, inputs, kernel, width) = weight.dims4()?;
        if kernel != width || kernel == 0 || stride == 0 || inputs == 0 || outputs == 0 {
            bail!("convolution: filters {:?} with stride {stride}", weight.shape());
        }
        let bias = match bias {
            Some(bias) => bias,
            None => Tensor::zeros(outputs, weight.dtype(), weight.device())?,
        };
        let frozen = !weight.track_op() && !bias.track_op();
        let packed = if frozen && is_fused(&[&weight]) {
            let (weight, bias) = (weight.flatten_all()?.to_vec1::<f32>()?, bias.to_vec1::<f32>()?);
            let filters = channels_last(&weight, inputs, kernel);
            Some(Arc::new(Packed::new(&filters, Some(&bias), filters.len() / outputs)))
        } else {
            None
        };
        Ok(Self { weight, bias, sliding: Sliding { kernel, stride, padding }, activation, packed })
    }

    /// `activation(convolution + residual)`.
    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> crate::error::Result<Tensor> {
        let tracked = x.track_op() || residual.is_some_and(Tensor::track_op);
        if let Some(layer) = &self.packed
            && !tracked
            && is_fused(&[x])
        {
            let frozen = Frozen { layer: layer.clone(), sliding: self.sliding, activation: self.activation };
            return Ok(match residual {
                Some(residual) => x.contiguous()?.apply_op2_no_bwd(&residual.contiguous()?, &frozen)?,
                None => x.contiguous()?.apply_op1_no_bwd(&frozen)?,
            });
        }
        let y = convolve(x, &self.weight, &self.bias, self.sliding)?;
        if let (Some(residual), Some(Activation::Relu)) = (residual, self.activation) {
            return Ok(add_relu(&y, residual)?);
        }
        let y = match residual {
            Some(residual) => (y + residual)?,
            None => y,
        };
        match self.activation {
            Some(activation) => activation.apply(&y),
            None => Ok(y),
        }
    }
}

/// Convolution with gradients for all three arguments.
///
/// `x [B, H, W, I]`, `weight [O, I, kernel, kernel]`, `bias [O]`, to `[B, H', W', O]`.
fn convolve(x: &Tensor, weight: &Tensor, bias: &Tensor, sliding: Sliding) -> Result<Tensor> {
    if is_fused(&[x]) {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Convolve(sliding));
    }
    let x = x.permute((0, 3, 1, 2))?.contiguous()?;
    let y = x.conv2d(weight, sliding.padding, sliding.stride, 1, 1)?;
    y.permute((0, 2, 3, 1))?.contiguous()?.broadcast_add(bias)
}

/// `max(a + b, 0)`; where the sum is zero no gradient passes, as in PyTorch.
fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if is_fused(&[a]) {
        return a.contiguous()?.apply_op2(&b.contiguous()?, AddRelu);
    }
    (a + b)?.relu()
}

/// Batch, plane and channels of a channels-last tensor.
pub(crate) fn picture(shape: &Shape) -> Result<(usize, Plane, usize)> {
    let (batch, height, width, channels) = shape.dims4()?;
    Ok((batch, Plane { height, width }, channels))
}

/// `[O, I, k, k]` to `[O, k, k, I]`, flat: the order of a channels-last patch.
fn channels_last(weight: &[f32], inputs: usize, kernel: usize) -> Vec<f32> {
    reorder(weight, inputs, kernel * kernel)
}

/// `[O, k, k, I]` to `[O, I, k, k]`, flat.
fn channels_first(weight: &[f32], inputs: usize, kernel: usize) -> Vec<f32> {
    reorder(weight, kernel * kernel, inputs)
}

/// Transposes each `[rows, columns]` block.
fn reorder(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut output = Vec::with_capacity(values.len());
    for block in values.chunks_exact((rows * columns).max(1)) {
        output.extend((0..columns).flat_map(|column| block.iter().skip(column).step_by(columns).copied()));
    }
    output
}

/// Where patches of one picture come from.
#[derive(Clone, Copy)]
struct Patches {
    sliding: Sliding,
    plane: Plane,
    output: Plane,
    channels: usize,
}

impl Patches {
    fn new(sliding: Sliding, plane: Plane, channels: usize) -> Result<Self> {
        match sliding.output(plane) {
            Some(output) => Ok(Self { sliding, plane, output, channels }),
            None => bail!("convolution: {sliding:?} does not fit into {plane:?}"),
        }
    }

    /// Values of one patch.
    fn length(&self) -> usize {
        self.sliding.kernel * self.sliding.kernel * self.channels
    }

    /// The runs of neighbouring values that the patch at `position` shares with the picture: offset in the patch, offset in
    /// the picture, length.
    fn runs(&self, position: usize) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let Self { sliding: Sliding { kernel, stride, padding }, plane, output, channels } = *self;
        let (top, left) = (position / output.width * stride, position % output.width * stride);
        let before = padding.saturating_sub(left).min(kernel);
        let from = (left + before).saturating_sub(padding);
        let count = (kernel - before).min(plane.width.saturating_sub(from));
        (0..kernel).filter_map(move |row| {
            let y = (top + row).checked_sub(padding).filter(|y| *y < plane.height)?;
            let length = count * channels;
            Some(((row * kernel + before) * channels, (y * plane.width + from) * channels, length))
        })
    }

    /// Copies the patches from `first` on into `output`, as many as it holds.
    fn gather(&self, picture: &[f32], first: usize, output: &mut [f32]) {
        if self.sliding.padding > 0 {
            output.fill(0.0);
        }
        for (index, patch) in output.chunks_exact_mut(self.length()).enumerate() {
            for (to, from, length) in self.runs(first + index) {
                let pair = patch.get_mut(to..to + length).zip(picture.get(from..from + length));
                if let Some((patch, values)) = pair {
                    patch.copy_from_slice(values);
                }
            }
        }
    }

    /// Adds patches back to where they came from.
    fn scatter(&self, patches: &[f32], picture: &mut [f32]) {
        for (position, patch) in patches.chunks_exact(self.length()).enumerate() {
            for (from, to, length) in self.runs(position) {
                let pair = picture.get_mut(to..to + length).zip(patch.get(from..from + length));
                if let Some((picture, values)) = pair {
                    picture.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
            }
        }
    }
}

/// The forward pass over a batch, in bands of positions whose patches stay in the cache.
fn run(
    layer: &Packed,
    sliding: Sliding,
    (x, shape): (&[f32], &Shape),
    after: After<'_>,
) -> Result<(CpuStorage, Shape)> {
    let (batch, plane, channels) = picture(shape)?;
    let patches = Patches::new(sliding, plane, channels)?;
    if patches.length() != layer.inputs() {
        bail!("convolution: expected patches of {} values, got {}", layer.inputs(), patches.length());
    }
    let (positions, outputs) = (patches.output.pixels(), layer.outputs());
    let shape = Shape::from((batch, patches.output.height, patches.output.width, outputs));
    let mut out = vec![0f32; shape.elem_count()];
    if after.residual.is_some_and(|residual| residual.len() != out.len()) {
        bail!("convolution: expected a residual of {} values", out.len());
    }
    if sliding.is_pointwise() {
        layer.forward(x, after, &mut out, true);
        return Ok((CpuStorage::F32(out), shape));
    }
    let band = (BAND_VALUES / patches.length()).max(1);
    let bands = positions.div_ceil(band);
    let tasks: Vec<(usize, &mut [f32])> = out
        .chunks_exact_mut((positions * outputs).max(1))
        .flat_map(|picture| picture.chunks_mut(band * outputs))
        .enumerate()
        .collect();
    tasks.into_par_iter().for_each_init(Vec::new, |buffer, (index, output)| {
        let (image, first) = (index / bands, index % bands * band);
        let picture = x.get(image * plane.pixels() * channels..).unwrap_or_default();
        buffer.resize(output.len() / outputs * patches.length(), 0.0);
        patches.gather(picture, first, buffer);
        let start = (image * positions + first) * outputs;
        let residual = after.residual.and_then(|residual| residual.get(start..start + output.len()));
        layer.forward(buffer, After { residual, ..after }, output, false);
    });
    Ok((CpuStorage::F32(out), shape))
}

/// A layer whose weights are packed: no gradient.
struct Frozen {
    layer: Arc<Packed>,
    sliding: Sliding,
    activation: Option<Activation>,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen convolution"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let after = After { residual: None, activation: self.activation };
        run(&self.layer, self.sliding, (values(x, layout)?, layout.shape()), after)
    }
}

impl CustomOp2 for Frozen {
    fn name(&self) -> &'static str {
        "frozen convolution with residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let after = After { residual: Some(values(residual, residual_layout)?), activation: self.activation };
        run(&self.layer, self.sliding, (values(x, layout)?, layout.shape()), after)
    }
}

struct Convolve(Sliding);

impl CustomOp3 for Convolve {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (outputs, inputs, kernel, width) = weight_layout.shape().dims4()?;
        if kernel != self.0.kernel || width != kernel || bias_layout.shape().dims() != [outputs] {
            bail!("convolution: {:?} and {:?}", weight_layout.shape(), bias_layout.shape());
        }
        let filters = channels_last(values(weight, weight_layout)?, inputs, kernel);
        let bias = values(bias, bias_layout)?;
        let layer = Packed::new(&filters, Some(bias), inputs * kernel * kernel);
        run(&layer, self.0, (values(x, x_layout)?, x_layout.shape()), After::default())
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (batch, plane, channels) = picture(x.shape())?;
        let patches = Patches::new(self.0, plane, channels)?;
        let (outputs, inputs, kernel, _) = weight.dims4()?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (weight_storage, weight_layout) = weight.storage_and_layout();
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let pictures = held_values(&x_storage, x_layout)?;
        let filters = channels_last(held_values(&weight_storage, weight_layout)?, inputs, kernel);
        let gradients = held_values(&gradient_storage, gradient_layout)?;
        let mut sums = Sums {
            patches,
            outputs,
            x: x.track_op().then(|| vec![0f32; pictures.len()]),
            weight: weight.track_op().then(|| vec![0f32; filters.len()]),
        };
        let positions = patches.output.pixels();
        let images = (PATCH_VALUES / (positions * patches.length()).max(1)).max(1);
        for first in (0..batch).step_by(images) {
            sums.add(pictures, &filters, gradients, first..batch.min(first + images))?;
        }
        let tensor = |values: Vec<f32>, shape: &Shape| Tensor::from_vec(values, shape.clone(), x.device());
        let weight_gradient = sums.weight.map(|sums| channels_first(&sums, inputs, kernel));
        Ok((
            sums.x.map(|values| tensor(values, x.shape())).transpose()?,
            weight_gradient.map(|values| tensor(values, weight.shape())).transpose()?,
            bias.track_op().then(|| tensor(column_sums(gradients, outputs), bias.shape())).transpose()?,
        ))
    }
}

/// The gradients of a batch, summed up a few images at a time.
struct Sums {
    patches: Patches,
    outputs: usize,
    x: Option<Vec<f32>>,
    /// `[O, k, k, I]`.
    weight: Option<Vec<f32>>,
}

impl Sums {
    fn add(
        &mut self,
        pictures: &[f32],
        filters: &[f32],
        gradients: &[f32],
        images: std::ops::Range<usize>,
    ) -> Result<()> {
        let Self { patches, outputs, x, weight } = self;
        let (positions, length) = (patches.output.pixels(), patches.length());
        let pixels = patches.plane.pixels() * patches.channels;
        let rows = images.len() * positions;
        let start = images.start * positions * *outputs;
        let gradients = gradients.get(start..start + rows * *outputs).unwrap_or_default();
        let gradients = Matrix::new(gradients, rows, *outputs)?;
        let mut buffer = vec![0f32; rows * length];
        if let Some(sums) = weight {
            let pictures = pictures.get(images.start * pixels..).unwrap_or_default();
            let by_image = buffer.par_chunks_mut((positions * length).max(1));
            by_image
                .zip(pictures.par_chunks(pixels.max(1)))
                .for_each(|(buffer, picture)| patches.gather(picture, 0, buffer));
            let mut product = vec![0f32; sums.len()];
            multiply(gradients.transposed(), Matrix::new(&buffer, rows, length)?, &mut product)?;
            sums.iter_mut().zip(product).for_each(|(sum, value)| *sum += value);
        }
        if let Some(sums) = x {
            multiply(gradients, Matrix::new(filters, *outputs, length)?, &mut buffer)?;
            let sums = sums.get_mut(images.start * pixels..images.end * pixels).unwrap_or_default();
            sums.par_chunks_mut(pixels.max(1))
                .zip(buffer.par_chunks((positions * length).max(1)))
                .for_each(|(picture, buffer)| patches.scatter(buffer, picture));
        }
        Ok(())
    }
}

struct AddRelu;

/// Values that one task of an element-wise operation takes.
const ELEMENTS: usize = 1 << 14;

impl CustomOp2 for AddRelu {
    fn name(&self) -> &'static str {
        "sum and relu"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (values(a, a_layout)?, values(b, b_layout)?);
        if a.len() != b.len() {
            bail!("sum and relu: {:?} and {:?}", a_layout.shape(), b_layout.shape());
        }
        let mut out = vec![0f32; a.len()];
        let tasks = out.par_chunks_mut(ELEMENTS).zip(a.par_chunks(ELEMENTS).zip(b.par_chunks(ELEMENTS)));
        tasks.for_each(|(out, (a, b))| {
            out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = (a + b).max(0.0));
        });
        Ok((CpuStorage::F32(out), a_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _a: &Tensor,
        _b: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let open = result.gt(0f32)?.to_dtype(gradient.dtype())?;
        let gradient = (gradient * open)?;
        Ok((Some(gradient.clone()), Some(gradient)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::ops::Gelu;

    fn noise(seed: usize, shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> =
            (0..count).map(|index| ((index + 31 * seed) * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn flat(x: &Tensor) -> Vec<f64> {
        x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    fn assert_close(name: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
        assert_eq!(got.dims(), expected.dims(), "{name}");
        for (index, (got, expected)) in flat(got).iter().zip(flat(expected)).enumerate() {
            assert!((got - expected).abs() < tolerance, "{name}, {index}: {got} {expected}");
        }
    }

    /// Batch, height, width, inputs, outputs, and the filter.
    const CASES: [([usize; 5], Sliding); 7] = [
        ([2, 9, 7, 3, 5], Sliding { kernel: 3, stride: 1, padding: 1 }),
        ([1, 12, 12, 4, 17], Sliding { kernel: 3, stride: 2, padding: 1 }),
        ([2, 15, 15, 3, 8], Sliding { kernel: 7, stride: 2, padding: 3 }),
        ([3, 6, 6, 5, 4], Sliding { kernel: 1, stride: 1, padding: 0 }),
        ([1, 7, 7, 6, 9], Sliding { kernel: 1, stride: 2, padding: 0 }),
        ([2, 13, 13, 3, 16], Sliding { kernel: 4, stride: 4, padding: 0 }),
        ([1, 2, 2, 3, 2], Sliding { kernel: 7, stride: 1, padding: 3 }),
    ];

    /// Loss and gradients of `sum c y`.
    fn gradients(inputs: [&Tensor; 3], sliding: Sliding) -> (Tensor, Vec<Tensor>) {
        let variables = inputs.map(|input| Var::from_tensor(input).unwrap());
        let [x, weight, bias] = &variables;
        let y = convolve(x, weight, bias, sliding).unwrap();
        let coefficients = noise(17, y.dims()).to_dtype(y.dtype()).unwrap();
        let gradients = (&y * coefficients).unwrap().sum_all().unwrap().backward().unwrap();
        (y, variables.iter().map(|variable| gradients.get(variable).unwrap().clone()).collect())
    }

    #[test]
    fn equals_candles_convolution_forward_and_backward() {
        for ([batch, height, width, inputs, outputs], sliding) in CASES {
            let name = format!("{height}x{width}x{inputs} {sliding:?}");
            let x = noise(1, &[batch, height, width, inputs]);
            let weight = noise(2, &[outputs, inputs, sliding.kernel, sliding.kernel]);
            let bias = noise(3, &[outputs]);
            let double = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
            let (y, got) = gradients([&x, &weight, &bias], sliding);
            // In f64 it is composed of candle's operations.
            let (expected, exact) = gradients([&double(&x), &double(&weight), &double(&bias)], sliding);
            assert_close(&name, &y, &expected, 1e-4);
            for (got, exact) in got.iter().zip(exact) {
                assert_close(&name, got, &exact, 1e-3);
            }
        }
    }

    #[test]
    fn packed_layers_equal_trained_ones() {
        for ([batch, height, width, inputs, outputs], sliding) in CASES {
            let Sliding { kernel, stride, padding } = sliding;
            let x = noise(1, &[batch, height, width, inputs]);
            let (weight, bias) = (noise(2, &[outputs, inputs, kernel, kernel]), noise(3, &[outputs]));
            let variable = Var::from_tensor(&weight).unwrap().as_tensor().clone();
            for activation in [None, Some(Activation::Relu), Some(Activation::Gelu(Gelu::Erf))] {
                let layer = |weight: Tensor| {
                    Convolution::new(weight, Some(bias.clone()), stride, padding, activation)
                };
                let (frozen, trained) = (layer(weight.clone()).unwrap(), layer(variable.clone()).unwrap());
                assert!(frozen.packed.is_some() && trained.packed.is_none());
                let y = frozen.forward(&x, None).unwrap();
                assert!(!y.track_op());
                assert_close("plain", &y, &trained.forward(&x, None).unwrap(), 1e-5);
                let residual = noise(4, y.dims());
                let y = frozen.forward(&x, Some(&residual)).unwrap();
                let expected = trained.forward(&x, Some(&residual)).unwrap();
                assert!(expected.track_op());
                assert_close("residual", &y, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn an_image_has_the_same_bits_in_any_batch() {
        let layer = Convolution::new(noise(2, &[20, 5, 3, 3]), None, 1, 1, Some(Activation::Relu)).unwrap();
        let x = noise(1, &[5, 13, 11, 5]);
        let all = layer.forward(&x, None).unwrap();
        for index in 0..5 {
            let alone = layer.forward(&x.narrow(0, index, 1).unwrap(), None).unwrap();
            assert_eq!(flat(&alone), flat(&all.narrow(0, index, 1).unwrap()));
        }
    }

    #[test]
    fn a_relu_behind_a_sum_passes_gradients_where_it_is_open() {
        let a = Var::from_tensor(&Tensor::new(&[1f32, -2., 3., 0.], &Device::Cpu).unwrap()).unwrap();
        let b = Var::from_tensor(&Tensor::new(&[1f32, 1., -4., 0.], &Device::Cpu).unwrap()).unwrap();
        let y = add_relu(&a, &b).unwrap();
        assert_eq!(flat(&y), [2.0, 0.0, 0.0, 0.0]);
        let gradients = (&y * 2.0).unwrap().sum_all().unwrap().backward().unwrap();
        for variable in [&a, &b] {
            assert_eq!(flat(gradients.get(variable).unwrap()), [2.0, 0.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn pictures_smaller_than_the_filter_are_refused() {
        let layer = Convolution::new(noise(2, &[2, 3, 4, 4]), None, 4, 0, None).unwrap();
        assert!(layer.forward(&noise(1, &[1, 3, 8, 3]), None).is_err());
        assert!(layer.forward(&noise(1, &[1, 8, 8, 2]), None).is_err());
        assert!(Convolution::new(noise(2, &[2, 3, 4, 3]), None, 4, 0, None).is_err());
        assert!(Convolution::new(noise(2, &[2, 3, 4, 4]), None, 0, 0, None).is_err());
    }
}
