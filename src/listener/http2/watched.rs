//! The byte stream beneath h2: bytes that were read ahead come first, and the frames that the client sends are counted.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use pingora_core::protocols::Stream as ByteStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::preface::PREFACE;
use super::protection::{Frames, Protection};
use super::stream::Shared;

/// What the connection's task wants to know of the frames.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The client has sent too many frames of a kind.
    pub flood: Option<Protection>,
    /// h2 has told the client that it reached a bound.
    pub told: Option<Protection>,
    /// The number of the frame whose rest h2 waits for. The connection's task clears it before each poll: h2 does not read
    /// while it must write first, and the client cannot be blamed then.
    pub awaits: Option<u32>,
}

/// A client's byte stream. It gives no more bytes once the client has sent too many frames of a kind.
#[derive(Debug)]
pub struct Watched {
    bytes: ByteStream,
    ahead: BytesMut,
    frames: Frames,
    shared: Arc<Shared>,
    verdict: Arc<Mutex<Verdict>>,
}

impl Watched {
    /// The stream `bytes`, of which the bytes `ahead` have been read.
    pub fn new(
        bytes: ByteStream,
        ahead: BytesMut,
        shared: Arc<Shared>,
        verdict: Arc<Mutex<Verdict>>,
    ) -> Self {
        Self { bytes, ahead, frames: Frames::after(PREFACE.len()), shared, verdict }
    }
}

impl Watched {
    /// Looks for the last frame of the connection in the bytes that were `sent`.
    fn look_at(&self, sent: &[u8]) {
        if let Some(protection) = Protection::named_by(sent) {
            self.verdict.lock().told = Some(protection);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.verdict.lock().flood.is_some() {
            // The connection's task looks at the verdict after each poll, and ends the connection.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            let read = Pin::new(&mut this.bytes).poll_read(cx, buf);
            if read.is_pending() {
                this.verdict.lock().awaits = this.frames.unfinished();
            }
            ready!(read)?;
        } else {
            let taken = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..taken]);
            this.ahead.advance(taken);
            if this.ahead.is_empty() {
                this.ahead = BytesMut::new();
            }
        }
        let read = &buf.filled()[before..];
        let windows = this.frames.windows();
        if let Err(protection) = this.frames.pass(read, &|| this.shared.take_answered()) {
            this.verdict.lock().flood = Some(protection);
        }
        // Sockets hold much of an answer, and a client gives windows when it has read some of it.
        if this.frames.windows() != windows {
            this.shared.client_takes();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.bytes).poll_write(cx, buf))?;
        self.look_at(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.bytes).poll_write_vectored(cx, bufs))?;
        // The last frame of a connection has one buffer.
        if let [buf] = bufs {
            self.look_at(&buf[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }
}
