//! Certificates of clients: which authorities vouch for them, and what a certificate says.
//!
//! Connections outlast a reload. So each request asks again whether the present authorities vouch for the certificate of
//! its connection.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderValue;
use log::{error, info};
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime as TlsTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::der_parser::oid::Oid;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate, X509Name};

use super::certificate::{CertificateError, Part, chain};
use super::provider;
use crate::base::clock::UnixTime;
use crate::base::files::Stamp;

/// Longest text about a certificate that an upstream is told, in bytes.
const MAX_TEXT: usize = 4096;

/// The SHA-256 of a certificate.
pub type Thumbprint = [u8; 32];

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    None,
    /// They may.
    Optional,
    /// They must.
    Required,
}

/// The authorities that vouch for clients.
pub struct ClientAuthorities {
    path: PathBuf,
    stamp: Option<Stamp>,
    certificates: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// A random number, different for different authorities.
    number: u64,
    refused: Mutex<Option<Stamp>>,
}

impl ClientAuthorities {
    /// Reads the authorities in the PEM file at `path`. Clients need no certificate where `optional`.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn load(path: PathBuf, optional: bool) -> Result<Self, CertificateError> {
        let stamp = Stamp::of(&path);
        let certificates = chain(&path)?;
        let unusable = || {
            let path = path.display();
            let message = format!(
                "{path} has a certificate that cannot be an authority; write the path of a PEM file with the certificates of authorities"
            );
            CertificateError { part: Part::Certificate, message }
        };
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|_| unusable())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let verifier = match optional {
            true => verifier.allow_unauthenticated(),
            false => verifier,
        };
        let verifier = verifier.build().map_err(|_| unusable())?;
        let number = fastrand::u64(1..);
        Ok(Self { stamp, certificates, verifier, number, refused: Mutex::new(None), path })
    }

    /// The authorities as the file has them, where it has changed and can be used. A file that cannot be used is told to
    /// the log once.
    pub fn newer(&self, optional: bool) -> Option<Self> {
        let stamp = Stamp::of(&self.path);
        if stamp == self.stamp || (stamp.is_some() && *self.refused.lock() == stamp) {
            return None;
        }
        let file = self.path.display();
        match Self::load(self.path.clone(), optional) {
            Ok(newer) => {
                info!("client authorities replaced: {file}");
                Some(newer)
            }
            Err(error) => {
                let mut refused = self.refused.lock();
                if refused.is_none() || *refused != stamp {
                    error!("client authorities not replaced, the old ones of {file} stay: {error}");
                }
                *refused = stamp;
                None
            }
        }
    }

    /// Judges certificates in handshakes.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are the same authorities.
    pub fn is_same(&self, other: &Self) -> bool {
        self.path == other.path && self.certificates == other.certificates
    }

    /// Whether these authorities vouch for the certificate of a connection at `now`. It is checked again only after a change.
    pub fn vouch_for(&self, client: &ClientCertificate, now: UnixTime) -> bool {
        if now > client.not_after {
            return false;
        }
        if client.vouched_by.load(Ordering::Relaxed) == self.number {
            return true;
        }
        let (leaf, others) = match client.chain.split_first() {
            Some(chain) => chain,
            None => return false,
        };
        let now = TlsTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs()));
        let holds = self.verifier.verify_client_cert(leaf, others, now).is_ok();
        if holds {
            client.vouched_by.store(self.number, Ordering::Relaxed);
        }
        holds
    }
}

/// The certificate that the client of a connection has shown.
#[derive(Debug)]
pub struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    thumbprint: Thumbprint,
    not_after: UnixTime,
    subject: HeaderValue,
    alternatives: Option<HeaderValue>,
    fingerprint: HeaderValue,
    /// The number of the authorities that vouched for it last.
    vouched_by: AtomicU64,
}

