//! Linear layers with what comes after the product, activations, dropout.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Storage, Tensor, bail};

use crate::launch::{Argument, Card, ELEMENTS, Grid, number, untracked};
use crate::node::node;
use crate::rows::rows_of;

/// Rows that one block adds up.
const ROWS_PER_BLOCK: usize = 128;
/// Rows that one block adds up: more of them where a grid would have too many blocks.
pub(crate) fn rows_per_block(rows: usize, fewest: usize) -> usize {
    fewest.max(rows.div_ceil(usize::from(u16::MAX)))
}

/// Rows behind a product that one block walks over, about.
const ROWS_PER_WALK: usize = 4;

/// The function behind a product. The numbers are the kernels'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / 2 (1 + erf(x / sqrt 2))`.
    GeluErf = 1,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh = 2,
    /// `x / (1 + exp(-1.702 x))`.
    GeluQuick = 3,
    /// `max(x, 0)`.
    Relu = 4,
    /// `min(max(x, 0), 6)`.
    Relu6 = 5,
    /// `x / (1 + exp(-x))`.
    Silu = 6,
    /// The hyperbolic tangent.
    Tanh = 7,
}

/// The kernels' number of an activation; 0 is none.
fn kind(activation: Option<Activation>) -> u32 {
    activation.map_or(0, |activation| activation as u32)
}

/// The activation of each number of `x`.
///
/// # Errors
/// From candle and the driver.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (card, count) = (Card::of(&x)?, x.elem_count());
    let y = card.room(count)?;
    let kind = kind(Some(activation));
    let arguments =
        [Argument::Tensor(&x), Argument::Out(&y), Argument::Long(count as u64), Argument::Number(kind)];
    card.launch(&ELEMENTS, "activate", &Grid::walking(count)?, &arguments)?;
    let (y, shape) = (card.storage(y), x.shape().clone());
    node("activation", &[&x], y, shape, move |inputs, _, gradient| {
        let &[x] = inputs else { return Ok(Vec::new()) };
        let out = card.room(count)?;
        let arguments = [
            Argument::Tensor(x),
            Argument::Tensor(gradient),
            Argument::Out(&out),
            Argument::Long(count as u64),
            Argument::Number(kind),
        ];
        card.launch(&ELEMENTS, "activate_backward", &Grid::walking(count)?, &arguments)?;
        Ok(vec![Some(card.tensor(out, x.shape()))])
    })
}

/// `x W^T + b`: `x [.., I]`, `weight [O, I]`, `bias [O]` to `[.., O]`.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let [x, weight, bias] = [x.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    let (outputs, inputs) = weight.dims2()?;
    let y = product(&x, &weight)?;
    after(&y, outputs, Some(&bias), None, None)?;
    let shape = with_last(&x, outputs);
    node("affine", &[&x, &weight, &bias], y, shape, move |of, _, gradient| {
        let &[x, weight, bias] = of else { return Ok(Vec::new()) };
        let gradient = gradient.reshape(((), outputs))?;
        let of_x = || gradient.matmul(&weight.detach())?.reshape(x.shape());
        let of_weight = || gradient.t()?.matmul(&x.detach().reshape(((), inputs))?);
        Ok(vec![
            x.track_op().then(of_x).transpose()?,
            weight.track_op().then(of_weight).transpose()?,
            bias.track_op().then(|| column_sums(&gradient)).transpose()?,
        ])
    })
}

/// `activation(x W^T + b) + residual` where nothing records a graph: `x [.., I]`, `weight [O, I]`, `bias [O]`, `residual [.., O]`.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn plain(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let outputs = weight.dim(0)?;
    let y = product(&x, &weight)?;
    if bias.is_some() || activation.is_some() || residual.is_some() {
        after(&y, outputs, bias, activation, residual)?;
    }
    Ok(untracked(y, with_last(&x, outputs)))
}

/// The shape of `x` with another last axis.
fn with_last(x: &Tensor, last: usize) -> Vec<usize> {
    let leading = x.dims().split_last().map_or(&[][..], |(_, leading)| leading);
    leading.iter().copied().chain([last]).collect()
}

/// `x W^T`, all leading axes of `x` as rows.
fn product(x: &Tensor, weight: &Tensor) -> Result<CudaStorage> {
    let (outputs, inputs) = weight.dims2()?;
    let (rows, width) = rows_of(x);
    if width != inputs {
        bail!("affine: {:?} by {:?}", x.dims(), weight.dims());
    }
    let (flat, turned) = (x.reshape((rows, inputs))?, weight.t()?);
    let (x_storage, x_layout) = flat.storage_and_layout();
    let (weight_storage, weight_layout) = turned.storage_and_layout();
    match (&*x_storage, &*weight_storage) {
        (Storage::Cuda(x), Storage::Cuda(weight)) => {
            x.matmul(weight, (1, rows, outputs, inputs), x_layout, weight_layout)
        }
        _ => bail!("affine: not on a card"),
    }
}

