//! Those who make tokens: keys of every algorithm, and a server that publishes them over https.
//! It knows nothing of the gateway's checks.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self as signing, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair as CertificateKey,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::token::unsigned;

/// Every algorithm that is fixed by a key.
pub const ALGORITHMS: [&str; 13] = [
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256",
    "ES384", "ES512", "EdDSA",
];

/// A key that signs, with one algorithm.
pub struct Signer {
    pub algorithm: &'static str,
    key: Key,
}

enum Key {
    Secret(Vec<u8>),
    Rsa(RsaKeyPair),
    Curve(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    pub fn new(algorithm: &'static str) -> Self {
        let curve = |of| Key::Curve(EcdsaKeyPair::generate(of).unwrap());
        let key = match algorithm {
            "HS256" | "HS384" | "HS512" => Key::Secret((0..64).map(|_| fastrand::u8(..)).collect()),
            "ES256" => curve(&signing::ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => curve(&signing::ECDSA_P384_SHA384_FIXED_SIGNING),
            "ES512" => curve(&signing::ECDSA_P521_SHA512_FIXED_SIGNING),
            "EdDSA" => Key::Ed(Ed25519KeyPair::generate().unwrap()),
            _ => Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
        };
        Self { algorithm, key }
    }

    /// The signature of `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Secret(secret) => {
                let hash = match self.algorithm {
                    "HS256" => hmac::HMAC_SHA256,
                    "HS384" => hmac::HMAC_SHA384,
                    _ => hmac::HMAC_SHA512,
                };
                hmac::sign(&hmac::Key::new(hash, secret), message).as_ref().to_vec()
            }
            Key::Rsa(pair) => {
                let padding: &'static dyn signing::RsaEncoding = match self.algorithm {
                    "RS256" => &signing::RSA_PKCS1_SHA256,
                    "RS384" => &signing::RSA_PKCS1_SHA384,
                    "RS512" => &signing::RSA_PKCS1_SHA512,
                    "PS256" => &signing::RSA_PSS_SHA256,
                    "PS384" => &signing::RSA_PSS_SHA384,
                    _ => &signing::RSA_PSS_SHA512,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, message, &mut signature).unwrap();
                signature
            }
            Key::Curve(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Key::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with this header and these claims.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        let message = unsigned(header, claims);
        let signature = URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// A token whose header says the algorithm and, where there is one, the key's id.
    pub fn token(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = json!({ "alg": self.algorithm });
        if let Some(kid) = kid {
            header["kid"] = json!(kid);
        }
        self.token_with(&header, claims)
    }

    pub fn secret(&self) -> Option<&[u8]> {
        match &self.key {
            Key::Secret(secret) => Some(secret),
            _ => None,
        }
    }

    fn der(&self) -> PublicKeyX509Der<'static> {
        match &self.key {
            Key::Secret(_) => unreachable!("a secret has no public key"),
            Key::Rsa(pair) => pair.public_key().as_der().unwrap(),
            Key::Curve(pair) => pair.public_key().as_der().unwrap(),
            Key::Ed(pair) => pair.public_key().as_der().unwrap(),
        }
    }

    /// The public key in PEM.
    pub fn pem(&self) -> String {
        let text = STANDARD.encode(self.der().as_ref());
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    }

    /// The key that verifies, as a JWK: the public key or the secret.
    pub fn jwk(&self, kid: Option<&str>) -> Value {
        let text = |bytes: &[u8]| json!(URL_SAFE_NO_PAD.encode(bytes));
        let mut jwk = match &self.key {
            Key::Secret(secret) => json!({ "kty": "oct", "k": text(secret) }),
            Key::Rsa(pair) => {
                let public = pair.public_key();
                let n = public.modulus().big_endian_without_leading_zero().to_vec();
                let e = public.exponent().big_endian_without_leading_zero().to_vec();
                json!({ "kty": "RSA", "n": text(&n), "e": text(&e) })
            }
            Key::Curve(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = point[1..].split_at(point.len() / 2);
                let curve = match x.len() {
                    32 => "P-256",
                    48 => "P-384",
                    _ => "P-521",
                };
                json!({ "kty": "EC", "crv": curve, "x": text(x), "y": text(y) })
            }
            Key::Ed(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref()) })
            }
        };
        jwk["alg"] = json!(self.algorithm);
        jwk["use"] = json!("sig");
        if let Some(kid) = kid {
            jwk["kid"] = json!(kid);
        }
        jwk
    }
}

/// An https server on 127.0.0.1 that publishes a set of keys, and counts the requests.
pub struct KeyServer {
    port: u16,
    shared: Arc<Shared>,
    dir: TempDir,
}

struct Shared {
    /// The status line's rest (and further fields) and the body.
    answer: Mutex<(String, Vec<u8>)>,
    delay: Mutex<Duration>,
    asked: AtomicUsize,
    ends: AtomicBool,
}

impl KeyServer {
    pub fn start() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(parameters, CertificateKey::generate().unwrap()).unwrap();
        let key = CertificateKey::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned()];
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            answer: Mutex::new(("200 OK".into(), br#"{"keys":[]}"#.to_vec())),
            delay: Mutex::default(),
            asked: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
        });
        let (config, serving) = (Arc::new(config), Arc::clone(&shared));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ends.load(Ordering::SeqCst) {
                    return;
                }
                let (config, serving) = (Arc::clone(&config), Arc::clone(&serving));
                // A client that breaks off is no failure of the server.
                thread::spawn(move || stream.map(|stream| serve(stream, config, &serving)));
            }
        });
        Self { port, shared, dir }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/jwks.json?a=b", self.port)
    }

    /// The certificate that makes it trusted, for `SSL_CERT_FILE`.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Publishes these keys from now on.
    pub fn publish(&self, keys: &[Value]) {
        self.answer("200 OK", &json!({ "keys": keys }).to_string());
    }

    /// Answers with this status line and body from now on.
    pub fn answer(&self, status: &str, body: &str) {
        self.answer_bytes(status, body.as_bytes());
    }

    /// The same with a body that need not be text. Further fields may follow the status line.
    pub fn answer_bytes(&self, status: &str, body: &[u8]) {
        *self.shared.answer.lock() = (status.into(), body.to_vec());
    }

    /// Waits this long before each answer from now on.
    pub fn delay(&self, delay: Duration) {
        *self.shared.delay.lock() = delay;
    }

    /// How many requests there were.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(stream: TcpStream, config: Arc<rustls::ServerConfig>, shared: &Shared) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let connection = rustls::ServerConnection::new(config).ok()?;
    let mut tls = rustls::StreamOwned::new(connection, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    shared.asked.fetch_add(1, Ordering::SeqCst);
    thread::sleep(*shared.delay.lock());
    let (status, body) = shared.answer.lock().clone();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\nlocation: /elsewhere\r\n\r\n",
        body.len()
    );
    tls.write_all(&[head.as_bytes(), &body].concat()).ok()?;
    tls.conn.send_close_notify();
    tls.flush().ok()
}
