//! Vectors that stay on a card, and what is launched to search in them.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t};
use cudarc::cublas::{CudaBlas, Gemm, GemmConfig};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr,
    HostSlice, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use half::f16;
use rayon::prelude::*;

use super::error::{CardError, Result};
use super::keys;
use super::on_card::CardOptions;
use super::plan::{LEAST_SCORES, Plan, check_sizes, most_scores, plan, room_for};
use crate::search::proposed::{Proposal, Proposed, distance_of_halves};
use crate::search::{Gallery, Vectors};
use crate::storage::halved;

/// The kernels, as the build script compiled them.
#[allow(unreachable_pub)]
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// Threads of a block: what the kernel is written for.
const THREADS: u32 = 256;
/// The second of a query's two 16-bit vectors holds what the first leaves, times so much: it stays among the normal numbers.
const LOW_SCALE: f32 = 2048.0;
/// Items that rounding to 16 bits moves farther, of the length of the longest, are not looked at in 16 bits: nothing would be settled.
const MOST_ROUNDED: f64 = 1e-3;

/// A gallery on a card.
#[derive(Debug)]
pub(super) struct Resident {
    rows: usize,
    dimension: usize,
    /// `[rows, dimension]`.
    vectors: Stored,
    /// How they can be scored, from the fastest on.
    passes: Vec<Pass>,
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    kernel: CudaFunction,
    /// Room for scores, which searches take in turn.
    scores: Mutex<CudaSlice<f32>>,
    bytes: u64,
}

/// A way to score all items.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pass {
    /// Queries rounded to 16 bits, with items of 16 bits: rounded ones, of which none is farther than that from what it was.
    High { farthest: f64 },
    /// Queries as sums of two vectors of 16 bits, with items of 16 bits.
    HighAndLow,
    /// In `f32`.
    Whole,
}

/// Vectors as they are kept, and of 32-bit ones maybe rounded copies.
#[derive(Debug)]
enum Stored {
    F32 { whole: CudaSlice<f32>, halves: Option<CudaSlice<f16>> },
    F16(CudaSlice<f16>),
}

/// A block of unit queries on the card, `[queries, dimension]`.
enum Units {
    F32(CudaSlice<f32>),
    /// Their sum, the second over [`LOW_SCALE`], has 22 significant bits.
    F16 {
        high: CudaSlice<f16>,
        low: Option<CudaSlice<f16>>,
    },
}

/// What holds for all queries of a search.
struct Rules {
    /// By row, padded to a multiple of 4.
    penalties: Option<CudaSlice<f32>>,
    /// A bit a row.
    allowed: Option<CudaSlice<u32>>,
    /// Rows that are proposed for each query.
    kept: usize,
    plan: Plan,
    pass: Pass,
}

/// Items `first..first + columns`.
#[derive(Clone, Copy)]
struct Chunk {
    first: usize,
    columns: usize,
}

impl Resident {
    /// Copies a gallery to a card. All its runs are kept in one way, which is not by codes.
    pub(super) fn of(gallery: &Gallery<'_>, options: &CardOptions) -> Result<Self> {
        let (rows, dimension) = (gallery.rows(), gallery.dimension);
        check_sizes(rows, dimension)?;
        let context = CudaContext::new(options.card).map_err(failed("to open"))?;
        let stream = context.new_stream().map_err(failed("to open a stream"))?;
        let module =
            context.load_module(Ptx::from_src(compiled::NEAREST)).map_err(failed("to load the kernel"))?;
        let kernel = module.load_function("nearest_of_scores").map_err(failed("to load the kernel"))?;
        let blas = CudaBlas::new(Arc::clone(&stream)).map_err(failed("to open cuBLAS"))?;
        let (vectors, passes) = stored(&stream, gallery, options.rough_first)?;
        let most = most_scores(rows).min(options.score_bytes / size_of::<f32>());
        let scores = room_for_scores(&stream, most)?;
        stream.synchronize().map_err(failed("to take a gallery"))?;
        let bytes = (vectors.bytes() + scores.num_bytes()) as u64;
        Ok(Self { rows, dimension, vectors, passes, stream, blas, kernel, scores: Mutex::new(scores), bytes })
    }

