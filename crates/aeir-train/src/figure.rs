//! Figures that a step computes: known at once, or still on the device that computes them.

use candle_core::{DType, Device, Tensor};

use crate::error::Result;

/// A number for the log.
///
/// On the CPU it is known when it is computed. To ask another device for it would be to wait until all that was queued before is
/// done, in every step; there it stays a scalar, and many are fetched together.
#[derive(Debug, Clone)]
pub struct Figure(Value);

#[derive(Debug, Clone)]
enum Value {
    Known(f64),
    /// A scalar in single precision, and what it is multiplied by.
    OnDevice(Tensor, f64),
}

impl Default for Figure {
    fn default() -> Self {
        Self::known(0.0)
    }
}

impl Figure {
    /// A number that is known.
    pub fn known(value: f64) -> Self {
        Self(Value::Known(value))
    }

    /// Of a scalar, in f32 on the CPU.
    ///
    /// # Errors
    /// When it is not such a scalar.
    pub fn of(scalar: &Tensor) -> Result<Self> {
        Ok(Self(match stays(scalar.device()) {
            true => Value::OnDevice(scalar.detach().to_dtype(DType::F32)?, 1.0),
            false => Value::Known(f64::from(scalar.to_scalar::<f32>()?)),
        }))
    }

    /// Divided by a number.
    #[must_use]
    pub fn divided(self, by: f64) -> Self {
        Self(match self.0 {
            Value::Known(value) => Value::Known(value / by),
            Value::OnDevice(scalar, factor) => Value::OnDevice(scalar, factor / by),
        })
    }

    /// The number, where it is known without asking a device.
    pub fn if_known(&self) -> Option<f64> {
        match self.0 {
            Value::Known(value) => Some(value),
            Value::OnDevice(..) => None,
        }
    }

    /// The number; waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn value(&self) -> Result<f64> {
        Ok(fetch(&[self])?.first().copied().unwrap_or(f64::NAN))
    }
}

/// Whether what is computed on this device stays there for a while.
pub(crate) fn stays(device: &Device) -> bool {
    #[cfg(test)]
    if forced::is_on() {
        return true;
    }
    !device.is_cpu() || aeir_encoders::rehearsal::current().is_some()
}

/// The numbers, in order: all that are on the device in one transfer.
pub(crate) fn fetch(figures: &[&Figure]) -> Result<Vec<f64>> {
    let of = |figure: &&Figure| match &figure.0 {
        Value::OnDevice(scalar, _) => Some(scalar.clone()),
        Value::Known(_) => None,
    };
    let scalars: Vec<Tensor> = figures.iter().filter_map(of).collect();
    let mut fetched = match scalars.is_empty() {
        true => Vec::new(),
        false => {
            #[cfg(test)]
            forced::count();
            Tensor::stack(&scalars, 0)?.to_vec1::<f32>()?
        }
    }
    .into_iter();
    let value = |figure: &&Figure| match figure.0 {
        Value::Known(value) => value,
        Value::OnDevice(_, factor) => fetched.next().map_or(f64::NAN, |value| f64::from(value) * factor),
    };
    Ok(figures.iter().map(value).collect())
}

/// Makes the CPU behave as another device does, so that what happens there can be tested here.
#[cfg(test)]
pub(crate) mod forced {
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<bool> = const { Cell::new(false) };
        static FETCHES: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn is_on() -> bool {
        ON.get()
    }

    pub(super) fn count() {
        FETCHES.set(FETCHES.get() + 1);
    }

    /// Transfers from the device since it was forced.
    pub(crate) fn fetches() -> usize {
        FETCHES.get()
    }

    /// Until it is dropped this thread's CPU is another device.
    pub(crate) struct Forced;

    impl Forced {
        pub(crate) fn new() -> Self {
            ON.set(true);
            FETCHES.set(0);
            Self
        }
    }

    impl Drop for Forced {
        fn drop(&mut self) {
            ON.set(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(value: f32) -> Tensor {
        Tensor::new(value, &Device::Cpu).unwrap()
    }

    #[test]
    fn figures_on_a_device_come_in_one_transfer_and_in_order() {
        let known = Figure::of(&scalar(3.0)).unwrap();
        assert_eq!(known.if_known(), Some(3.0));
        let forced = forced::Forced::new();
        let waiting = [1.0f32, 6.0].map(|value| Figure::of(&scalar(value)).unwrap());
        assert!(waiting.iter().all(|figure| figure.if_known().is_none()));
        let [first, second] = waiting;
        let second = second.divided(4.0);
        assert_eq!(fetch(&[&first, &known, &second]).unwrap(), [1.0, 3.0, 1.5]);
        assert_eq!(forced::fetches(), 1);
        assert_eq!(fetch(&[&known]).unwrap(), [3.0]);
        assert_eq!(forced::fetches(), 1, "nothing to fetch");
        drop(forced);
        assert_eq!(second.value().unwrap(), 1.5);
    }
}
