//! What an error of Pingora's means for a request that is being forwarded: how its attempt has ended, who is at fault, and
//! whether another attempt follows. This file must not know answers.

use std::time::Instant;

use pingora_core::{Error, ErrorSource, ErrorType};
use pingora_proxy::Session;

use super::context::RequestContext;
use super::forwarding::Forwarding;
use super::outcome::answer_of;
use crate::admission::Rejection;
use crate::listener::end::RequestEnd;
use crate::listener::request as client_request;
use crate::upstream::attempt::{AttemptEnd, Failure};

/// The failure of the upstream for which a connection's task has ended a request; `None` where the upstream did not fail.
pub fn failure_of(end: RequestEnd) -> Option<Failure> {
    match end {
        RequestEnd::UpstreamSilent => Some(Failure::ReadTimeout),
        RequestEnd::FirstByteLate => Some(Failure::FirstByteTimeout),
        RequestEnd::Deadline => Some(Failure::Deadline),
        RequestEnd::Token(_)
        | RequestEnd::TunnelIdle
        | RequestEnd::Draining
        | RequestEnd::ClientGone => None,
    }
}

/// Ends the present attempt, which got no connection. Whether another connection is tried.
pub fn connects_elsewhere(session: &mut Session, ctx: &mut RequestContext, e: &Error) -> bool {
    let end = end_by_deadline(session, ctx).unwrap_or_else(|| AttemptEnd::of(e));
    // No upstream has seen a byte of the request, so a request of any method may be tried elsewhere.
    let forwarding = ctx.forwarding.as_mut();
    forwarding.is_some_and(|forwarding| forwarding.connects_elsewhere(end))
}

/// Ends the present attempt, which failed with `e`, and returns how. `client_reused`: whether its connection was kept from
/// an earlier request.
pub fn end_of_attempt(
    session: &mut Session,
    ctx: &mut RequestContext,
    e: &Error,
    client_reused: bool,
) -> AttemptEnd {
    use RequestEnd::{ClientGone, FirstByteLate, Token, UpstreamSilent};
    let end = match client_request::end_of(&session.downstream_session) {
        Some(end @ (UpstreamSilent | FirstByteLate)) => {
            failure_of(end).map_or(AttemptEnd::Abandoned, AttemptEnd::Failed)
        }
        Some(ClientGone) => AttemptEnd::Abandoned,
        Some(Token(_)) if answer_of(session).is_none() => AttemptEnd::Abandoned,
        _ if client_reused && is_broken_off(session, e) => AttemptEnd::Stale,
        _ if is_of_client(session, e) => AttemptEnd::Abandoned,
        _ => end_by_deadline(session, ctx).unwrap_or_else(|| AttemptEnd::of(e)),
    };
    if end == AttemptEnd::Abandoned && *e.etype() == ErrorType::ReadTimedout {
        ctx.rejection = Some(Rejection::RequestTimeout);
    }
    if let Some(forwarding) = &mut ctx.forwarding {
        forwarding.end_attempt(end, Instant::now());
    }
    end
}

/// Whether another attempt follows the one that failed with `e`, and ended in this way.
pub fn repeats(
    session: &Session,
    ctx: &mut RequestContext,
    e: &mut Error,
    end: AttemptEnd,
    client_reused: bool,
) -> bool {
    let Some(forwarding) = &mut ctx.forwarding else { return false };
    let repeatable = end != AttemptEnd::Abandoned
        && answer_of(session).is_none()
        && !session.retry_buffer_truncated();
    if repeatable && is_safe(session, forwarding, e, end, client_reused) && forwarding.take_retry()
    {
        // The connection's task may have ended the request for the attempt that failed.
        client_request::go_on(&session.downstream_session);
        return true;
    }
    forwarding.settle(Instant::now());
    false
}

/// Whether the request may be sent again after an attempt that failed with `e`, and ended in this way.
fn is_safe(
    session: &Session,
    forwarding: &Forwarding,
    e: &mut Error,
    end: AttemptEnd,
    client_reused: bool,
) -> bool {
    if was_not_processed(e) {
        return true;
    }
    // A method that is not idempotent may have had its effect (RFC 9110 section 9.2.2).
    if !session.req_header().method.is_idempotent() {
        return false;
    }
    if is_broken_off(session, e) {
        return true;
    }
    let request_end = client_request::end_of(&session.downstream_session);
    match end {
        // The same endpoint would most likely be silent again.
        AttemptEnd::Failed(failure)
            if failure.is_timeout()
                && matches!(request_end, None | Some(RequestEnd::FirstByteLate)) =>
        {
            forwarding.has_another_endpoint()
        }
        // Another endpoint may answer well. If it does not either, the request is the cause.
        AttemptEnd::Failed(Failure::MalformedAnswer) => {
            forwarding.has_another_endpoint() && !forwarding.was_malformed_before()
        }
        _ => {
            e.retry.decide_reuse(client_reused);
            e.retry()
        }
    }
}

/// The end of the present attempt, if the time for all attempts has run out.
fn end_by_deadline(session: &mut Session, ctx: &RequestContext) -> Option<AttemptEnd> {
    let late = ctx.forwarding.as_ref().filter(|forwarding| !forwarding.has_time())?;
    Some(late.end_by_deadline(session.is_body_done()))
}

/// Whether the endpoint ended the connection before its answer began. Another endpoint may answer, so the request is sent
/// again even when the connection was new.
fn is_broken_off(session: &Session, e: &Error) -> bool {
    use ErrorType::{ConnectionClosed, ReadError, WriteError};
    matches!(e.etype(), ConnectionClosed | ReadError | WriteError)
        && *e.esource() == ErrorSource::Upstream
        && answer_of(session).is_none()
}

/// Whether the client is the reason that an upstream gave a request up: it owes a part of the body, or it has let the
/// answer wait.
fn is_of_client(session: &Session, e: &Error) -> bool {
    if *e.esource() != ErrorSource::Upstream {
        return false;
    }
    let pace = client_request::pace_of(&session.downstream_session);
    match answer_of(session) {
        None => pace.owes_body() && *e.etype() == ErrorType::ReadTimedout,
        Some(_) => pace.is_behind(),
    }
}

/// Whether the server of an HTTP/2 connection has said that it did not process the request (RFC 9113 section 8.7).
fn was_not_processed(e: &Error) -> bool {
    let Some(cause) = e.root_cause().downcast_ref::<h2::Error>() else { return false };
    let is_reset = cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM);
    let is_going_away = cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR);
    cause.is_remote() && (is_reset || is_going_away)
}
