//! Requests: redirects, the token, proxies, and what a refusal means.

use std::time::Duration;

use anyhow::{Context, bail};
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

const MAX_REDIRECTS: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Variables that name a proxy, in the order in which they count.
const PROXIES: [&str; 6] =
    ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// Hugging Face's variables.
#[derive(Debug, Clone)]
pub(super) struct HubVariables {
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
}

impl HubVariables {
    pub(super) fn read() -> anyhow::Result<Self> {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if origin(&endpoint).is_none() {
            bail!("HF_ENDPOINT: expected `https://HOST`, got `{endpoint}`");
        }
        Ok(Self { endpoint, token: variable("HF_TOKEN") })
    }
}

/// A variable that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Asks servers for files.
pub(super) struct Client {
    agent: Agent,
    hub: HubVariables,
    /// Variable and address of the proxy, without what is secret in it.
    proxy: Option<String>,
}

/// Why there is no answer, and whether to ask again.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) again: Again,
}

/// Whether a request may succeed when it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// There is no such file.
    Absent,
    /// Nobody answers at that address.
    Unreachable,
    /// Nobody answered this time, which may be a moment's trouble.
    Unanswered,
    /// The server does not go on from where we are.
    FromTheStart,
    Later,
    /// After the time that the server named.
    After(Duration),
}

/// Part of a file that is there already, and which file it is a part of.
#[derive(Debug, Clone, Copy)]
pub(super) struct From<'a> {
    pub(super) bytes: u64,
    pub(super) etag: Option<&'a str>,
}

impl Client {
    pub(super) fn new(hub: HubVariables) -> anyhow::Result<Self> {
        let named = PROXIES.iter().find_map(|name| Some((*name, variable(name)?)));
        if let Some((name, address)) = &named {
            Proxy::new(address).map_err(|_| {
                anyhow::anyhow!("{name}: expected `http://HOST:PORT`, got `{}`", without_secret(address))
            })?;
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here: the token stays with the endpoint, and the first answer has the hash.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(Proxy::try_from_env())
            .tls_config(tls()?)
            .user_agent(concat!("aeir-xtask/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(TIMEOUT))
            .timeout_connect(Some(TIMEOUT))
            .timeout_recv_response(Some(TIMEOUT))
            .timeout_per_read(Some(TIMEOUT))
            .build()
            .new_agent();
        let proxy = named.map(|(name, address)| format!("`{}` ({name})", without_secret(&address)));
        Ok(Self { agent, hub, proxy })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.hub.endpoint
    }

    /// The file at `url`, from a byte on; and what the first server said of it, even where that sent us on.
    pub(super) fn get(&self, url: &str, from: From<'_>) -> Result<(Response<Body>, HeaderMap), Refusal> {
        let mut target = url.to_owned();
        let mut first = None;
        for _ in 0..MAX_REDIRECTS {
            let response = self.once(&target, from)?;
            let headers = first.get_or_insert_with(|| response.headers().clone());
            if !response.status().is_redirection() {
                return Ok((self.checked(&target, response)?, headers.clone()));
            }
            let location = header(response.headers(), "location").unwrap_or_default();
            target = resolved(&target, location).ok_or_else(|| {
                never(format!(
                    "`{}` leads to `{}`, which is no place to go on at",
                    bare(&target),
                    bare(location)
                ))
            })?;
        }
        Err(never(format!(
            "`{}` leads from one place to the next, more than {MAX_REDIRECTS} times",
            bare(url)
        )))
    }

    fn once(&self, url: &str, from: From<'_>) -> Result<Response<Body>, Refusal> {
        // Compressed bytes would have another length and no hash.
        let mut builder = self.agent.get(url).header("Accept-Encoding", "identity");
        if from.bytes > 0 {
            builder = builder.header("Range", format!("bytes={}-", from.bytes));
            if let Some(etag) = from.etag {
                builder = builder.header("If-Range", etag);
            }
        }
        if let Some(token) = self.token_for(url) {
            builder = builder.header("Authorization", format!("Bearer {token}"));
        }
        builder.call().map_err(|error| self.unanswered(url, &error))
    }

    /// The token, where it is the endpoint that is asked.
    fn token_for(&self, url: &str) -> Option<&str> {
        let same = origin(url)? == origin(&self.hub.endpoint)?;
        self.hub.token.as_deref().filter(|_| same)
    }

    fn unanswered(&self, url: &str, error: &ureq::Error) -> Refusal {
        let again = match error {
            ureq::Error::Protocol(_) => Again::Later,
            ureq::Error::Timeout(_) => Again::Unanswered,
            ureq::Error::Io(error) if error.kind() != std::io::ErrorKind::ConnectionRefused => {
                Again::Unanswered
            }
            _ => Again::Unreachable,
        };
        let through =
            self.proxy.as_ref().map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
        Refusal { message: format!("could not reach `{}`{through}: {error}", bare(url)), again }
    }

    fn checked(&self, url: &str, response: Response<Body>) -> Result<Response<Body>, Refusal> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait = header(response.headers(), "retry-after").and_then(|text| text.trim().parse().ok());
        let (says, again) = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (self.refused(url), Again::Never),
            StatusCode::NOT_FOUND | StatusCode::GONE => ("there is no such file".to_owned(), Again::Absent),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                ("the server does not go on from where we are".to_owned(), Again::FromTheStart)
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let asks = wait.map(|seconds| format!(", it asks to wait {seconds} s")).unwrap_or_default();
                let again = wait.map_or(Again::Later, |seconds| Again::After(Duration::from_secs(seconds)));
                (format!("the server is too busy{asks}"), again)
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                ("the server failed".to_owned(), Again::Later)
            }
            _ => ("the server refuses".to_owned(), Again::Never),
        };
        Err(Refusal { message: format!("`{}`: {says} (HTTP {})", bare(url), status.as_u16()), again })
    }

