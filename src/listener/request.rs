//! What the server of a request tells the connection that the request came over, whatever its protocol is.

use std::os::fd::RawFd;
use std::time::Duration;

use pingora_core::protocols::http::ServerSession;

use super::connection::Entry;
use super::control::RequestControl;
use super::end::{RequestDeadline, RequestEnd};
use super::pace::Pace;
use super::{http1, http2};
use crate::auth::Principal;

/// How the connection of `session` came in.
pub fn entry_of(session: &ServerSession) -> Option<Entry> {
    match http2::stream_of(session) {
        Some(stream) => Some(stream.entry().clone()),
        None => http1::entry_of(session),
    }
}

/// Does something with the control of the request of `session`.
fn with<T>(session: &ServerSession, act: impl FnOnce(&mut RequestControl) -> T) -> Option<T> {
    match http2::stream_of(session) {
        Some(stream) => Some(act(&mut stream.lock().control)),
        None => http1::with_control(session, act),
    }
}

/// Lets the request of `session` end when the token of `principal` does not hold any more, if the request takes
/// long.
pub fn ends_with(session: &ServerSession, principal: &Principal) {
    with(session, |control| control.ends_with(principal.clone()));
}

/// Ends the request of `session` when no byte of it has passed for `limit`.
pub fn set_tunnel(session: &ServerSession, limit: Duration, reason: RequestEnd) {
    with(session, |control| control.set_tunnel(limit, reason));
}

/// Sets when the request of `session` ends at the latest; `None` for no such time.
pub fn set_deadline(session: &ServerSession, deadline: Option<RequestDeadline>) {
    with(session, |control| control.set_deadline(deadline));
}

/// Lets the request of `session` go on that had to end, because another attempt follows, or its client is told goodbye.
pub fn go_on(session: &ServerSession) {
    with(session, RequestControl::go_on);
}

/// Sets whether the request of `session`, which would not end by itself, may be left at this point of its answer when the
/// gateway drains.
pub fn set_may_leave(session: &ServerSession, may: bool) {
    with(session, |control| control.set_may_leave(may));
}

/// Tells which socket of an upstream takes the body of the request of `session`. It must be told `None` before the socket
/// is closed.
pub fn set_upload(session: &ServerSession, upstream: Option<RawFd>) {
    with(session, |control| control.set_upload(upstream));
}

/// Why the connection's task has ended the request of `session`.
pub fn end_of(session: &ServerSession) -> Option<RequestEnd> {
    with(session, |control| control.end()).flatten()
}

/// How the client of `session` keeps up with its request.
pub fn pace_of(session: &ServerSession) -> Pace {
    with(session, |control| control.pace).unwrap_or_default()
}

/// Tells the connection of `session` that the request has failed and its answer was written whole, so that
/// the connection may be kept. Pingora closes an HTTP/1 connection after every failed request.
pub fn answered_whole(session: &ServerSession) {
    if http2::stream_of(session).is_none() {
        http1::answered_whole(session);
    }
}

/// Ends the connection of `session` after the requests that it has begun.
pub fn close_connection(session: &mut ServerSession) {
    match http2::stream_of(session) {
        Some(stream) => stream.close_connection(),
        None => session.set_keepalive(None),
    }
}
