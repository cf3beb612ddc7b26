//! What a kernel computed, as a node of candle's graph.

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::launch::untracked;

/// Gradients of the inputs, in their order.
pub(crate) type Gradients = Result<Vec<Option<Tensor>>>;

/// Inputs, result and the result's gradient, which has no gaps, to the gradients of the inputs.
type Backward = dyn Fn(&[&Tensor], &Tensor, &Tensor) -> Gradients + Send + Sync;

/// A result that is there already; candle asks for it once.
struct Node {
    name: &'static str,
    result: Mutex<Option<(CudaStorage, Shape)>>,
    backward: Box<Backward>,
}

/// `result` as a tensor that came of `inputs`, one to three. The inputs that `backward` gets are outside of any graph but for whether they
/// are tracked.
pub(crate) fn node(
    name: &'static str,
    inputs: &[&Tensor],
    result: CudaStorage,
    shape: impl Into<Shape>,
    backward: impl Fn(&[&Tensor], &Tensor, &Tensor) -> Gradients + Send + Sync + 'static,
) -> Result<Tensor> {
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(untracked(result, shape));
    }
    let result = Mutex::new(Some((result, shape.into())));
    let node = Node { name, result, backward: Box::new(backward) };
    match inputs {
        [x] => x.apply_op1(node),
        [x, y] => x.apply_op2(y, node),
        [x, y, z] => x.apply_op3(y, z, node),
        _ => bail!("{name}: {} inputs, expected one to three", inputs.len()),
    }
}

impl Node {
    fn take(&self) -> Result<(CudaStorage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("{}: the result was taken before", self.name),
        }
    }

    fn not_here<T>(&self) -> Result<T> {
        bail!("{}: a kernel for a card was asked for on the CPU", self.name)
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let gradients = (self.backward)(&inputs, &result.detach(), &gradient.detach().contiguous()?)?;
        let count = gradients.len();
        match gradients.try_into() {
            Ok(gradients) => Ok(gradients),
            Err(_) => bail!("{}: {count} gradients for {N} inputs", self.name),
        }
    }
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.not_here()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [x] = self.gradients([x], result, gradient)?;
        Ok(x)
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.not_here()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = self.gradients([x, y], result, gradient)?;
        Ok((x, y))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.not_here()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = self.gradients([x, y, z], result, gradient)?;
        Ok((x, y, z))
    }
}
