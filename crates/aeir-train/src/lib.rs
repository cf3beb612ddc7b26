#![doc = include_str!("../README.md")]

pub mod budget;
pub mod config;
pub mod data;
pub mod features;
pub mod figure;
pub mod items;
pub mod joint_space;
pub mod method;
pub mod mining;
pub mod observer;
pub mod optimizer;
pub mod parameters;
pub mod plan;
pub mod recorder;
pub mod run;
pub mod score;
pub mod step;
pub mod trainer;
pub mod tuned;
pub mod validate;

mod checkpoint;
mod critic_watch;
mod error;
mod event_file;
mod gradient_watch;
mod ranking_watch;
mod whitening;

pub use config::{MethodName, TrainConfig};
pub use data::{EvaluationPairs, SourceData, TargetData, TrainingData};
pub use error::{Result, TrainError};
pub use items::{FeatureTable, FragmentTable, ItemTable, WordTable};
pub use observer::{EpochRecord, Observer, Silent, StepRecord};
pub use parameters::ParameterStore;
pub use plan::{Plan, plan};
pub use recorder::Recorder;
pub use trainer::{Trained, train};
pub use tuned::TunedEncoder;
