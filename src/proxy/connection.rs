//! One client connection: heads are read and checked here, then Pingora serves the request.
//!
//! Pingora forgives more than a gateway may (see `head`), lets a head take minutes, and answers what it
//! refuses in its own words. So this service reads each head itself, with one deadline for the whole of
//! it, and hands Pingora a stream that holds exactly one request: what a client sends ahead of its turn
//! waits here, which is also how pipelining works (RFC 9112 section 9.3.2).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use pingora_core::apps::{HttpServerApp, ReusedHttpStream, ServerApp};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use pingora_core::server::ShutdownWatch;
use pingora_proxy::{HttpProxy, Session};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::Proxy;
use super::problem;
use crate::admission::Rejection;
use crate::listener::http1::chunks::ChunkedBody;
use crate::listener::http1::head::{Framing, Head, HeadError, HeadReader};
use crate::policy::Policy;
use crate::telemetry::metrics::METRICS;

/// Bytes a client may send ahead of its turn; more stay in the kernel.
const MAX_AHEAD: usize = 64 * 1024;

/// How much is read at a time.
const READ_SIZE: usize = 4 * 1024;

/// Serves client connections: the application of the listening service.
pub struct Connections {
    proxy: Arc<HttpProxy<Proxy>>,
    policy: Arc<ArcSwap<Policy>>,
    open: Arc<AtomicUsize>,
}

impl Connections {
    /// Serves connections with `proxy`, under whatever policy is current.
    pub fn new(proxy: HttpProxy<Proxy>, policy: Arc<ArcSwap<Policy>>) -> Self {
        Self { proxy: Arc::new(proxy), policy, open: Arc::default() }
    }
}

#[async_trait]
impl ServerApp for Connections {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let open = OpenConnection::count(&self.open);
        if open.before >= self.policy.load().max_connections {
            // No answer: writing one to each of a flood's connections is what the bound prevents.
            return None;
        }
        let way_back = WayBack::default();
        let start = Returned { inner: stream, ahead: BytesMut::new() };
        let mut client = ClientStream::new(start, &way_back);
        // Both outlive the request: to register and unregister them each time is dear.
        let mut alarm = Alarm::new(Instant::now() + self.policy.load().timeouts.idle);
        let mut shutdown_seen = shutdown.clone();
        let mut shutdown_begun = pin!(shutdown_seen.wait_for(|down| *down));
        loop {
            let timeouts = self.policy.load().timeouts;
            let idle = alarm.within(timeouts.idle, client.wait_for_request());
            let begun = tokio::select! {
                biased;
                begun = idle => begun,
                _ = &mut shutdown_begun => return None,
            };
            // The client left, said nothing for too long, or a read failed: nobody to answer.
            if !matches!(begun, Some(Ok(true))) {
                return None;
            }
            let head = match alarm.within(timeouts.header, client.read_head()).await {
                Some(Ok(head)) => client.admit(head),
                Some(Err(HeadFault::Gone)) => return None,
                Some(Err(HeadFault::Refused(error))) => {
                    client.refuse(&Rejection::from(error), timeouts.write).await;
                    return None;
                }
                None => {
                    client.refuse(&Rejection::RequestTimeout, timeouts.write).await;
                    return None;
                }
            };
            let mut session = ServerSession::new_http1(client);
            session.set_pipelined_prefix(head);
            session.set_keepalive(Some(timeouts.idle.as_secs().max(1)));
            client = match serve(&self.proxy, session, shutdown).await {
                Some(reused) => reused.consume().0.into_any().downcast().ok()?,
                None => ClientStream::new(way_back.lock().take()?, &way_back),
            };
        }
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

/// Lets Pingora serve one request. Its future takes 13 KiB, and is made on the stack before it is boxed:
/// in a frame of its own, not inlined, where the calls that follow use the same, warm memory.
#[inline(never)]
fn serve<'a>(
    proxy: &'a Arc<HttpProxy<Proxy>>,
    session: ServerSession,
    shutdown: &'a ShutdownWatch,
) -> Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'a>> {
    proxy.process_new_http(session, shutdown)
}

