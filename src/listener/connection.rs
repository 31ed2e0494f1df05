//! An accepted connection: its bytes, and what is known of it. It must not know the protocol.

use std::net::IpAddr;
use std::sync::Arc;

use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{SocketDigest, Stream, UniqueIDType};

/// An accepted connection, ready for the reader of its protocol.
#[derive(Debug)]
pub struct Connection {
    /// The bytes that the client sends and receives.
    pub bytes: Stream,
    /// What each of its requests may know.
    pub facts: Facts,
}

impl Connection {
    /// A connection of which nothing is known but what its stream says.
    pub fn new(bytes: Stream) -> Self {
        let facts = Facts {
            id: bytes.id(),
            socket: bytes.get_socket_digest(),
            tls: bytes.get_ssl_digest(),
        };
        Self { bytes, facts }
    }
}

/// What is known of a connection, in the types that Pingora hands on to each request.
#[derive(Debug)]
pub struct Facts {
    /// Tells the connections of this process apart.
    pub id: UniqueIDType,
    /// The addresses of both ends.
    pub socket: Option<Arc<SocketDigest>>,
    /// What the TLS handshake agreed on, where there was one.
    pub tls: Option<Arc<SslDigest>>,
}

/// The address at the other end of a connection, where it has one.
pub fn peer_ip(address: Option<&SocketAddr>) -> Option<IpAddr> {
    address.and_then(SocketAddr::as_inet).map(std::net::SocketAddr::ip)
}
