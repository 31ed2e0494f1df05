//! Pingora's hooks, a short method a phase. Decisions are made in `admission`; the hooks pass them on.

use std::os::unix::io::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use pingora_core::protocols::Digest;
use pingora_core::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use tokio::time::sleep;

use crate::admission::{Admission, Rejection};
use crate::auth::sources::Onward;
use crate::listener::connection::peer_ip;
use crate::listener::end::RequestEnd;
use crate::listener::request as client_request;
use crate::policy::Policy;
use crate::telemetry::configured::RouteMetrics;
use crate::upstream::attempt::AttemptEnd;

pub mod compression;
pub mod connection;
pub mod context;
pub mod deadline;
mod decide;
mod failure;
mod farewell;
pub mod forwarding;
pub mod grpc;
pub mod headers;
mod held;
pub mod in_flight;
pub mod mirror;
pub mod outcome;
pub mod own;
pub mod problem;
pub mod target;
mod websocket;

use compression::{Compression, EncoderMemory};
use context::{End, RequestContext, fresh_request_id};
use deadline::Step;
use farewell::Farewell;
use forwarding::Forwarding;
use headers::prefix::Prefix;
use headers::seen::{Seen, accepts_events, asks_for_upgrade, content_length, is_events};
use headers::{answer, request};
use held::HeldSocket;
use in_flight::RequestsInFlight;
use mirror::Mirrors;
use outcome::{RequestOutcome, answer_of, rejection_of};

/// How long the answer to a client that guesses waits, on average.
const GUESSES_WAIT: Duration = Duration::from_millis(100);

/// A larger answer may take long, in bytes.
const LARGE_ANSWER: u64 = 256 * 1024;

/// Whether a load balancer should send requests to this process, and which are still being served.
pub struct Readiness {
    /// Set when the shutdown begins.
    pub draining: AtomicBool,
    /// Set when answers must end their connections, so that clients go on elsewhere before the listeners close.
    pub closing: AtomicBool,
    /// The requests that are being served.
    pub in_flight: RequestsInFlight,
    /// Whether the store answers, or its failure policy lets requests through without it.
    pub store_serves: Box<dyn Fn(&Policy) -> bool + Send + Sync>,
}

/// The gateway as a Pingora proxy. Clones decide together.
#[derive(Clone)]
pub struct Proxy {
    policy: Arc<ArcSwap<Policy>>,
    admission: Arc<Admission>,
    readiness: Arc<Readiness>,
    mirrors: Arc<Mirrors>,
    encoders: Arc<EncoderMemory>,
    /// Metrics of requests without a route.
    unrouted: Arc<RouteMetrics>,
    /// The ports of the listeners.
    ports: Arc<[u16]>,
}

impl Proxy {
    /// A proxy that decides by the current policy. The listeners have these `ports`. A thread keeps as many idle connections
    /// for copies of requests as `kept_connections` says.
    pub fn new(
        policy: Arc<ArcSwap<Policy>>,
        admission: Admission,
        readiness: Arc<Readiness>,
        ports: Arc<[u16]>,
        kept_connections: usize,
    ) -> Self {
        let (admission, unrouted) = (Arc::new(admission), Arc::new(RouteMetrics::new("-")));
        let mirrors = Arc::new(Mirrors::new(kept_connections));
        Self { policy, admission, readiness, mirrors, encoders: Arc::default(), unrouted, ports }
    }

    /// The proxy for another thread, which has connections of its own.
    pub fn for_another_thread(&self) -> Self {
        let copies = self.policy.load().routes.iter().any(|route| route.mirror.is_some());
        Self { mirrors: Arc::new(self.mirrors.for_another_thread(copies)), ..self.clone() }
    }

