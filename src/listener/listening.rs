//! A service that accepts the connections of listening sockets, until it must close them.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use log::{error, info};
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service as ServiceTrait;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;

use super::server::ConnectionServer;
use super::sockets::BoundSocket;
use super::worker::{Accepted, Worker, serve};
use crate::base::task::detach;

/// The pause after connections could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long the process waits, before it exits, for the last log line to be written.
const LOG_FLUSH: Duration = Duration::from_millis(20);

/// A listening service that accepts on bound sockets, and closes them at a signal of its own. It serves the connections on
/// its thread and gives the other threads their share.
///
/// It accepts connections itself: Pingora's task of a connection has room for a TLS handshake and a read buffer
/// of 64 KiB, which a plain connection would hold as long as it is open.
pub struct Listening<A> {
    app: Arc<A>,
    label: &'static str,
    sockets: Vec<BoundSocket>,
    others: Vec<mpsc::Sender<Accepted>>,
    places: Option<Arc<Semaphore>>,
    close: watch::Receiver<bool>,
    on_start: Option<Box<dyn FnOnce() + Send + Sync>>,
    before_accept: Option<BeforeAccept>,
}

/// Runs before the first connection is accepted. An error ends the process.
type BeforeAccept =
    Pin<Box<dyn Future<Output = Result<(), Box<dyn Error + Send + Sync>>> + Send + Sync>>;

impl<A: ConnectionServer> Listening<A> {
    /// Serves the connections of `sockets` with `app`, and closes the sockets when `close` becomes true or when Pingora
    /// shuts down. The log calls the service `label`.
    pub fn new(
        app: A,
        label: &'static str,
        sockets: Vec<BoundSocket>,
        close: watch::Receiver<bool>,
    ) -> Self {
        Self {
            app: Arc::new(app),
            label,
            sockets,
            others: Vec::new(),
            places: None,
            close,
            on_start: None,
            before_accept: None,
        }
    }

    /// Closes connections beyond `most` at once, for an application that counts none itself. It has no other threads.
    pub fn at_most(mut self, most: usize) -> Self {
        self.places = Some(Arc::new(Semaphore::new(most)));
        self
    }

    /// One more thread, which serves its share of the connections with `app`, and calls `start` first.
    pub fn add_worker(&mut self, app: A, start: fn()) -> Worker<A> {
        let (worker, connections) = Worker::new(app, self.label, start);
        self.others.push(connections);
        worker
    }

    /// Calls `start` on the runtime of this service, before the first connection is accepted. Tasks that
    /// `start` spawns share the runtime with the requests.
    pub fn on_start(mut self, start: impl FnOnce() + Send + Sync + 'static) -> Self {
        self.on_start = Some(Box::new(start));
        self
    }

    /// Waits for `ready` after the start, before the first connection is accepted. Connections wait in the
    /// sockets' queues meanwhile. An error of `ready` ends the process.
    pub fn before_accept<E: Error + Send + Sync + 'static>(
        mut self,
        ready: impl Future<Output = Result<(), E>> + Send + Sync + 'static,
    ) -> Self {
        self.before_accept = Some(Box::pin(async move { Ok(ready.await?) }));
        self
    }
}

/// Ends the process: a gateway that cannot listen must not take its predecessor's place.
#[expect(
    clippy::disallowed_methods,
    reason = "the process ends here, once its last line is written"
)]
fn fail(failure: &dyn Error) -> ! {
    error!("{failure}");
    std::thread::sleep(LOG_FLUSH);
    std::process::exit(69)
}

/// Accepts connections at the `listener` with this index until `closed` becomes true. This thread and the `others` get one in turn.
async fn accept<A: ConnectionServer>(
    app: Arc<A>,
    sockets: TcpListener,
    listener: usize,
    others: Vec<mpsc::Sender<Accepted>>,
    places: Option<Arc<Semaphore>>,
    closed: watch::Receiver<bool>,
) {
    let mut turn = 0;
    let mut watched = closed.clone();
    let mut end = pin!(watched.wait_for(|closed| *closed));
    loop {
        let accepted = tokio::select! {
            accepted = sockets.accept() => accepted,
            _ = &mut end => return,
        };
        match accepted {
            Ok((socket, peer)) => {
                let place = places.as_ref().map(|places| Arc::clone(places).try_acquire_owned());
                let Ok(place) = place.transpose() else { continue };
                let closed = closed.clone();
                turn = (turn + 1) % (others.len() + 1);
                // A thread that is too busy to take more, or has died, leaves its share to this one.
                match others.get(turn).map(mpsc::Sender::try_reserve) {
                    Some(Ok(room)) => {
                        if let Some(accepted) = Accepted::new(socket, peer, listener, closed) {
                            room.send(accepted);
                        }
                    }
                    _ => {
                        let served = serve(Arc::clone(&app), socket, peer, listener, closed);
                        detach(async move {
                            served.await;
                            drop(place);
                        });
                    }
                }
            }
            // The client was faster.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // Out of descriptors or memory: others must end first.
            Err(error) => {
                error!("connections cannot be accepted: {error}");
                tokio::select! {
                    () = sleep(ACCEPT_PAUSE) => {}
                    _ = &mut end => return,
                }
            }
        }
    }
}

#[async_trait]
impl<A: ConnectionServer> ServiceTrait for Listening<A> {
    #[expect(clippy::disallowed_methods, reason = "the tasks end with the service")]
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize) {
        for bound in &self.sockets {
            let taken_over = if bound.is_taken_over() { ", taken over" } else { "" };
            info!("{} on {}{taken_over}", self.label, bound.address());
        }
        if let Some(start) = self.on_start.take() {
            start();
        }
        if let Some(ready) = self.before_accept.take()
            && let Err(failure) = ready.await
        {
            fail(&*failure);
        }
        let (closing, closed) = watch::channel(false);
        let mut close = self.close.clone();
        tokio::spawn(async move {
            // The `else` arm: both senders are gone, so that no signal can come any more.
            tokio::select! {
                Ok(_) = close.wait_for(|close| *close) => {}
                Ok(_) = shutdown.wait_for(|shutdown| *shutdown) => {}
                else => {}
            }
            let _ = closing.send(true);
            // The accepting tasks would take a dropped sender for the signal to close.
            closing.closed().await;
        });
        let accepting = self.sockets.drain(..).enumerate().map(|(listener, bound)| {
            let sockets = bound.into_listener().unwrap_or_else(|error| fail(&error));
            let (app, others) = (Arc::clone(&self.app), self.others.clone());
            tokio::spawn(accept(
                app,
                sockets,
                listener,
                others,
                self.places.clone(),
                closed.clone(),
            ))
        });
        join_all(accepting.collect::<Vec<_>>()).await;
        self.others.clear();
        self.app.cleanup().await;
    }

    fn name(&self) -> &str {
        self.label
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}
