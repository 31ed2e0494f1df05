//! A thread that serves connections which another thread accepts.
//!
//! Each thread has an event loop and upstream connections of its own. A request stays on its thread whatever it waits
//! for, so that the upstream connection that it gives back is there for the next request of the thread. With one pool
//! for all threads, Pingora loses a connection when one thread takes it while another still lets go of it.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::protocols::{GetSocketDigest, SocketDigest, l4};
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service as ServiceTrait;
use tokio::sync::{mpsc, watch};

use super::server::ConnectionServer;
use crate::base::task::detach;

/// Connections that may wait for a thread.
const WAITING: usize = 128;

/// An accepted connection on its way to a thread.
pub(super) struct Accepted {
    socket: TcpStream,
    peer: SocketAddr,
    listener: usize,
    closed: watch::Receiver<bool>,
}

impl Accepted {
    /// The connection `socket` of `peer`, taken out of the event loop that accepted it at the `listener` with this index.
    /// `closed` becomes true when connections must end. `None` when the system refuses.
    pub(super) fn new(
        socket: tokio::net::TcpStream,
        peer: SocketAddr,
        listener: usize,
        closed: watch::Receiver<bool>,
    ) -> Option<Self> {
        Some(Self { socket: socket.into_std().ok()?, peer, listener, closed })
    }
}

/// Serves the connections that a `Listening` gives it, on one thread.
pub struct Worker<A> {
    app: Arc<A>,
    label: &'static str,
    accepted: mpsc::Receiver<Accepted>,
    start: fn(),
}

impl<A> Worker<A> {
    /// A worker that serves with `app` and calls `start` on its thread first, and the way to give it connections.
    pub(super) fn new(app: A, label: &'static str, start: fn()) -> (Self, mpsc::Sender<Accepted>) {
        let (sender, accepted) = mpsc::channel(WAITING);
        (Self { app: Arc::new(app), label, accepted, start }, sender)
    }
}

/// Serves the connection `socket` of `peer` on this thread, until it ends. It was accepted at the `listener` with this index.
pub(super) async fn serve<A: ConnectionServer>(
    app: Arc<A>,
    socket: tokio::net::TcpStream,
    peer: SocketAddr,
    listener: usize,
    closed: watch::Receiver<bool>,
) {
    let mut stream = Box::new(l4::stream::Stream::from(socket));
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    // A new digest has no address yet.
    let _ = digest.peer_addr.set(Some(peer.into()));
    stream.set_socket_digest(digest);
    // An error means that the client has closed already.
    let _ = stream.set_nodelay();
    app.serve(stream, listener, &closed).await;
}

#[async_trait]
impl<A: ConnectionServer> ServiceTrait for Worker<A> {
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        (self.start)();
        while let Some(Accepted { socket, peer, listener, closed }) = self.accepted.recv().await {
            // Only a lack of kernel memory keeps a connection out of the event loop. It is closed then.
            if let Ok(socket) = tokio::net::TcpStream::from_std(socket) {
                detach(serve(Arc::clone(&self.app), socket, peer, listener, closed));
            }
        }
        self.app.cleanup().await;
    }

    fn name(&self) -> &str {
        self.label
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}