    /// Lets the answer say that the connection ends, when this process is about to go.
    fn close_when_draining(&self, session: &mut Session) {
        if self.readiness.closing.load(Ordering::Relaxed) {
            client_request::close_connection(&mut session.downstream_session);
        }
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    /// Boxed, because the future in which Pingora serves a request holds it several times, and is copied.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Self::CTX {
        let in_flight = self.readiness.in_flight.begin();
        Box::new(RequestContext::new(self.policy.load_full(), in_flight))
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
        self.close_when_draining(session);
        let request = session.req_header_mut();
        request::normalize(request)?;
        ctx.seen = Seen::in_request(&request.headers);
        ctx.is_grpc = grpc::is_call(request);
        ctx.may_stream = ctx.is_grpc || (ctx.seen.accept && accepts_events(&request.headers));
        let limit = if ctx.is_grpc { grpc::time_limit(&request.headers) } else { None };
        // An `Upgrade` that `Connection` does not name means nothing (RFC 9110 section 7.8).
        if ctx.seen.upgrade && !asks_for_upgrade(&request.headers) {
            request.remove_header(&header::UPGRADE);
        }
        if ctx.is_grpc {
            // Either side of a call may be quiet for long.
            session.set_read_timeout(Some(timeouts.tunnel));
        }
        if let Some(limit) = limit {
            ctx.deadline = Some(ctx.started + limit);
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        match self.decide(session, ctx).await {
            Ok(None) => Ok(true),
            Ok(Some(permit)) => {
                let mut forwarding = Forwarding::new(permit, ctx.started);
                if let Some(deadline) = ctx.deadline {
                    forwarding.end_at(deadline);
                }
                if let Some(principal) = forwarding.permit().principal()
                    && !session.is_body_done()
                {
                    // An upload may take longer than its token holds.
                    client_request::ends_with(&session.downstream_session, principal);
                }
                let idle = forwarding.permit().route().idle;
                if ctx.is_grpc && idle.is_some() {
                    session.set_read_timeout(idle);
                }
                ctx.forwarding = Some(forwarding);
                match ctx.max_forwards {
                    None => {}
                    Some(0) => {
                        Box::pin(own::answer_options(session, ctx)).await?;
                        return Ok(true);
                    }
                    Some(hops) => {
                        session.req_header_mut().insert_header(header::MAX_FORWARDS, hops - 1)?;
                    }
                }
                // The request may pass, so its body may come (RFC 9110 section 10.1.1).
                if ctx.seen.expect
                    && session.req_header_mut().remove_header(&header::EXPECT).is_some()
                {
                    // Pingora closes the connection when an answer comes before the body's end, and takes 100 for an answer.
                    let keepalive = session.get_keepalive();
                    session.write_continue_response().await?;
                    session.set_keepalive(keepalive);
                }
                Ok(false)
            }
            Err(rejection) => {
                if let Rejection::TooManyFailures { .. } = rejection {
                    // The answer waits, so that a flood of guesses on many connections leaves the thread to others.
                    sleep(GUESSES_WAIT.mul_f64(0.5 + fastrand::f64())).await;
                }
                if let Rejection::Misdirected = rejection {
                    client_request::close_connection(&mut session.downstream_session);
                }
                Box::pin(problem::respond(session, ctx, rejection)).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        let body_follows = !session.is_body_done();
        let headers = &session.req_header().headers;
        let forwarding = Forwarding::of(&mut ctx.forwarding)?;
        match forwarding.next_peer(ctx.client_ip, headers, body_follows) {
            Ok(mut peer) => {
                if !ctx.seen.hop_by_hop {
                    // Pingora would look for each hop-by-hop field, and the request has none.
                    peer.options.http_upstream_request_policy =
                        HttpUpstreamRequestPolicy::preserve();
                }
                let is_upgrade = ctx.seen.upgrade && session.is_upgrade_req();
                if is_upgrade && peer.is_tls() && !forwarding.needs_http2() {
                    // Only HTTP/1.1 has upgrades. Pingora remembers the protocol of a peer, so this is another peer.
                    peer.options.set_http_version(1, 1);
                    peer.group_key = !peer.group_key;
                }
                set_deadline(session, ctx, Step::Sending);
                if (is_upgrade || ctx.may_stream)
                    && let Some(limit) = peer.options.read_timeout.take()
                {
                    let client = &session.downstream_session;
                    client_request::set_tunnel(client, limit, RequestEnd::UpstreamSilent);
                }
                Ok(peer)
            }
            Err(reason) => {
                ctx.rejection = Some(reason.into());
                Error::e_explain(ErrorType::ConnectNoRoute, "no endpoint can get the request")
            }
        }
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        fd: RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        Forwarding::of(&mut ctx.forwarding)?.connected(reused);
        match session.is_body_done() {
            true => set_deadline(session, ctx, Step::Waiting),
            false => ctx.upload_socket = Some(fd),
        }
        if ctx.seen.upgrade && session.is_upgrade_req() {
            // Without a descriptor left, few tunnels break.
            ctx.held = HeldSocket::hold(fd).ok();
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let forwarding = Forwarding::of(&mut ctx.forwarding)?;
        let is_http2 = upstream_request.version == Version::HTTP_2;
        if forwarding.needs_http2() && !is_http2 {
            let refused = "the endpoint does not speak HTTP/2, and http2 is always";
            return Err(Error::explain(ErrorType::H2Error, refused).into_up());
        }
        // An HTTP/2 connection has other requests, too: it does not end with an upload.
        if let Some(socket) = ctx.upload_socket.take().filter(|_| !is_http2) {
            client_request::set_upload(&session.downstream_session, Some(socket));
            ctx.uploads = true;
        }
        let permit = forwarding.permit();
        let request_id = ctx.request_id.get_or_insert_with(fresh_request_id);
        let route = permit.route();
        let policy = &ctx.policy;
        let target = target::onward(
            upstream_request,
            ctx.canonical_path.as_deref(),
            route,
            policy.routes.folds(),
            &policy.credentials,
        );
        let origin = request::Origin {
            seen: ctx.seen,
            peer: peer_ip(session.client_addr()),
            client: ctx.client_ip,
            route: &route.label,
            trusted: ctx.trusted_peer,
            credentials: &policy.credentials,
            onward: Onward {
                verified: permit.principal().is_some(),
                forward: route.forward_credential,
                pass: &policy.pass_fields,
            },
            stripped: route.stripped(),
            endpoint: forwarding.authority(),
            scheme: if connection::is_encrypted(session) { "https" } else { "http" },
            request_id,
            principal: permit.principal(),
            certificate: ctx.certificate.as_deref(),
        };
        request::rewrite_request(upstream_request, &origin, &route.request_headers)?;
        if ctx.is_grpc && is_http2 {
            // Servers of gRPC ask for it, and Pingora has removed it as a field of one connection.
            upstream_request.insert_header(header::TE, HeaderValue::from_static("trailers"))?;
        }
        if let Some(target) = target {
            upstream_request.set_raw_path(&target)?;
        }
        if let Some(mirror) = &route.mirror
            && !session.is_upgrade_req()
        {
            // Pingora does not ask the hooks about a body that is not there.
            let body_follows = !session.as_mut().is_body_empty();
            ctx.copy.attempt_begins(&self.mirrors, mirror, upstream_request, body_follows);
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(held) = ctx.held.take() {
            held.release();
        }
        if session.was_upgraded() {
            return Ok(());
        }
        if end_of_stream {
            set_deadline(session, ctx, Step::Waiting);
        }
        let forwarding = Forwarding::of(&mut ctx.forwarding)?;
        forwarding.body_seen += body.as_ref().map_or(0, |body| body.len() as u64);
        let max_body = forwarding.permit().route().max_body;
        if forwarding.body_seen > max_body {
            ctx.rejection = Some(Rejection::BodyTooLarge(max_body));
            return Err(Error::explain(ErrorType::HTTPStatus(413), "body too large").into_down());
        }
        ctx.copy.pass(body.as_ref(), end_of_stream);
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
        if switching {
            session.set_read_timeout(None);
            let client = &session.downstream_session;
            client_request::set_tunnel(client, ctx.idle(), RequestEnd::TunnelIdle);
            ctx.farewell = Farewell::of_tunnel(&upstream_response.headers);
        } else if ctx.may_stream
            && !upstream_response.status.is_informational()
            && (ctx.is_grpc || is_events(&upstream_response.headers))
        {
            // A stream may be quiet for as long as a tunnel.
            ctx.is_stream = true;
            if ctx.is_grpc {
                // From here on, silence of both sides counts.
                session.set_read_timeout(None);
            }
            let client = &session.downstream_session;
            client_request::set_tunnel(client, ctx.idle(), RequestEnd::TunnelIdle);
            if !ctx.is_grpc {
                let method = &session.req_header().method;
                ctx.farewell = Farewell::of_events(method, &upstream_response.headers);
            }
        }
        if ctx.farewell.is_some() {
            client_request::set_may_leave(&session.downstream_session, true);
        }
        if switching || !upstream_response.status.is_informational() {
            Forwarding::of(&mut ctx.forwarding)?.answer_began(upstream_response.status.as_u16());
            match switching {
                // A tunnel lasts as long as bytes pass.
                true => client_request::set_deadline(&session.downstream_session, None),
                false if ctx.is_stream => set_deadline(session, ctx, Step::Streaming),
                false => set_deadline(session, ctx, Step::Answering),
            }
            // Pingora may close the connection to the upstream from here on without telling.
            forget_upload(session, ctx);
        }
        answer::clean_response(upstream_response)
    }

    fn upstream_response_body_filter(
        &self,
        session: &mut Session,
        _body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if ctx.forwarding.as_ref().is_some_and(Forwarding::has_deadline_of_pauses)
            && !ctx.is_stream
            && !session.was_upgraded()
        {
            set_deadline(session, ctx, Step::Answering);
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        self.close_when_draining(session);
        let forwarding = Forwarding::of(&mut ctx.forwarding)?;
        let permit = forwarding.permit();
        if let Some(principal) = permit.principal()
            && may_take_long(response)
        {
            client_request::ends_with(&session.downstream_session, principal);
        }
        let route = permit.route();
        let request = session.req_header();
        let version = request.version;
        let own = answer::Own {
            client: version,
            client_ip: ctx.client_ip,
            certificate: ctx.certificate.as_deref(),
            request_id: ctx.request_id.as_ref(),
            findings: &ctx.findings,
            rate_headers: ctx.policy.rate_headers,
            route,
            request: &request.headers,
            prefix: route.rewrite_answers.then(|| Prefix {
                prefix: route.prefix.trim_end_matches('/'),
                replacement: route.replacement.as_deref().unwrap_or_default(),
                host: request.headers.get(header::HOST).and_then(|host| host.to_str().ok()),
                endpoint: forwarding.authority(),
            }),
            subprotocol: match response.status {
                StatusCode::SWITCHING_PROTOCOLS => {
                    ctx.policy.credentials.selected_subprotocol(&request.headers)
                }
                _ => None,
            },
        };
        answer::finish_response(response, &own)?;
        if !route.codings.is_empty() {
            ctx.compression =
                Compression::begin(&route.codings, request, response, &self.encoders)?;
        }
        // For an HTTP/1.0 client a body of unknown length ends with the connection.
        if version == Version::HTTP_10 && !response.headers.contains_key(header::CONTENT_LENGTH) {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if let (Some(farewell), Some(body)) = (&mut ctx.farewell, &body)
            && let Some(may) = farewell.pass(body)
        {
            client_request::set_may_leave(&session.downstream_session, may);
        }
        match &mut ctx.compression {
            Some(compression) => compression.pass(body, end_of_stream).map(|()| None),
            None => Ok(None),
        }
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        _upstream_trailers: &mut HeaderMap,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Bytes>> {
        ctx.compression.as_mut().map_or(Ok(None), |compression| compression.end())
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Self::CTX,
        mut e: Box<Error>,
    ) -> Box<Error> {
        e.set_retry(failure::connects_elsewhere(session, ctx, &e));
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
        forget_upload(session, ctx);
        let end = failure::end_of_attempt(session, ctx, &e, client_reused);
        let mut e = e.more_context(format!("peer: {}", peer._address));
        let repeats = failure::repeats(session, ctx, &mut e, end, client_reused);
        e.set_retry(repeats);
        e
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        e: &Error,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        let rejection = match client_request::end_of(&session.downstream_session) {
            Some(RequestEnd::ClientGone) => None,
            Some(end) => match failure::failure_of(end) {
                Some(failure) => Some(failure.into()),
                None => {
                    ctx.end = End::Cut(end);
                    if end == RequestEnd::Draining {
                        farewell::leave(session, ctx).await;
                    } else {
                        let (status, why) = grpc::cut(end);
                        end_call(session, ctx, status, why).await;
                    }
                    return FailToProxy { error_code: 0, can_reuse_downstream: false };
                }
            },
            None => ctx.rejection.take().or_else(|| rejection_of(e)),
        };
        let (error_code, answered) = match rejection {
            Some(rejection) if answer_of(session).is_none() => {
                let status = rejection.status_and_code().0.as_u16();
                (status, problem::respond(session, ctx, rejection).await.is_ok())
            }
            // The answer's header has been sent: closing the connection is the only way to tell the client.
            Some(rejection) => {
                end_call(session, ctx, rejection.status_and_code().0, &rejection.detail()).await;
                ctx.end = End::BrokenOff(rejection);
                (0, false)
            }
            // The client has gone. If it went while a refusal was written, the refusal stays the end.
            None => {
                if matches!(ctx.end, End::Answered) {
                    ctx.end = End::ClientGone;
                }
                (0, false)
            }
        };
        if answered && session.get_keepalive().is_some() && session.is_body_done() {
            client_request::answered_whole(&session.downstream_session);
        }
        FailToProxy { error_code, can_reuse_downstream: answered }
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Self::CTX) {
        let now = Instant::now();
        if let Some(forwarding) = &mut ctx.forwarding {
            forwarding.end_attempt(e.map_or(AttemptEnd::Answered, AttemptEnd::of), now);
            forwarding.settle(now);
        }
        let duration = now.saturating_duration_since(ctx.started);
        let outcome = RequestOutcome::new(session, ctx, duration);
        outcome.count(&self.unrouted);
        if let Some(e) = e
            && !matches!(ctx.end, End::ClientGone)
        {
            outcome.log_failure(e);
        }
        if ctx.policy.access_log {
            outcome.log();
        }
    }

    /// The name of a request in Pingora's own log lines: without the query, which may hold a credential.
    fn request_summary(&self, session: &Session, ctx: &Self::CTX) -> String {
        let request = session.req_header();
        let path = ctx.canonical_path.as_deref().unwrap_or(request.uri.path());
        format!("{} {path}", request.method)
    }

    /// The `logging` hook writes the line about a failure.
    fn suppress_error_log(&self, _: &Session, _: &Self::CTX, _: &Error) -> bool {
        true
    }
}

/// Whether an answer with this header may last longer than its token: a tunnel, an answer of unknown length, or
/// a large one.
fn may_take_long(response: &ResponseHeader) -> bool {
    content_length(&response.headers).is_none_or(|length| length > LARGE_ANSWER)
}

/// Sets when the request of `session` ends, if the attempt is still at this `step`.
fn set_deadline(session: &Session, ctx: &RequestContext, step: Step) {
    if let Some(forwarding) = &ctx.forwarding
        && forwarding.has_deadlines()
    {
        client_request::set_deadline(&session.downstream_session, forwarding.deadline(step));
    }
}

/// The upstream's connection may be closed from here on.
fn forget_upload(session: &Session, ctx: &mut RequestContext) {
    if std::mem::take(&mut ctx.uploads) {
        client_request::set_upload(&session.downstream_session, None);
    }
}

/// Ends the answer to a gRPC call in the middle, in a way that tells its client why. Other answers are not whole then,
/// and their stream or connection ends.
async fn end_call(session: &mut Session, ctx: &RequestContext, status: StatusCode, why: &str) {
    if ctx.is_grpc
        && answer_of(session).is_some()
        && let Ok(trailers) = grpc::trailers(status, why)
    {
        // An error means that the client has gone.
        let _ = session.downstream_session.write_response_trailers(trailers).await;
    }
}
