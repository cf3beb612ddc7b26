//! Whether a device computes what the CPU computes.
//!
//! Every check is done by the CPU's fused operations in f32, and then by the device: in f32, and in bfloat16 where the operation
//! takes it, each twice. Where the device is the CPU itself it rehearses: it takes the operations that other devices take, and refuses
//! the layouts that they refuse.

mod check;
mod comparison;
mod encoders;
mod heads;
mod layouts;
mod losses;
mod memory;
mod numbers;
mod operations;
mod search;
mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use candle_core::{DType, Device};
use serde::Serialize;

use check::{Check, Place, Values};
use comparison::{Difference, largest};

pub(crate) use check::Kind;
pub(crate) use comparison::tolerance;
pub(crate) use memory::{device_memory, host_peak, readable};

/// What is asked for.
pub(crate) struct Wanted {
    /// Parts of names; all checks where there is none.
    pub(crate) only: Vec<String>,
    pub(crate) types: Vec<DType>,
    /// A check whose values are spoilt, to see that it is found.
    pub(crate) spoil: Option<String>,
}

/// What became of a check in one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Within the tolerance.
    Agrees,
    /// Beyond it.
    Differs,
    /// The device, or the CPU, could not do it.
    Failed,
    /// It is not done in this type.
    NotTaken,
}

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// `f32` or `bf16`.
    pub(crate) dtype: &'static str,
    pub(crate) verdict: Verdict,
    /// Where device and CPU differ most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) largest: Option<Difference>,
    /// What the error may be.
    pub(crate) tolerance: f64,
    /// Whether a second time gave the same bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repeats: Option<bool>,
    /// Matrix products whose layouts were looked at, on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) products: Option<usize>,
    /// Of the second time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seconds: Option<f64>,
    /// The most memory of the device that it had at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device_peak_bytes: Option<u64>,
    /// Why it failed or was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// All lines, and the memory that they took.
pub(crate) struct Outcomes {
    pub(crate) checks: Vec<Outcome>,
    pub(crate) host_peak: Option<u64>,
    pub(crate) device_peak: Option<u64>,
}

impl Outcomes {
    /// How many checks ended so.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|outcome| outcome.verdict == verdict).count()
    }

    /// Whether nothing differed or failed, and something was compared at all.
    pub(crate) fn agree(&self) -> bool {
        self.count(Verdict::Agrees) > 0 && self.count(Verdict::Differs) + self.count(Verdict::Failed) == 0
    }

    /// How many checks were done twice, and how many of them gave the same bits.
    pub(crate) fn repeated(&self) -> (usize, usize) {
        let repeats: Vec<bool> = self.checks.iter().filter_map(|outcome| outcome.repeats).collect();
        (repeats.len(), repeats.iter().filter(|same| **same).count())
    }
}

fn all_checks() -> Vec<Check> {
    let mut checks = operations::all();
    checks.extend(heads::all());
    checks.extend(losses::all());
    checks.extend(encoders::all());
    checks.extend(steps::all());
    checks.extend(search::all());
    checks
}

/// The names of all checks, in order.
pub(crate) fn names() -> Vec<String> {
    all_checks().into_iter().map(|check| check.name).collect()
}

/// How many lines [`run`] will tell.
pub(crate) fn lines(wanted: &Wanted) -> usize {
    wanted_checks(wanted).count() * wanted.types.len()
}

/// The checks whose names hold one of `wanted.only`.
fn wanted_checks(wanted: &Wanted) -> impl Iterator<Item = Check> {
    let is_wanted =
        |check: &Check| wanted.only.is_empty() || wanted.only.iter().any(|part| check.name.contains(part));
    all_checks().into_iter().filter(is_wanted)
}

/// Does the checks that are wanted. `done` hears of each line.
///
/// It has to run on a thread with a big stack: backward passes recurse.
pub(crate) fn run(device: &Device, wanted: &Wanted, mut done: impl FnMut(&Outcome)) -> Outcomes {
    let mut outcomes = Vec::new();
    for check in wanted_checks(wanted) {
        let reference = guarded(|| check.run(&Place { device: Device::Cpu, dtype: DType::F32 }));
        for dtype in &wanted.types {
            let spoils = wanted.spoil.as_ref().is_some_and(|name| *name == check.name);
            memory::forget_device_peak(device);
            let mut outcome = outcome(&check, device, *dtype, &reference, spoils);
            outcome.device_peak_bytes = memory::device_peak(device);
            done(&outcome);
            outcomes.push(outcome);
        }
    }
    let device_peak = outcomes.iter().filter_map(|outcome| outcome.device_peak_bytes).max();
    Outcomes { checks: outcomes, host_peak: host_peak(), device_peak }
}

