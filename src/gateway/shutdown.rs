//! How the gateway ends: readiness goes first, then the listeners, then what is in flight.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use log::{info, warn};
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::SHORT;
use crate::config::StartupConfig;
use crate::limit::ledger::Ledger;
use crate::proxy::Readiness;
use crate::telemetry::metrics::METRICS;

/// How long giving leases back may take.
const SURRENDER: Duration = Duration::from_secs(1);

/// Ends the work in order.
pub struct Drain {
    readiness: Arc<Readiness>,
    ledger: Arc<Ledger>,
    close_listeners: watch::Sender<bool>,
    never: watch::Sender<bool>,
    /// How long `/ready` says no while requests are still accepted.
    grace: Duration,
    /// How long requests in flight may take after that.
    in_flight: Duration,
}

impl Drain {
    /// A drain by the server's own times.
    pub fn new(readiness: Arc<Readiness>, ledger: Arc<Ledger>, config: &StartupConfig) -> Self {
        Self {
            readiness,
            ledger,
            close_listeners: watch::Sender::new(false),
            never: watch::Sender::new(false),
            grace: Duration::from_secs(config.server.grace_period_seconds),
            in_flight: Duration::from_secs(config.server.graceful_shutdown_timeout_seconds),
        }
    }

    /// Turns true when the listeners shall close.
    pub fn listeners(&self) -> watch::Receiver<bool> {
        self.close_listeners.subscribe()
    }

    /// Never turns true: for what serves until the end.
    pub fn never(&self) -> watch::Receiver<bool> {
        self.never.subscribe()
    }

    async fn run(&self, grace: Duration) {
        self.readiness.draining.store(true, Ordering::Relaxed);
        info!("draining: not ready, listeners close in {grace:?}");
        sleep(grace).await;
        self.close_listeners.send_replace(true);
        let deadline = Instant::now() + self.in_flight;
        while METRICS.in_flight.get() > 0 {
            if Instant::now() >= deadline {
                let left = METRICS.in_flight.get();
                warn!("{left} requests are still in flight after {:?}", self.in_flight);
                return;
            }
            sleep(SHORT).await;
        }
        // The last answer is counted as done a moment before its bytes have left.
        sleep(SHORT).await;
        // Quota that was paid for and not used is for the other gateways.
        let _ = timeout(SURRENDER, self.ledger.surrender()).await;
    }
}

/// SIGTERM and SIGINT drain, a second one ends at once; SIGQUIT hands over to a successor.
pub struct Signals {
    drain: Drain,
}

impl Signals {
    /// Ends by `drain`.
    pub fn new(drain: Drain) -> Self {
        Self { drain }
    }

    async fn drained(&self, grace: Duration, terminate: &mut Listener, interrupt: &mut Listener) {
        tokio::select! {
            () = self.drain.run(grace) => {}
            () = terminate.heard() => {}
            () = interrupt.heard() => {}
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let mut terminate = Listener::new(SignalKind::terminate());
        let mut interrupt = Listener::new(SignalKind::interrupt());
        let mut quit = Listener::new(SignalKind::quit());
        tokio::select! {
            () = terminate.heard() => {
                self.drained(self.drain.grace, &mut terminate, &mut interrupt).await;
            }
            () = interrupt.heard() => {
                self.drained(Duration::ZERO, &mut terminate, &mut interrupt).await;
            }
            () = quit.heard() => {
                info!("handing the listening sockets to a successor");
                return ShutdownSignal::GracefulUpgrade;
            }
        }
        // Everything is done: Pingora need not wait once more.
        ShutdownSignal::FastShutdown
    }
}

/// One kind of signal; one that cannot be listened for is never heard.
struct Listener(Option<Signal>);

impl Listener {
    fn new(kind: SignalKind) -> Self {
        let listener = signal(kind);
        if let Err(error) = &listener {
            warn!("signal {kind:?} cannot be listened for: {error}");
        }
        Self(listener.ok())
    }

    async fn heard(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                signal.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}
