//! The state that the hooks of a request share with the task of its connection while the request is served, whatever its
//! protocol is: when it must end, and how its client keeps up.

use std::os::fd::RawFd;
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::end::{RequestDeadline, RequestEnd, RequestTimer, TunnelDeadline};
use super::pace::Pace;
use crate::auth::Principal;

/// The state of one request between its hooks, its stream and the task that watches it.
#[derive(Debug, Default)]
pub struct RequestControl {
    /// The principal of its token, until the task that watches the request takes it.
    principal: Option<Principal>,
    tunnel: Option<TunnelDeadline>,
    deadline: RequestTimer,
    /// The socket of the upstream that takes the body, until its answer begins.
    upload: Option<RawFd>,
    /// How many uploads there were.
    uploads: u64,
    /// How the client keeps up.
    pub pace: Pace,
    /// Whether the answer has begun. Informational answers only come before it.
    has_answer: bool,
    /// Whether the gateway drains.
    drains: bool,
    /// Whether the request may be left at this point of its answer when the gateway drains.
    may_leave: bool,
    end: Option<RequestEnd>,
    /// Whether the answer must end, too.
    is_cut: bool,
}

/// For the hooks.
impl RequestControl {
    /// Lets the request end when the token of `principal` does not hold any more.
    pub fn ends_with(&mut self, principal: Principal) {
        self.principal = Some(principal);
    }

    /// Ends the request when no byte of it has passed for `limit`.
    pub fn set_tunnel(&mut self, limit: Duration, reason: RequestEnd) {
        self.tunnel = Some(TunnelDeadline { last_byte: Instant::now(), limit, reason });
    }

    /// Sets when the request ends at the latest; `None` for no such time.
    pub fn set_deadline(&mut self, deadline: Option<RequestDeadline>) {
        self.deadline.set(deadline);
    }

    /// Lets the request go on that had to end, because another attempt follows.
    pub fn go_on(&mut self) {
        self.end = None;
    }

    /// Sets whether the request may be left at this point of its answer when the gateway drains.
    pub fn set_may_leave(&mut self, may: bool) {
        self.may_leave = may;
    }

    /// Sets the socket of the upstream that takes the body of the request. It must be set to `None` before the socket is
    /// closed.
    pub fn set_upload(&mut self, upstream: Option<RawFd>) {
        self.upload = upstream;
        self.uploads += u64::from(upstream.is_some());
    }

    /// Why the request must end.
    pub fn end(&self) -> Option<RequestEnd> {
        self.end
    }
}

/// For the stream of the request.
impl RequestControl {
    /// Notes that the answer begins.
    pub fn answer_begins(&mut self) {
        self.has_answer = true;
    }

    /// Notes that a byte of the request or of its answer has passed.
    pub fn byte_passes(&mut self) {
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.last_byte = Instant::now();
        }
    }

    /// Ends the request when its time has run out. Pingora reads while it waits for an answer, and writes while the answer
    /// comes, so that its task is woken.
    pub fn check_deadline(&mut self, cx: &mut Context<'_>) {
        if let Some(reason) = self.deadline.poll(cx) {
            self.set_end(reason);
        }
    }

    /// Why Pingora's next read must fail. A request that is left to drain the gateway ends here, and not with a write: its
    /// answer is at the point then of which the hooks have said that it may be left.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Option<RequestEnd> {
        self.check_deadline(cx);
        if self.end.is_none() && self.drains && self.may_leave {
            self.end = Some(RequestEnd::Draining);
        }
        self.end
    }

    /// Whether the answer may go on.
    ///
    /// # Errors
    /// Why it must end.
    pub fn check_cut(&self) -> Result<(), RequestEnd> {
        match self.end {
            Some(end) if self.is_cut => Err(end),
            _ => Ok(()),
        }
    }
}

/// For the task that watches the request.
impl RequestControl {
    /// Ends the request: Pingora's next read fails, and its next write, too, unless the answer has not begun.
    pub fn set_end(&mut self, end: RequestEnd) {
        if self.end.is_none() {
            (self.end, self.is_cut) = (Some(end), self.has_answer);
        }
    }

    /// Notes that the gateway drains.
    pub fn drain(&mut self) {
        self.drains = true;
    }

    /// Whether [`take_principal`](Self::take_principal) has one to give.
    pub fn has_principal(&self) -> bool {
        self.principal.is_some()
    }

    /// The principal of [`ends_with`](Self::ends_with), once.
    pub fn take_principal(&mut self) -> Option<Principal> {
        self.principal.take()
    }

    /// The deadline of a tunnel.
    pub fn tunnel(&self) -> Option<TunnelDeadline> {
        self.tunnel
    }

    /// The number of the upload, and the socket of the upstream that takes it.
    pub fn upload(&self) -> Option<(u64, RawFd)> {
        self.upload.map(|upstream| (self.uploads, upstream))
    }
}
