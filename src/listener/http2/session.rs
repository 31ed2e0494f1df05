//! A request of HTTP/2 as Pingora serves it.
//!
//! Pingora has a session of its own for HTTP/2. This one takes its place, because that one has no deadline for bodies and
//! no way to end a request early, answers some malformed heads itself, and passes the empty end of a body on as a chunk,
//! which HTTP/1 upstreams take for a second end.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream as Messages;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, Response, header};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::body_buffer::FixedBuffer;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session;
use pingora_core::protocols::http::date::get_cached_date;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::{Instant, timeout, timeout_at};

use super::protection::Protection;
use super::stream::{SendError, Stream};
use crate::listener::end::RequestEnd;

/// How many bytes of a body are kept for another attempt, as with HTTP/1.
const MAX_KEPT: usize = 64 * 1024;

/// Fields that concern a connection of HTTP/1 alone (RFC 9113 section 8.2.2).
static CONNECTION_FIELDS: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A request and its answer.
pub struct Http2Session {
    header: RequestHeader,
    body: RecvStream,
    stream: Stream,
    digest: Arc<Digest>,
    answer: Option<Box<ResponseHeader>>,
    /// Whether the body was read to its end.
    is_body_over: bool,
    body_read: usize,
    body_sent: usize,
    /// What was read of the body, for another attempt.
    kept: Option<FixedBuffer>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
}

impl Http2Session {
    /// The request with this `header` and `body`, which came over the connection of `digest`.
    pub fn new(
        mut header: RequestHeader,
        body: RecvStream,
        stream: Stream,
        digest: Arc<Digest>,
    ) -> Self {
        header.extensions_mut().insert(stream.clone());
        Self {
            header,
            body,
            stream,
            digest,
            answer: None,
            is_body_over: false,
            body_read: 0,
            body_sent: 0,
            kept: None,
            read_timeout: None,
            write_timeout: None,
            drain_timeout: None,
        }
    }

    fn is_body_done(&self) -> bool {
        self.is_body_over || self.body.is_end_stream()
    }

    /// Reads a part of the body; `None` after the last one.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let end = self.stream.lock().control.poll_end(cx);
        if let Some(end) = end {
            return Poll::Ready(Err(ended(end)));
        }
        while !self.is_body_over {
            let data = self.body.poll_data(cx);
            self.stream.lock().control.pace.reads(data.is_ready());
            match ready!(data) {
                None => self.is_body_over = true,
                // An empty part would end the body for an upstream of HTTP/1. h2 bounds their number.
                Some(Ok(data)) if data.is_empty() => self.is_body_over = self.body.is_end_stream(),
                Some(Ok(data)) => {
                    // An error means that the stream was reset, which the next read tells.
                    let _ = self.body.flow_control().release_capacity(data.len());
                    self.body_read += data.len();
                    if let Some(kept) = &mut self.kept {
                        kept.write_to_buffer(&data);
                    }
                    self.stream.lock().control.byte_passes();
                    return Poll::Ready(Ok(Some(data)));
                }
                Some(Err(error)) => return Poll::Ready(Err(read_error(error))),
            }
        }
        Poll::Ready(Ok(None))
    }

    async fn read(&mut self) -> Result<Option<Bytes>> {
        let limit = self.read_timeout;
        within(limit, ErrorType::ReadTimedout, poll_fn(|cx| self.poll_body(cx))).await
    }

    /// Waits until the client leaves.
    async fn gone(&self) -> Result<Option<Bytes>> {
        poll_fn(|cx| {
            let mut state = self.stream.lock();
            match state.control.poll_end(cx) {
                Some(end) => Poll::Ready(Err(ended(end))),
                None => state
                    .poll_gone(cx)
                    .map(|()| Error::e_explain(ErrorType::ConnectionClosed, "the client has left")),
            }
        })
        .await
        .map_err(Error::into_down)
    }

    async fn write(&mut self, mut data: Bytes, last: bool) -> Result<()> {
        let mut is_with_h2 = self.stream.lock().has_ended();
        if is_with_h2 {
            if !last {
                return Ok(());
            }
            data.clear();
        }
        let length = data.len();
        let sending = poll_fn(|cx| {
            if !is_with_h2 {
                ready!(self.stream.poll_send(&mut data, last, cx)).map_err(send_error)?;
                is_with_h2 = true;
            }
            match last {
                // The request is over when the client has its answer.
                true => self.stream.poll_taken(cx).map_err(send_error),
                false => Poll::Ready(Ok(())),
            }
        });
        let sent = self.unless_stalled(sending).await;
        if let Err(error) = &sent
            && *error.etype() == ErrorType::WriteTimedout
        {
            Protection::WindowStall.count();
            // What is buffered is given up, so that it holds no memory.
            self.stream.lock().give_up(Reason::CANCEL);
        }
        sent?;
        self.body_sent += length;
        Ok(())
    }

    /// The result of `sending`; an error when the client takes no byte of any answer for the write timeout. The answers of
    /// a connection share one line, so that each may have to wait for the others.
    async fn unless_stalled(&self, sending: impl Future<Output = Result<()>>) -> Result<()> {
        let Some(limit) = self.write_timeout else { return sending.await };
        let mut sending = pin!(sending);
        // Nearly every part is sent at once, and needs no time.
        if let Poll::Ready(sent) = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await {
            return sent;
        }
        let mut since = Instant::now();
        loop {
            self.stream.lock().set_write_due(since + limit);
            match timeout_at(since + limit, &mut sending).await {
                Ok(sent) => return sent,
                Err(_elapsed) if self.stream.last_taken() > since => {
                    since = self.stream.last_taken();
                }
                Err(_elapsed) => {
                    let late = Error::explain(ErrorType::WriteTimedout, "the client takes nothing");
                    return Err(late.into_down());
                }
            }
        }
    }

    fn send_header(&mut self, mut answer: Box<ResponseHeader>, last: bool) -> Result<()> {
        if self.answer.is_some() || self.stream.lock().has_ended() {
            return Ok(());
        }
        for name in &CONNECTION_FIELDS {
            answer.remove_header(name);
        }
        if answer.status.is_informational() {
            let header = Response::from_parts(answer.as_owned_parts(), ());
            return self.stream.lock().send_informational(header).map_err(send_error);
        }
        answer.insert_header(header::DATE, get_cached_date())?;
        let header = Response::from_parts(answer.as_owned_parts(), ());
        self.stream.lock().send_header(header, last).map_err(send_error)?;
        self.answer = Some(answer);
        Ok(())
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        let mut state = self.stream.lock();
        if state.has_ended() {
            return Ok(());
        }
        state.send_trailers(trailers).map_err(send_error)
    }

    /// Ends an answer whose header was sent.
    async fn end(&mut self) -> Result<()> {
        match self.answer {
            Some(_) => self.write(Bytes::new(), true).await,
            None => Ok(()),
        }
    }

    /// Sends a part of the answer; whether it was the last.
    async fn send(&mut self, task: HttpTask) -> Result<bool> {
        Ok(match task {
            HttpTask::Header(answer, last) => {
                let last = last && !answer.status.is_informational();
                self.send_header(answer, last)?;
                last
            }
            HttpTask::Body(data, last) => {
                if let Some(data) = data
                    && !data.is_empty()
                {
                    self.write(data, last).await?;
                }
                last
            }
            HttpTask::Trailer(Some(trailers)) => {
                self.send_trailers(*trailers)?;
                true
            }
            HttpTask::Trailer(None) | HttpTask::Done => true,
            HttpTask::Failed(error) => return Err(error),
            HttpTask::UpgradedBody(..) => {
                return Error::e_explain(ErrorType::InternalError, "a tunnel over HTTP/2");
            }
        })
    }
}

