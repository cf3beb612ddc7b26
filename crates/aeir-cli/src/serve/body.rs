//! The body of a request, bounded in size and time.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::limits::{self, LimitFlags, whole_seconds};
use super::refusal::Refusal;

/// What is still taken of a body that is refused, so that the client gets to read why.
const DRAINED_BYTES: u64 = 64 << 20;
const DRAINED_FOR: Duration = Duration::from_secs(2);

/// Memory that is taken for a body before any of it has come.
const MOST_AT_ONCE: u64 = 1 << 20;

/// Memory for the bodies of all requests, in KiB. Counted by what has come: who sends little, or slowly, keeps nobody out.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// For as many of the largest bodies as there may be requests at once.
    pub(super) fn new(limits: &LimitFlags) -> Self {
        let largest = usize::try_from(limits.max_body_bytes.div_ceil(1 << 10)).unwrap_or(usize::MAX);
        let room = limits.max_requests.saturating_mul(largest.max(1)).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(room)))
    }

    /// Room for `bytes` in all, beside what is held already.
    fn grow(&self, held: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> bool {
        let more = bytes.div_ceil(1 << 10) - held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more =
            u32::try_from(more).ok().and_then(|more| Arc::clone(&self.0).try_acquire_many_owned(more).ok());
        match (more, held) {
            (Some(more), Some(held)) => held.merge(more),
            (Some(more), held) => *held = Some(more),
            (None, _) => return false,
        }
        true
    }
}

/// A body that was read, with the room that it takes.
pub(super) struct Read {
    pub(super) bytes: Bytes,
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// Reads a body. One whose `Content-Length` is above the limit is refused before anything is read; one without is followed up to the limit.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: &LimitFlags,
    room: &Room,
) -> Result<Read, Refusal> {
    let most = limits.max_body_bytes;
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(announced) = announced.filter(|announced| *announced > most) {
        drain(body);
        return Err(too_large(most, &format!("{announced} bytes")));
    }
    // What is announced need not come.
    let capacity = announced.unwrap_or(0).min(MOST_AT_ONCE) as usize;
    match timeout(limits.body_timeout, collect(body, limits, capacity, room)).await {
        Ok(read) => read,
        Err(_) => {
            let seconds = whole_seconds(limits.body_timeout);
            Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body of the request did not come within {seconds} s"),
            )
            .limit(limits::BODY_TIME, seconds))
        }
    }
}

async fn collect(mut body: Body, limits: &LimitFlags, capacity: usize, room: &Room) -> Result<Read, Refusal> {
    let (most, mut bytes, mut held) = (limits.max_body_bytes, Vec::with_capacity(capacity), None);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame =
            frame.map_err(|error| Refusal::bad(format!("the body of the request broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if (bytes.len() + data.len()) as u64 > most {
                drain(body);
                return Err(too_large(most, "more"));
            }
            if !room.grow(&mut held, bytes.len() + data.len()) {
                drain(body);
                return Err(too_many(limits));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(Read { bytes: bytes.into(), room: held })
}

/// More requests at once than are taken on.
pub(super) fn too_many(limits: &LimitFlags) -> Refusal {
    let most = limits.max_requests;
    let message = format!("too many requests at once: at most {most} are worked on");
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, message)
        .limit(limits::REQUESTS, most as u64)
        .hint("try again in a moment")
        .retry_after(1)
}

fn too_large(most: u64, got: &str) -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body of the request is too large: expected at most {most} bytes, got {got}"),
    )
    .limit(limits::BODY, most)
    .hint("send a smaller image: more than a few hundred pixels a side is not looked at")
}

/// Takes some of what a refused client still sends and forgets it. A connection that is closed over unread bytes is reset, and the answer lost.
fn drain(mut body: Body) {
    tokio::spawn(timeout(DRAINED_FOR, async move {
        let mut taken = 0;
        while taken < DRAINED_BYTES {
            match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                Some(Ok(frame)) => taken += frame.into_data().map_or(0, |data| data.len() as u64),
                _ => break,
            }
        }
    }));
}
