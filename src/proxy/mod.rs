//! Pingora's hooks, a short method a phase. Decisions are made in `admission`; this passes them on.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use pingora_core::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::admission::{Admission, Rejection, Request};
use crate::auth::Principal;
use crate::listener::connection::peer_ip;
use crate::listener::http1;
use crate::policy::Policy;
use crate::record::HeaderText;
use crate::route::path::CanonicalPath;
use crate::route::reserved::{Endpoint, endpoint};
use crate::telemetry::access_log::AccessLine;
use crate::telemetry::metrics::{METRICS, RouteMetrics};

pub mod context;
pub mod headers;
pub mod problem;

use context::RequestContext;
use headers::Seen;

/// What `logging` reports when the client was gone before an answer: no status of RFC 9110, but the
/// one that proxies are known to use.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Whether this process should be sent requests.
pub struct Readiness {
    /// Set when the shutdown begins.
    pub draining: AtomicBool,
    /// Whether the store answers, or its failure policy lets requests through without it.
    pub store_serves: Box<dyn Fn(&Policy) -> bool + Send + Sync>,
}

/// The gateway as a Pingora proxy.
pub struct Proxy {
    policy: Arc<ArcSwap<Policy>>,
    admission: Admission,
    readiness: Arc<Readiness>,
    /// Requests that no route has.
    unrouted: RouteMetrics,
}

impl Proxy {
    /// A proxy that judges by the current policy.
    pub fn new(
        policy: Arc<ArcSwap<Policy>>,
        admission: Admission,
        readiness: Arc<Readiness>,
    ) -> Self {
        Self { policy, admission, readiness, unrouted: RouteMetrics::new("-") }
    }

