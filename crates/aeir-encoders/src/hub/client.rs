//! Requests to the hub: redirects, the token, repetitions.

use std::io::Read;
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body, Proxy};

use super::HubConfig;
use crate::error::{EncoderError, Result};

const MAX_REDIRECTS: usize = 8;
/// A server that asks for a longer wait is told to the user in place of waited for.
const MAX_WAIT: Duration = Duration::from_secs(120);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// More than any reason for a refusal.
const MAX_REFUSAL_BYTES: u64 = 1 << 16;
/// More than the description of any model.
const MAX_REPLY_BYTES: u64 = 32 << 20;

/// A request that failed.
pub(super) struct Failure {
    pub(super) error: Box<EncoderError>,
    pub(super) again: Again,
}

/// Whether a request may succeed when it is repeated.
pub(super) enum Again {
    Never,
    /// After some time.
    Later,
    /// After the time that the server named.
    After(Duration),
}

impl Failure {
    pub(super) fn last(error: EncoderError) -> Self {
        Self { error: Box::new(error), again: Again::Never }
    }

    /// The same, to be tried again.
    pub(super) fn later(self) -> Self {
        Self { again: Again::Later, ..self }
    }
}

/// Asks the hub.
pub(super) struct Client<'a> {
    config: &'a HubConfig,
    agent: Agent,
}

/// What is sent.
pub(super) struct Sent<'s> {
    pub(super) headers: &'s [(&'s str, &'s str)],
    pub(super) body: &'s mut dyn Read,
    /// Of the body, in bytes: storage takes none of unknown length.
    pub(super) length: u64,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Head,
    /// From this byte on.
    Get(u64),
}

