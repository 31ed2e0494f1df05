//! A server of HTTP/2, with TLS or without, that records what it receives. Over TLS it speaks HTTP/1.1 where it must.
//! It knows nothing of the gateway.
// Each test file uses its own part of this.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{Request, Response};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// More than the kernel holds for a client that does not read.
static LARGE: LazyLock<Bytes> = LazyLock::new(|| vec![b'x'; 24 << 20].into());

/// An authority, and files of certificates that it signed.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer =
            CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    /// The file of the authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The files of a certificate for `name` and of its key.
    pub fn certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &self.issuer).unwrap();
        let files = ["pem", "key"].map(|end| self.dir.path().join(format!("{name}.{end}")));
        std::fs::write(&files[0], leaf.pem()).unwrap();
        std::fs::write(&files[1], key.serialize_pem()).unwrap();
        files.into()
    }

    /// The configuration of a server whose certificate is for `name`, and which speaks `protocols`. With `clients` it
    /// wants a certificate that they signed.
    fn server(&self, name: &str, protocols: &[&str], clients: Option<&Self>) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.issuer.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder.with_single_cert(vec![leaf.der().clone()], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

/// A server on a port of the kernel's choice. It answers with the protocol, the method, the authority and the path.
pub struct H2Origin {
    pub address: SocketAddr,
    state: Arc<State>,
    _runtime: Runtime,
}

#[derive(Default)]
struct State {
    fails: AtomicBool,
    requests: Mutex<Vec<String>>,
    connections: AtomicUsize,
}

impl H2Origin {
    /// Without TLS.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// With a certificate of `authority` for `name`; see [`Authority::server`].
    pub fn start_tls(
        authority: &Authority,
        name: &str,
        protocols: &[&str],
        clients: Option<&Authority>,
    ) -> Self {
        Self::start_with(Some(authority.server(name, protocols, clients)))
    }

    fn start_with(tls: Option<ServerConfig>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let accepting = Arc::clone(&state);
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, acceptor) = (Arc::clone(&accepting), acceptor.clone());
                tokio::spawn(async move {
                    // A broken connection is for the gateway to notice.
                    match acceptor {
                        None => state.serve_h2(stream).await,
                        Some(acceptor) => {
                            let Ok(stream) = acceptor.accept(stream).await else { return };
                            match stream.get_ref().1.alpn_protocol() {
                                Some(b"h2") => state.serve_h2(stream).await,
                                _ => drop(state.serve_h1(stream).await),
                            }
                        }
                    }
                });
            }
        });
        Self { address, state, _runtime: runtime }
    }

    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// What the server answered with, for each request that it took.
    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().clone()
    }

    /// What the server says by gRPC's health protocol about the service `a.B` from now on.
    pub fn serves(&self, serves: bool) {
        self.state.fails.store(!serves, Ordering::Relaxed);
    }

    /// How many connections of HTTP were made so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }
}

impl State {
    async fn serve_h2(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, answer))) = connection.accept().await {
            let path = request.uri().path().to_owned();
            let first = self.requests.lock().iter().all(|taken| !taken.ends_with(&path));
            let nth = format!("HTTP/2 {} {path}", request.method());
            self.requests.lock().push(nth);
            if path.starts_with("/goes") && first {
                // The request is not among those that the server says it has processed.
                connection.abrupt_shutdown(Reason::NO_ERROR);
                continue;
            }
            tokio::spawn(Arc::clone(&self).answer(request, answer, first));
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<h2::RecvStream>,
        mut answer: SendResponse<Bytes>,
        first: bool,
    ) {
        let (head, mut body) = request.into_parts();
        if head.uri.path().starts_with("/refused") && first {
            answer.send_reset(Reason::REFUSED_STREAM);
            return;
        }
        let (mut received, mut message) = (0, Vec::new());
        while let Some(Ok(bytes)) = body.data().await {
            received += bytes.len();
            message.extend_from_slice(&bytes);
            message.truncate(64);
            let _ = body.flow_control().release_capacity(bytes.len());
        }
        if head.uri.path() == "/grpc.health.v1.Health/Check" {
            assert_eq!(message, b"\0\0\0\0\x05\x0a\x03a.B");
            let serving =
                [0, 0, 0, 0, 2, 8, if self.fails.load(Ordering::Relaxed) { 2 } else { 1 }];
            let Ok(mut stream) = answer.send_response(Response::new(()), false) else { return };
            let _ = stream.send_data(Bytes::copy_from_slice(&serving), false);
            let status = ("grpc-status".parse().unwrap(), "0".parse().unwrap());
            let _ = stream.send_trailers([status].into_iter().collect());
            return;
        }
        if head.uri.path().contains("/resets") {
            answer.send_reset(Reason::INTERNAL_ERROR);
            return;
        }
        if head.uri.path().contains("/large") {
            if let Ok(mut stream) = answer.send_response(Response::new(()), false) {
                let _ = stream.send_data(LARGE.clone(), true);
            }
            return;
        }
        if head.uri.path().contains("/events") {
            let head = Response::builder().header("content-type", "text/event-stream");
            if let Ok(mut stream) = answer.send_response(head.body(()).unwrap(), false) {
                let _ = stream.send_data("data: 1\n\n".into(), false);
                // Silent until the gateway leaves.
                let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            }
            return;
        }
        if head.uri.path().contains("/slow") {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let authority = head.uri.authority().map(|authority| authority.as_str());
        let text = format!(
            "HTTP/2 {} {} {} {received}",
            head.method,
            authority.unwrap_or("-"),
            head.uri.path()
        );
        if let Ok(mut stream) = answer.send_response(Response::new(()), false) {
            let _ = stream.send_data(text.into(), true);
        }
    }

    async fn serve_h1(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> std::io::Result<()> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let mut head = Vec::new();
        loop {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let line = String::from_utf8_lossy(&head).lines().next().unwrap().to_owned();
            self.requests.lock().push(line.clone());
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len());
            stream.write_all(answer.as_bytes()).await?;
            stream.flush().await?;
            head.clear();
        }
    }
}