/// Adds the bias to each row of a product, in place, and does what follows.
fn after(
    y: &CudaStorage,
    width: usize,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
    residual: Option<&Tensor>,
) -> Result<()> {
    let values = y.as_cuda_slice::<f32>()?;
    let count = values.len();
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    if bias.as_ref().is_some_and(|bias| bias.elem_count() != width)
        || residual.as_ref().is_some_and(|residual| residual.elem_count() != count)
    {
        bail!("affine: bias or residual does not fit {count} values in rows of {width}");
    }
    let rows = count / width.max(1);
    // What is not there is not read.
    let arguments = [
        Argument::Out(values),
        bias.as_ref().map_or(Argument::Out(values), Argument::Tensor),
        residual.as_ref().map_or(Argument::Out(values), Argument::Tensor),
        Argument::Number(number(rows)?),
        Argument::Number(number(width)?),
        Argument::Number(kind(activation)),
        Argument::Number(u32::from(bias.is_some())),
        Argument::Number(u32::from(residual.is_some())),
    ];
    // A block walks over some rows, for columns of which it then has read the bias.
    let blocks = rows.div_ceil(ROWS_PER_WALK).min(usize::from(u16::MAX));
    // What is allocated is aligned; a view of it may not be.
    let is_aligned = |x: &Option<Tensor>| x.as_ref().is_none_or(|x| x.layout().start_offset() % 4 == 0);
    let (kernel, columns) = if width.is_multiple_of(4) && is_aligned(&bias) && is_aligned(&residual) {
        ("after_product_in_fours", width / 4)
    } else {
        ("after_product", width)
    };
    Card::on(y.device()).launch(&ELEMENTS, kernel, &Grid::columns(columns, blocks)?, &arguments)
}

/// What `table [3, 256]`, on a card, says of each byte: images of `[H, W, 3]` bytes to `[B, 3, H, W]`.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn pixel_values(images: &[&[u8]], (height, width): (usize, usize), table: &Tensor) -> Result<Tensor> {
    let table = table.contiguous()?;
    let plane = height * width;
    if let Some(image) = images.iter().find(|image| image.len() != 3 * plane) {
        bail!("pixel values: an image of {} bytes, expected {height} x {width} x 3", image.len());
    }
    if table.dims() != [3, 256] {
        bail!("pixel values: a table of {:?}", table.dims());
    }
    let card = Card::of(&table)?;
    let bytes = card.sent(images)?;
    let images = images.len();
    let y = card.room(3 * images * plane)?;
    let arguments = [
        Argument::Bytes(&bytes),
        Argument::Tensor(&table),
        Argument::Out(&y),
        Argument::Number(number(images)?),
        Argument::Number(number(plane)?),
    ];
    card.launch(&ELEMENTS, "pixel_values", &Grid::walking(images * plane)?, &arguments)?;
    Ok(card.tensor(y, (images, 3, height, width)))
}

/// The sum of each column of `[rows, width]`.
pub(crate) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let card = Card::of(x)?;
    let blocks = rows.div_ceil(rows_per_block(rows, ROWS_PER_BLOCK)).max(1);
    let sums = card.room(blocks * width)?;
    sum_blocks(&card, Argument::Tensor(x), &sums, (rows, width))?;
    summed_blocks(&card, sums, blocks, width)
}

/// Row sums of blocks `[blocks, width]` added up to `[width]`.
pub(crate) fn summed_blocks(
    card: &Card,
    mut sums: CudaSlice<f32>,
    mut blocks: usize,
    width: usize,
) -> Result<Tensor> {
    while blocks > 1 {
        let fewer = blocks.div_ceil(rows_per_block(blocks, ROWS_PER_BLOCK));
        let next = card.room(fewer * width)?;
        sum_blocks(card, Argument::Out(&sums), &next, (blocks, width))?;
        (sums, blocks) = (next, fewer);
    }
    Ok(card.tensor(sums, width))
}

fn sum_blocks(
    card: &Card,
    from: Argument<'_>,
    to: &CudaSlice<f32>,
    (rows, width): (usize, usize),
) -> Result<()> {
    let of_block = rows_per_block(rows, ROWS_PER_BLOCK);
    let grid = Grid::columns(width, rows.div_ceil(of_block).max(1))?;
    let arguments = [
        from,
        Argument::Out(to),
        Argument::Number(number(rows)?),
        Argument::Number(number(width)?),
        Argument::Number(number(of_block)?),
    ];
    card.launch(&ELEMENTS, "column_sums", &grid, &arguments)
}

/// A mask of dropout by what it is drawn from: the words of a ChaCha8 generator, in their order.
#[derive(Debug, Clone, Copy)]
pub struct Drawn {
    /// Place of the first value's word in the generator's stream.
    pub first_word: u64,
    /// A word below it is a dropped value.
    pub threshold: u64,
    /// What the others are multiplied by.
    pub scale: f32,
    /// The key's eight words, and the stream's two.
    pub generator: [u32; 10],
}

/// Sets the values of `x` to zero that the mask drops, and scales the others. The mask is not kept, but drawn again in the backward pass.
///
/// # Errors
/// From candle and the driver.
pub fn dropout(x: &Tensor, drawn: Drawn) -> Result<Tensor> {
    let x = x.contiguous()?;
    let card = Card::of(&x)?;
    let y = drawn.apply(&card, &x)?;
    let (y, shape) = (card.storage(y), x.shape().clone());
    node("dropout", &[&x], y, shape, move |_, _, gradient| {
        Ok(vec![Some(card.tensor(drawn.apply(&card, gradient)?, gradient.shape()))])
    })
}

impl Drawn {
    fn apply(&self, card: &Card, x: &Tensor) -> Result<CudaSlice<f32>> {
        /// Words that a thread draws.
        const BLOCK: usize = 16;
        let count = x.elem_count();
        let y = card.room(count)?;
        let arguments = [
            Argument::Tensor(x),
            Argument::Out(&y),
            Argument::Long(count as u64),
            Argument::Long(self.first_word),
            Argument::Long(self.threshold),
            Argument::Real(self.scale),
            Argument::Words(self.generator),
        ];
        // One block more, as the first may begin before the values.
        card.launch(&ELEMENTS, "dropout", &Grid::threads(count / BLOCK + 2)?, &arguments)?;
        Ok(y)
    }
}
