//! HTTP/2 towards clients: many requests at the same time on one connection (RFC 9113).
//!
//! h2 reads and writes the frames. This room decides what Pingora's own loop leaves open: how long a client may take, how
//! much it may have in flight, what a flood is, which heads are requests, and how a connection ends. Each request is a
//! task of its own, in which Pingora serves it through the same hooks as one of HTTP/1.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection as H2Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use parking_lot::Mutex;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_http::ResponseHeader;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Connection, Facts};
use super::end::TokenEnds;
use crate::admission::Rejection;
use crate::auth::Principal;
use crate::base::task::detach;
use crate::config::ClientTimeouts;

mod head;
mod part;
mod patience;
pub mod preface;
mod protection;
mod session;
mod stream;
mod turn;
mod waiting;
mod watched;
mod work;

use head::Fault;
use part::Part;
use patience::Patience;
use protection::{Budget, Protection};
use session::Http2Session;
use stream::{Shared, Stream};
use watched::{Verdict, Watched};
use work::serve_request;

/// Requests that a client may have in flight on one connection: what RFC 9113 section 6.5.2 recommends at least.
const MAX_STREAMS: u32 = 100;

/// Requests that a client may have in flight on a connection, however many connections it has.
const MIN_STREAMS: u32 = 4;

/// Requests that a client may have in flight on its first connections together. Further ones get less and less, because a
/// client may have a thousand connections.
const FIRST_STREAMS: u32 = 1_000;

/// Requests of a connection that are worked on at the same time, for each stream. Work on a request goes on for a moment
/// after its client has reset it, so that there may be more of them than streams.
const HANDLERS_PER_STREAM: usize = 2;

/// Bytes of one request's body that may wait to be read.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Bytes of all bodies of a connection that may wait: several streams', so that one upload that is not read does not stop
/// the others.
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Bytes of one answer that may wait to be sent. All answers of a connection may hold a hundred times as much.
const SEND_BUFFER: usize = 16 * 1024;

/// Memory that parts of bodies of less than 256 bytes may take above their bytes, by h2's reckoning. A client that sends a
/// window full of messages at once fits in.
const SMALL_PARTS: usize = 4 * 1024 * 1024;

/// Streams of a connection that may have to be reset because of what the client sends on them (MadeYouReset,
/// CVE-2025-8671). Clients that keep to the protocol need none.
const MAX_FORCED_RESETS: usize = 100;

/// Requests of a connection whose heads may be malformed at once. Clients share a connection through a proxy, so that one
/// must not spoil it for the others. HTTP/1 ends the connection after one.
const MALFORMED_BURST: u32 = 100;

/// And how many a second.
const MALFORMED_RATE: u32 = 10;

/// How long the last frames of a connection may take.
const LINGER: Duration = Duration::from_secs(1);

/// A request that takes longer is watched: its token may end before it does.
const LONG: Duration = Duration::from_secs(1);

/// Makes an answer, and its body, to a request with these fields that is not served.
pub type RefusalAnswer = fn(&Rejection, &HeaderMap) -> Option<(ResponseHeader, Bytes)>;

/// Makes a future that waits for the end of a token.
pub type TokenEnd = Arc<dyn Fn(Principal) -> TokenEnds + Send + Sync>;

/// The request of `session`, if it came over HTTP/2.
pub(super) fn stream_of(session: &ServerSession) -> Option<Stream> {
    session.as_custom()?.req_header().extensions.get::<Stream>().cloned()
}

/// What all requests of a connection use.
struct Context<A> {
    requests: Arc<A>,
    digest: Arc<Digest>,
    shared: Arc<Shared>,
    refusal: RefusalAnswer,
    token_end: TokenEnd,
    shutdown: ShutdownWatch,
}

/// How many requests a client may have in flight on its `nth` connection. Over a thousand connections, these are 7,059
/// together.
pub fn max_streams(nth: usize) -> u32 {
    let nth = u32::try_from(nth).unwrap_or(u32::MAX).max(1);
    (FIRST_STREAMS / nth).clamp(MIN_STREAMS, MAX_STREAMS)
}