/// The one timer of a connection. It is only moved when it goes off too early or would go off too
/// late, so that a request in time, which is nearly every one, moves none.
struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    fn new(at: Instant) -> Self {
        Self(Box::pin(sleep_until(at)))
    }

    /// Waits for `future`, or `None` once it has been waited for so long.
    async fn within<F: Future>(&mut self, limit: Duration, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut deadline = None;
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            // What is there at once, as a head nearly always is, need not even look at the clock.
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + limit);
            if self.0.deadline() > deadline {
                self.0.as_mut().reset(deadline);
            }
            while self.0.as_mut().poll(cx).is_ready() {
                if self.0.deadline() >= deadline {
                    return Poll::Ready(None);
                }
                self.0.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
    }
}

/// Counts a connection while it is open.
struct OpenConnection {
    count: Arc<AtomicUsize>,
    before: usize,
}

impl OpenConnection {
    fn count(count: &Arc<AtomicUsize>) -> Self {
        METRICS.connections.inc();
        Self { count: Arc::clone(count), before: count.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        METRICS.connections.dec();
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

enum HeadFault {
    /// The client went away.
    Gone,
    Refused(HeadError),
}

impl From<HeadError> for Rejection {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::TooLarge => Self::HeaderTooLarge,
            HeadError::Malformed(how) => Self::BadRequest(how.into()),
        }
    }
}

/// Where a stream comes back to when Pingora drops it after a failure that was the upstream's alone.
type WayBack = Arc<Mutex<Option<Returned>>>;

/// What is left of a stream that came back.
#[derive(Debug)]
struct Returned {
    inner: Stream,
    ahead: BytesMut,
}

/// A client's byte stream, of which Pingora sees one request at a time.
#[derive(Debug)]
struct ClientStream {
    inner: Stream,
    /// Bytes that have arrived and not been shown.
    ahead: BytesMut,
    visible: Visible,
    way_back: WayBack,
    /// Whether to go the way back when dropped.
    keep: AtomicBool,
    /// Whether something was written that may not have been sent.
    unsent: bool,
}

/// Keeps the client's connection although Pingora closes it after every failed request: the answer
/// was written whole and the request read to its end, so the next one may follow.
pub fn keep_after_failure(session: &Session) {
    let stream = session.downstream_session.stream();
    if let Some(client) = stream.and_then(|stream| stream.as_any().downcast_ref::<ClientStream>()) {
        client.keep.store(true, Ordering::Relaxed);
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Relaxed) && self.request_is_over() {
            let nothing: Stream = Box::new(io::Cursor::new(Vec::new()));
            let inner = std::mem::replace(&mut self.inner, nothing);
            let ahead = std::mem::take(&mut self.ahead);
            *self.way_back.lock() = Some(Returned { inner, ahead });
        }
    }
}

/// How far the present request reaches.
#[derive(Debug)]
enum Visible {
    /// So many more bytes.
    Bytes(u64),
    /// The rest of a chunked body.
    Chunked(ChunkedBody),
    /// Everything: the connection may become something else.
    Everything,
}

impl ClientStream {
    fn new(returned: Returned, way_back: &WayBack) -> Box<Self> {
        Box::new(Self {
            inner: returned.inner,
            ahead: returned.ahead,
            visible: Visible::Bytes(0),
            way_back: Arc::clone(way_back),
            keep: AtomicBool::new(false),
            unsent: false,
        })
    }

    /// Waits for the first byte of a request; `false` when the client has left.
    async fn wait_for_request(&mut self) -> io::Result<bool> {
        loop {
            // One or a few empty lines before a request are forgiven (RFC 9112 section 2.2).
            while self.ahead.starts_with(b"\r\n") {
                self.ahead.advance(2);
            }
            if !self.ahead.is_empty() && &self.ahead[..] != b"\r" {
                return Ok(true);
            }
            if self.read_more().await? == 0 {
                return Ok(false);
            }
        }
    }

    async fn read_head(&mut self) -> Result<Head, HeadFault> {
        let mut reader = HeadReader::default();
        loop {
            match reader.read(&self.ahead) {
                Ok(Some(head)) => return self.check_body_start(head),
                Ok(None) => {}
                Err(error) => return Err(HeadFault::Refused(error)),
            }
            match self.read_more().await {
                Ok(0) | Err(_) => return Err(HeadFault::Gone),
                Ok(_) => {}
            }
        }
    }