impl<'a> Client<'a> {
    pub(super) fn new(config: &'a HubConfig) -> Result<Self> {
        let proxy = config
            .proxy
            .as_deref()
            .map(Proxy::new)
            .transpose()
            .map_err(|error| transport_error("the proxy", error))?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here: the token stays with the endpoint, and the first answer has the hash.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Otherwise the library would look for one in the environment.
            .proxy(proxy)
            .user_agent(concat!("aeir/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(config.timeout))
            .timeout_connect(Some(config.timeout))
            .timeout_recv_response(Some(config.timeout))
            .timeout_per_read(Some(config.timeout))
            .timeout_per_write(Some(config.timeout))
            .build()
            .new_agent();
        Ok(Self { config, agent })
    }

    /// The text at `path` of the endpoint, repeated where that may help.
    pub(super) fn text(&self, path: &str) -> Result<(String, String)> {
        let url = format!("{}/{path}", self.config.endpoint);
        let text = self.repeated(|| {
            let response = self.followed(&url, Request::Get(0), |_| false)?;
            let mut text = String::new();
            response
                .into_body()
                .into_reader()
                .take(MAX_REPLY_BYTES)
                .read_to_string(&mut text)
                .map_err(|error| interrupted(&url, error))?;
            Ok(text)
        })?;
        Ok((url, text))
    }

    /// The headers of a file: of the hub's own answer, even where that leads to another server.
    pub(super) fn headers(&self, url: &str) -> Result<HeaderMap> {
        self.repeated(|| {
            let named = |headers: &HeaderMap| headers.contains_key("x-linked-etag");
            Ok(self.followed(url, Request::Head, named)?.headers().clone())
        })
    }

    /// Does something until it succeeds, or fails for good, or too often.
    pub(super) fn repeated<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(failure) => {
                    self.wait(failures, failure)?;
                    failures += 1;
                }
            }
        }
    }

    /// Waits before a repetition, or gives the error back where there is to be none.
    pub(super) fn wait(&self, failures: u32, failure: Failure) -> Result<()> {
        if failures >= self.config.retries {
            return Err(*failure.error);
        }
        let doubled = self.config.backoff.saturating_mul(2_u32.saturating_pow(failures)).min(MAX_BACKOFF);
        match failure.again {
            Again::Later => thread::sleep(doubled),
            Again::After(wait) if wait <= MAX_WAIT => thread::sleep(wait),
            Again::After(_) | Again::Never => return Err(*failure.error),
        }
        Ok(())
    }

    /// One request, behind redirects. `enough` stops at a redirect that says what is wanted itself.
    pub(super) fn followed(
        &self,
        url: &str,
        request: Request,
        enough: impl Fn(&HeaderMap) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let mut target = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let response = self.once(&target, request)?;
            if !response.status().is_redirection() {
                return checked(&target, response);
            }
            if enough(response.headers()) {
                return Ok(response);
            }
            let location = header(response.headers(), "location").unwrap_or_default();
            target = resolved(&target, location).ok_or_else(|| {
                let got = without_query(location);
                Failure::last(reply_error(&target, "a place to go on at (`https://...`)", got))
            })?;
        }
        Err(Failure::last(reply_error(url, &format!("at most {MAX_REDIRECTS} redirects"), "more")))
    }

    fn once(&self, url: &str, request: Request) -> Result<Response<Body>, Failure> {
        let mut builder = match request {
            Request::Head => self.agent.head(url),
            Request::Get(_) => self.agent.get(url),
        };
        // Compressed bytes would have another length and no hash.
        builder = builder.header("Accept-Encoding", "identity");
        if let Request::Get(start @ 1..) = request {
            builder = builder.header("Range", format!("bytes={start}-"));
        }
        if let Some(authorization) = self.authorization(url) {
            builder = builder.header("Authorization", authorization);
        }
        builder.call().map_err(|error| not_sent(url, error))
    }

    /// The token, where it is the endpoint that is asked.
    fn authorization(&self, url: &str) -> Option<String> {
        let token = self.config.token.as_ref()?;
        (origin(url)? == origin(&self.config.endpoint)?).then(|| format!("Bearer {token}"))
    }

    /// Sends a body and gives the text of the answer.
    pub(super) fn post(&self, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<String, Failure> {
        let mut reader = body;
        let sent = Sent { headers, body: &mut reader, length: body.len() as u64 };
        let response = self.send(self.agent.post(url), url, sent)?;
        let mut text = String::new();
        let read = response.into_body().into_reader().take(MAX_REPLY_BYTES).read_to_string(&mut text);
        read.map_err(|error| interrupted(url, error))?;
        Ok(text)
    }

    /// Sends a body to where the hub said, and gives the answer's ETag.
    pub(super) fn put(&self, url: &str, sent: Sent<'_>) -> Result<Option<String>, Failure> {
        let response = self.send(self.agent.put(url), url, sent)?;
        Ok(header(response.headers(), "etag").map(str::to_owned))
    }

    fn send(
        &self,
        mut builder: ureq::RequestBuilder<ureq::typestate::WithBody>,
        url: &str,
        sent: Sent<'_>,
    ) -> Result<Response<Body>, Failure> {
        let open = self.config.endpoint.starts_with("https://") && !url.starts_with("https://");
        if open || !(url.starts_with("https://") || url.starts_with("http://")) {
            return Err(Failure::last(reply_error(
                url,
                "an encrypted place to send to (`https://...`)",
                without_query(url),
            )));
        }
        for (name, value) in sent.headers {
            builder = builder.header(*name, *value);
        }
        if let Some(authorization) = self.authorization(url) {
            builder = builder.header("Authorization", authorization);
        }
        let builder = builder.header("Content-Length", sent.length.to_string());
        let response =
            builder.send(ureq::SendBody::from_reader(sent.body)).map_err(|error| not_sent(url, error))?;
        if response.status().is_redirection() {
            let location = header(response.headers(), "location").unwrap_or_default();
            return Err(Failure::last(reply_error(
                url,
                "an answer, not a redirect",
                without_query(location),
            )));
        }
        checked(url, response)
    }
}

