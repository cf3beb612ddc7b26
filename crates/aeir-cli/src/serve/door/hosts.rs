//! By which names a server is called, and from which pages.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::serve::refusal::Refusal;

/// Names that every machine has for itself.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Whether an address is of this machine alone, also where IPv6 writes one of IPv4 (`::ffff:127.0.0.1`).
pub(super) fn is_own(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The names that requests may call this server by.
#[derive(Debug)]
pub(super) struct Hosts {
    /// Lower case, without port and brackets.
    names: Vec<String>,
    /// Whether any other name will do: on a public address, unless names are listed.
    any: bool,
}

impl Hosts {
    pub(super) fn new(bound: IpAddr, allowed: &[String]) -> Self {
        let own = OWN_NAMES.iter().map(|name| (*name).to_owned());
        let listed = allowed.iter().map(|name| bare(name));
        let names = own.chain([bound.to_string()]).chain(listed).collect();
        Self { names, any: !is_own(bound) && allowed.is_empty() }
    }

    fn refusal_of(&self, headers: &HeaderMap, authority: Option<&str>) -> Option<Refusal> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = authority.or_else(|| text(header::HOST));
        if !self.any && !host.is_some_and(|host| self.knows(host)) {
            let named = host.unwrap_or("without a name");
            return Some(
                Refusal::new(StatusCode::FORBIDDEN, format!("this server is not called `{named}`")).hint(
                    "ask by http://127.0.0.1 or http://localhost; --allow-host NAME lets other names in",
                ),
            );
        }
        let origin = text(header::ORIGIN)?;
        let from = origin.split_once("://").map(|(_, rest)| rest);
        let same = from.is_some_and(|from| {
            host.is_some_and(|host| host.eq_ignore_ascii_case(from)) || (!self.any && self.lists(from))
        });
        (!same).then(|| {
            Refusal::new(StatusCode::FORBIDDEN, format!("a page of `{origin}` may not ask this server"))
                .hint("behind a reverse proxy, pass the Host header on and give --allow-host NAME")
        })
    }

    fn knows(&self, host: &str) -> bool {
        let host = bare(host);
        self.names.contains(&host)
    }

    /// Whether a name was listed: this machine's own have other servers beside this one, on other ports.
    fn lists(&self, host: &str) -> bool {
        self.knows(host) && !OWN_NAMES.contains(&bare(host).as_str())
    }
}

/// Without port and brackets, in lower case.
fn bare(host: &str) -> String {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        // More than one colon: an address of version 6 without brackets.
        None if host.matches(':').count() > 1 => host,
        None => host.split(':').next().unwrap_or(host),
    };
    name.trim_end_matches('.').to_ascii_lowercase()
}

pub(super) async fn check(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let authority = request.uri().authority().map(ToString::to_string);
    match hosts.refusal_of(request.headers(), authority.as_deref()) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(hosts: &Hosts, host: Option<&str>, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, host.parse().unwrap());
        }
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        hosts.refusal_of(&headers, None).is_some()
    }

    #[test]
    fn names_of_other_machines_do_not_reach_a_local_server() {
        let hosts = Hosts::new("127.0.0.1".parse().unwrap(), &[]);
        for own in ["localhost", "127.0.0.1:8080", "[::1]:80", "LOCALHOST:1", "localhost."] {
            assert!(!refused(&hosts, Some(own), None), "{own}");
        }
        for other in ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""] {
            assert!(refused(&hosts, Some(other), None), "{other}");
        }
        assert!(refused(&hosts, None, None));
    }

    #[test]
    fn an_address_of_this_machine_is_one_however_it_is_written() {
        for (address, own) in
            [("::ffff:127.0.0.1", true), ("::1", true), ("::ffff:192.0.2.1", false), ("::", false)]
        {
            assert_eq!(is_own(address.parse().unwrap()), own, "{address}");
        }
        let hosts = Hosts::new("::ffff:127.0.0.1".parse().unwrap(), &[]);
        assert!(refused(&hosts, Some("evil.example"), None));
    }

    #[test]
    fn other_pages_may_not_ask() {
        let hosts = Hosts::new("127.0.0.1".parse().unwrap(), &[]);
        assert!(!refused(&hosts, Some("localhost:8080"), Some("http://localhost:8080")));
        for other in ["http://localhost:3000", "https://evil.example", "null", "http://127.0.0.1:8080"] {
            assert!(refused(&hosts, Some("localhost:8080"), Some(other)), "{other}");
        }
    }

    #[test]
    fn listed_names_are_let_in() {
        let hosts = Hosts::new("127.0.0.1".parse().unwrap(), &["search.example".to_owned()]);
        assert!(!refused(&hosts, Some("search.example"), Some("https://search.example")));
        assert!(!refused(&hosts, Some("127.0.0.1:8080"), Some("https://search.example")));
        assert!(refused(&hosts, Some("other.example"), None));
        let open = Hosts::new("0.0.0.0".parse().unwrap(), &[]);
        assert!(!refused(&open, Some("anything.example"), None));
        assert!(refused(&open, Some("anything.example"), Some("https://evil.example")));
        let named = Hosts::new("0.0.0.0".parse().unwrap(), &["search.example".to_owned()]);
        assert!(refused(&named, Some("anything.example"), None));
    }
}
