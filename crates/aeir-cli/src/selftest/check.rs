//! One check: work that gives the same values wherever it is done, and its gradients.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use serde::Serialize;

use super::numbers::{Numbers, rounded};

/// Where and in what a check computes.
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) dtype: DType,
}

impl Place {
    /// A constant.
    pub(super) fn tensor(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.to_dtype(self.dtype)?.to_device(&self.device)
    }

    /// Something that gets a gradient.
    pub(super) fn variable(&self, x: &Tensor) -> candle_core::Result<Var> {
        Var::from_tensor(&self.tensor(x)?)
    }
}

/// What a check is about; it decides how much two places may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// One operation.
    Operation,
    /// A similarity head.
    Head,
    /// A loss.
    Loss,
    /// A whole encoder.
    Encoder,
    /// Training steps of a method.
    Step,
    /// Exact search, which is compared to the bit.
    Search,
}

impl Kind {
    /// As in the table.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Operation => "operation",
            Self::Head => "head",
            Self::Loss => "loss",
            Self::Encoder => "encoder",
            Self::Step => "step",
            Self::Search => "search",
        }
    }
}

/// Values of a tensor on the host.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) values: Vec<f32>,
}

/// What a check gives.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Values {
    pub(super) results: Vec<Named>,
    pub(super) gradients: Vec<Named>,
}

impl Values {
    /// A result alone.
    pub(super) fn of(result: &Tensor) -> anyhow::Result<Self> {
        Ok(Self {
            results: vec![Named { name: "result".into(), values: host(result)? }],
            gradients: Vec::new(),
        })
    }

    pub(super) fn with_result(mut self, name: &str, result: &Tensor) -> anyhow::Result<Self> {
        self.results.push(Named { name: name.into(), values: host(result)? });
        Ok(self)
    }
}

type Work = Box<dyn Fn(&Place) -> anyhow::Result<Values> + Send>;

/// Work with a name.
pub(super) struct Check {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Why it is not done in bfloat16, where it isn't.
    pub(super) single_only: Option<&'static str>,
    /// The same, of the CPU alone.
    pub(super) single_on_the_cpu: Option<&'static str>,
    /// What the error may be, where it is not that of its kind.
    pub(super) tolerance: Option<f64>,
    work: Work,
}

impl Check {
    pub(super) fn new(
        kind: Kind,
        name: impl Into<String>,
        work: impl Fn(&Place) -> anyhow::Result<Values> + Send + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            kind,
            single_only: None,
            single_on_the_cpu: None,
            tolerance: None,
            work: Box::new(work),
        }
    }

    /// The same, in f32 alone.
    pub(super) fn single_only(self, why: &'static str) -> Self {
        Self { single_only: Some(why), ..self }
    }

    /// The same, with another tolerance.
    pub(super) fn within(self, tolerance: f64) -> Self {
        Self { tolerance: Some(tolerance), ..self }
    }

    /// The same, but in bfloat16 not where the device is the CPU.
    pub(super) fn not_on_the_cpu(self, why: &'static str) -> Self {
        Self { single_on_the_cpu: Some(why), ..self }
    }

    /// Why it is not done in this type on this device, where it isn't.
    pub(super) fn refusal(&self, device: &Device, dtype: DType) -> Option<&'static str> {
        let of_the_cpu = self.single_on_the_cpu.filter(|_| device.is_cpu());
        self.single_only.or(of_the_cpu).filter(|_| dtype == DType::BF16)
    }

    pub(super) fn run(&self, place: &Place) -> anyhow::Result<Values> {
        (self.work)(place)
    }
}

/// `work` of variables drawn from `seed`, by name and shape: its result, and the gradients of a weighted sum of it.
pub(super) fn differentiated(
    place: &Place,
    seed: u64,
    inputs: &[(&str, &[usize])],
    work: impl Fn(&[Tensor]) -> anyhow::Result<Tensor>,
) -> anyhow::Result<Values> {
    let mut numbers = Numbers::new(seed);
    let mut variables = Vec::with_capacity(inputs.len());
    for (name, shape) in inputs {
        variables.push(((*name).to_owned(), place.variable(&numbers.tensor(shape)?)?));
    }
    let tensors: Vec<Tensor> = variables.iter().map(|(_, variable)| variable.as_tensor().clone()).collect();
    with_gradients(&work(&tensors)?, &variables)
}

/// A result, and the gradients that a weighted sum of it gives to `variables`.
///
/// A plain sum would hide much: that of a softmax is constant.
pub(super) fn with_gradients(result: &Tensor, variables: &[(String, Var)]) -> anyhow::Result<Values> {
    let weights = Numbers::new(97).tensor(result.dims())?.to_device(result.device())?;
    let store = (result.to_dtype(DType::F32)? * weights)?.sum_all()?.backward()?;
    let mut values = Values::of(result)?;
    for (name, variable) in variables {
        // Without a gradient there are no values, which the comparison finds where the other place has some.
        let gradient = store.get(variable).map(host).transpose()?.unwrap_or_default();
        values.gradients.push(Named { name: format!("gradient of {name}"), values: gradient });
    }
    Ok(values)
}

/// The values in f32, row by row.
pub(super) fn host(x: &Tensor) -> anyhow::Result<Vec<f32>> {
    Ok(x.detach().to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
}

/// Variables for a module with parameters, the same at every place.
pub(super) struct Parameters {
    pub(super) variables: Vec<(String, Var)>,
    builder: VarBuilder<'static>,
}

impl Parameters {
    /// Those that `make` asks a builder for, with their seeded first values.
    pub(super) fn of<T>(
        place: &Place,
        make: impl Fn(VarBuilder<'static>) -> anyhow::Result<T>,
    ) -> anyhow::Result<Self> {
        let store = aeir_train::ParameterStore::new(7, &Device::Cpu);
        make(store.builder())?;
        let mut tensors = HashMap::new();
        let mut variables = Vec::new();
        for (name, value) in store.snapshot("")? {
            let variable = place.variable(&rounded(&value)?)?;
            tensors.insert(name.clone(), variable.as_tensor().clone());
            // Running statistics are set, not learned.
            if !name.contains("running_") {
                variables.push((name, variable));
            }
        }
        Ok(Self { variables, builder: VarBuilder::from_tensors(tensors, place.dtype, &place.device) })
    }

    pub(super) fn builder(&self) -> VarBuilder<'static> {
        self.builder.clone()
    }
}
