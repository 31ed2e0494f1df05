//! HTTP/1 towards clients: one request after the other on one connection (RFC 9112).
//!
//! Pingora accepts heads that a gateway must refuse (see [`head`]), lets a head take minutes, and writes
//! refusals of its own. So this room reads each head itself, with one deadline for the whole head, and gives
//! Pingora a stream that holds exactly one request. Bytes of later requests wait in the connection's buffer;
//! this is also how pipelining works (RFC 9112 section 9.3.2).

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pingora_core::apps::{HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;

use super::connection::Connection;
use super::end::TokenEnds;
use super::rules::HeadError;
use super::timer::Alarm;
use crate::admission::Rejection;
use crate::auth::Principal;
use crate::config::ClientTimeouts;

pub mod body;
pub mod chunks;
mod client_stream;
pub mod head;
mod request_stream;
mod stalled;

use client_stream::{ClientStream, ReadHeadError};
use request_stream::SharedStream;
pub(super) use request_stream::{answered_whole, entry_of, with_control};

/// Makes the bytes of an answer that ends the connection.
pub type RefusalBytes = fn(&Rejection) -> Vec<u8>;

/// How long the first request of a connection may take to begin, and then its head, once the listeners have closed: the
/// client connected in time.
pub const FIRST: Duration = Duration::from_millis(20);

/// A request that takes longer is watched: its token may end before it does.
const LONG: Duration = Duration::from_secs(1);

/// Serves the requests of `connection` with `requests`, until the client or the gateway ends it. `token_end`
/// waits for the end of a token.
pub async fn serve<A: HttpServerApp + Send + Sync + 'static>(
    requests: &Arc<A>,
    connection: Connection,
    timeouts: impl Fn() -> ClientTimeouts,
    refusal_bytes: RefusalBytes,
    token_end: &(impl Fn(Principal) -> TokenEnds + ?Sized),
    shutdown: &ShutdownWatch,
) {
    let mut stream = SharedStream::new(connection);
    let is_encrypted = stream.is_encrypted();
    let (mut is_new, mut is_closing) = (true, false);
    // Both are kept over all requests, because registering them for each request is expensive.
    let mut alarm = Alarm::new(timeouts().idle);
    let mut shutdown_seen = shutdown.clone();
    let mut shutdown_begun = pin!(shutdown_seen.wait_for(|down| *down));
    while let Some(client) = stream.client() {
        let timeouts = timeouts();
        let begun = tokio::select! {
            biased;
            begun = alarm.within(timeouts.idle, client.wait_for_request()) => begun,
            _ = &mut shutdown_begun => {
                is_closing = true;
                None
            }
        };
        let begun = match is_closing && is_new {
            true => alarm.within(FIRST, client.wait_for_request()).await,
            false => begun,
        };
        is_new = false;
        // The client closed, was silent for too long, or a read failed: there is no request to answer.
        if !matches!(begun, Some(Ok(true))) {
            if is_encrypted {
                // A client cannot tell an end without this from one that an attacker has made (RFC 8446 section 6.1).
                client.close_now().await;
            }
            return;
        }
        let limit = if is_closing { FIRST } else { timeouts.header };
        let head = match read_head(client, &mut alarm, limit).await {
            Ok(head) => client.begin_request(head),
            Err(None) => return,
            Err(Some(rejection)) => {
                // Boxed, because a rare path must not make every connection's task large.
                Box::pin(client.refuse(refusal_bytes(&rejection))).await;
                return;
            }
        };
        let request = stream.for_request();
        let mut processing = process(requests, request, head, timeouts.idle, shutdown);
        // The stream that Pingora hands back is dropped here.
        let handed_back = match alarm.within(LONG, &mut processing).await {
            Some(reused) => reused.is_some(),
            // Boxed, because few requests take long, and each connection's task would be larger.
            None => Box::pin(stream.watch(processing, token_end, shutdown)).await.is_some(),
        };
        // Pingora has dropped its stream, so that this task owns the connection alone again.
        let Some(client) = stream.client() else { return };
        if is_closing || !client.may_go_on(handed_back) {
            client.flush_now().await;
            return;
        }
    }
}

/// Writes `answer` to a client whose bytes are not looked at, and ends the connection.
pub async fn refuse(bytes: Stream, answer: Vec<u8>) {
    ClientStream::new(bytes, BytesMut::new()).refuse(answer).await;
}

/// Reads the next head. `Err(None)` means that the client has closed the connection.
async fn read_head(
    client: &mut ClientStream,
    alarm: &mut Alarm,
    limit: Duration,
) -> Result<head::Head, Option<Rejection>> {
    match alarm.within(limit, client.read_head()).await {
        Some(Ok(head)) => Ok(head),
        Some(Err(ReadHeadError::ClientGone)) => Err(None),
        Some(Err(ReadHeadError::Refused(error))) => Err(Some(error.into())),
        None => Err(Some(Rejection::RequestTimeout)),
    }
}

/// Lets Pingora serve the request with this `head`. Pingora's future takes 13 KiB, and is made on the stack
/// before it is boxed. This function is not inlined, so that those 13 KiB are free again for the calls that
/// follow; and it is not `async`, so that the session takes no room in the connection's task, which a client
/// may keep waiting for hours.
#[inline(never)]
fn process<'a, A: HttpServerApp + Send + Sync + 'static>(
    requests: &'a Arc<A>,
    stream: Stream,
    head: BytesMut,
    idle: Duration,
    shutdown: &'a ShutdownWatch,
) -> Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'a>> {
    let mut session = ServerSession::new_http1(stream);
    session.set_pipelined_prefix(head);
    session.set_keepalive(Some(idle.as_secs().max(1)));
    requests.process_new_http(session, shutdown)
}