/// Serves the requests of `connection`, `max_streams` of them at the same time, with `requests`, until the
/// client or the gateway ends it. The client begins with the preface.
pub async fn serve<A: HttpServerApp + Send + Sync + 'static>(
    requests: Arc<A>,
    connection: Connection,
    max_streams: u32,
    timeouts: impl Fn() -> ClientTimeouts,
    refusal: RefusalAnswer,
    token_end: TokenEnd,
    shutdown: &ShutdownWatch,
) {
    let Connection { bytes, ahead, facts } = connection;
    let shared = Arc::new(Shared::new(facts.entry.clone()));
    let verdict = Arc::new(Mutex::new(Verdict::default()));
    let watched = Watched::new(bytes, ahead, Arc::clone(&shared), Arc::clone(&verdict));
    // Without a preface there is nobody to answer.
    let Ok(Ok(h2)) = timeout(timeouts().header, options(max_streams).handshake(watched)).await
    else {
        return;
    };
    let context = Context {
        requests,
        digest: Arc::new(digest(&facts)),
        shared,
        refusal,
        token_end,
        shutdown: shutdown.clone(),
    };
    let malformed = Budget::new(MALFORMED_BURST, MALFORMED_RATE, Instant::now());
    let context = Arc::new(context);
    let max_handlers = HANDLERS_PER_STREAM * max_streams as usize;
    Served { h2, context, verdict, max_handlers, malformed, is_spoiled: false }
        .run(timeouts, shutdown)
        .await;
}

/// h2's options. Those that are not named here have bounds already: the CONTINUATION frames of a head follow from the largest
/// list of fields, and 100 parts of bodies may be empty. Requests that are reset before they are accepted (CVE-2023-44487)
/// have the bound of streams.
fn options(max_streams: u32) -> Builder {
    let mut options = Builder::new();
    options
        .max_concurrent_streams(max_streams)
        .max_header_list_size(head::MAX_HEADER_LIST as u32)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_PARTS)
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_local_error_reset_streams(Some(MAX_FORCED_RESETS));
    options
}

fn digest(facts: &Facts) -> Digest {
    Digest {
        ssl_digest: facts.tls.clone(),
        timing_digest: Vec::new(),
        proxy_digest: None,
        socket_digest: facts.socket.clone(),
    }
}

/// A connection that is served.
struct Served<A> {
    h2: H2Connection<Watched, Part>,
    context: Arc<Context<A>>,
    verdict: Arc<Mutex<Verdict>>,
    max_handlers: usize,
    malformed: Budget,
    /// Whether the connection ends because of malformed heads.
    is_spoiled: bool,
}

/// What happens to a connection.
#[expect(clippy::large_enum_variant, reason = "nearly every event is a request, and none is kept")]
enum Event {
    Request(Request<RecvStream>, SendResponse<Part>),
    /// The connection has ended, with an error or without one.
    Ended(Option<h2::Error>),
    /// The client has sent too many frames of a kind.
    Flood(Protection),
    /// The connection must end after its requests.
    Close,
    /// The time for a look at whether the connection is idle.
    Look,
    /// A frame or a head was not whole in time.
    Slow,
}

/// Whether a connection rests.
enum Rest {
    /// Not before this time.
    Until(Instant),
    /// For longer than it may.
    Idle,
    /// The client takes nothing of the last answers.
    Stalled,
}

