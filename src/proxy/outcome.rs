//! The outcome of a request: one value, made once at its end. Metrics, the access log and the line about a
//! failure read this value and nothing else.
//!
//! `telemetry` gets plain views ([`AccessLine`], handles of metrics) and knows no request.
//! The value borrows from the request's context, so a reader copies what it keeps.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use pingora_core::{Error, ErrorSource, ErrorType};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::context::{End, RequestContext};
use super::failure::failure_of;
use super::forwarding::Forwarding;
use crate::admission::{BadRequest, Findings, Rejection, TokenEnd};
use crate::auth::Principal;
use crate::listener::end::RequestEnd;
use crate::record::HeaderText;
use crate::telemetry::access_log::AccessLine;
use crate::telemetry::configured::RouteMetrics;
use crate::telemetry::metrics::METRICS;
use crate::upstream::attempt::{Attempt, Failure};

/// The status of a request whose client left before an answer. RFC 9110 does not define it; nginx and other proxies
/// log it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The reason of a request whose client left before the answer's end.
const CLIENT_GONE: &str = "client_gone";

/// The outcome of a request.
pub struct RequestOutcome<'a> {
    /// `X-Request-ID`, once the request has one.
    pub request_id: Option<&'a HeaderValue>,
    /// The method, as sent.
    pub method: &'a str,
    /// `Host`, in canonical form.
    pub host: Option<&'a str>,
    /// The path, canonical where there is a canonical form; without query.
    pub path: &'a str,
    /// The client's address: the peer's, or the address that trusted proxies name.
    pub client: Option<IpAddr>,
    /// The route, the principal and the decisions about limits, as far as they were found out.
    pub findings: &'a Findings,
    /// The upstream that was asked.
    pub upstream: Option<&'a str>,
    /// The attempts to have the request answered by an upstream, the last one last.
    pub attempts: &'a [Attempt],
    /// The status of the answer.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// From the end of the request's header to the end of the answer.
    pub duration: Duration,
    /// How the request ended.
    pub end: &'a End,
}

impl<'a> RequestOutcome<'a> {
    /// The outcome of the request of `session` and `ctx`, which took `duration`.
    pub fn new(session: &'a Session, ctx: &'a RequestContext, duration: Duration) -> Self {
        let request = session.req_header();
        let forwarding = ctx.forwarding.as_ref();
        let asked = forwarding.filter(|forwarding| !forwarding.attempts().is_empty());
        let answered = answer_of(session).map(|response| response.status.as_u16());
        Self {
            request_id: ctx.request_id.as_ref(),
            method: request.method.as_str(),
            host: request.headers.get(header::HOST).and_then(|host| host.to_str().ok()),
            path: ctx.canonical_path.as_deref().unwrap_or(request.uri.path()),
            client: ctx.client_ip,
            findings: &ctx.findings,
            upstream: asked.map(|forwarding| forwarding.permit().upstream().rules().name.as_str()),
            attempts: forwarding.map_or(&[], Forwarding::attempts),
            status: answered.unwrap_or(CLIENT_CLOSED_REQUEST),
            bytes: session.body_bytes_sent() as u64,
            duration,
            end: &ctx.end,
        }
    }

    /// Counts the request, under `unrouted` when it has no route.
    pub fn count(&self, unrouted: &RouteMetrics) {
        let metrics = self.findings.route.as_deref().map_or(unrouted, |route| &route.metrics);
        metrics.observe(self.method, self.status, self.duration);
        if let End::Refused(rejection) = self.end {
            METRICS.rejections.with_label_values(&[rejection.status_and_code().1]).inc();
        }
        self.count_decisions();
    }

    fn count_decisions(&self) {
        let decisions = || self.findings.decisions.iter().map(|decided| &decided.decision);
        // When a limit has refused, the units that other limits granted were put back.
        let refused = decisions().any(|decision| !decision.admitted);
        for decision in decisions().filter(|decision| decision.admitted != refused) {
            let limit = decision.tightest().and_then(|at| decision.limits.get(at));
            let name = limit.map_or("unknown", |limit| &*limit.name);
            METRICS.limit_decision(name, decision.admitted);
        }
    }

    /// Writes the request's line of the access log.
    pub fn log(&self) {
        let route = self.findings.route.as_deref();
        let principal = self.findings.principal.as_ref();
        let error = self.rejection().and_then(Rejection::error);
        AccessLine {
            request_id: self.id().unwrap_or("-"),
            method: self.method,
            host: self.host,
            path: self.path,
            route: route.map(|route| &*route.label),
            status: self.status,
            duration: self.duration,
            upstream: self.upstream,
            upstream_duration: self.attempts.iter().rev().find_map(|attempt| attempt.first_byte),
            bytes: self.bytes,
            client_ip: self.client,
            token_id: principal.map(|principal| principal.record().id()),
            organization_id: principal.and_then(Principal::organization_id).map(HeaderText::as_str),
            plan: principal.and_then(Principal::plan).map(HeaderText::as_str),
            code: self.code(),
            reason: self.reason(),
            error: error.as_deref(),
        }
        .write();
    }

