//! Listening sockets: taken over from a predecessor or bound before the gateway starts, so that a port in use
//! is one clear error.

use std::io;
use std::net::{SocketAddr, TcpListener};

use crate::config::StartupConfig;

/// The purposes of sockets, in their names.
const LISTENER: &str = "listening";
const METRICS: &str = "metrics";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 65_535;

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
        match TcpListener::bind(address) {
            Ok(socket) => Ok(Self { configured: address, socket, is_taken_over: false }),
            Err(error) => Err(BindError { address, error }),
        }
    }

    /// Whether a predecessor has handed the socket over.
    pub fn is_taken_over(&self) -> bool {
        self.is_taken_over
    }

    /// The socket, ready to accept connections on the present runtime.
    ///
    /// # Errors
    /// The system's.
    pub fn into_listener(self) -> io::Result<tokio::net::TcpListener> {
        self.socket.set_nonblocking(true)?;
        rustix::net::listen(&self.socket, BACKLOG)?;
        tokio::net::TcpListener::from_std(self.socket)
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