fn outcome(
    check: &Check,
    device: &Device,
    dtype: DType,
    reference: &Result<Values, String>,
    spoils: bool,
) -> Outcome {
    let mut outcome = Outcome {
        name: check.name.clone(),
        kind: check.kind,
        dtype: dtype.as_str(),
        verdict: Verdict::Failed,
        largest: None,
        tolerance: check.tolerance.unwrap_or_else(|| tolerance(check.kind, dtype)),
        repeats: None,
        products: None,
        seconds: None,
        device_peak_bytes: None,
        reason: None,
    };
    if let Some(why) = check.refusal(device, dtype) {
        outcome.verdict = Verdict::NotTaken;
        outcome.reason = Some(why.to_owned());
        return outcome;
    }
    let reference = match reference {
        Ok(reference) => reference,
        Err(error) => {
            outcome.reason = Some(format!("on the CPU: {error}"));
            return outcome;
        }
    };
    let place = Place { device: device.clone(), dtype };
    let attempt = || on_device(device, || guarded(|| check.run(&place)));
    let first = attempt();
    let (started, products) = (Instant::now(), layouts::looked_at());
    let second = attempt();
    outcome.products = device.is_cpu().then(|| layouts::looked_at() - products);
    outcome.seconds = Some(started.elapsed().as_secs_f64());
    match (first, second) {
        (Ok(first), Ok(mut second)) => {
            outcome.repeats = Some(first == second);
            if spoils {
                spoil(&mut second);
            }
            let difference = largest(reference, &second, dtype);
            let agrees = difference.is_within(outcome.tolerance);
            outcome.verdict = if agrees { Verdict::Agrees } else { Verdict::Differs };
            outcome.largest = Some(difference);
        }
        (Err(error), _) | (_, Err(error)) => outcome.reason = Some(error),
    }
    outcome
}

/// A GPU computes as it does; the CPU rehearses a GPU.
fn on_device<T>(device: &Device, work: impl FnOnce() -> T) -> T {
    if !device.is_cpu() {
        return work();
    }
    let inspect = Some(layouts::taken_by_gpus as aeir_encoders::rehearsal::Inspect);
    aeir_encoders::rehearsal::rehearse(inspect, || aeir_losses::rehearsal::rehearse(inspect, work))
}

/// An error of the work, or a panic in it, as a message.
fn guarded(work: impl FnOnce() -> anyhow::Result<Values>) -> Result<Values, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(values) => values.map_err(|error| {
            let message = format!("{error:#}");
            crate::failure::without_backtrace(&message).to_owned()
        }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("it panicked: {}", text.unwrap_or("without a message")))
        }
    }
}

/// Moves the first value of every tensor.
fn spoil(values: &mut Values) {
    for named in values.results.iter_mut().chain(&mut values.gradients) {
        if let Some(first) = named.values.first_mut() {
            *first += 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(only: &str) -> Wanted {
        Wanted { only: vec![only.into()], types: vec![DType::F32, DType::BF16], spoil: None }
    }

    #[test]
    fn names_are_unique_and_every_method_has_a_step() {
        let names = names();
        let unique: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        for method in aeir_train::MethodName::ALL {
            assert!(names.contains(&format!("{}-step", method.as_str())), "{method:?}");
        }
    }

    #[test]
    fn the_composed_way_agrees_with_the_fused_one() {
        let mut heard = 0;
        let outcomes = run(&Device::Cpu, &wanted("layer-norm"), |_| heard += 1);
        assert_eq!((outcomes.checks.len(), heard, lines(&wanted("layer-norm"))), (4, 4, 4));
        assert!(outcomes.agree(), "{:?}", outcomes.checks);
        assert_eq!(outcomes.repeated(), (4, 4));
        let step = run(&Device::Cpu, &wanted("source-only"), |_| ());
        assert!(step.agree(), "{:?}", step.checks);
        // Training goes on on a thread of its own: there, too, layouts are looked at.
        assert!(step.checks.iter().all(|outcome| outcome.products > Some(3)), "{:?}", step.checks);
        // It is another computation, not the same one twice.
        let error = |outcome: &Outcome| outcome.largest.as_ref().unwrap().error.unwrap();
        assert!(outcomes.checks.iter().any(|outcome| error(outcome) > 0.0));
    }

    #[test]
    fn a_spoilt_check_is_found() {
        let spoilt = Wanted { spoil: Some("softmax".into()), ..wanted("softmax") };
        let outcomes = run(&Device::Cpu, &spoilt, |_| ());
        let differing: Vec<&str> = outcomes
            .checks
            .iter()
            .filter(|outcome| outcome.verdict == Verdict::Differs)
            .map(|outcome| outcome.name.as_str())
            .collect();
        assert_eq!(differing, ["softmax", "softmax"]);
        assert!(!outcomes.agree());
    }

    #[test]
    fn where_nothing_was_compared_nothing_agrees() {
        let only_bf16 = Wanted { types: vec![DType::BF16], ..wanted("info-nce") };
        let outcomes = run(&Device::Cpu, &only_bf16, |_| ());
        assert!(outcomes.checks.iter().all(|outcome| outcome.verdict == Verdict::NotTaken));
        assert!(!outcomes.checks.is_empty() && !outcomes.agree());
    }

    #[test]
    fn errors_and_panics_are_told() {
        let failing = Check::new(Kind::Operation, "failing", |place| {
            if place.dtype == DType::BF16 {
                panic!("a bug");
            }
            let x = candle_core::Tensor::zeros((3, 8), DType::F32, &place.device)?.narrow(1, 0, 4)?;
            let y = candle_core::Tensor::zeros((4, 2), DType::F32, &place.device)?;
            Values::of(&aeir_encoders::rehearsal::Product::product(&x, &y)?)
        });
        let reference = Ok(Values::default());
        let told = |dtype| outcome(&failing, &Device::Cpu, dtype, &reference, false).reason.unwrap();
        assert!(told(DType::F32).contains("contiguous"), "{}", told(DType::F32));
        assert!(told(DType::BF16).contains("a bug"));
    }
}
