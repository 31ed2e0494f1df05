//! An accepted connection: its bytes, its id and its addresses. This file must not know the protocol.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{SocketDigest, Stream, UniqueIDType};

use crate::tls::client::ClientCertificate;

/// An accepted connection, ready for the reader of its protocol.
#[derive(Debug)]
pub struct Connection {
    /// The bytes that the client sends and receives.
    pub bytes: Stream,
    /// Bytes of the client that were read to find out the protocol.
    pub ahead: BytesMut,
    /// Facts that each request of the connection may read.
    pub facts: Facts,
}

impl Connection {
    /// A connection with the facts that its stream gives.
    pub fn new(bytes: Stream) -> Self {
        let facts = Facts {
            id: bytes.id(),
            socket: bytes.get_socket_digest(),
            tls: bytes.get_ssl_digest(),
            entry: Entry::default(),
        };
        Self { bytes, ahead: BytesMut::new(), facts }
    }

    /// The same, which came in like this.
    pub fn with_entry(mut self, entry: Entry) -> Self {
        self.facts.entry = entry;
        self
    }
}

/// Facts about a connection, in the types that Pingora gives to each request.
#[derive(Debug)]
pub struct Facts {
    /// The connection's id, unique in this process.
    pub id: UniqueIDType,
    /// The addresses of both ends.
    pub socket: Option<Arc<SocketDigest>>,
    /// The result of the TLS handshake, where there was a handshake.
    pub tls: Option<Arc<SslDigest>>,
    /// How the connection came in.
    pub entry: Entry,
}

/// How a connection came in.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// The number of the listener in the configuration.
    pub listener: usize,
    /// The certificate that the client has shown.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// The IP address of a socket address; `None` for a Unix socket.
pub fn peer_ip(address: Option<&SocketAddr>) -> Option<IpAddr> {
    address.and_then(SocketAddr::as_inet).map(std::net::SocketAddr::ip)
}