    /// The ways that [`Proposal::manner`] counts.
    pub(super) fn passes(&self) -> &[Pass] {
        &self.passes
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The best rows of each query by fast scores, best first.
    pub(super) fn propose(&self, asked: &Proposal<'_>) -> Result<Vec<Proposed>> {
        // What a search that failed left there is written anew.
        let mut scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        // cuBLAS works in the context of the thread that calls it.
        self.stream.context().bind_to_thread().map_err(failed("to be bound to a thread"))?;
        let rules = self.rules(asked, scores.len())?;
        let queries = rules.plan.queries;
        let blocks = asked.units.chunks(queries.saturating_mul(self.dimension));
        let mut found = Vec::with_capacity(asked.lengths.len());
        for (units, lengths) in blocks.zip(asked.lengths.chunks(queries)) {
            found.extend(self.block(&rules, units, lengths, &mut scores)?);
        }
        Ok(found)
    }

    fn rules(&self, asked: &Proposal<'_>, scores: usize) -> Result<Rules> {
        let padded = |penalties: &[f32]| {
            let mut padded = penalties.to_vec();
            padded.resize(self.rows.next_multiple_of(4), 0.0);
            sent(&self.stream, &padded, "penalties")
        };
        Ok(Rules {
            penalties: asked.gallery.penalties.map(padded).transpose()?,
            allowed: (asked.gallery.selected)
                .map(|rows| sent(&self.stream, &rows.half_words(), "a selection"))
                .transpose()?,
            kept: asked.rows.min(self.rows),
            plan: plan(asked.lengths.len(), self.rows, scores),
            pass: self.passes.get(asked.manner).copied().unwrap_or(Pass::Whole),
        })
    }

    /// A block of queries against all chunks of the gallery.
    fn block(
        &self,
        rules: &Rules,
        units: &[f32],
        lengths: &[f32],
        scores: &mut CudaSlice<f32>,
    ) -> Result<Vec<Proposed>> {
        let (queries, of_query) = (lengths.len(), rules.plan.slices * rules.kept);
        let units = self.units(units, rules.pass)?;
        let lengths = sent(&self.stream, lengths, "queries")?;
        let mut best = room::<u64>(&self.stream, queries * of_query, "results")?;
        self.stream.memset_zeros(&mut best).map_err(failed("to clear results"))?;
        for first in (0..self.rows).step_by(rules.plan.columns) {
            let chunk = Chunk { first, columns: rules.plan.columns.min(self.rows - first) };
            self.multiply(&units, queries, chunk, rules.plan.columns, scores)?;
            self.pick(rules, &lengths, chunk, scores, &mut best)?;
        }
        let mut keys = self.stream.clone_dtoh(&best).map_err(failed("to give results"))?;
        // Errors of what was launched come to light here.
        self.stream.synchronize().map_err(failed("in a search"))?;
        Ok(keys::merged(&mut keys, of_query, rules.kept))
    }

    fn units(&self, units: &[f32], pass: Pass) -> Result<Units> {
        let half = |half: &[f16]| sent(&self.stream, half, "queries");
        match pass {
            Pass::Whole => Ok(Units::F32(sent(&self.stream, units, "queries")?)),
            Pass::High { .. } => Ok(Units::F16 { high: half(&halved(units))?, low: None }),
            Pass::HighAndLow => {
                let (high, low) = halves(units);
                Ok(Units::F16 { high: half(&high)?, low: Some(half(&low)?) })
            }
        }
    }

    /// `scores [queries, stride]`: the products of queries with a chunk's items, in its first columns.
    ///
    /// To cuBLAS, which counts by columns, a row-major matrix is its transpose: items `[dimension, columns]`, queries `[dimension, queries]`,
    /// scores `[columns, queries]`.
    fn multiply(
        &self,
        units: &Units,
        queries: usize,
        chunk: Chunk,
        stride: usize,
        scores: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let range = chunk.first * self.dimension..(chunk.first + chunk.columns) * self.dimension;
        let product = GemmConfig {
            transa: cublasOperation_t::CUBLAS_OP_T,
            transb: cublasOperation_t::CUBLAS_OP_N,
            m: size("items of a chunk", chunk.columns)?,
            n: size("queries of a block", queries)?,
            k: size("dimensions", self.dimension)?,
            alpha: 1.0_f32,
            lda: size("dimensions", self.dimension)?,
            ldb: size("dimensions", self.dimension)?,
            beta: 0.0,
            ldc: size("items of a chunk", stride)?,
        };
        match (&self.vectors, units) {
            (Stored::F32 { whole, .. }, Units::F32(units)) => {
                let items = whole.slice(range);
                // SAFETY: `items` holds m * k numbers, `units` n * k and `scores` n * ldc, of which m <= ldc are written in each row.
                unsafe { self.blas.gemm(product, &items, units, scores) }.map_err(failed("to multiply"))
            }
            (Stored::F16(halves) | Stored::F32 { halves: Some(halves), .. }, Units::F16 { high, low }) => {
                let items = halves.slice(range);
                let rest = GemmConfig { alpha: 1.0 / LOW_SCALE, beta: 1.0, ..product };
                // SAFETY: as above, with 16-bit operands.
                unsafe { self.multiply_halves(product, &items, high, scores) }?;
                match low {
                    // SAFETY: as above.
                    Some(low) => unsafe { self.multiply_halves(rest, &items, low, scores) },
                    None => Ok(()),
                }
            }
            // No pass asks for it: scores of another search would stand for these.
            (Stored::F16(_), Units::F32(_)) | (Stored::F32 { halves: None, .. }, Units::F16 { .. }) => {
                Err(CardError::Storage { got: "another kind than the queries" })
            }
        }
    }

    /// A product of 16-bit numbers, summed in `f32` into `f32`.
    ///
    /// # Safety
    /// `items` holds `m * k` numbers, `units` `n * k` and `scores` `n * ldc`, `m <= ldc`.
    unsafe fn multiply_halves(
        &self,
        product: GemmConfig<f32>,
        items: &CudaView<'_, f16>,
        units: &CudaSlice<f16>,
        scores: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let GemmConfig { transa, transb, m, n, k, alpha, lda, ldb, beta, ldc } = product;
        let (items, _items) = items.device_ptr(&self.stream);
        let (units, _units) = units.device_ptr(&self.stream);
        let (scores, _scores) = scores.device_ptr_mut(&self.stream);
        let (half, single) = (cudaDataType_t::CUDA_R_16F, cudaDataType_t::CUDA_R_32F);
        // SAFETY: the caller's promise; alpha and beta are read before the call returns.
        unsafe {
            cudarc::cublas::result::gemm_ex(
                *self.blas.handle(),
                transa,
                transb,
                m,
                n,
                k,
                (&raw const alpha).cast(),
                items as *const _,
                half,
                lda,
                units as *const _,
                half,
                ldb,
                (&raw const beta).cast(),
                scores as *mut _,
                single,
                ldc,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(failed("to multiply"))
    }

    /// Takes a chunk's scores among the best of each query.
    fn pick(
        &self,
        rules: &Rules,
        lengths: &CudaSlice<f32>,
        chunk: Chunk,
        scores: &CudaSlice<f32>,
        best: &mut CudaSlice<u64>,
    ) -> Result<()> {
        let Plan { columns: stride, slices, .. } = rules.plan;
        let room = room_for(rules.kept);
        let pointer = |slice: Option<u64>| slice.unwrap_or(0);
        let penalties = rules.penalties.as_ref().map(|slice| slice.device_ptr(&self.stream));
        let allowed = rules.allowed.as_ref().map(|slice| slice.device_ptr(&self.stream));
        let penalties_at = pointer(penalties.as_ref().map(|(pointer, _)| *pointer));
        let allowed_at = pointer(allowed.as_ref().map(|(pointer, _)| *pointer));
        // Rows and sizes of a plan fit: `check_sizes`.
        let (stride, first, columns) = (stride as u64, chunk.first as u32, chunk.columns as u32);
        let (kept, places) = (rules.kept as u32, room as u32);
        let mut launch = self.stream.launch_builder(&self.kernel);
        launch.arg(scores).arg(&stride).arg(&first).arg(&columns).arg(&penalties_at).arg(lengths);
        launch.arg(&allowed_at).arg(best).arg(&kept).arg(&places);
        let grid = LaunchConfig {
            grid_dim: (slices as u32, lengths.len() as u32, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: (room * size_of::<u64>()) as u32,
        };
        // SAFETY: the arguments are the kernel's, in its order. `scores` holds a row of `stride` numbers for each of the grid's queries, of
        // which `columns` were written; `stride` and `first` are multiples of 4; penalties are padded to 4, there is a bit a row, a length
        // a query, and `best` has `slices * kept` places a query. Allocations begin at 256 bytes.
        unsafe { launch.launch(grid) }.map(|_| ()).map_err(failed("to start the kernel"))
    }
}

impl Drop for Resident {
    /// cuBLAS is closed in the context of the thread that drops it.
    fn drop(&mut self) {
        let _ = self.stream.context().bind_to_thread();
    }
}

impl Stored {
    fn bytes(&self) -> usize {
        match self {
            Self::F32 { whole, halves } => {
                whole.num_bytes() + halves.as_ref().map_or(0, CudaSlice::num_bytes)
            }
            Self::F16(values) => values.num_bytes(),
        }
    }
}

/// All runs, one behind the other, and how they can be scored.
fn stored(stream: &Arc<CudaStream>, gallery: &Gallery<'_>, rough_first: bool) -> Result<(Stored, Vec<Pass>)> {
    let numbers = gallery.rows().saturating_mul(gallery.dimension);
    let single = |vectors| match vectors {
        Vectors::F32(values) => Some(values),
        Vectors::F16(_) | Vectors::Int8(..) => None,
    };
    let half = |vectors| match vectors {
        Vectors::F16(values) => Some(values),
        Vectors::F32(_) | Vectors::Int8(..) => None,
    };
    let runs = || gallery.runs.iter().map(|run| run.vectors);
    if let Some(parts) = runs().map(single).collect::<Option<Vec<&[f32]>>>() {
        let whole = joined(stream, &parts, numbers)?;
        let farthest = if rough_first { farthest(&parts, gallery.dimension) } else { f64::INFINITY };
        if farthest > MOST_ROUNDED * gallery.longest {
            return Ok((Stored::F32 { whole, halves: None }, vec![Pass::Whole]));
        }
        let copies: Vec<Vec<f16>> = parts.iter().map(|part| halved(part)).collect();
        let copies: Vec<&[f16]> = copies.iter().map(Vec::as_slice).collect();
        let halves = Some(joined(stream, &copies, numbers)?);
        return Ok((Stored::F32 { whole, halves }, vec![Pass::High { farthest }, Pass::Whole]));
    }
    if let Some(parts) = runs().map(half).collect::<Option<Vec<&[f16]>>>() {
        let passes = vec![Pass::High { farthest: 0.0 }, Pass::HighAndLow];
        return Ok((Stored::F16(joined(stream, &parts, numbers)?), passes));
    }
    Err(CardError::Storage { got: "int8" })
}

fn joined<T: DeviceRepr>(stream: &Arc<CudaStream>, parts: &[&[T]], numbers: usize) -> Result<CudaSlice<T>> {
    let mut whole = room::<T>(stream, numbers, "vectors")?;
    let mut first = 0;
    for part in parts {
        // A part that lies beyond the whole is none of its rows.
        if let Some(mut place) = whole.try_slice_mut(first..first + part.len()) {
            stream.memcpy_htod(*part, &mut place).map_err(failed("to take vectors"))?;
        }
        first += part.len();
    }
    if first == numbers {
        Ok(whole)
    } else {
        Err(crate::Error::Shape { what: "numbers of a gallery", expected: numbers, got: first }.into())
    }
}

/// How far rounding to 16 bits moves an item at most.
fn farthest(parts: &[&[f32]], dimension: usize) -> f64 {
    let items = parts.par_iter().flat_map(|part| part.par_chunks_exact(dimension.max(1)));
    items.map(distance_of_halves).reduce(|| 0.0, f64::max)
}

/// Each number as a sum of two of 16 bits, the second times [`LOW_SCALE`].
fn halves(values: &[f32]) -> (Vec<f16>, Vec<f16>) {
    let half = |value: &f32| {
        let high = f16::from_f32(*value);
        (high, f16::from_f32((value - high.to_f32()) * LOW_SCALE))
    };
    values.iter().map(half).unzip()
}

/// Memory on the card, in which nothing is written yet.
fn room<T: DeviceRepr>(stream: &Arc<CudaStream>, len: usize, what: &'static str) -> Result<CudaSlice<T>> {
    // SAFETY: every caller writes all of it before it is read, or reads (rows of scores beyond their columns) what it then leaves out.
    unsafe { stream.alloc::<T>(len) }.map_err(|error| {
        if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return failed("to give memory")(error);
        }
        let free = stream.context().mem_get_info().map_or(0, |(free, _)| free as u64);
        CardError::OutOfMemory { what, needed: (len as u64).saturating_mul(size_of::<T>() as u64), free }
    })
}

/// As much of `most` as there is, by halves.
fn room_for_scores(stream: &Arc<CudaStream>, most: usize) -> Result<CudaSlice<f32>> {
    let mut len = most.max(LEAST_SCORES);
    loop {
        match room(stream, len, "scores") {
            Err(CardError::OutOfMemory { .. }) if len > LEAST_SCORES => len = (len / 2).max(LEAST_SCORES),
            done => return done,
        }
    }
}

/// A copy on the card.
fn sent<T: DeviceRepr, Values: HostSlice<T> + ?Sized>(
    stream: &Arc<CudaStream>,
    values: &Values,
    what: &'static str,
) -> Result<CudaSlice<T>> {
    let mut copy = room(stream, values.len(), what)?;
    stream.memcpy_htod(values, &mut copy).map_err(failed("to take what is asked"))?;
    Ok(copy)
}

/// A size as cuBLAS takes it.
fn size(what: &'static str, got: usize) -> Result<i32> {
    i32::try_from(got).map_err(|_| CardError::TooMany { what, limit: i32::MAX as usize, got })
}

fn failed<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl Fn(E) -> CardError {
    move |source| CardError::Driver { doing, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_halves_hold_a_number() {
        let values = [1.0_f32, -0.333_333_34, 0.044_194_17, 1e-4, 3.1e-6, -7e-9, 0.0];
        let (high, low) = halves(&values);
        for ((value, high), low) in values.iter().zip(high).zip(low) {
            let sum = f64::from(high.to_f32()) + f64::from(low.to_f32()) / f64::from(LOW_SCALE);
            let error = (sum - f64::from(*value)).abs();
            assert!(error <= 2.0_f64.powi(-22) * f64::from(value.abs()) + 1.5e-11, "{value}: {error}");
        }
    }
}
