//! An optional key that requests have to show.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::refusal::Refusal;
use crate::failure::CliError;

/// Header beside `Authorization: Bearer`.
const HEADER: &str = "x-api-key";

/// The hash of a key: of equal length whatever is guessed, and nothing to find in memory.
#[derive(Clone, Copy)]
pub(crate) struct ApiKey([u8; 32]);

impl ApiKey {
    /// From the flag or its variable, else from a file; none where neither is given.
    pub(crate) fn read(key: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let key = match (key, file) {
            (Some(key), _) => key.to_owned(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .with_context(|| format!("could not read `{}`", file.display()))?,
            (None, None) => return Ok(None),
        };
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CliError::Usage {
                message: "the API key is empty or has blanks in it".into(),
                hint: "make one, for instance with `openssl rand -hex 32`".into(),
            }
            .into());
        }
        Ok(Some(Self::of(key)))
    }

    fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Compares in a time that does not depend on where the two differ.
    fn is(&self, shown: &str) -> bool {
        let shown = Self::of(shown);
        let difference = self.0.iter().zip(shown.0).fold(0, |found, (a, b)| found | (a ^ b));
        std::hint::black_box(difference) == 0
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        let bearer = headers.get(header::AUTHORIZATION).and_then(text);
        let bearer = bearer.as_deref().and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
        });
        bearer.or_else(|| headers.get(HEADER).and_then(text)).is_some_and(|shown| self.is(&shown))
    }
}

/// Lets requests with the key through.
pub(super) async fn check(State(key): State<Arc<Option<ApiKey>>>, request: Request, next: Next) -> Response {
    match key.as_ref() {
        Some(key) if !key.admits(request.headers()) => {
            let mut response = Refusal::new(StatusCode::UNAUTHORIZED, "this server asks for an API key")
                .hint("send it as `Authorization: Bearer KEY`")
                .into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(name: &str, value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        ApiKey::of("secret").admits(&headers)
    }

    #[test]
    fn the_key_alone_opens() {
        assert!(admits("authorization", "Bearer secret") && admits("authorization", "bearer  secret"));
        assert!(admits("x-api-key", "secret"));
        for wrong in ["Bearer secre", "Bearer secret2", "Basic secret", "secret", "Bearer"] {
            assert!(!admits("authorization", wrong), "{wrong}");
        }
        assert!(!ApiKey::of("secret").admits(&HeaderMap::new()));
    }

    #[test]
    fn keys_without_content_are_refused() {
        assert!(ApiKey::read(None, None).unwrap().is_none());
        for wrong in ["", "  ", "two words", "é"] {
            assert!(ApiKey::read(Some(wrong), None).is_err(), "{wrong:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "secret\n").unwrap();
        assert!(ApiKey::read(None, Some(&file)).unwrap().unwrap().is("secret"));
    }
}
