//! Listening sockets: bound before anything else starts, so that a taken port is one clear error,
//! and handed to Pingora, which hands them on to a successor.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use async_trait::async_trait;
use log::{error, info};
use parking_lot::Mutex;
use pingora_core::apps::ServerApp;
use pingora_core::server::{Fds, ListenFds, ShutdownWatch};
use pingora_core::services::Service as ServiceTrait;
use pingora_core::services::listening::Service;
use tokio::sync::watch;

use crate::config::Config;
use crate::store::Membership;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct BindError {
    /// The address as configured.
    pub address: SocketAddr,
    /// What the system says.
    pub error: io::Error,
}

/// Sockets bound ahead.
#[derive(Debug, Default)]
pub struct Bound {
    /// Of the listeners, in their order.
    pub listeners: Vec<BoundSocket>,
    /// Of the metrics.
    pub metrics: Vec<BoundSocket>,
}

/// One socket, under the address it was configured by.
#[derive(Debug)]
pub struct BoundSocket {
    configured: SocketAddr,
    socket: TcpListener,
}

impl BoundSocket {
    /// Binds `address`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// [`BindError`] when it is taken or not this machine's.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bind = || {
            let socket = TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        match bind() {
            Ok(socket) => Ok(Self { configured: address, socket }),
            Err(error) => Err(BindError { address, error }),
        }
    }

    /// The address as it was asked for.
    pub fn configured(&self) -> SocketAddr {
        self.configured
    }

    /// The address with the port that is really listened on.
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap_or(self.configured)
    }
}

impl Bound {
    /// Binds every address of `config`.
    ///
    /// # Errors
    /// [`BindError`] at the first that cannot be bound; the others are released.
    pub fn bind(config: &Config) -> Result<Self, BindError> {
        let addresses = config.listeners.iter().map(|listener| listener.address);
        Ok(Self {
            listeners: addresses.map(BoundSocket::bind).collect::<Result<_, _>>()?,
            metrics: config.metrics.into_iter().map(BoundSocket::bind).collect::<Result<_, _>>()?,
        })
    }

    /// Where the first listener really listens.
    pub fn first(&self) -> Option<SocketAddr> {
        self.listeners.first().map(BoundSocket::address)
    }
}

/// A listening service whose sockets are bound ahead and whose closing is decided here.
pub struct Listening<A> {
    inner: Service<A>,
    /// What a predecessor or this process calls each address in the table of sockets.
    names: Vec<(String, SocketAddr)>,
    sockets: Vec<BoundSocket>,
    word: &'static str,
    close: watch::Receiver<bool>,
    store: Option<Arc<dyn Membership>>,
}

impl<A: ServerApp + Send + Sync + 'static> Listening<A> {
    /// Serves `inner` on `addresses`, of which `sockets` are bound already, and closes them when
    /// `close` turns true or Pingora says so. `word` is what the log calls it.
    pub fn new(
        mut inner: Service<A>,
        addresses: impl IntoIterator<Item = SocketAddr>,
        sockets: Vec<BoundSocket>,
        word: &'static str,
        close: watch::Receiver<bool>,
    ) -> Self {
        // Pingora would bind an address it finds no socket for; here each has one by then, so the
        // name need not be an address, and two services may both ask for "any port". It must not
        // hold a space, which separates the names on their way to a successor.
        let names: Vec<_> =
            addresses.into_iter().map(|address| (format!("{word}@{address}"), address)).collect();
        for (name, _) in &names {
            inner.add_tcp(name);
        }
        Self { inner, names, sockets, word, close, store: None }
    }

    /// Keeps the connection to `store` on this service's runtime, beside the requests that use it.
    pub fn on_start(mut self, store: Arc<dyn Membership>) -> Self {
        self.store = Some(store);
        self
    }

    /// Puts the sockets where Pingora looks for those of a predecessor. What was neither handed over
    /// nor bound ahead is bound now.
    fn offer(&mut self, fds: &ListenFds) {
        let mut fds = fds.lock();
        for (name, address) in &self.names {
            if fds.get(name).is_some() {
                info!("{} on {address}, taken over", self.word);
                continue;
            }
            let ahead = self.sockets.iter().position(|bound| bound.configured == *address);
            let bound = match ahead {
                Some(at) => Ok(self.sockets.swap_remove(at)),
                None => BoundSocket::bind(*address),
            };
            match bound {
                Ok(bound) => {
                    info!("{} on {}", self.word, bound.address());
                    fds.add(name.clone(), bound.socket.into_raw_fd());
                }
                Err(failure) => fail(&failure),
            }
        }
    }
}

/// A gateway that cannot listen is no gateway; its predecessor still is one.
fn fail(failure: &dyn std::error::Error) {
    error!("{failure}");
    std::thread::sleep(super::SHORT);
    std::process::exit(69);
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServiceTrait for Listening<A> {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        mut shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let fds = fds.unwrap_or_else(|| Arc::new(Mutex::new(Fds::new())));
        self.offer(&fds);
        if let Some(store) = self.store.take() {
            store.start();
        }
        let (closing, closed) = watch::channel(false);
        let mut close = self.close.clone();
        tokio::spawn(async move {
            // A sender that is gone asks for nothing any more.
            tokio::select! {
                Ok(_) = close.wait_for(|close| *close) => {}
                Ok(_) = shutdown.wait_for(|shutdown| *shutdown) => {}
                else => {}
            }
            let _ = closing.send(true);
            // Whoever still watches needs the sender.
            closing.closed().await;
        });
        self.inner.start_service(Some(fds), closed, listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        ServiceTrait::name(&self.inner)
    }

    fn threads(&self) -> Option<usize> {
        self.inner.threads
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        ServiceTrait::listen_addresses(&self.inner)
    }
}
