//! A client's byte stream and its buffer: the bytes that have arrived, and where the present request ends.
//! This file must not know Pingora's sessions.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::{self, MaybeUninit};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};

use super::body::Body;
use super::head::{Head, HeadReader};
use super::stalled::Closed;
use crate::listener::control::RequestControl;
use crate::listener::rules::HeadError;

/// How many bytes of later requests are buffered; more bytes stay in the kernel.
const MAX_AHEAD: usize = 64 * 1024;

/// How many bytes TLS may have read that this stream has not: more than a record, in bytes.
const MAX_DECRYPTED: u64 = 64 * 1024;

/// How many bytes are read at a time.
const READ_SIZE: usize = 16 * 1024;

/// How many bytes of answers are gathered: about a packet.
const WRITE_BUFFER: usize = 1460;

/// How long the answer to a complete request may take after the client has closed its side.
const HALF_CLOSED: Duration = Duration::from_secs(2);

/// How long a refused client may take to read the answer, before its connection ends.
const LINGER: Duration = Duration::from_secs(1);

/// The reason that no head could be read.
#[derive(Debug)]
pub enum ReadHeadError {
    /// The client has closed the connection.
    ClientGone,
    /// The bytes are not an acceptable head.
    Refused(HeadError),
}

/// A client's byte stream, which shows Pingora one request at a time.
#[derive(Debug)]
pub struct ClientStream {
    /// Writes are gathered, so that the header of an answer and a small body leave together.
    bytes: BufWriter<Stream>,
    /// Bytes that have arrived and that Pingora has not read.
    ahead: BytesMut,
    /// The part of the present request that Pingora has not read.
    body: Body,
    /// Whether bytes were written that may not have been sent.
    unsent: bool,
    /// Whether the present request has failed and its answer was written whole.
    answered_whole: bool,
    /// Set when the client has closed its side after a complete request: the time left for the answer.
    half_closed: Option<Pin<Box<Sleep>>>,
    /// The state that the hooks of the present request share with the task of the connection.
    control: RequestControl,
}

/// Whether these bytes begin a header that only precedes an answer (RFC 9110 section 15.2). Pingora writes a header at
/// once.
fn is_informational(bytes: &[u8]) -> bool {
    let status = bytes.strip_prefix(b"HTTP/1.").and_then(|bytes| bytes.get(2..5));
    status.is_some_and(|status| status[0] == b'1' && status != b"101")
}

fn malformed(broken: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, broken)
}

/// Between requests.
impl ClientStream {
    /// A stream before its first request, of which the bytes `ahead` have been read.
    pub fn new(bytes: Stream, ahead: BytesMut) -> Self {
        Self {
            bytes: BufWriter::with_capacity(WRITE_BUFFER, bytes),
            ahead,
            body: Body::OVER,
            unsent: false,
            answered_whole: false,
            half_closed: None,
            control: RequestControl::default(),
        }
    }

    /// Waits for the first byte of a request; `false` when the client has closed the connection.
    pub async fn wait_for_request(&mut self) -> io::Result<bool> {
        loop {
            // Empty lines before a request are ignored (RFC 9112 section 2.2).
            while self.ahead.starts_with(b"\r\n") {
                self.ahead.advance(2);
            }
            if !self.ahead.is_empty() && &self.ahead[..] != b"\r" {
                return Ok(true);
            }
            if self.ahead.is_empty() {
                // Gives back the memory of what the last request sent.
                self.ahead = BytesMut::new();
            }
            if self.read_more().await? == 0 {
                return Ok(false);
            }
        }
    }

    /// Reads a whole head. Its bytes stay in the buffer.
    pub async fn read_head(&mut self) -> Result<Head, ReadHeadError> {
        let mut reader = HeadReader::default();
        loop {
            match reader.read(&self.ahead) {
                Ok(Some(head)) => return self.check_body_start(head),
                Ok(None) => {}
                Err(error) => return Err(ReadHeadError::Refused(error)),
            }
            match self.read_more().await {
                Ok(0) | Err(_) => return Err(ReadHeadError::ClientGone),
                Ok(_) => {}
            }
        }
    }

