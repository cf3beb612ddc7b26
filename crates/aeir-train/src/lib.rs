#![doc = include_str!("../README.md")]

pub mod config;
pub mod data;
pub mod features;
pub mod method;
pub mod observer;
pub mod optimizer;
pub mod parameters;
pub mod run;
pub mod trainer;
pub mod validate;

mod checkpoint;
mod error;

pub use config::{MethodName, TrainConfig};
pub use data::{EvaluationPairs, FeatureTable, SourceData, TargetData, TrainingData};
pub use error::{Result, TrainError};
pub use observer::{EpochRecord, Observer, Silent};
pub use parameters::ParameterStore;
pub use trainer::{Trained, train};
