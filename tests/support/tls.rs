//! TLS for tests: authorities that issue certificates, and a client that speaks HTTP/1.1 over TLS.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::http::{Message, read_body, read_head, request};
use super::{Client, PATIENCE};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An authority that clients may trust.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

/// The files of a certificate.
#[derive(Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these host names that is valid for a year.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, |_| {})
    }

    /// The same, valid from and to these times.
    pub fn issue_valid(&self, names: &[&str], from: SystemTime, to: SystemTime) -> Issued {
        self.issue_with(names, |params| {
            (params.not_before, params.not_after) = (from.into(), to.into());
        })
    }

    pub fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + 365 * DAY).into();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    }

    /// A client that trusts this authority.
    pub fn client(&self) -> TlsClient {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        TlsClient::new(|config| config.with_root_certificates(roots).with_no_client_auth())
    }

    /// The same with a certificate of its own.
    pub fn client_with(&self, own: &Issued) -> TlsClient {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let (chain, key) = (vec![own.der()], own.key_der());
        TlsClient::new(|config| {
            config.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap()
        })
    }
}

impl Issued {
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    /// Writes both into `dir`.
    pub fn write(&self, dir: &Path, name: &str) -> Files {
        let files = Files {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        self.replace(&files);
        files
    }

    /// Writes both over `files`.
    pub fn replace(&self, files: &Files) {
        std::fs::write(&files.certificate, &self.certificate).unwrap();
        std::fs::write(&files.key, &self.key).unwrap();
    }
}

impl Files {
    /// The element of `certificates`.
    pub fn yaml(&self) -> String {
        format!(
            "{{ certificate: {}, private_key: {} }}",
            self.certificate.display(),
            self.key.display()
        )
    }
}

/// A client and its sessions.
#[derive(Clone)]
pub struct TlsClient(pub Arc<ClientConfig>);

impl TlsClient {
    fn new(
        build: impl FnOnce(rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>) -> ClientConfig,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap();
        Self(Arc::new(build(config)))
    }

    /// The same with another configuration.
    pub fn with(&self, change: impl FnOnce(&mut ClientConfig)) -> Self {
        let mut config = (*self.0).clone();
        change(&mut config);
        Self(Arc::new(config))
    }

    pub fn connect(&self, address: SocketAddr, name: &str) -> TlsConnection {
        self.try_connect(address, name)
            .unwrap_or_else(|e| panic!("no TLS connection to {name} at {address}: {e}"))
    }

    /// Connects and finishes the handshake.
    pub fn try_connect(&self, address: SocketAddr, name: &str) -> io::Result<TlsConnection> {
        self.shake_hands(TcpStream::connect(address)?, name)
    }

    /// The same over a connection that is there already.
    pub fn shake_hands(&self, stream: TcpStream, name: &str) -> io::Result<TlsConnection> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let session = ClientConnection::new(Arc::clone(&self.0), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(session, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(TlsConnection(BufReader::new(stream)))
    }
}

/// One TLS connection to the gateway.
pub struct TlsConnection(BufReader<StreamOwned<ClientConnection, TcpStream>>);

impl TlsConnection {
    pub fn session(&self) -> &ClientConnection {
        &self.0.get_ref().conn
    }

    /// The certificate that the gateway showed.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.session().peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// The connection itself, for what is not HTTP.
    pub fn stream(&mut self) -> &mut StreamOwned<ClientConnection, TcpStream> {
        self.0.get_mut()
    }

    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.0.get_mut().sock
    }

    /// Sends bytes. A peer that refuses the rest is no failure here: its answer tells.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let stream = self.0.get_mut();
        let _ = stream.write_all(bytes.as_ref()).and_then(|()| stream.flush());
        self
    }

    /// Sends a request and reads its answer.
    pub fn try_call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Message> {
        self.send(request(method, target, headers, body));
        self.try_read()
    }

    pub fn call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Message {
        self.try_call(method, target, headers, body)
            .unwrap_or_else(|e| panic!("no answer to {method} {target}: {e}"))
    }

    pub fn get(&mut self, target: &str) -> Message {
        self.call("GET", target, &[], b"")
    }

    /// The next answer.
    pub fn try_read(&mut self) -> io::Result<Message> {
        let mut message = read_head(&mut self.0)?.ok_or(io::ErrorKind::ConnectionAborted)?;
        let mut body = Vec::new();
        read_body(&mut self.0, &message, true, &mut |bytes| body.extend_from_slice(bytes))?;
        (message.body, message.complete) = (body, true);
        Ok(message)
    }

    /// Everything until the connection ends; an error when it ends without an announcement.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        self.0.read_to_end(&mut all)?;
        Ok(all)
    }
}

/// The address of each listener, in their order.
pub fn listeners(gateway: &super::Gateway) -> Vec<SocketAddr> {
    let address = |line: serde_json::Value| {
        line["message"].as_str()?.strip_prefix("listening on ")?.parse().ok()
    };
    super::wait_for("two listeners", || {
        let found: Vec<_> = gateway.log().into_iter().filter_map(address).collect();
        (found.len() >= 2).then_some(found)
    })
}

/// The gateway's answer to bytes that are not TLS.
pub fn plain(address: SocketAddr, bytes: &[u8]) -> Client {
    let mut client = Client::connect(address);
    client.send(bytes);
    client
}
