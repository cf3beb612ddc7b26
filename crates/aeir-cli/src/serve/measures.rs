//! What the server counts and times, for Prometheus.

use std::time::{Duration, Instant};

use super::refusal::MetLimit;
use anyhow::Context;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

const REQUESTS: &str = "aeir_http_requests_total";
const REQUEST_SECONDS: &str = "aeir_http_request_seconds";
const REFUSED: &str = "aeir_refused_total";
const QUEUE_LENGTH: &str = "aeir_queue_length";
const QUEUE_SECONDS: &str = "aeir_queue_seconds";
const BATCH_SIZE: &str = "aeir_batch_size";
const BATCH_SECONDS: &str = "aeir_batch_seconds";
const ITEMS: &str = "aeir_index_items";
const GENERATION: &str = "aeir_index_generation";
const RELOAD_FAILURES: &str = "aeir_index_reload_failures_total";
const THUMBNAILS: &str = "aeir_thumbnails_total";

const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
const SIZES: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Routes that are none of ours are counted together: a client can't make series of its own.
const UNKNOWN: &str = "unknown";

/// Begins to count, for the whole process.
pub(crate) fn begin() -> anyhow::Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(BATCH_SIZE.into()), &SIZES))
        .context("could not set up the measures")?;
    let handle = builder.install_recorder().context("could not set up the measures")?;
    describe_counter!(REQUESTS, "Requests by route, method and status");
    describe_histogram!(REQUEST_SECONDS, "Seconds from the head of a request to its answer, by route");
    describe_counter!(REFUSED, "Requests that met a limit, by its flag");
    describe_gauge!(QUEUE_LENGTH, "Queries that wait for the encoder");
    describe_histogram!(QUEUE_SECONDS, "Seconds that a query waited for the encoder");
    describe_histogram!(BATCH_SIZE, "Queries that were answered together");
    describe_histogram!(BATCH_SECONDS, "Seconds to embed and search a batch");
    describe_gauge!(ITEMS, "Items of the index that is served");
    describe_gauge!(GENERATION, "Which state of the index is served");
    describe_counter!(RELOAD_FAILURES, "Indexes that could not be taken over");
    describe_counter!(THUMBNAILS, "Thumbnails by where they came from");
    gauge!(QUEUE_LENGTH).set(0.0);
    Ok(handle)
}

/// Counts and times a request.
pub(super) async fn request(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or(UNKNOWN, |path| path.as_str()).to_owned();
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH") => known.to_owned(),
        _ => UNKNOWN.to_owned(),
    };
    let began = Instant::now();
    let response = next.run(request).await;
    histogram!(REQUEST_SECONDS, "route" => route.clone()).record(began.elapsed());
    let status = response.status().as_str().to_owned();
    if let Some(MetLimit(flag)) = response.extensions().get::<MetLimit>() {
        counter!(REFUSED, "limit" => *flag).increment(1);
    }
    counter!(REQUESTS, "route" => route, "method" => method, "status" => status).increment(1);
    response
}

pub(super) fn queued() {
    gauge!(QUEUE_LENGTH).increment(1.0);
}

pub(super) fn taken(waited: Duration) {
    gauge!(QUEUE_LENGTH).decrement(1.0);
    histogram!(QUEUE_SECONDS).record(waited);
}

pub(super) fn batch(size: usize, took: Duration) {
    histogram!(BATCH_SIZE).record(size as f64);
    histogram!(BATCH_SECONDS).record(took);
}

pub(super) fn of_index(items: usize, generation: u64) {
    gauge!(ITEMS).set(items as f64);
    gauge!(GENERATION).set(generation as f64);
}

pub(super) fn reload_failed() {
    counter!(RELOAD_FAILURES).increment(1);
}

pub(super) fn thumbnail(from: &'static str) {
    counter!(THUMBNAILS, "from" => from).increment(1);
}