    /// Writes a line about a failure that the client did not cause. Pingora's text describes the failure.
    pub fn log_failure(&self, e: &Error) {
        // While no endpoint may get requests, the lines about their breakers say why.
        let is_unavailable = matches!(self.end, End::Refused(Rejection::UpstreamUnavailable(_)));
        if *e.esource() == ErrorSource::Downstream || is_unavailable {
            return;
        }
        log::warn!(
            request_id = self.id(),
            method = self.method,
            route = self.findings.route.as_ref().map(|route| &*route.label),
            attempts = self.attempts.len();
            "request failed: {}",
            without_bytes(e)
        );
    }

    /// The request's id, as text.
    fn id(&self) -> Option<&'a str> {
        self.request_id.and_then(|id| id.to_str().ok())
    }

    /// The code of the error that the gateway answered with.
    fn code(&self) -> Option<&'static str> {
        match self.end {
            End::Refused(rejection) => Some(rejection.status_and_code().1),
            End::Answered | End::BrokenOff(_) | End::ClientGone | End::Cut(_) => None,
        }
    }

    fn reason(&self) -> Option<&'static str> {
        match self.end {
            End::ClientGone => Some(CLIENT_GONE),
            End::Cut(end) => end_reason(*end),
            End::Answered | End::Refused(_) | End::BrokenOff(_) => {
                self.rejection().and_then(Rejection::reason)
            }
        }
    }

    fn rejection(&self) -> Option<&'a Rejection> {
        match self.end {
            End::Refused(rejection) | End::BrokenOff(rejection) => Some(rejection),
            End::Answered | End::ClientGone | End::Cut(_) => None,
        }
    }
}

/// The reason of a request that the gateway ended early, as a word of the access log.
fn end_reason(end: RequestEnd) -> Option<&'static str> {
    match end {
        RequestEnd::Token(TokenEnd::Expired) => Some("token_expired"),
        RequestEnd::Token(TokenEnd::Revoked) => Some("token_revoked"),
        RequestEnd::TunnelIdle => Some("tunnel_idle"),
        RequestEnd::Draining => Some("draining"),
        RequestEnd::ClientGone => Some(CLIENT_GONE),
        RequestEnd::UpstreamSilent | RequestEnd::FirstByteLate | RequestEnd::Deadline => {
            Rejection::from(failure_of(end)?).reason()
        }
    }
}

/// The header of the answer, once it is written. An informational header only precedes it (RFC 9110
/// section 15.2), unless it switches protocols.
pub fn answer_of(session: &Session) -> Option<&ResponseHeader> {
    session.response_written().filter(|response| {
        !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS
    })
}

/// The rejection for an error of Pingora's; `None` when the client has gone.
pub fn rejection_of(e: &Error) -> Option<Rejection> {
    use ErrorType::{ConnectionClosed, ReadError, ReadTimedout, WriteError, WriteTimedout};
    match (e.esource(), e.etype()) {
        (ErrorSource::Upstream, _) => Some(Failure::of(e).into()),
        (ErrorSource::Downstream, ReadTimedout) => Some(Rejection::RequestTimeout),
        (ErrorSource::Downstream, ReadError) if is_broken_body(e) => {
            Some(Rejection::BadRequest(BadRequest::Chunks))
        }
        (ErrorSource::Downstream, WriteError | WriteTimedout | ReadError | ConnectionClosed) => {
            None
        }
        (ErrorSource::Downstream, _) => Some(Rejection::BadRequest(BadRequest::Message)),
        (ErrorSource::Internal | ErrorSource::Unset, _) => Some(Rejection::Internal),
    }
}

/// Whether the listener's reader found the body malformed.
fn is_broken_body(e: &Error) -> bool {
    e.root_cause()
        .downcast_ref::<std::io::Error>()
        .is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidData)
}

/// The error without the bytes of a message that could not be parsed, which Pingora quotes: they may
/// hold a credential.
fn without_bytes(e: &Error) -> String {
    let mut text = e.to_string();
    if let Some(quoted) = text.find(" buf: ") {
        text.truncate(quoted);
        text.push_str(&format!(" {}", e.root_cause()));
    }
    text
}