    /// Refuses a chunked body whose first bytes have arrived and are malformed, before the request is served.
    fn check_body_start(&self, head: Head) -> Result<Head, ReadHeadError> {
        let mut body = head.body;
        match body.pass(&self.ahead[head.length..]) {
            Ok(_) => Ok(head),
            Err(_broken) => {
                let malformed = HeadError::Malformed("the chunked body is malformed");
                Err(ReadHeadError::Refused(malformed))
            }
        }
    }

    /// Takes the bytes of `head` from the buffer, and lets Pingora read its body next. The request keeps
    /// the bytes: it gets the buffer, or a copy when the buffer holds more than the head.
    pub fn begin_request(&mut self, head: Head) -> BytesMut {
        self.body = head.body;
        self.answered_whole = false;
        self.half_closed = None;
        self.control = RequestControl::default();
        if self.ahead.len() == head.length {
            return mem::take(&mut self.ahead);
        }
        let bytes = BytesMut::from(&self.ahead[..head.length]);
        self.ahead.advance(head.length);
        bytes
    }

    /// Sends what was written, as far as the client takes it at once: the beginning of an answer that broke off.
    pub async fn flush_now(&mut self) {
        // An error means that the client has left.
        poll_fn(|cx| {
            let _ = self.poll_flush(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// Tells a client that waits for no answer that the connection ends, as far as it can be told at once.
    pub async fn close_now(&mut self) {
        // An error means that the client has left.
        poll_fn(|cx| {
            let _ = self.poll_shutdown(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// Whether another request may follow. Pingora hands the stream back after a request that succeeded, and
    /// drops it after every request that failed, even when the answer was written whole.
    pub fn may_go_on(&self, handed_back: bool) -> bool {
        if self.control.end().is_some() {
            return false;
        }
        match self.body {
            // The upgrade was refused. Pingora hands the stream back only if it has read no byte after the head.
            Body::Everything => handed_back,
            Body::Bytes(_) | Body::Chunked(_) => {
                self.body.is_over() && (handed_back || self.answered_whole)
            }
        }
    }

    /// Writes the whole `answer` to a request that is not served, and ends the connection.
    pub async fn refuse(&mut self, answer: Vec<u8>) {
        self.ahead = BytesMut::new();
        let _ = timeout(LINGER, async {
            self.bytes.write_all(&answer).await?;
            self.bytes.flush().await?;
            // Unread bytes would make the kernel send a reset, which can destroy the answer on its way.
            self.bytes.shutdown().await?;
            let mut left = MAX_AHEAD;
            while left > 0 {
                match self.read_more().await? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
                self.ahead = BytesMut::new();
            }
            io::Result::Ok(())
        })
        .await;
    }

    async fn read_more(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read_more(cx)).await
    }

    /// Reads bytes that have arrived into the buffer; 0 when the client has closed. The bytes are read onto
    /// the stack first, so that a connection that waits for bytes needs no room for them.
    fn poll_read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [const { MaybeUninit::uninit() }; READ_SIZE];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.bytes).poll_read(cx, &mut read))?;
        self.ahead.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }
}

/// While a request is served.
impl ClientStream {
    /// Remembers that the answer to a failed request was written whole.
    pub fn set_answered_whole(&mut self) {
        self.answered_whole = true;
    }

    /// The state that the hooks of the present request share with the task of the connection.
    pub fn control(&mut self) -> &mut RequestControl {
        &mut self.control
    }

    /// Whether a part of the present request's body has not arrived.
    pub fn body_follows(&self) -> bool {
        !self.body.is_over()
    }

    /// Whether a client that has closed in this way cannot have sent its whole request. The bytes that wait may be
    /// `encrypted`.
    pub fn is_gone(&self, closed: &Closed, encrypted: bool) -> bool {
        match closed {
            Closed::Whole => true,
            Closed::Sending { number, bytes } => match self.body {
                Body::Everything => false,
                Body::Bytes(left) => {
                    let held = if encrypted { MAX_DECRYPTED } else { 0 };
                    left > number.saturating_add(held + self.ahead.len() as u64)
                }
                Body::Chunked(_) if encrypted => false,
                // The end of the body may be among the bytes that wait.
                Body::Chunked(mut body) => bytes.as_ref().is_some_and(|bytes| {
                    let passed = [&self.ahead, &bytes[..]].map(|bytes| body.pass(bytes));
                    passed.iter().all(Result::is_ok) && !body.is_done()
                }),
            },
        }
    }

    fn check_cut(&self) -> io::Result<()> {
        self.control.check_cut().map_err(io::Error::other)
    }

    fn check_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.check_cut()?;
        self.unsent = true;
        if !is_informational(bytes) {
            self.control.answer_begins();
        }
        self.control.byte_passes();
        Ok(())
    }

    /// The client has closed its side. It may still wait for the answer to a complete request (RFC 9112 section
    /// 9.6), but most such clients have left. So the answer has a moment's time, before Pingora learns of it.
    fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let timer = self.half_closed.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSED)));
        timer.as_mut().poll(cx).map(Ok)
    }

    /// Reads what belongs to the present request.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(end) = self.control.poll_end(cx) {
            return Poll::Ready(Err(io::Error::other(end)));
        }
        // Pingora writes the header of an answer, and reads here while it waits for the body. The header must
        // not wait for the body.
        if self.unsent && Pin::new(&mut self.bytes).poll_flush(cx)?.is_ready() {
            self.unsent = false;
        }
        if self.body.is_over() {
            // Pingora reads to notice that the client closes. Bytes of later requests are kept, up to a bound.
            while self.half_closed.is_none() && self.ahead.len() < MAX_AHEAD {
                if ready!(self.poll_read_more(cx))? == 0 {
                    break;
                }
            }
            if self.half_closed.is_some() || self.ahead.len() < MAX_AHEAD {
                return self.poll_half_closed(cx);
            }
            return Poll::Pending;
        }
        if self.ahead.is_empty() {
            if self.body == Body::Everything {
                ready!(Pin::new(&mut self.bytes).poll_read(cx, buf))?;
                self.control.byte_passes();
                return Poll::Ready(Ok(()));
            }
            return self.poll_read_body(cx, buf);
        }
        let room = buf.remaining().min(self.ahead.len());
        let shown = self.body.pass(&self.ahead[..room]).map_err(malformed)?;
        buf.put_slice(&self.ahead[..shown]);
        self.ahead.advance(shown);
        Poll::Ready(Ok(()))
    }

    /// Reads a part of the present request's body, past the buffer. Bytes that arrive behind the body go into the buffer.
    fn poll_read_body(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut room = ReadBuf::new(buf.initialize_unfilled());
        let read = Pin::new(&mut self.bytes).poll_read(cx, &mut room);
        self.control.pace.reads(read.is_ready());
        ready!(read)?;
        let arrived = room.filled();
        let shown = self.body.pass(arrived).map_err(malformed)?;
        self.ahead.extend_from_slice(&arrived[shown..]);
        buf.advance(shown);
        Poll::Ready(Ok(()))
    }

    /// Writes bytes of the answer.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.control.check_deadline(cx);
        self.check_write(buf)?;
        let written = Pin::new(&mut self.bytes).poll_write(cx, buf);
        self.control.pace.writes(written.is_ready());
        written
    }

    /// Writes bytes of the answer from several buffers.
    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.control.check_deadline(cx);
        self.check_write(bufs.iter().find(|buf| !buf.is_empty()).map_or(&[], |buf| &buf[..]))?;
        let written = Pin::new(&mut self.bytes).poll_write_vectored(cx, bufs);
        self.control.pace.writes(written.is_ready());
        written
    }

    /// Whether writing from several buffers at once is faster.
    pub fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    /// Sends what was written.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.control.check_deadline(cx);
        self.check_cut()?;
        self.unsent = false;
        let flushed = Pin::new(&mut self.bytes).poll_flush(cx);
        self.control.pace.writes(flushed.is_ready());
        flushed
    }

    /// Closes the connection for writing.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }
}
