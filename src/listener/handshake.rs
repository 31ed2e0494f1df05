//! The TLS handshake of a client: one deadline for the whole of it, and a count by its outcome.
//!
//! A flood of failing handshakes must not become a flood of lines, so a failure is only counted; its line is for debugging.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use log::debug;
use pingora_core::protocols::{GetSocketDigest as _, Peek as _, l4};
use rustls::Error as TlsError;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::tls_stream::TlsStream;
use crate::telemetry::metrics::METRICS;
use crate::tls::client::ClientCertificate;
use crate::tls::server::TlsServer;

/// The first byte of a handshake (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 0x16;

/// Why a certificate that is vouched for cannot be used.
const UNREADABLE: &str = "the client's certificate cannot be read, or says too much";

/// Why there is no TLS connection.
#[derive(Debug)]
pub enum HandshakeFailure {
    /// The client has gone, was too slow, or cannot agree.
    Ended,
    /// The client speaks HTTP without TLS. It may be told so.
    Plain(Box<l4::stream::Stream>),
}

/// Makes a TLS connection of `stream` within `limit`.
pub async fn shake_hands(
    stream: Box<l4::stream::Stream>,
    tls: &TlsServer,
    limit: Duration,
) -> Result<Shaken, HandshakeFailure> {
    let socket = stream.get_socket_digest();
    let counts = &METRICS.tls_handshakes;
    let (count, failure) = match timeout(limit, handshake(stream, tls)).await {
        Ok(Ok(Ok(encrypted))) => {
            counts.ok.inc();
            return Ok(encrypted);
        }
        Ok(Ok(Err(plain))) => {
            counts.plain.inc();
            return Err(HandshakeFailure::Plain(plain));
        }
        Ok(Err(error)) if is_about_certificate(&error) => (&counts.certificate, error),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => (&counts.failed, error),
        Ok(Err(error)) => (&counts.closed, error),
        Err(late) => (&counts.timeout, late.into()),
    };
    count.inc();
    let peer = socket.as_ref().and_then(|socket| socket.peer_addr()).map(ToString::to_string);
    debug!(peer; "TLS handshake failed: {failure}");
    Err(HandshakeFailure::Ended)
}

/// The connection of a client that speaks HTTP without TLS is the inner error.
async fn handshake(
    mut stream: Box<l4::stream::Stream>,
    tls: &TlsServer,
) -> io::Result<Result<Shaken, Box<l4::stream::Stream>>> {
    let mut first = [0];
    stream.try_peek(&mut first).await?;
    // A request begins with a method; no record of TLS begins with a letter.
    if first[0] != HANDSHAKE && first[0].is_ascii_alphabetic() {
        return Ok(Err(stream));
    }
    let encrypted = TlsAcceptor::from(tls.config()).accept(stream).await?;
    let certificate = match encrypted.get_ref().1.peer_certificates() {
        None => None,
        Some(chain) => match ClientCertificate::new(chain) {
            Some(certificate) => Some(Arc::new(certificate)),
            None => return Err(io::Error::new(io::ErrorKind::InvalidData, UNREADABLE)),
        },
    };
    Ok(Ok((TlsStream::new(encrypted), certificate)))
}

/// A connection after its handshake, and the certificate that its client has shown.
type Shaken = (TlsStream, Option<Arc<ClientCertificate>>);

/// Whether the handshake failed because of the client's certificate.
fn is_about_certificate(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(TlsError::InvalidCertificate(_) | TlsError::NoCertificatesPresented))
}
