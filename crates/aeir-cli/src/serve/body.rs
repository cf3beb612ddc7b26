//! The body of a request, bounded in size and time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use tokio::time::timeout;

use super::limits::{self, LimitFlags, whole_seconds};
use super::refusal::Refusal;

/// What is still taken of a body that is refused, so that the client gets to read why.
const DRAINED_BYTES: u64 = 64 << 20;
const DRAINED_FOR: Duration = Duration::from_secs(2);

/// Reads a body. One whose `Content-Length` is above the limit is refused before anything is read; one without is followed up to the limit.
pub(super) async fn read(headers: &HeaderMap, body: Body, limits: &LimitFlags) -> Result<Bytes, Refusal> {
    let most = limits.max_body_bytes;
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(announced) = announced.filter(|announced| *announced > most) {
        drain(body);
        return Err(too_large(most, &format!("{announced} bytes")));
    }
    let room = usize::try_from(announced.unwrap_or(0)).unwrap_or(0);
    match timeout(limits.body_timeout, collect(body, most, room)).await {
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

async fn collect(mut body: Body, most: u64, room: usize) -> Result<Bytes, Refusal> {
    let mut bytes = Vec::with_capacity(room);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame =
            frame.map_err(|error| Refusal::bad(format!("the body of the request broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if (bytes.len() + data.len()) as u64 > most {
                drain(body);
                return Err(too_large(most, "more"));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.into())
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
pub(super) fn drain(mut body: Body) {
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
