//! The stream that Pingora holds while it serves one request.
//!
//! The connection's task owns the client's stream and shares it with one [`RequestStream`] at a time. When
//! Pingora drops the [`RequestStream`], however the request has ended, the task owns the stream alone again,
//! and [`SharedStream::client`] returns it. The lock is never waited for: the task does not touch the stream
//! while Pingora serves the request, and needs no lock when it owns the stream alone.

use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::client_stream::ClientStream;
use super::stalled::Leaving;
use crate::auth::Principal;
use crate::listener::connection::{Connection, Entry, Facts};
use crate::listener::control::RequestControl;
use crate::listener::end::TokenEnds;
use crate::listener::watch::{Watched, watch};

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

    /// Watches the present request, which Pingora is `processing`. See [`watch`].
    pub async fn watch<T>(
        &self,
        processing: Pin<Box<dyn Future<Output = T> + Send + '_>>,
        token_end: &(impl Fn(Principal) -> TokenEnds + ?Sized),
        shutdown: &ShutdownWatch,
    ) -> T {
        watch(&*self.0, processing, token_end, shutdown).await
    }

    /// The stream from which Pingora reads one request, and to which it writes the answer.
    pub fn for_request(&self) -> Stream {
        Box::new(RequestStream(Arc::clone(&self.0)))
    }
}

impl Watched for Shared {
    type Leaving = Leaving;

    fn with<R>(&self, act: impl FnOnce(&mut RequestControl) -> R) -> R {
        act(self.client.lock().control())
    }

    fn upload(&self) -> Option<(u64, RawFd)> {
        let mut client = self.client.lock();
        client.body_follows().then(|| client.control().upload())?
    }

    fn leaving(&self) -> io::Result<Leaving> {
        Leaving::new(self.facts.id)
    }

    fn poll_left(&self, leaving: &mut Leaving, cx: &mut Context<'_>) -> bool {
        while let Poll::Ready(closed) = leaving.poll_closed(cx) {
            if self.client.lock().is_gone(&closed, self.facts.tls.is_some()) {
                return true;
            }
        }
        false
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

/// Does something with the control of the request of `session`.
pub fn with_control<T>(
    session: &ServerSession,
    act: impl FnOnce(&mut RequestControl) -> T,
) -> Option<T> {
    with_client(session, |client| act(client.control()))
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
