//! Listening sockets: taken over from a predecessor or bound before the gateway starts, so that a port in use
//! is one clear error. Pingora gets every socket, and binds none.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use log::{error, info};
use parking_lot::Mutex;
use pingora_core::apps::ServerApp;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::server::{Fds, ListenFds, ShutdownWatch};
use pingora_core::services::Service as ServiceTrait;
use pingora_core::services::listening::Service;
use tokio::sync::watch;

use crate::config::StartupConfig;

/// The purposes of sockets, in their names.
const LISTENER: &str = "listening";
const METRICS: &str = "metrics";

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
    is_taken_over: bool,
}

/// A socket on its way from a gateway to its successor.
#[derive(Debug)]
pub struct NamedSocket {
    /// What the socket is for, and the address that the configuration gives it; without white space.
    pub name: String,
    /// The socket.
    pub socket: TcpListener,
}

/// The name of the socket for a listener, or for the metrics, at the configured `address`.
fn socket_name(purpose: &str, address: SocketAddr) -> String {
    format!("{purpose}@{address}")
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
            Ok(socket) => Ok(Self { configured: address, socket, is_taken_over: false }),
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
    /// A socket for every address of `config`: one of `inherited` where there is one, else a new one. The
    /// rest of `inherited` is closed.
    ///
    /// # Errors
    /// [`BindError`] at the first address that cannot be bound; the sockets before it are closed.
    pub fn bind(
        config: &StartupConfig,
        mut inherited: Vec<NamedSocket>,
    ) -> Result<Self, BindError> {
        let mut bind = |purpose: &str, address: SocketAddr| {
            let name = socket_name(purpose, address);
            match inherited.iter().position(|named| named.name == name) {
                Some(at) => {
                    let socket = inherited.swap_remove(at).socket;
                    Ok(BoundSocket { configured: address, socket, is_taken_over: true })
                }
                None => BoundSocket::bind(address),
            }
        };
        let listeners = config.listeners.iter().map(|listener| bind(LISTENER, listener.address));
        let listeners = listeners.collect::<Result<_, _>>()?;
        let metrics = config.metrics.into_iter().map(|address| bind(METRICS, address));
        let metrics = metrics.collect::<Result<_, _>>()?;
        Ok(Self { listeners, metrics })
    }

    /// Copies of the sockets, which a successor may get.
    ///
    /// # Errors
    /// The system's, when it has no more descriptors.
    pub fn copies(&self) -> io::Result<Vec<NamedSocket>> {
        let copy = |purpose: &str, bound: &BoundSocket| {
            let socket = bound.socket.try_clone()?;
            Ok(NamedSocket { name: socket_name(purpose, bound.configured), socket })
        };
        let listeners = self.listeners.iter().map(|bound| copy(LISTENER, bound));
        listeners.chain(self.metrics.iter().map(|bound| copy(METRICS, bound))).collect()
    }

    /// The address of the first listener's socket.
    pub fn first(&self) -> Option<SocketAddr> {
        self.listeners.first().map(BoundSocket::address)
    }
}

/// A listening service that gets bound sockets, and that closes them at a signal of its own.
pub struct Listening<A> {
    inner: Service<A>,
    /// The sockets, by the names under which Pingora looks for them.
    sockets: Vec<(String, BoundSocket)>,
    label: &'static str,
    close: watch::Receiver<bool>,
    on_start: Option<Box<dyn FnOnce() + Send + Sync>>,
    before_accept: Option<BeforeAccept>,
}

/// Runs before the first connection is accepted. An error ends the process.
type BeforeAccept =
    Pin<Box<dyn Future<Output = Result<(), Box<dyn Error + Send + Sync>>> + Send + Sync>>;

impl<A: ServerApp + Send + Sync + 'static> Listening<A> {
    /// Serves `inner` on `sockets`, and closes them when `close` becomes true or when Pingora shuts down. The
    /// log calls the service `label`.
    pub fn new(
        mut inner: Service<A>,
        sockets: Vec<BoundSocket>,
        label: &'static str,
        close: watch::Receiver<bool>,
    ) -> Self {
        // Pingora finds a socket for every name, and binds none itself. So a name need not be an address,
        // and two services may both ask for any free port.
        let named = sockets.into_iter().enumerate();
        let sockets: Vec<_> = named.map(|(nth, bound)| (format!("{label} {nth}"), bound)).collect();
        for (name, _) in &sockets {
            // Without Pingora's read buffer of 64 KiB for each connection: each protocol has its own.
            let buffers = L4BufferSettings::default().read(0);
            inner.add_listener(ListenerConfig::tcp(name).l4_buffer(buffers));
        }
        Self { inner, sockets, label, close, on_start: None, before_accept: None }
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

    /// Calls `start` on the runtime of this service, before the first connection is accepted. Tasks that
    /// `start` spawns share the runtime with the requests.
    pub fn on_start(mut self, start: impl FnOnce() + Send + Sync + 'static) -> Self {
        self.on_start = Some(Box::new(start));
        self
    }

    /// Puts the sockets into the table in which Pingora looks for them.
    fn offer(&mut self, fds: &ListenFds) {
        let mut fds = fds.lock();
        for (name, bound) in self.sockets.drain(..) {
            let taken_over = if bound.is_taken_over { ", taken over" } else { "" };
            info!("{} on {}{taken_over}", self.label, bound.address());
            fds.add(name, bound.socket.into_raw_fd());
        }
    }
}

/// Ends the process: a gateway that cannot listen must not take its predecessor's place.
#[expect(
    clippy::disallowed_methods,
    reason = "the process ends here, once its last line is written"
)]
fn fail(failure: &dyn Error) {
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
