//! The shutdown: `/ready` says no, then the listeners close, then the requests in flight end.

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

/// The longest time that giving leases back to the store may take.
const SURRENDER: Duration = Duration::from_secs(1);

/// Shuts the gateway down step by step.
pub struct Drain {
    readiness: Arc<Readiness>,
    ledger: Arc<Ledger>,
    close_listeners: watch::Sender<bool>,
    never: watch::Sender<bool>,
    /// How long `/ready` says no while connections are still accepted.
    grace: Duration,
    /// How long the requests in flight may take after the grace period.
    in_flight: Duration,
}

impl Drain {
    /// A drain with the periods of `config`.
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

    /// Becomes true when the listeners must close.
    pub fn listeners(&self) -> watch::Receiver<bool> {
        self.close_listeners.subscribe()
    }

    /// Never becomes true: for services that run until the process ends.
    pub fn never(&self) -> watch::Receiver<bool> {
        self.never.subscribe()
    }

    async fn run(&self, grace: Duration) {
        self.readiness.draining.store(true, Ordering::Relaxed);
        info!("draining: not ready, listeners close in {grace:?}");
        sleep(grace).await;
        self.close_listeners.send_replace(true);
        let deadline = Instant::now() + self.in_flight;
        loop {
            let left = self.readiness.in_flight.count();
            if left == 0 {
                break;
            }
            if Instant::now() >= deadline {
                warn!("{left} requests are still in flight after {:?}", self.in_flight);
                return;
            }
            sleep(SHORT).await;
        }
        // A request stops counting a moment before the last bytes of its answer are sent.
        sleep(SHORT).await;
        // The other gateways can use the quota that this gateway has paid for and not spent.
        let _ = timeout(SURRENDER, self.ledger.surrender()).await;
    }
}

/// SIGTERM and SIGINT drain; a second signal ends the process at once. SIGQUIT hands over to a successor.
pub struct Signals {
    drain: Drain,
}

impl Signals {
    /// Signals that start `drain`.
    pub fn new(drain: Drain) -> Self {
        Self { drain }
    }

    async fn drained(&self, grace: Duration, terminate: &mut Waiter, interrupt: &mut Waiter) {
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
        let mut terminate = Waiter::new(SignalKind::terminate());
        let mut interrupt = Waiter::new(SignalKind::interrupt());
        let mut quit = Waiter::new(SignalKind::quit());
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
        // The drain is over, so Pingora must not wait once more.
        ShutdownSignal::FastShutdown
    }
}

/// Waits for one kind of signal. When the system refuses to deliver that kind, the wait never ends.
struct Waiter(Option<Signal>);

impl Waiter {
    fn new(kind: SignalKind) -> Self {
        let signals = signal(kind);
        if let Err(error) = &signals {
            warn!("signal {kind:?} cannot be listened for: {error}");
        }
        Self(signals.ok())
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
