//! The way in, for every local server of this program: an address, who may ask, how long slow clients are waited for, and an orderly end.
//!
//! A page of ours listens on this machine alone unless told otherwise. Other pages in the same browser can reach that address too: requests whose
//! `Host` is no name of this machine (DNS rebinding) or that come from another origin are refused.

mod connection;
mod hosts;
mod signals;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use clap::Args;

pub(crate) use connection::Patience;
use connection::{Caller, Gate};
use hosts::Hosts;

use crate::failure::CliError;

/// Threads that talk to clients. What computes runs elsewhere.
const TALKING_THREADS: usize = 2;

/// What every answer carries: no content of other origins, no frames, no guessing of types.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Where a server listens.
#[derive(Args, Clone)]
pub(crate) struct DoorFlags {
    /// Address to listen on. Others than this machine's own are open to everybody who can reach them
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = host, help_heading = "Address", env = "AEIR_HOST")]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 8080, help_heading = "Address", env = "AEIR_PORT")]
    pub(crate) port: u16,
    /// Further names that clients reach this server by, such as that of a reverse proxy. On an address of this machine alone, other
    /// names than its own are refused. May be repeated
    #[arg(
        long = "allow-host",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Address",
        env = "AEIR_ALLOW_HOST"
    )]
    pub(crate) allowed: Vec<String>,
}

fn host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text.parse().map_err(|_| "expected an address such as 127.0.0.1, ::1 or 0.0.0.0".to_owned()),
    }
}

/// A port that is ours, before anybody is let in.
pub(crate) struct Door {
    listener: TcpListener,
    address: SocketAddr,
    hosts: Arc<Hosts>,
    patience: Patience,
}

/// How a server came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything that had begun was answered.
    Orderly,
    /// Some requests took too long and were cut off.
    CutOff,
}

impl Door {
    /// Takes the port.
    pub(crate) fn open(flags: &DoorFlags, patience: Patience) -> anyhow::Result<Self> {
        let asked = SocketAddr::new(flags.host, flags.port);
        let listener = TcpListener::bind(asked).map_err(|error| refused(asked, &error))?;
        let address = listener.local_addr().context("could not tell the port")?;
        listener.set_nonblocking(true).context("could not set up the port")?;
        let hosts = Arc::new(Hosts::new(flags.host, &flags.allowed));
        Ok(Self { listener, address, hosts, patience })
    }

    /// Where it listens: the port is a real one, also where any was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether other machines can reach it.
    pub(crate) fn is_public(&self) -> bool {
        !hosts::is_own(self.address.ip())
    }

    /// Answers requests until SIGINT or SIGTERM, then finishes those that have begun. `ready` is called once signals are listened for and clients are
    /// let in. A second signal, or the end of the patience for shutting down, cuts off what is left.
    pub(crate) fn serve(
        self,
        router: Router,
        ready: impl FnOnce(SocketAddr) -> anyhow::Result<()>,
    ) -> anyhow::Result<Ended> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(TALKING_THREADS)
            .thread_name("aeir-serve")
            .enable_all()
            .build()
            .context("could not start threads")?;
        let ended = runtime.block_on(self.answer(router, ready));
        // Work of requests that were cut off must not hold the process.
        runtime.shutdown_timeout(Duration::from_millis(200));
        ended
    }

    async fn answer(
        self,
        router: Router,
        ready: impl FnOnce(SocketAddr) -> anyhow::Result<()>,
    ) -> anyhow::Result<Ended> {
        let (address, patience) = (self.address, self.patience);
        let router = router
            .layer(from_fn_with_state(self.hosts, hosts::check))
            .layer(from_fn(with_headers))
            .layer(from_fn(connection::mark_request));
        let gate = Gate::new(self.listener, patience).context("could not listen")?;
        let mut stop = signals::listen(patience.shutdown)?;
        ready(address)?;
        let mut asked = stop.clone();
        let serving = axum::serve(gate, router.into_make_service_with_connect_info::<Caller>())
            .with_graceful_shutdown(async move { asked.asked().await });
        tokio::select! {
            served = serving => served.map(|()| Ended::Orderly).context("the server failed"),
            () = stop.overdue() => Ok(Ended::CutOff),
        }
    }
}

/// Why a port can't be had, and what to do.
fn refused(asked: SocketAddr, error: &io::Error) -> CliError {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there: choose another port with --port, or 0 for any that is free"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 are the system's: choose another with --port",
        io::ErrorKind::AddrNotAvailable => {
            "--host takes an address of this machine, or 0.0.0.0 for all of them"
        }
        _ => "",
    };
    CliError::Usage { message: format!("could not listen on {asked}: {error}"), hint: hint.into() }
}

async fn with_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
