//! Listening sockets: bound before the gateway starts, so that a port in use is one clear error. Pingora gets
//! the sockets, and hands them to a successor.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use log::{error, info};
use parking_lot::Mutex;
use pingora_core::apps::ServerApp;
use pingora_core::server::{Fds, ListenFds, ShutdownWatch};
use pingora_core::services::Service as ServiceTrait;
use pingora_core::services::listening::Service;
use tokio::sync::watch;

use crate::config::StartupConfig;

/// How long the process waits, before it exits, for the last log line to be written.
const LOG_FLUSH: Duration = Duration::from_millis(20);

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct BindError {
    /// The address as configured.
    pub address: SocketAddr,
    /// The error of the system.
    pub error: io::Error,
}

/// The sockets that are bound before the gateway starts.
#[derive(Debug, Default)]
pub struct Bound {
    /// The sockets of the listeners, in the order of the configuration.
    pub listeners: Vec<BoundSocket>,
    /// The socket of the metrics, where they are served.
    pub metrics: Vec<BoundSocket>,
}

/// A bound socket and the address that the configuration gives it.
#[derive(Debug)]
pub struct BoundSocket {
    configured: SocketAddr,
    socket: TcpListener,
}

impl BoundSocket {
    /// Binds `address`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// [`BindError`] when the address is in use or is not an address of this machine.
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

    /// The address in the configuration.
    pub fn configured(&self) -> SocketAddr {
        self.configured
    }

    /// The address of the socket, with the port that the kernel has chosen.
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap_or(self.configured)
    }
}

impl Bound {
    /// Binds every address of `config`.
    ///
    /// # Errors
    /// [`BindError`] at the first address that cannot be bound; the sockets before it are closed.
    pub fn bind(config: &StartupConfig) -> Result<Self, BindError> {
        let addresses = config.listeners.iter().map(|listener| listener.address);
        Ok(Self {
            listeners: addresses.map(BoundSocket::bind).collect::<Result<_, _>>()?,
            metrics: config.metrics.into_iter().map(BoundSocket::bind).collect::<Result<_, _>>()?,
        })
    }

    /// The address of the first listener's socket.
    pub fn first(&self) -> Option<SocketAddr> {
        self.listeners.first().map(BoundSocket::address)
    }
}

/// A listening service that gets bound sockets, and that closes them at a signal of its own.
pub struct Listening<A> {
    inner: Service<A>,
    /// The name of each address in the table of sockets, which is handed from process to process.
    names: Vec<(String, SocketAddr)>,
    sockets: Vec<BoundSocket>,
    label: &'static str,
    close: watch::Receiver<bool>,
    on_start: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl<A: ServerApp + Send + Sync + 'static> Listening<A> {
    /// Serves `inner` on `addresses`, of which `sockets` are bound already, and closes them when `close`
    /// becomes true or when Pingora shuts down. The log calls the service `label`.
    pub fn new(
        mut inner: Service<A>,
        addresses: impl IntoIterator<Item = SocketAddr>,
        sockets: Vec<BoundSocket>,
        label: &'static str,
        close: watch::Receiver<bool>,
    ) -> Self {
        // Pingora finds a socket for every name, and binds none itself. So a name need not be an address,
        // and two services may both ask for any free port. A name must hold no space: the names are
        // separated by spaces when they are sent to a successor.
        let names: Vec<_> =
            addresses.into_iter().map(|address| (format!("{label}@{address}"), address)).collect();
        for (name, _) in &names {
            inner.add_tcp(name);
        }
        Self { inner, names, sockets, label, close, on_start: None }
    }

    /// Calls `start` on the runtime of this service, before the first connection is accepted. Tasks that
    /// `start` spawns share the runtime with the requests.
    pub fn on_start(mut self, start: impl FnOnce() + Send + Sync + 'static) -> Self {
        self.on_start = Some(Box::new(start));
        self
    }

    /// Puts the sockets into the table in which Pingora looks for a predecessor's sockets. An address
    /// without a socket is bound now.
    fn offer(&mut self, fds: &ListenFds) {
        let mut fds = fds.lock();
        for (name, address) in &self.names {
            if fds.get(name).is_some() {
                info!("{} on {address}, taken over", self.label);
                continue;
            }
            let ahead = self.sockets.iter().position(|bound| bound.configured == *address);
            let bound = match ahead {
                Some(at) => Ok(self.sockets.swap_remove(at)),
                None => BoundSocket::bind(*address),
            };
            match bound {
                Ok(bound) => {
                    info!("{} on {}", self.label, bound.address());
                    fds.add(name.clone(), bound.socket.into_raw_fd());
                }
                Err(failure) => fail(&failure),
            }
        }
    }
}

/// Ends the process: a gateway that cannot listen must not take its predecessor's place.
#[expect(
    clippy::disallowed_methods,
    reason = "the process ends here, once its last line is written"
)]
fn fail(failure: &dyn std::error::Error) {
    error!("{failure}");
    std::thread::sleep(LOG_FLUSH);
    std::process::exit(69);
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServiceTrait for Listening<A> {
    #[expect(clippy::disallowed_methods, reason = "the task ends with the service")]
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        mut shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let fds = fds.unwrap_or_else(|| Arc::new(Mutex::new(Fds::new())));
        self.offer(&fds);
        if let Some(start) = self.on_start.take() {
            start();
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