impl From<HeadError> for Rejection {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::TooLarge => Self::HeaderTooLarge,
            HeadError::Malformed(how) => Self::BadRequest(how.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;
    use pingora_core::apps::HttpPersistentSettings;
    use pingora_http::ResponseHeader;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::watch;

    use super::*;

    const ANSWER: &str = "answer to ";

    /// Ends each request in the way that its path names.
    struct Paths;

    #[async_trait]
    impl HttpServerApp for Paths {
        async fn process_new_http(
            self: &Arc<Self>,
            mut session: ServerSession,
            _: &ShutdownWatch,
        ) -> Option<ReusedHttpStream> {
            assert!(session.read_request().await.unwrap());
            let path = session.req_header().uri.path().to_owned();
            let mut body = Vec::new();
            if path != "/failed/unread" {
                while let Ok(Some(bytes)) = session.read_request_body().await {
                    body.extend_from_slice(&bytes);
                }
            }
            let answer = [ANSWER.as_bytes(), path.as_bytes(), b" ", &body].concat();
            let mut header = ResponseHeader::build(200, None).unwrap();
            let announced = answer.len() + usize::from(path == "/half");
            header.insert_header("Content-Length", announced).unwrap();
            session.write_response_header(Box::new(header)).await.unwrap();
            session.write_response_body(Bytes::from(answer), path != "/half").await.unwrap();
            match &*path {
                "/ok" => {
                    let settings = HttpPersistentSettings::for_session(&session);
                    let stream = session.finish().await.unwrap()?;
                    Some(ReusedHttpStream::from_reusable_stream(stream, settings))
                }
                "/failed" | "/failed/unread" => {
                    answered_whole(&session);
                    None
                }
                // The session is dropped.
                _ => None,
            }
        }
    }

    /// The answers when `sent` arrives in pieces of `piece` bytes, and whether the gateway closed the
    /// connection before the client did.
    async fn exchange(sent: &str, piece: usize) -> (Vec<String>, bool) {
        const MINUTE: Duration = Duration::from_secs(60);
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let (_down, shutdown) = watch::channel(false);
        let serving = tokio::spawn(async move {
            let timeouts = || ClientTimeouts {
                header: MINUTE,
                read: MINUTE,
                write: MINUTE,
                idle: MINUTE,
                tunnel: MINUTE,
            };
            let refusal = |rejection: &Rejection| format!("{ANSWER}{rejection}\r\n").into_bytes();
            let connection = Connection::new(Box::new(server));
            let token_end = |_| -> TokenEnds { Box::pin(std::future::pending()) };
            serve(&Arc::new(Paths), connection, timeouts, refusal, &token_end, &shutdown).await;
        });
        let mut broken = false;
        for piece in sent.as_bytes().chunks(piece) {
            broken |= client.write_all(piece).await.is_err();
            tokio::task::yield_now().await;
        }
        // Lets every task run that is ready: the duplex needs no timer.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        let closed = broken || serving.is_finished();
        let _ = client.shutdown().await;
        let mut received = String::new();
        let _ = client.read_to_string(&mut received).await;
        serving.await.unwrap();
        let answers = received.split(ANSWER).skip(1).map(|answer| {
            answer.split("HTTP/1.1").next().unwrap_or_default().trim_end().to_owned()
        });
        (answers.collect(), closed)
    }

    fn request(path: &str, body: &str) -> String {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    fn chunked(path: &str, body: &str) -> String {
        format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
    }

    #[tokio::test]
    async fn requests_are_served_in_their_order_however_they_arrive() {
        let sent = [
            request("/ok", "one"),
            request("/failed", "two"),
            "\r\n".into(),
            chunked("/ok", "three"),
            chunked("/failed", "four"),
            request("/ok", ""),
        ]
        .concat();
        for piece in [1, 7, sent.len()] {
            let (answers, closed) = exchange(&sent, piece).await;
            assert_eq!(answers, ["/ok one", "/failed two", "/ok three", "/failed four", "/ok"]);
            assert!(!closed, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_connection_ends_after_a_request_whose_end_is_unknown() {
        for (first, answers) in [
            (request("/half", "x"), &["/half x"][..]),
            (request("/failed/unread", "unread"), &["/failed/unread"]),
            (chunked("/failed/unread", "unread"), &["/failed/unread"]),
            (request("/dropped", "x"), &["/dropped x"]),
            (
                "GET * HTTP/1.1\r\nHost: a\r\n\r\n".into(),
                &["the request target must be a path that starts with /"],
            ),
            ("GET / HTTP/1.1\nHost: a\n\n".into(), &["a line does not end with CRLF"]),
        ] {
            let sent = [request("/ok", "first"), first.clone(), request("/ok", "never")].concat();
            let expected = [&["/ok first"], answers].concat();
            let (answered, _) = exchange(&sent, sent.len()).await;
            assert_eq!(answered, expected, "{first:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_was_written_whole_does_not_excuse_the_request_after_it() {
        // The mark of one request must not hold for the next.
        let sent = [request("/failed", "x"), request("/half", "y"), request("/ok", "z")].concat();
        let (answers, closed) = exchange(&sent, sent.len()).await;
        assert_eq!((answers, closed), (vec!["/failed x".into(), "/half y".into()], true));
    }
}