    /// Refuses a chunked body that is broken as far as it is here, before anyone sees the request.
    fn check_body_start(&self, head: Head) -> Result<Head, HeadFault> {
        if head.framing == Framing::Chunked
            && let Err(_broken) = ChunkedBody::default().pass(&self.ahead[head.length..])
        {
            return Err(HeadFault::Refused(HeadError::Malformed("the chunked body is malformed")));
        }
        Ok(head)
    }

    async fn read_more(&mut self) -> io::Result<usize> {
        self.ahead.reserve(READ_SIZE);
        self.inner.read_buf(&mut self.ahead).await
    }

    /// Shows Pingora the body that belongs to `head`, whose bytes are handed out for it. They are copied,
    /// for the request keeps them, and the buffer is for the connection's next read.
    fn admit(&mut self, head: Head) -> BytesMut {
        self.visible = match head.framing {
            Framing::Length(body) => Visible::Bytes(body),
            Framing::Chunked => Visible::Chunked(ChunkedBody::default()),
            Framing::Upgrade => Visible::Everything,
        };
        let bytes = BytesMut::from(&self.ahead[..head.length]);
        self.ahead.advance(head.length);
        if self.ahead.is_empty() && self.ahead.capacity() > READ_SIZE {
            // It grew for a client that sent much at once, which may be over.
            self.ahead = BytesMut::new();
        }
        bytes
    }

    /// Answers a request that is not served, and says that the connection ends.
    async fn refuse(&mut self, rejection: &Rejection, deadline: Duration) {
        let answer = problem::closing_response(rejection);
        let _ = timeout(deadline, async {
            self.inner.write_all(&answer).await?;
            self.inner.flush().await?;
            // Reading on for a moment keeps a reset from overtaking the answer.
            self.inner.shutdown().await?;
            let mut left = MAX_AHEAD;
            while left > 0 {
                self.ahead.clear();
                match self.read_more().await? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
            io::Result::Ok(())
        })
        .await;
    }

    /// How many of the bytes ahead may be shown now, at most `room`.
    fn show(&mut self, room: usize) -> io::Result<usize> {
        let candidates = room.min(self.ahead.len());
        match &mut self.visible {
            Visible::Everything => Ok(candidates),
            Visible::Bytes(left) => {
                let shown = usize::try_from(*left).unwrap_or(usize::MAX).min(candidates);
                *left -= shown as u64;
                Ok(shown)
            }
            Visible::Chunked(body) => body
                .pass(&self.ahead[..candidates])
                .map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken)),
        }
    }

    fn request_is_over(&self) -> bool {
        match &self.visible {
            Visible::Everything => false,
            Visible::Bytes(left) => *left == 0,
            Visible::Chunked(body) => body.is_done(),
        }
    }

    fn poll_read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Nothing is lost when it is dropped while pending: what was read is in the buffer then.
        pin!(self.read_more()).poll(cx)
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Pingora sends the header of an answer with its body, and reads here when it must wait for
        // more of that: what there is must not wait with it.
        if this.unsent && Pin::new(&mut this.inner).poll_flush(cx)?.is_ready() {
            this.unsent = false;
        }
        if this.request_is_over() {
            // Pingora listens for the client leaving. What comes early is kept, up to a bound.
            while this.ahead.len() < MAX_AHEAD {
                if ready!(this.poll_read_more(cx))? == 0 {
                    return Poll::Ready(Ok(()));
                }
            }
            return Poll::Pending;
        }
        if this.ahead.is_empty() {
            if matches!(this.visible, Visible::Everything) {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            if ready!(this.poll_read_more(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let shown = this.show(buf.remaining())?;
        buf.put_slice(&this.ahead[..shown]);
        this.ahead.advance(shown);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unsent = true;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unsent = false;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unsent = true;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.inner).await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for ClientStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

impl Peek for ClientStream {}

/// The address at the other end of a connection, where there is one.
pub fn peer_ip(address: Option<&SocketAddr>) -> Option<std::net::IpAddr> {
    address.and_then(SocketAddr::as_inet).map(std::net::SocketAddr::ip)
}
