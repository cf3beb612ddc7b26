//! What a server takes on: each limit with its flag, which an answer names when it is met.

use std::time::Duration;

use aeir_data::ImageLimits;
use clap::Args;

use crate::flags::{at_least_one, seconds};

pub(super) const BODY: &str = "--max-body-bytes";
pub(super) const TEXT: &str = "--max-text-bytes";
pub(super) const PIXELS: &str = "--max-pixels";
pub(super) const SIDE: &str = "--max-side";
pub(super) const RESULTS: &str = "--max-results";
pub(super) const REQUESTS: &str = "--max-requests";
pub(super) const QUEUE: &str = "--queue-timeout";
pub(super) const BODY_TIME: &str = "--body-timeout";

/// Limits of a server.
#[derive(Args, Clone)]
pub(crate) struct LimitFlags {
    /// Largest body of a request, in bytes: 413 above it, before it is read
    #[arg(long, value_name = "N", default_value_t = 16 << 20, help_heading = "Limits", env = "AEIR_MAX_BODY_BYTES")]
    pub(crate) max_body_bytes: u64,
    /// Longest sentence, in bytes: 413 above it
    #[arg(long, value_name = "N", default_value_t = 8 << 10, help_heading = "Limits", env = "AEIR_MAX_TEXT_BYTES")]
    pub(crate) max_text_bytes: u64,
    /// Largest image, in pixels: 413 above it, before it is decoded; images of the index that are larger have no thumbnail
    #[arg(long, value_name = "N", default_value_t = ImageLimits::default().max_pixels, help_heading = "Limits", env = "AEIR_MAX_PIXELS")]
    pub(crate) max_pixels: u64,
    /// Longest side of an image, in pixels
    #[arg(long, value_name = "N", default_value_t = ImageLimits::default().max_side, help_heading = "Limits", env = "AEIR_MAX_SIDE")]
    pub(crate) max_side: u32,
    /// Most results of a query
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = at_least_one, help_heading = "Limits", env = "AEIR_MAX_RESULTS")]
    pub(crate) max_results: usize,
    /// Requests that are worked on or wait at once: 429 above it
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one, help_heading = "Limits", env = "AEIR_MAX_REQUESTS")]
    pub(crate) max_requests: usize,
    /// Longest wait for the encoder, in seconds: 503 after it
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds, help_heading = "Limits", env = "AEIR_QUEUE_TIMEOUT")]
    pub(crate) queue_timeout: Duration,
    /// Queries that are embedded at once, at most
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one, help_heading = "Limits", env = "AEIR_MAX_BATCH")]
    pub(crate) max_batch: usize,
    /// How long a batch waits for queries that are on their way, in seconds; one that is alone does not wait
    #[arg(long, value_name = "SECONDS", default_value = "0.002", value_parser = seconds, help_heading = "Limits", env = "AEIR_BATCH_WINDOW")]
    pub(crate) batch_window: Duration,
    /// Longest wait for the head of a request, in seconds; the connection is closed after it
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, help_heading = "Limits", env = "AEIR_HEAD_TIMEOUT")]
    pub(crate) head_timeout: Duration,
    /// Longest wait for the body of a request, in seconds: 408 after it
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, help_heading = "Limits", env = "AEIR_BODY_TIMEOUT")]
    pub(crate) body_timeout: Duration,
    /// Longest wait for requests under way when the server is asked to end, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, help_heading = "Limits", env = "AEIR_SHUTDOWN_TIMEOUT")]
    pub(crate) shutdown_timeout: Duration,
    /// Memory for thumbnails, in bytes
    #[arg(long, value_name = "N", default_value_t = 64 << 20, help_heading = "Limits", env = "AEIR_THUMBNAIL_BYTES")]
    pub(crate) thumbnail_bytes: usize,
}

impl LimitFlags {
    pub(crate) fn images(&self) -> ImageLimits {
        ImageLimits { max_pixels: self.max_pixels, max_side: self.max_side, ..ImageLimits::default() }
    }
}

/// Whole seconds of a limit, as an answer names it; at least 1.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs_f64().ceil().max(1.0) as u64
}
