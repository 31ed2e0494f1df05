//! The stream that Pingora holds while it serves one request.
//!
//! The connection's task owns the client's stream and shares it with one [`RequestStream`] at a time. When
//! Pingora drops the [`RequestStream`], however the request has ended, the task owns the stream alone again,
//! and [`SharedStream::client`] returns it. The lock is never waited for: the task does not touch the stream
//! while Pingora serves the request, and needs no lock when it owns the stream alone.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;

use super::client_stream::ClientStream;
use super::stalled::StalledUpload;
use crate::auth::Principal;
use crate::listener::connection::{Connection, Entry, Facts};
use crate::listener::end::{RequestDeadline, RequestEnd, TokenEnds, TunnelDeadline};
use crate::listener::pace::Pace;
use crate::listener::timer::poll_deadline;

/// A client's stream, as the connection's task holds it.
#[derive(Debug)]
pub struct SharedStream(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    facts: Facts,
    client: Mutex<ClientStream>,
}

impl SharedStream {
    /// The stream of a connection before its first request.
    pub fn new(connection: Connection) -> Self {
        let Connection { bytes, ahead, facts } = connection;
        Self(Arc::new(Shared { facts, client: Mutex::new(ClientStream::new(bytes, ahead)) }))
    }

    /// Whether the client speaks TLS.
    pub fn is_encrypted(&self) -> bool {
        self.0.facts.tls.is_some()
    }

    /// The client's stream; `None` while a request stream is alive.
    pub fn client(&mut self) -> Option<&mut ClientStream> {
        Arc::get_mut(&mut self.0).map(|shared| shared.client.get_mut())
    }

    /// Lets Pingora go on with a request that takes long, and ends the request when its token does not hold any
    /// more, when its tunnel is idle for too long, or when its client leaves during a stalled upload. `token_end`
    /// waits for the end of a token.
    pub async fn watch<T>(
        &self,
        mut processing: Pin<Box<dyn Future<Output = T> + Send + '_>>,
        token_end: &(impl Fn(Principal) -> TokenEnds + ?Sized),
    ) -> T {
        let mut token: Option<TokenEnds> = None;
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        let mut upload: Option<StalledUpload> = None;
        poll_fn(|cx| {
            loop {
                let tunnel = {
                    let mut client = self.0.client.lock();
                    if let Some(principal) = client.take_principal() {
                        token = Some(token_end(principal));
                    }
                    if let Some(waiting) = &mut token
                        && let Poll::Ready(end) = waiting.as_mut().poll(cx)
                    {
                        token = None;
                        client.set_end(RequestEnd::Token(end));
                        // The upstream may take no more of the body.
                        if let Some(upload) = &upload {
                            upload.stop();
                        }
                    }
                    if let Some(tunnel) = client.tunnel()
                        && poll_deadline(&mut timer, tunnel.due(), cx)
                    {
                        client.set_end(tunnel.reason);
                    }
                    client.tunnel()
                };
                if let Poll::Ready(output) = processing.as_mut().poll(cx) {
                    return Poll::Ready(output);
                }
                // Pingora may just have said whose token it is, or that there is a tunnel or an upload.
                let mut client = self.0.client.lock();
                match client.upload() {
                    None => upload = None,
                    Some((number, upstream)) => {
                        // Another attempt has another socket. Without descriptors left, Pingora's timeouts must do.
                        upload = upload
                            .take_if(|upload| upload.number == number)
                            .or_else(|| StalledUpload::new(number, self.0.facts.id, upstream).ok());
                    }
                }
                while let Some(upload) = &mut upload
                    && let Poll::Ready(closed) = upload.poll_closed(cx)
                {
                    if client.is_gone(&closed, self.0.facts.tls.is_some()) {
                        client.set_end(RequestEnd::ClientGone);
                        upload.stop();
                    }
                }
                let is_earlier = |new: TunnelDeadline| {
                    tunnel.is_none_or(|old: TunnelDeadline| new.due() < old.due())
                };
                let has_news = client.has_principal() || client.tunnel().is_some_and(is_earlier);
                if !has_news {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// The stream from which Pingora reads one request, and to which it writes the answer.
    pub fn for_request(&self) -> Stream {
        Box::new(RequestStream(Arc::clone(&self.0)))
    }
}

/// Does something with the client's stream of `session`.
fn with_client<T>(session: &ServerSession, act: impl FnOnce(&mut ClientStream) -> T) -> Option<T> {
    let RequestStream(shared) = session.stream()?.as_any().downcast_ref::<RequestStream>()?;
    Some(act(&mut shared.client.lock()))
}

/// How the connection of `session` came in.
pub fn entry_of(session: &ServerSession) -> Option<Entry> {
    let RequestStream(shared) = session.stream()?.as_any().downcast_ref::<RequestStream>()?;
    Some(shared.facts.entry.clone())
}

/// Lets the request of `session` end when the token of `principal` does not hold any more, if the request takes
/// long.
pub fn ends_with(session: &ServerSession, principal: &Principal) {
    with_client(session, |client| client.ends_with(principal.clone()));
}

/// Ends the request of `session`, which asks for a tunnel, when no byte has passed for `limit`.
pub fn set_tunnel(session: &ServerSession, limit: Duration, reason: RequestEnd) {
    with_client(session, |client| client.set_tunnel(limit, reason));
}

/// Sets when the request of `session` ends at the latest; `None` for no such time.
pub fn set_deadline(session: &ServerSession, deadline: Option<RequestDeadline>) {
    with_client(session, |client| client.set_deadline(deadline));
}

/// Lets the request of `session` go on that had to end, because another attempt follows.
pub fn go_on(session: &ServerSession) {
    with_client(session, ClientStream::go_on);
}

/// Tells which socket of an upstream takes the body of the request of `session`. It must be told `None` before the socket
/// is closed.
pub fn set_upload(session: &ServerSession, upstream: Option<RawFd>) {
    with_client(session, |client| client.set_upload(upstream));
}

/// Why the connection's task has ended the request of `session`.
pub fn end_of(session: &ServerSession) -> Option<RequestEnd> {
    with_client(session, |client| client.end()).flatten()
}

/// How the client of `session` keeps up with its request.
pub fn pace_of(session: &ServerSession) -> Pace {
    with_client(session, |client| client.pace()).unwrap_or_default()
}

/// Tells the connection of `session` that the request has failed and its answer was written whole, so that
/// the connection may be kept. Pingora closes it after every failed request.
pub fn answered_whole(session: &ServerSession) {
    with_client(session, ClientStream::set_answered_whole);
}

/// A client's stream, as Pingora holds it.
#[derive(Debug)]
struct RequestStream(Arc<Shared>);

impl AsyncRead for RequestStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.client.lock().poll_read(cx, buf)
    }
}

impl AsyncWrite for RequestStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.client.lock().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.client.lock().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.client.lock().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.client.lock().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.client.lock().is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for RequestStream {
    async fn shutdown(&mut self) {
        // An error means that the client has closed the connection already.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for RequestStream {
    fn id(&self) -> UniqueIDType {
        self.0.facts.id
    }
}

impl Ssl for RequestStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.0.facts.tls.clone()
    }
}

impl GetTimingDigest for RequestStream {
    /// Empty: no code reads the times, and Pingora asks for them at each request.
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for RequestStream {
    /// `None`: clients connect to this process, which therefore uses no proxy.
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for RequestStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.0.facts.socket.clone()
    }
}

impl Peek for RequestStream {}