impl Drop for Http2Session {
    /// Tells the client that an answer which did not end is not whole.
    fn drop(&mut self) {
        let mut state = self.stream.lock();
        state.stop_waiting();
        let reason = match state.control.end() {
            Some(RequestEnd::Token(_) | RequestEnd::TunnelIdle | RequestEnd::Draining) => {
                Reason::CANCEL
            }
            _ => Reason::INTERNAL_ERROR,
        };
        state.reset(reason);
    }
}

/// The result of `work`; an error of the kind `late` when it is not ready within `limit`.
async fn within<T>(
    limit: Option<Duration>,
    late: ErrorType,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(limit) = limit else { return work.await };
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_elapsed) => Err(Error::explain(late, "the client is too slow").into_down()),
    }
}

fn ended(end: RequestEnd) -> Box<Error> {
    Error::because(ErrorType::ReadError, "the request was ended", end).into_down()
}

fn read_error(error: h2::Error) -> Box<Error> {
    Error::because(ErrorType::ReadError, "while the body was read", error).into_down()
}

fn send_error(error: SendError) -> Box<Error> {
    Error::because(ErrorType::WriteError, "while the answer was sent", error).into_down()
}

#[async_trait]
impl Session for Http2Session {
    fn req_header(&self) -> &RequestHeader {
        &self.header
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.header
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.read().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        let limit = self.drain_timeout;
        let drained = async {
            while self.read().await?.is_some() {}
            Ok(())
        };
        within(limit, ErrorType::ReadTimedout, drained).await
    }

    async fn write_response_header(
        &mut self,
        answer: Box<ResponseHeader>,
        last: bool,
    ) -> Result<()> {
        self.send_header(answer, last)
    }

    async fn write_response_header_ref(
        &mut self,
        answer: &ResponseHeader,
        last: bool,
    ) -> Result<()> {
        self.send_header(Box::new(answer.clone()), last)
    }

    async fn write_body(&mut self, data: Bytes, last: bool) -> Result<()> {
        self.write(data, last).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.send_trailers(trailers)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut is_over = false;
        for task in tasks {
            is_over |= self.send(task).await?;
        }
        if is_over {
            self.end().await?;
        }
        Ok(is_over)
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.read_timeout
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.drain_timeout = timeout;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    /// Without the query, which may hold a credential.
    fn request_summary(&self) -> String {
        format!("{} {}", self.header.method, self.header.uri.path())
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.answer.as_deref()
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.stream.lock().reset(Reason::INTERNAL_ERROR);
    }

    fn is_body_done(&mut self) -> bool {
        Self::is_body_done(self)
    }

    async fn finish(&mut self) -> Result<()> {
        self.end().await
    }

    fn is_body_empty(&mut self) -> bool {
        self.body_read == 0 && Self::is_body_done(self)
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        match no_body_expected || Self::is_body_done(self) {
            true => self.gone().await,
            false => self.read().await,
        }
    }

    fn body_bytes_sent(&self) -> usize {
        self.body_sent
    }

    fn body_bytes_read(&self) -> usize {
        self.body_read
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Arc::get_mut(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    /// Nothing: only requests that Pingora makes itself would need it.
    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {
        self.kept.get_or_insert_with(|| FixedBuffer::new(MAX_KEPT));
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.kept.as_ref().is_some_and(FixedBuffer::is_truncated)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.kept.as_ref().filter(|kept| !kept.is_truncated())?.get_buffer()
    }

    // HTTP/2 has no messages beside requests and answers.

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Messages<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _: Box<dyn Messages<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