    /// What to do about a refusal.
    fn refused(&self, url: &str) -> String {
        let of_hub = origin(url) == origin(&self.hub.endpoint);
        match (of_hub, &self.hub.token) {
            (false, _) => "access is refused".to_owned(),
            (true, None) => {
                "access is refused: accept its terms on its page and set HF_TOKEN to a token of your account"
                    .to_owned()
            }
            (true, Some(_)) => {
                "access is refused to the token in HF_TOKEN: accept its terms on its page".to_owned()
            }
        }
    }
}

fn never(message: String) -> Refusal {
    Refusal { message, again: Again::Never }
}

/// The roots that come with the program, or those of SSL_CERT_FILE: a company's proxy has its own.
fn tls() -> anyhow::Result<TlsConfig> {
    let Some(file) = variable("SSL_CERT_FILE") else { return Ok(TlsConfig::default()) };
    let pem = std::fs::read(&file).with_context(|| format!("SSL_CERT_FILE: could not read `{file}`"))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.with_context(|| format!("SSL_CERT_FILE: `{file}`"))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        bail!("SSL_CERT_FILE: `{file}` holds no certificate");
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::from(certificates.into_iter())).build())
}

pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Signatures in addresses belong in no message.
pub(super) fn bare(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

/// A proxy's address without user and password.
fn without_secret(address: &str) -> String {
    match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => address.to_owned(),
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<&str> {
    let authority = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let length = authority.find(['/', '?', '#']).unwrap_or(authority.len());
    if length == 0 {
        return None;
    }
    url.get(..url.len() - authority.len() + length)
}

/// Where a redirect leads; none where it is unclear, or from an encrypted connection to an open one.
fn resolved(from: &str, location: &str) -> Option<String> {
    let target = if location.starts_with("//") {
        format!("{}{location}", from.split("//").next()?)
    } else if location.starts_with('/') {
        format!("{}{location}", origin(from)?)
    } else {
        origin(location)?;
        location.to_owned()
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
        assert_eq!(resolved("http://hub", "/d").as_deref(), Some("http://hub/d"));
        for wrong in ["http://cdn/d", "ftp://cdn/d", "", "d"] {
            assert_eq!(resolved(from, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_token_is_for_scheme_host_and_port() {
        let hub = HubVariables { endpoint: "https://hub".into(), token: Some("secret".into()) };
        let client = Client { agent: Agent::new_with_defaults(), hub, proxy: None };
        assert_eq!(client.token_for("https://hub/a?x"), Some("secret"));
        for other in
            ["http://hub/a", "https://hub:8080/a", "https://hub.example/a", "https://cdn/https://hub"]
        {
            assert_eq!(client.token_for(other), None, "{other}");
        }
    }

    #[test]
    fn secrets_stay_out_of_messages() {
        assert_eq!(without_secret("http://me:word@proxy:80"), "http://proxy:80");
        assert_eq!(without_secret("me:word@proxy:80"), "proxy:80");
        assert_eq!(without_secret("http://proxy"), "http://proxy");
        assert_eq!(bare("https://cdn/x?signature=1"), "https://cdn/x");
    }
}
