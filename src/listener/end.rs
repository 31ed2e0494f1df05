//! Why a connection's task ends a request that Pingora still serves.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use crate::admission::TokenEnd;

/// The reason to end a request early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestEnd {
    /// The token of the request does not hold any more.
    #[error("the token does not hold any more")]
    Token(TokenEnd),
    /// No byte has passed through the tunnel for too long.
    #[error("the tunnel was idle for too long")]
    TunnelIdle,
    /// The client has left while the upstream took no more of its upload.
    #[error("the client has left")]
    ClientGone,
    /// The upstream has sent nothing for too long.
    #[error("the upstream has sent nothing for too long")]
    UpstreamSilent,
}

/// Waits for the end of a token.
pub type TokenEnds = Pin<Box<dyn Future<Output = TokenEnd> + Send>>;

/// The deadline of a request that asks for a tunnel. Pingora has one read timeout for the upstream's whole
/// answer, so that it cannot tell a slow handshake from a quiet tunnel.
#[derive(Clone, Copy, Debug)]
pub struct TunnelDeadline {
    /// When a byte has passed last.
    pub last_byte: Instant,
    /// How long none may pass.
    pub limit: Duration,
    /// The reason when none has passed for too long.
    pub reason: RequestEnd,
}

impl TunnelDeadline {
    /// When the request ends, if no byte passes before.
    pub fn due(&self) -> Instant {
        self.last_byte + self.limit
    }
}