impl ClientCertificate {
    /// The certificate at the beginning of `chain`, which is vouched for. `None` when it cannot be read, or says more than an
    /// upstream can be told.
    pub fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let leaf = chain.first()?;
        let (_, read) = X509Certificate::from_der(leaf).ok()?;
        let mut thumbprint = [0; 32];
        thumbprint.copy_from_slice(digest(&SHA256, leaf).as_ref());
        let mut fingerprint = String::with_capacity(64);
        for byte in thumbprint {
            let _ = write!(fingerprint, "{byte:02x}");
        }
        let alternatives = read.subject_alternative_name().ok()?;
        let alternatives = alternatives.map(|names| alternatives_of(&names.value.general_names));
        let not_after = u64::try_from(read.validity().not_after.timestamp()).ok()?;
        Some(Self {
            thumbprint,
            not_after: UnixTime::from_secs(not_after),
            subject: field(&subject(read.subject())?)?,
            alternatives: alternatives
                .as_deref()
                .map_or(Some(None), |text| field(text).map(Some))?,
            fingerprint: field(&fingerprint)?,
            vouched_by: AtomicU64::new(0),
            chain: chain.iter().map(|one| one.clone().into_owned()).collect(),
        })
    }

    /// The SHA-256 of the certificate (RFC 8705 section 3.1).
    pub fn thumbprint(&self) -> &Thumbprint {
        &self.thumbprint
    }

    /// The subject, as RFC 4514 writes it: the most specific part first.
    pub fn subject(&self) -> &HeaderValue {
        &self.subject
    }

    /// The alternative names, where there are any.
    pub fn alternatives(&self) -> Option<&HeaderValue> {
        self.alternatives.as_ref()
    }

    /// The thumbprint in hexadecimal digits.
    pub fn fingerprint(&self) -> &HeaderValue {
        &self.fingerprint
    }
}

fn field(text: &str) -> Option<HeaderValue> {
    (text.len() <= MAX_TEXT).then(|| HeaderValue::from_str(text).ok()).flatten()
}

/// A name as RFC 4514 writes it, in ASCII: other characters are escaped, so that no part can imitate two.
fn subject(name: &X509Name<'_>) -> Option<String> {
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for part in parts.into_iter().rev() {
        for (nth, attribute) in part.iter().enumerate() {
            text.push_str(match (text.is_empty(), nth) {
                (true, _) => "",
                (false, 0) => ",",
                (false, _) => "+",
            });
            let oid = attribute.attr_type();
            match short_name(oid) {
                Some(short) => text.push_str(short),
                None => text.push_str(&oid.to_id_string()),
            }
            text.push('=');
            escape(attribute.as_str().ok()?, &mut text);
        }
    }
    Some(text)
}

/// The names of RFC 4514 section 3, and of what certificates have besides.
fn short_name(oid: &Oid<'_>) -> Option<&'static str> {
    Some(match oid.to_id_string().as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

fn escape(value: &str, text: &mut String) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' | b'=' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b'#' if at == 0 => text.push_str("\\#"),
            b' ' if at == 0 || at == last => text.push_str("\\20"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\{byte:02X}");
            }
        }
    }
}

/// Alternative names as `DNS:`, `URI:`, `email:` and `IP:`, separated by commas. Characters that could imitate a second name
/// are percent-encoded.
fn alternatives_of(names: &[GeneralName<'_>]) -> String {
    let mut text = String::new();
    for name in names {
        let (kind, value) = match name {
            GeneralName::DNSName(name) => ("DNS", (*name).to_owned()),
            GeneralName::URI(uri) => ("URI", (*uri).to_owned()),
            GeneralName::RFC822Name(name) => ("email", (*name).to_owned()),
            GeneralName::IPAddress(bytes) => match ip(bytes) {
                Some(address) => ("IP", address),
                None => continue,
            },
            _ => continue,
        };
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(kind);
        text.push(':');
        for byte in value.bytes() {
            match byte {
                b',' | b'"' | b'\\' => {
                    let _ = write!(text, "%{byte:02X}");
                }
                b'!'..=b'~' => text.push(char::from(byte)),
                _ => {
                    let _ = write!(text, "%{byte:02X}");
                }
            }
        }
    }
    text
}

fn ip(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_name_imitates_another() {
        for (value, expected) in [
            ("plain name", "plain name"),
            ("a,CN=root", "a\\,CN\\=root"),
            (" #x+y ", "\\20#x\\+y\\20"),
            ("#x", "\\#x"),
            ("é\n", "\\C3\\A9\\0A"),
            ("\"<>;\\", "\\\"\\<\\>\\;\\\\"),
        ] {
            let mut text = String::new();
            escape(value, &mut text);
            assert_eq!(text, expected);
            assert!(HeaderValue::from_str(&text).is_ok());
        }
        let names = [
            GeneralName::DNSName("a.test"),
            GeneralName::URI("spiffe://acme/x,DNS:root"),
            GeneralName::RFC822Name("é@a.test"),
            GeneralName::IPAddress(&[10, 0, 0, 1]),
            GeneralName::IPAddress(&[1, 2, 3]),
        ];
        let expected = "DNS:a.test,URI:spiffe://acme/x%2CDNS:root,email:%C3%A9@a.test,IP:10.0.0.1";
        assert_eq!(alternatives_of(&names), expected);
    }
}