impl<A: HttpServerApp + Send + Sync + 'static> Served<A> {
    /// Accepts requests until the connection ends. It also moves the frames of all requests.
    async fn run(mut self, timeouts: impl Fn() -> ClientTimeouts, shutdown: &ShutdownWatch) {
        let mut shutdown = shutdown.clone();
        let mut shutdown = pin!(shutdown.wait_for(|down| *down));
        let context = Arc::clone(&self.context);
        let mut close = pin!(context.shared.close.notified());
        let mut look = pin!(sleep_until(Instant::now() + timeouts().idle));
        let (mut is_closing, mut was_idle) = (false, false);
        let mut patience = Patience::default();
        loop {
            let event = {
                let mut accept = pin!(self.h2.accept());
                let verdict = &self.verdict;
                poll_fn(|cx| {
                    verdict.lock().awaits = None;
                    if let Poll::Ready(accepted) = accept.as_mut().poll(cx) {
                        return Poll::Ready(match accepted {
                            Some(Ok((request, respond))) => Event::Request(request, respond),
                            Some(Err(error)) => Event::Ended(Some(error)),
                            None => Event::Ended(None),
                        });
                    }
                    let Verdict { flood, awaits, .. } = *verdict.lock();
                    if let Some(protection) = flood {
                        return Poll::Ready(Event::Flood(protection));
                    }
                    if patience.is_over(awaits, || timeouts().header, cx) {
                        return Poll::Ready(Event::Slow);
                    }
                    if !is_closing
                        && (shutdown.as_mut().poll(cx).is_ready()
                            || close.as_mut().poll(cx).is_ready())
                    {
                        return Poll::Ready(Event::Close);
                    }
                    look.as_mut().poll(cx).map(|()| Event::Look)
                })
                .await
            };
            match event {
                Event::Request(request, respond) => {
                    if !self.begin(request, respond) {
                        if self.is_spoiled {
                            return self.end(Protection::MalformedHeads).await;
                        }
                        Protection::MalformedHeads.count();
                        // The client has as many again to notice that the connection ends.
                        self.malformed =
                            Budget::new(MALFORMED_BURST, MALFORMED_RATE, Instant::now());
                        (self.is_spoiled, is_closing) = (true, true);
                        self.h2.graceful_shutdown();
                    }
                }
                Event::Ended(error) => {
                    // Other errors mean that the client has left.
                    if error.is_some_and(|error| error.is_library() && error.is_go_away()) {
                        let told = self.verdict.lock().told;
                        told.unwrap_or(Protection::ProtocolError).count();
                    }
                    return;
                }
                Event::Flood(protection) => return self.end(protection).await,
                // Requests that have begun have deadlines of their own, and the frame may still come.
                Event::Slow if context.shared.handlers() > 0 => {}
                Event::Slow => return self.end(Protection::SlowFrame).await,
                Event::Close => {
                    is_closing = true;
                    self.h2.graceful_shutdown();
                }
                Event::Look => {
                    let (now, timeouts) = (Instant::now(), timeouts());
                    let rest = self.rest(&timeouts, now);
                    match rest {
                        Rest::Until(next) => {
                            was_idle = false;
                            look.as_mut().reset(next);
                        }
                        Rest::Stalled => {
                            Protection::WindowStall.count();
                            self.h2.abrupt_shutdown(Reason::NO_ERROR);
                            return self.linger().await;
                        }
                        Rest::Idle if was_idle => {
                            self.h2.abrupt_shutdown(Reason::NO_ERROR);
                            return self.linger().await;
                        }
                        Rest::Idle => {
                            // Requests that are on their way are still served.
                            (was_idle, is_closing) = (true, true);
                            self.h2.graceful_shutdown();
                            look.as_mut().reset(now + LINGER);
                        }
                    }
                }
            }
        }
    }

    /// Whether the connection rests: no request is worked on, and no answer is on its way.
    fn rest(&self, timeouts: &ClientTimeouts, now: Instant) -> Rest {
        let shared = &self.context.shared;
        let last = shared.last_end().max(shared.last_taken());
        let (limit, end) = match (shared.handlers(), self.h2.has_streams()) {
            (0, false) => (timeouts.idle, Rest::Idle),
            // Only answers that no handler waits for: refusals.
            (0, true) => (timeouts.write, Rest::Stalled),
            _ => return Rest::Until(now + timeouts.idle),
        };
        if last + limit <= now { end } else { Rest::Until(last + limit) }
    }

    /// Ends the connection because of `protection`.
    async fn end(mut self, protection: Protection) {
        protection.count();
        self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        self.linger().await;
    }

    /// Sends the last frames.
    async fn linger(mut self) {
        let _ = timeout(LINGER, async { while let Some(Ok(_)) = self.h2.accept().await {} }).await;
    }

    /// Begins to serve a request; `false` when the client has sent too many malformed heads.
    fn begin(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Part>) -> bool {
        if self.context.shared.handlers() >= self.max_handlers {
            Protection::Handlers.count();
            respond.send_reset(Reason::REFUSED_STREAM);
            return true;
        }
        let (mut parts, body) = request.into_parts();
        if let Err(fault) = head::read(&mut parts) {
            self.refuse(fault, &parts, respond);
            return self.malformed.take(|| 0);
        }
        let context = Arc::clone(&self.context);
        let stream = Stream::new(respond, Arc::clone(&context.shared));
        let digest = Arc::clone(&context.digest);
        let session = Http2Session::new(parts.into(), body, stream.clone(), digest);
        let handler = context.shared.begin();
        detach(async move {
            serve_request(&context, session, &stream).await;
            drop(handler);
        });
        true
    }

    /// Answers a request whose head is not acceptable, or resets its stream.
    fn refuse(&self, fault: Fault, parts: &Parts, mut respond: SendResponse<Part>) {
        let Fault::Refused(error) = fault else {
            return respond.send_reset(Reason::PROTOCOL_ERROR);
        };
        let Some((answer, body)) = (self.context.refusal)(&error.into(), &parts.headers) else {
            return respond.send_reset(Reason::INTERNAL_ERROR);
        };
        // The time in which the client must take the answer begins.
        self.context.shared.client_takes();
        let is_whole = body.is_empty() || parts.method == Method::HEAD;
        let answer = Response::from_parts(answer.into(), ());
        // An error means that the client has reset the stream.
        if let Ok(mut writer) = respond.send_response(answer, is_whole)
            && !is_whole
        {
            let _ = writer.send_data(body.into(), true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_with_many_connections_has_few_requests_on_each() {
        for (nth, most) in [(0, 100), (1, 100), (10, 100), (11, 90), (100, 10), (1_000, 4)] {
            assert_eq!(max_streams(nth), most, "{nth}");
        }
        assert_eq!((1..=1_000).map(max_streams).sum::<u32>(), 7_059);
    }
}