    /// Looks at a request and decides. `Ok(true)`: it was one for the gateway itself, and is answered.
    async fn judge(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<bool, Rejection> {
        let peer = peer_ip(session.client_addr());
        let request = session.req_header();
        let now = self.admission.now();
        ctx.request_id = Some(headers::request_id(&request.headers, ctx.seen, now));
        let trusted = &ctx.policy.trusted_proxies;
        ctx.trusted_peer = peer.is_some_and(|peer| headers::is_trusted(peer, trusted));
        ctx.client_ip = match ctx.trusted_peer {
            true => peer.map(|peer| headers::client_ip(peer, &request.headers, trusted)),
            false => peer,
        };
        let path = CanonicalPath::parse(request.uri.path())?;
        if path.was_rewritten() {
            ctx.canonical_path = Some(path.as_str().to_owned());
        }
        if let Some(endpoint) = endpoint(path.as_str()) {
            // Boxed, lest what is rare makes every request's future large.
            return Box::pin(self.answer_endpoint(session, ctx, endpoint)).await.map(|()| true);
        }
        let asked = Request {
            now,
            path: &path,
            method: request.method.as_str(),
            headers: &request.headers,
            client: ctx.client_ip,
            content_length: match ctx.seen.content_length {
                true => headers::content_length(&request.headers),
                false => None,
            },
        };
        let permit = self.admission.admit(&ctx.policy, &asked, &mut ctx.findings).await?;
        ctx.permit = Some(permit);
        Ok(false)
    }

    async fn answer_endpoint(
        &self,
        session: &mut Session,
        ctx: &RequestContext,
        endpoint: Endpoint,
    ) -> Result<(), Rejection> {
        if !matches!(session.req_header().method, Method::GET | Method::HEAD) {
            return Err(Rejection::MethodNotAllowed("GET, HEAD".into()));
        }
        let status = match endpoint {
            Endpoint::Ready => {
                if self.readiness.draining.load(Ordering::Relaxed) {
                    return Err(Rejection::Draining);
                }
                if !(self.readiness.store_serves)(&ctx.policy) {
                    return Err(Rejection::StoreUnavailable);
                }
                "ready"
            }
            Endpoint::Alive => "alive",
        };
        let body = format!("{{\"status\":\"{status}\"}}\n");
        let answer = async {
            let mut response = ResponseHeader::build(200, Some(4))?;
            response.insert_header("Content-Type", "application/json")?;
            response.insert_header("Content-Length", body.len())?;
            response.insert_header("Cache-Control", "no-store")?;
            problem::send(session, response, body.into()).await
        };
        // Who cannot be written to has left.
        answer.await.or(Ok(()))
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    /// Boxed, because the future in which Pingora serves a request holds it several times, and is copied.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Self::CTX {
        Box::new(RequestContext::new(self.policy.load_full()))
    }

    /// Pingora would install a compression module here; answers pass as they are.
    fn init_downstream_modules(&self, _: &mut pingora_core::modules::http::HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        let timeouts = ctx.policy.timeouts;
        session.set_read_timeout(Some(timeouts.read));
        session.set_write_timeout(Some(timeouts.write));
        if session.req_header().version == Version::HTTP_10 {
            session.set_ignore_info_resp(true);
        }
        let request = session.req_header_mut();
        headers::forget_spelling(request);
        ctx.seen = Seen::in_request(&request.headers);
        // An upgrade that Connection does not name is none (RFC 9110 section 7.8).
        if ctx.seen.upgrade && !headers::asks_for_upgrade(&request.headers) {
            request.remove_header(&header::UPGRADE);
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        match self.judge(session, ctx).await {
            Ok(true) => Ok(true),
            Ok(false) => {
                // It may pass, so its body may come (RFC 9110 section 10.1.1).
                if ctx.seen.expect
                    && session.req_header_mut().remove_header(&header::EXPECT).is_some()
                {
                    // An answer before the body's end closes the connection, but this is none.
                    let keepalive = session.get_keepalive();
                    session.write_continue_response().await?;
                    session.set_keepalive(keepalive);
                }
                Ok(false)
            }
            Err(rejection) => {
                Box::pin(problem::respond(session, ctx, &rejection)).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        // Without a permit there is nowhere to go: a forgotten check cannot become an open door.
        let Some(permit) = &ctx.permit else {
            ctx.rejection = Some(Rejection::Internal);
            return Error::e_explain(ErrorType::InternalError, "no permit");
        };
        ctx.attempt_started = Some(Instant::now());
        // Each attempt sends the body from its beginning.
        ctx.body_seen = 0;
        match permit.route().upstream.pick(&mut ctx.turn) {
            Some(mut peer) => {
                if !ctx.seen.hop_by_hop {
                    // Pingora removes such fields one by one. There are none.
                    peer.options.http_upstream_request_policy =
                        HttpUpstreamRequestPolicy::preserve();
                }
                Ok(peer)
            }
            None => {
                ctx.rejection = Some(Rejection::UpstreamUnavailable);
                Error::e_explain(ErrorType::ConnectNoRoute, "no endpoint has an address")
            }
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let (Some(permit), Some(request_id)) = (&ctx.permit, &ctx.request_id) else {
            ctx.rejection = Some(Rejection::Internal);
            return Error::e_explain(ErrorType::InternalError, "no permit");
        };
        let route = permit.route();
        rewrite_target(upstream_request, ctx.canonical_path.as_deref(), route)?;
        let origin = headers::Origin {
            seen: ctx.seen,
            peer: peer_ip(session.client_addr()),
            trusted: ctx.trusted_peer,
            scheme: "http",
            request_id,
            principal: permit.principal(),
        };
        let rules = &route.request_headers;
        headers::rewrite_request(upstream_request, &origin, route.forward_credential, rules)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if session.was_upgraded() {
            return Ok(());
        }
        ctx.body_seen += body.as_ref().map_or(0, |body| body.len() as u64);
        if ctx.body_seen > ctx.policy.max_body {
            ctx.rejection = Some(Rejection::BodyTooLarge(ctx.policy.max_body));
            return Err(Error::explain(ErrorType::HTTPStatus(413), "body too large").into_down());
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        upstream_response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let switching = upstream_response.status == StatusCode::SWITCHING_PROTOCOLS;
        if switching && !session.is_upgrade_req() {
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "unasked-for 101").into_up());
        }
        if !upstream_response.status.is_informational()
            && let Some(started) = ctx.attempt_started
        {
            let duration = started.elapsed();
            ctx.upstream_duration = Some(duration);
            if let Some(permit) = &ctx.permit {
                permit.route().upstream.seconds.observe(duration.as_secs_f64());
            }
        }
        headers::clean_response(upstream_response)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let Some(permit) = &ctx.permit else { return Ok(()) };
        let version = session.req_header().version;
        // To HTTP/1.0 a body of unknown length ends with the connection; keep-alive is not promised.
        if version == Version::HTTP_10 && !response.headers.contains_key(header::CONTENT_LENGTH) {
            session.set_keepalive(None);
        }
        headers::finish_response(
            response,
            version,
            ctx.request_id.as_ref(),
            &ctx.findings,
            ctx.policy.rate_headers,
            &permit.route().response_headers,
        )
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Self::CTX,
        mut e: Box<Error>,
    ) -> Box<Error> {
        // No upstream has seen anything of the request: any method may be tried elsewhere.
        e.set_retry(may_retry(ctx));
        e
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        ctx: &mut Self::CTX,
        client_reused: bool,
    ) -> Box<Error> {
        let mut e = e.more_context(format!("peer: {}", peer._address));
        // A method that is not idempotent may have had its effect (RFC 9110 section 9.2.2).
        let repeatable = session.req_header().method.is_idempotent()
            && !session.retry_buffer_truncated()
            && may_retry(ctx);
        // Broken off before an answer began, on a new connection as well as on a kept one.
        let broken_off = matches!(
            e.etype(),
            ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError
        ) && *e.esource() == ErrorSource::Upstream
            && answer_of(session).is_none();
        match repeatable {
            true if broken_off => e.set_retry(true),
            true => e.retry.decide_reuse(client_reused),
            false => e.set_retry(false),
        }
        e
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        e: &Error,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        let rejection = ctx.rejection.take().or_else(|| rejection_of(e));
        let (error_code, answered) = match &rejection {
            Some(rejection) if answer_of(session).is_none() => {
                let answered = problem::respond(session, ctx, rejection).await.is_ok();
                (rejection.status_and_code().0.as_u16(), answered)
            }
            // The client has left, or half of an answer is out: closing is all that can be said.
            _ => (0, false),
        };
        if *e.esource() != ErrorSource::Downstream {
            log_failure(session, e, ctx);
        }
        if answered && session.get_keepalive().is_some() && session.is_body_done() {
            http1::answered_whole(&session.downstream_session);
        }
        FailToProxy { error_code, can_reuse_downstream: answered }
    }

    async fn logging(&self, session: &mut Session, _e: Option<&Error>, ctx: &mut Self::CTX) {
        let written = answer_of(session).map(|response| response.status.as_u16());
        let status = written.unwrap_or(CLIENT_CLOSED_REQUEST);
        let request = session.req_header();
        let (method, duration) = (request.method.as_str(), ctx.started.elapsed());
        let route = ctx.findings.route.as_deref();
        route.map_or(&self.unrouted, |route| &route.metrics).observe(method, status, duration);
        count_decisions(ctx);
        if !ctx.policy.access_log {
            return;
        }
        let principal = ctx.findings.principal.as_ref();
        let client_ip = ctx.client_ip.map(|ip: IpAddr| ip.to_string());
        AccessLine {
            request_id: ctx.request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or("-"),
            method,
            path: ctx.canonical_path.as_deref().unwrap_or(request.uri.path()),
            route: route.map(|route| &*route.label),
            status,
            duration,
            upstream: route
                .filter(|_| ctx.attempt_started.is_some())
                .map(|route| route.upstream.rules().name.as_str()),
            upstream_duration: ctx.upstream_duration,
            bytes: session.body_bytes_sent() as u64,
            client_ip: client_ip.as_deref(),
            token_id: principal.map(|principal| principal.record().id()),
            organization_id: principal.and_then(Principal::organization_id).map(HeaderText::as_str),
            plan: principal.and_then(Principal::plan).map(HeaderText::as_str),
            code: ctx.code,
        }
        .write();
    }

    /// What Pingora's own log lines say of a request: no query, which may hold a credential.
    fn request_summary(&self, session: &Session, ctx: &Self::CTX) -> String {
        let request = session.req_header();
        let path = ctx.canonical_path.as_deref().unwrap_or(request.uri.path());
        format!("{} {path}", request.method)
    }

    /// `fail_to_proxy` has logged what there is to log.
    fn suppress_error_log(&self, _: &Session, _: &Self::CTX, _: &Error) -> bool {
        true
    }
}

/// The header of the answer, once it is written. An informational one only precedes it (RFC 9110
/// section 15.2), unless it switches protocols.
fn answer_of(session: &Session) -> Option<&ResponseHeader> {
    session.response_written().filter(|response| {
        !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS
    })
}

fn may_retry(ctx: &RequestContext) -> bool {
    let retries = ctx.permit.as_ref().map_or(0, |permit| permit.route().upstream.rules().retries);
    ctx.turn.attempts() <= retries
}

/// What an error of Pingora's comes to, `None` when the client is gone.
fn rejection_of(e: &Error) -> Option<Rejection> {
    use ErrorType::{
        ConnectTimedout, ConnectionClosed, ReadError, ReadTimedout, TLSHandshakeTimedout,
        WriteError, WriteTimedout,
    };
    match (e.esource(), e.etype()) {
        (
            ErrorSource::Upstream,
            ConnectTimedout | ReadTimedout | WriteTimedout | TLSHandshakeTimedout,
        ) => Some(Rejection::UpstreamTimeout),
        (ErrorSource::Upstream, _) => Some(Rejection::UpstreamUnreachable),
        (ErrorSource::Downstream, ReadTimedout) => Some(Rejection::RequestTimeout),
        (ErrorSource::Downstream, ReadError) if is_broken_body(e) => {
            Some(Rejection::BadRequest("the chunked body is malformed".into()))
        }
        (ErrorSource::Downstream, WriteError | WriteTimedout | ReadError | ConnectionClosed) => {
            None
        }
        (ErrorSource::Downstream, _) => {
            Some(Rejection::BadRequest("the request is malformed".into()))
        }
        (ErrorSource::Internal | ErrorSource::Unset, _) => Some(Rejection::Internal),
    }
}

/// Whether the client's stream refused what the client sent.
fn is_broken_body(e: &Error) -> bool {
    e.root_cause()
        .downcast_ref::<std::io::Error>()
        .is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidData)
}

fn log_failure(session: &Session, e: &Error, ctx: &RequestContext) {
    log::warn!(
        request_id = ctx.request_id.as_ref().and_then(|id| id.to_str().ok()),
        method = session.req_header().method.as_str(),
        route = ctx.findings.route.as_ref().map(|route| &*route.label),
        attempts = ctx.turn.attempts();
        "request failed: {}",
        without_bytes(e)
    );
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

fn count_decisions(ctx: &RequestContext) {
    // Where one has refused, what the others admitted was put back.
    let refused = ctx.findings.decisions.iter().any(|decision| !decision.admitted);
    for decision in ctx.findings.decisions.iter().filter(|decision| decision.admitted != refused) {
        let limit = decision.tightest().and_then(|at| decision.limits.get(at));
        let name = limit.map_or("unknown", |limit| &*limit.name);
        METRICS.limit_decision(name, decision.admitted);
    }
}

/// Writes the canonical path, without the route's prefix where that is wanted; the query stays as it is.
fn rewrite_target(
    request: &mut RequestHeader,
    canonical: Option<&str>,
    route: &crate::policy::Route,
) -> Result<()> {
    if canonical.is_none() && !route.strip_prefix {
        return Ok(());
    }
    let path = canonical.unwrap_or(request.uri.path());
    let path = match route.strip_prefix {
        true => path.strip_prefix(route.prefix.trim_end_matches('/')).unwrap_or(path),
        false => path,
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    let target = match request.uri.query() {
        Some(query) => format!("{slash}{path}?{query}"),
        None => format!("{slash}{path}"),
    };
    request.set_raw_path(target.as_bytes())
}