/// A request without an answer. Where nothing listens, repeating only delays the message.
fn not_sent(url: &str, error: ureq::Error) -> Failure {
    let again = match &error {
        ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => Again::Later,
        ureq::Error::Io(error) if error.kind() != std::io::ErrorKind::ConnectionRefused => Again::Later,
        _ => Again::Never,
    };
    Failure { error: Box::new(transport_error(url, error)), again }
}

/// The response, unless it says that there is none.
fn checked(url: &str, response: Response<Body>) -> Result<Response<Body>, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let headers = response.headers();
    let again = match status {
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let named = header(headers, "retry-after").and_then(|text| text.trim().parse().ok());
            named.map_or(Again::Later, |seconds| Again::After(Duration::from_secs(seconds)))
        }
        _ => Again::Never,
    };
    let message = match header(headers, "x-error-message") {
        Some(message) => message.to_owned(),
        None => message_in(response),
    };
    let message: String = message.chars().take(300).collect();
    Err(Failure {
        error: Box::new(EncoderError::HubStatus {
            url: without_query(url).to_owned(),
            status: status.as_u16(),
            message,
        }),
        again,
    })
}

/// What the body of a refusal says: `{"error": ".."}`, or `{"message": ".."}` of Git LFS.
fn message_in(response: Response<Body>) -> String {
    #[derive(Default, serde::Deserialize)]
    struct Refusal {
        #[serde(alias = "message", default)]
        error: String,
    }
    let mut text = String::new();
    // A refusal without a readable reason is one all the same.
    let _ = response.into_body().into_reader().take(MAX_REFUSAL_BYTES).read_to_string(&mut text);
    serde_json::from_str::<Refusal>(&text).unwrap_or_default().error
}

/// A connection that ended in the middle.
pub(super) fn interrupted(url: &str, error: std::io::Error) -> Failure {
    Failure { error: Box::new(transport_error(url, error)), again: Again::Later }
}

fn transport_error(url: &str, error: impl std::error::Error + Send + Sync + 'static) -> EncoderError {
    EncoderError::HubTransport { url: without_query(url).to_owned(), source: Box::new(error) }
}

pub(super) fn reply_error(url: &str, expected: &str, got: &str) -> EncoderError {
    EncoderError::HubReply {
        url: without_query(url).to_owned(),
        expected: expected.to_owned(),
        got: if got.is_empty() { "nothing".to_owned() } else { got.chars().take(200).collect() },
    }
}

/// Storage addresses carry signatures in their query, which belong in no message.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<&str> {
    let authority = url.find("://")? + 3;
    let length = url.get(authority..)?.find(['/', '?', '#']).unwrap_or(url.len() - authority);
    url.get(..authority + length)
}

/// Where a redirect leads; none where it is unclear, or from an encrypted connection to an open one.
fn resolved(from: &str, location: &str) -> Option<String> {
    let origin = origin(from)?;
    let target = if location.starts_with("//") {
        format!("{}{location}", from.split("//").next()?)
    } else if location.starts_with('/') {
        format!("{origin}{location}")
    } else if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else {
        return None;
    };
    (!from.starts_with("https://") || target.starts_with("https://")).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let from = "https://hub/a/b?c";
        assert_eq!(resolved(from, "/d").as_deref(), Some("https://hub/d"));
        assert_eq!(resolved(from, "//cdn/d").as_deref(), Some("https://cdn/d"));
        assert_eq!(resolved(from, "https://cdn/d").as_deref(), Some("https://cdn/d"));
        assert_eq!(resolved(from, "http://cdn/d"), None, "not from https to http");
        assert_eq!(resolved(from, "ftp://cdn/d"), None);
        assert_eq!(resolved("http://hub", "/d").as_deref(), Some("http://hub/d"));
    }

    #[test]
    fn the_token_stays_with_scheme_host_and_port() {
        assert_eq!(origin("https://hub/a"), origin("https://hub?x"));
        for other in
            ["http://hub/a", "https://hub:8080/a", "https://hub.example/a", "https://cdn/https://hub"]
        {
            assert_ne!(origin(other), origin("https://hub/a"), "{other}");
        }
    }
}
