//! Copies of requests, whose answers nobody waits for.
//!
//! A copy has the fields and the target that the upstream of the request gets. It is sent once the request has its
//! permit and its body is known, on a task of its own: an upstream for copies that is slow, dead or wrong costs the
//! request nothing. Copies are bounded in number, size and time, and one that does not fit is dropped. They say nothing about
//! their endpoints, which may have requests of their own.

use std::slice;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, Uri, Version, header};
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::{HttpPeer, Peer as _};
use pingora_core::{Error, ErrorType, OkOrErr as _, OrErr as _, Result};
use pingora_http::RequestHeader;
use pingora_limits::inflight::{Guard, Inflight};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::base::task::detach;
use crate::policy::RouteMirror;
use crate::route::fields;
use crate::upstream::attempt::{Attempt, AttemptEnd};
use crate::upstream::pool::{Picked, Upstream};

/// The largest body of a copy, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// A larger answer is not read to its end, in bytes; its connection is closed.
const MAX_ANSWER: usize = 256 * 1024;

/// Sends the copies of one thread.
pub struct Mirrors {
    /// A connection belongs to the thread that made it.
    connector: OnceCell<Connector>,
    /// The most connections that are kept for further copies.
    kept: usize,
    /// The copies on their way, by upstream; made with the first copy.
    in_flight: Arc<OnceLock<Inflight>>,
}

impl Mirrors {
    /// For the first thread, which keeps as many connections as `kept` says.
    pub fn new(kept: usize) -> Self {
        Self { connector: OnceCell::new(), kept, in_flight: Arc::default() }
    }

    /// For another thread; the copies of all threads are counted together. `soon`: there will be copies.
    pub fn for_another_thread(&self, soon: bool) -> Self {
        let connector = soon.then(|| connector(self.kept));
        Self {
            connector: OnceCell::new_with(connector),
            kept: self.kept,
            in_flight: Arc::clone(&self.in_flight),
        }
    }

    /// The connector of the thread. If no copies were expected, it is made now, off the thread.
    async fn connector(&self) -> Result<&Connector> {
        let make = || {
            spawn_blocking({
                let kept = self.kept;
                move || connector(kept)
            })
        };
        let connector = self.connector.get_or_try_init(make).await;
        connector.or_err(ErrorType::InternalError, "no connector for copies")
    }

    fn slot(&self, mirror: &RouteMirror) -> Option<Guard> {
        let upstream = &*mirror.rules.upstream.rules().name;
        let (slot, in_flight) = self.in_flight.get_or_init(Inflight::new).incr(upstream, 1);
        (in_flight <= mirror.rules.max_in_flight).then_some(slot)
    }
}

/// A connector that keeps so many connections. It reads the certificates of the system, which takes a tenth of a second.
fn connector(kept: usize) -> Connector {
    Connector::new(Some(ConnectorOptions::new(kept)))
}

/// How far the copy of a request is.
pub enum CopyState {
    /// No attempt of the request was sent yet.
    Undecided,
    /// The body of the request is not known yet.
    Waiting(Box<RequestCopy>),
    /// It was sent, or there is none.
    Done,
}

impl CopyState {
    /// Notes that an attempt of the request begins to send this `header`. The first one begins the copy.
    pub fn attempt_begins(
        &mut self,
        mirrors: &Arc<Mirrors>,
        mirror: &Arc<RouteMirror>,
        header: &RequestHeader,
        body_follows: bool,
    ) {
        match self {
            Self::Undecided => {
                *self = match RequestCopy::begin(mirrors, mirror, header) {
                    Some(copy) if body_follows => Self::Waiting(copy),
                    Some(copy) => copy.send(),
                    None => Self::Done,
                };
            }
            // The attempt sends the body from its beginning.
            Self::Waiting(copy) => copy.body.clear(),
            Self::Done => {}
        }
    }

    /// Passes on a part of the request's body, which may be the last one.
    pub fn pass(&mut self, part: Option<&Bytes>, last: bool) {
        let Self::Waiting(copy) = self else { return };
        let fits = copy.take(part.map(|part| &part[..]).unwrap_or_default());
        if (last || !fits)
            && let Self::Waiting(copy) = std::mem::replace(self, Self::Done)
            && fits
        {
            copy.send();
        }
    }
}

/// A copy that waits for the request's body.
pub struct RequestCopy {
    header: Box<RequestHeader>,
    body: Vec<u8>,
    mirrors: Arc<Mirrors>,
    fate: Fate,
}

impl RequestCopy {
    /// Begins a copy of the request `header`, as the upstream gets it, if the rules of `mirror` say so.
    fn begin(
        mirrors: &Arc<Mirrors>,
        mirror: &Arc<RouteMirror>,
        header: &RequestHeader,
    ) -> Option<Box<Self>> {
        if !mirror.rules.copies(header.method.as_str(), || fastrand::u64(..100)) {
            return None;
        }
        Some(Box::new(Self {
            header: Box::new(header.clone()),
            body: Vec::new(),
            mirrors: Arc::clone(mirrors),
            fate: Fate { mirror: Arc::clone(mirror), end: CopyEnd::Dropped },
        }))
    }

    /// Takes a part of the body; `false` when the body has become too large.
    fn take(&mut self, part: &[u8]) -> bool {
        let fits = self.body.len() + part.len() <= MAX_BODY;
        if fits {
            self.body.extend_from_slice(part);
        }
        fits
    }

    /// Sends the copy if there is room, and waits for nothing.
    fn send(self: Box<Self>) -> CopyState {
        if let Some(slot) = self.mirrors.slot(&self.fate.mirror) {
            detach(async move {
                self.exchange().await;
                drop(slot);
            });
        }
        CopyState::Done
    }

