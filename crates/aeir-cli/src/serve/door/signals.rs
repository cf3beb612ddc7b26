//! SIGINT and SIGTERM: the first asks for an orderly end, a second or too long a wait for one at once.

use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

/// How urgently somebody wants the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Urgency {
    None,
    Orderly,
    AtOnce,
}

/// Tells when to end.
#[derive(Clone)]
pub(super) struct Stop(watch::Receiver<Urgency>);

impl Stop {
    /// Waits until somebody asks to end.
    pub(super) async fn asked(&mut self) {
        self.reached(Urgency::Orderly).await;
    }

    /// Waits until there is no more time to end in order.
    pub(super) async fn overdue(&mut self) {
        self.reached(Urgency::AtOnce).await;
    }

    async fn reached(&mut self, urgency: Urgency) {
        if self.0.wait_for(|now| *now >= urgency).await.is_err() {
            // Nobody listens for signals any more: there is nothing to wait for.
            std::future::pending::<()>().await;
        }
    }
}

/// Listens from now on.
#[cfg(unix)]
pub(super) fn listen(patience: Duration) -> anyhow::Result<Stop> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for signals")?;
    let (sender, receiver) = watch::channel(Urgency::None);
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        sender.send_replace(Urgency::Orderly);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = tokio::time::sleep(patience) => {}
        }
        sender.send_replace(Urgency::AtOnce);
        sender.closed().await;
    });
    Ok(Stop(receiver))
}

/// Listens from now on.
#[cfg(not(unix))]
pub(super) fn listen(patience: Duration) -> anyhow::Result<Stop> {
    let (sender, receiver) = watch::channel(Urgency::None);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            sender.closed().await;
            return;
        }
        sender.send_replace(Urgency::Orderly);
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            () = tokio::time::sleep(patience) => {}
        }
        sender.send_replace(Urgency::AtOnce);
        sender.closed().await;
    });
    Ok(Stop(receiver))
}
