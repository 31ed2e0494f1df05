//! Why a connection's task ends a request that Pingora still serves.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

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
    /// The gateway drains, and the request would not end by itself.
    #[error("the gateway drains")]
    Draining,
    /// The client has left while the upstream took no more of its upload.
    #[error("the client has left")]
    ClientGone,
    /// The upstream has sent nothing for too long.
    #[error("the upstream has sent nothing for too long")]
    UpstreamSilent,
    /// The upstream has not begun its answer in time. Another may answer.
    #[error("the upstream has not begun its answer in time")]
    FirstByteLate,
    /// The time for the whole request has run out.
    #[error("the time for the request has run out")]
    Deadline,
}

/// The timer of a request that must end at a certain time.
#[derive(Debug, Default)]
pub struct RequestTimer(Option<Box<Timer>>);

/// Boxed, because few requests have a deadline, and every connection has a place for one.
#[derive(Debug)]
struct Timer {
    sleep: Pin<Box<Sleep>>,
    reason: RequestEnd,
}

impl RequestTimer {
    /// Sets when the request ends; `None` for no such time.
    pub fn set(&mut self, deadline: Option<RequestDeadline>) {
        match (deadline, &mut self.0) {
            (None, present) => *present = None,
            (Some(new), Some(timer)) => {
                timer.sleep.as_mut().reset(new.due);
                timer.reason = new.reason;
            }
            (Some(RequestDeadline { due, reason }), present) => {
                *present = Some(Box::new(Timer { sleep: Box::pin(sleep_until(due)), reason }));
            }
        }
    }

    /// Why the request ends now, once. The task of `cx` is woken at the time.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Option<RequestEnd> {
        let timer = self.0.as_mut()?;
        let reason = timer.sleep.as_mut().poll(cx).is_ready().then_some(timer.reason)?;
        self.0 = None;
        Some(reason)
    }
}

/// When a request ends, and why.
#[derive(Clone, Copy, Debug)]
pub struct RequestDeadline {
    /// The moment.
    pub due: Instant,
    /// The reason.
    pub reason: RequestEnd,
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