    async fn exchange(self: Box<Self>) {
        let Self { header, body, mirrors, mut fate } = *self;
        let mirror = Arc::clone(&fate.mirror);
        let Ok(connector) = mirrors.connector().await else { return };
        let Some((attempt, peer)) = CopyAttempt::begin(&mirror.rules.upstream) else { return };
        fate.end = CopyEnd::Failed;
        let answered = exchange(connector, &peer, header, body.into());
        if let Ok(Ok(())) = timeout(mirror.rules.timeout, answered).await {
            fate.end = CopyEnd::Sent;
        }
        drop(attempt);
    }
}

/// What becomes of a copy. It is counted when the copy is gone, wherever the copy ended.
struct Fate {
    mirror: Arc<RouteMirror>,
    end: CopyEnd,
}

/// How a copy ends.
#[derive(Clone, Copy)]
enum CopyEnd {
    Dropped,
    Failed,
    Sent,
}

impl Drop for Fate {
    fn drop(&mut self) {
        let metrics = &self.mirror.metrics;
        match self.end {
            CopyEnd::Dropped => metrics.dropped.inc(),
            CopyEnd::Failed => metrics.failed.inc(),
            CopyEnd::Sent => metrics.sent.inc(),
        }
    }
}

/// The only attempt of a copy. The upstream learns that it is over, and nothing else: the time of a copy is none of the
/// endpoint's, and copies must not keep requests away from it.
struct CopyAttempt<'u> {
    upstream: &'u Upstream,
    attempt: Attempt,
}

impl<'u> CopyAttempt<'u> {
    /// An attempt, and where it goes; `None` when no endpoint can get the copy.
    fn begin(upstream: &'u Upstream) -> Option<(Self, Box<HttpPeer>)> {
        let now = Instant::now();
        let Picked { endpoint, pass, mut peer } = upstream.pick_for_copy(now).ok()?;
        // Copies speak HTTP/1.1 where the endpoint does.
        if peer.options.alpn.get_min_http_version() < 2 {
            peer.options.set_http_version(1, 1);
        }
        let attempt = Attempt::new(Some(endpoint), pass, now);
        Some((Self { upstream, attempt }, peer))
    }
}

impl Drop for CopyAttempt<'_> {
    fn drop(&mut self) {
        let attempts = slice::from_mut(&mut self.attempt);
        self.upstream.attempt_ended(attempts, AttemptEnd::Abandoned, Instant::now());
    }
}

/// Sends a request and reads its answer.
async fn exchange(
    connector: &Connector,
    peer: &HttpPeer,
    mut header: Box<RequestHeader>,
    body: Bytes,
) -> Result<()> {
    let (mut session, _) = connector.get_http_session(peer).await?;
    session.set_read_timeout(peer.options.read_timeout);
    session.set_write_timeout(peer.options.write_timeout);
    frame(&mut header, body.len())?;
    if let HttpSession::H2(_) = session {
        for_http2(&mut header, peer.is_tls())?;
    }
    session.write_request_header(header).await?;
    if !body.is_empty() {
        session.write_request_body(body, false).await?;
    }
    session.finish_request_body().await?;
    read_header(&mut session).await?;
    match read_body(&mut session).await? {
        true => connector.release_http_session(session, peer, peer.idle_timeout()).await,
        false => session.shutdown().await,
    }
    Ok(())
}

/// Reads the header of the answer.
async fn read_header(session: &mut HttpSession) -> Result<()> {
    loop {
        session.read_response_header().await?;
        match session.response_header().map(|answer| answer.status) {
            Some(status)
                if status != StatusCode::SWITCHING_PROTOCOLS && status.is_informational() => {}
            Some(_) => return Ok(()),
            None => return Error::e_explain(ErrorType::InvalidHTTPHeader, "no answer"),
        }
    }
}

/// Reads the answer to its end; `false` when it is too large for that, or no answer but a tunnel.
async fn read_body(session: &mut HttpSession) -> Result<bool> {
    let status = session.response_header().map(|answer| answer.status);
    if status == Some(StatusCode::SWITCHING_PROTOCOLS) {
        return Ok(false);
    }
    let mut left = MAX_ANSWER;
    while let Some(part) = session.read_response_body().await? {
        match left.checked_sub(part.len()) {
            Some(less) => left = less,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Gives the copy a length instead of the framing that the request had, and no field of a connection.
fn frame(header: &mut RequestHeader, length: usize) -> Result<()> {
    let of_connection = |name: &&HeaderName| fields::belongs_to_connection(name.as_str());
    let names: Vec<HeaderName> = header.headers.keys().filter(of_connection).cloned().collect();
    let had_body = names.contains(&header::CONTENT_LENGTH)
        || names.contains(&header::TRANSFER_ENCODING)
        || length > 0;
    for name in &names {
        header.remove_header(name);
    }
    if had_body {
        header.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length))?;
    }
    header.set_version(Version::HTTP_11);
    Ok(())
}

/// Puts the host into the target, where HTTP/2 has it (RFC 9113 section 8.3.1).
fn for_http2(header: &mut RequestHeader, tls: bool) -> Result<()> {
    let host = header.remove_header(&header::HOST);
    let host = host.or_err(ErrorType::InvalidHTTPHeader, "a copy without a host")?;
    let target = Uri::builder()
        .scheme(if tls { "https" } else { "http" })
        .authority(host.as_bytes())
        .path_and_query(header.raw_path())
        .build();
    header.set_uri(target.or_err(ErrorType::InvalidHTTPHeader, "the target of a copy")?);
    header.set_version(Version::HTTP_2);
    Ok(())
}
