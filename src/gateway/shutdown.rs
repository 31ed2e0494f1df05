//! The shutdown: `/ready` says no, then the listeners close, then the requests in flight end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use log::{error, info, warn};
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};

use super::SHORT;
use super::handover::{self, Meeting};
use crate::config::StartupConfig;
use crate::limit::ledger::Ledger;
use crate::listener::http1::FIRST;
use crate::listener::sockets::NamedSocket;
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
        self.leave(grace).await;
    }

    /// Closes the listeners after `grace`, and waits for the requests in flight. Until the listeners close,
    /// each answer ends its connection, so that clients go on elsewhere and lose no request.
    async fn leave(&self, grace: Duration) {
        self.readiness.closing.store(true, Ordering::Relaxed);
        sleep(grace).await;
        self.close_listeners.send_replace(true);
        let deadline = Instant::now() + self.in_flight;
        // Requests of the last connections begin until then.
        sleep(3 * FIRST).await;
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
    meeting: Meeting,
    /// Copies of the listening sockets, until they are handed over or closed.
    sockets: Mutex<Vec<NamedSocket>>,
}

impl Signals {
    /// Signals that start `drain`. A successor gets `sockets` at `meeting`.
    pub fn new(drain: Drain, meeting: Meeting, sockets: Vec<NamedSocket>) -> Self {
        Self { drain, meeting, sockets: Mutex::new(sockets) }
    }

    /// Ends the work after the signal `end`.
    async fn finish(&self, end: End) {
        // A listening socket stays open as long as there is a copy.
        self.sockets.lock().await.clear();
        match end {
            End::Terminate => self.drain.run(self.drain.grace).await,
            End::Interrupt => self.drain.run(Duration::ZERO).await,
            End::HandedOver => self.drain.leave(self.drain.grace).await,
        }
    }

    /// Hands the sockets to a successor; `false` when this process must go on serving.
    async fn hand_over(&self) -> bool {
        info!("handing the listening sockets to a successor");
        match handover::hand_over(&self.meeting, &self.sockets.lock().await).await {
            Ok(()) => {
                info!("the successor serves");
                true
            }
            Err(error) => {
                error!("not handed over, this process goes on serving: {error}");
                false
            }
        }
    }
}

/// A reason to end.
#[derive(Clone, Copy, Debug)]
enum End {
    Terminate,
    Interrupt,
    HandedOver,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let mut terminate = Waiter::new(SignalKind::terminate());
        let mut interrupt = Waiter::new(SignalKind::interrupt());
        let mut quit = Waiter::new(SignalKind::quit());
        let end = loop {
            tokio::select! {
                () = terminate.heard() => break End::Terminate,
                () = interrupt.heard() => break End::Interrupt,
                () = quit.heard() => {}
            }
            tokio::select! {
                () = terminate.heard() => break End::Terminate,
                () = interrupt.heard() => break End::Interrupt,
                handed_over = self.hand_over() => if handed_over {
                    break End::HandedOver;
                }
            }
        };
        tokio::select! {
            () = self.finish(end) => {}
            () = terminate.heard() => {}
            () = interrupt.heard() => {}
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
