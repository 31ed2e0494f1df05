//! Which certificates the gateway believes of an upstream's endpoints, and which certificate it shows them.
//!
//! Everything is checked when the configuration is read, because Pingora panics on a certificate that cannot be read, and
//! refuses a key only when it connects.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::tls::provider;

/// How TLS connections to the endpoints of an upstream are made. Two rules are equal when a connection made by one may
/// serve a request of the other.
#[derive(Clone, Default)]
pub struct TlsRules {
    authorities: Option<Arc<CaType>>,
    identity: Option<Arc<CertKey>>,
    server_name: Option<String>,
    /// The hash of all of it; zero when nothing is written.
    fingerprint: [u8; 32],
}

/// Why certificates or a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates has none.
    #[error("holds no certificate in PEM form")]
    NoCertificate,
    /// A certificate cannot be read.
    #[error("holds a certificate that cannot be read")]
    BadCertificate,
    /// A file of a key has none.
    #[error("holds no private key in PEM form")]
    NoKey,
    /// The key is of another certificate, or of a kind that cannot be used.
    #[error("cannot be used with the certificate: {0}")]
    BadKey(String),
}

/// Certificates of authorities.
pub struct Authorities(Vec<Vec<u8>>);

/// The gateway's certificate for the endpoints of an upstream, with its chain and its key.
pub struct Identity {
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
}

/// The certificates of `pem`, each of which can be read.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|_| TlsError::BadCertificate)?;
    let is_whole = |der: &CertificateDer<'_>| {
        x509_parser::parse_x509_certificate(der).is_ok_and(|(rest, _)| rest.is_empty())
    };
    match all.is_empty() {
        true => Err(TlsError::NoCertificate),
        false if all.iter().all(is_whole) => Ok(all),
        false => Err(TlsError::BadCertificate),
    }
}

impl Authorities {
    /// The authorities of a PEM file.
    ///
    /// # Errors
    /// When there is none, or one that cannot be used.
    pub fn from_pem(pem: &str) -> Result<Self, TlsError> {
        let all = certificates(pem)?;
        let mut roots = RootCertStore::empty();
        for authority in &all {
            roots.add(authority.clone()).map_err(|_| TlsError::BadCertificate)?;
        }
        Ok(Self(all.iter().map(|der| der.to_vec()).collect()))
    }
}

impl Identity {
    /// The certificate of a PEM file, followed by its chain.
    ///
    /// # Errors
    /// When there is none, or one that cannot be read.
    pub fn chain_from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates(pem)
    }

    /// The identity of `chain` with the key of a PEM file.
    ///
    /// # Errors
    /// When there is no key, or when it is of another certificate.
    pub fn new(chain: Vec<CertificateDer<'static>>, key_pem: &str) -> Result<Self, TlsError> {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| TlsError::NoKey)?;
        let identity = Self {
            chain: chain.iter().map(|der| der.to_vec()).collect(),
            key: key.secret_der().to_vec(),
        };
        let bad_key = |error: rustls::Error| TlsError::BadKey(error.to_string());
        // Pingora finds out the form of the key from its bytes.
        let key = PrivateKeyDer::try_from(identity.key.clone()).map_err(|_| TlsError::NoKey)?;
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(bad_key)?
            .with_root_certificates(RootCertStore::empty())
            .with_client_auth_cert(chain, key)
            .map_err(bad_key)?;
        Ok(identity)
    }
}

impl TlsRules {
    /// Rules of the parts that are written. Without authorities, those of the system are believed. Without
    /// `server_name`, the certificate must be for the host of the endpoint.
    pub fn new(
        authorities: Option<Authorities>,
        identity: Option<Identity>,
        server_name: Option<String>,
    ) -> Self {
        if authorities.is_none() && identity.is_none() && server_name.is_none() {
            return Self::default();
        }
        let mut hash = Context::new(&SHA256);
        let mut add = |part: &[u8]| {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        let ders = authorities.iter().flat_map(|authorities| &authorities.0);
        ders.for_each(|der| add(der));
        add(b"identity");
        if let Some(Identity { chain, key }) = &identity {
            chain.iter().chain([key]).for_each(|part| add(part));
        }
        add(b"server name");
        add(server_name.as_deref().unwrap_or_default().as_bytes());
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(hash.finish().as_ref());
        let certificate = |der| WrappedX509::new(der, parse_x509);
        Self {
            authorities: authorities
                .map(|authorities| authorities.0.into_iter().map(certificate).collect()),
            identity: identity.map(|Identity { chain, key }| Arc::new(CertKey::new(chain, key))),
            server_name,
            fingerprint,
        }
    }

    /// The authorities that are believed; `None` for those of the system.
    pub(super) fn authorities(&self) -> Option<Arc<CaType>> {
        self.authorities.clone()
    }

    /// The certificate that the gateway shows.
    pub(super) fn identity(&self) -> Option<Arc<CertKey>> {
        self.identity.clone()
    }

    /// The name that the certificate of an endpoint must be for, instead of its host.
    pub(super) fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// A number that differs for rules that differ. Pingora's pool of connections does not look at authorities.
    pub(super) fn group(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.fingerprint[..8]);
        u64::from_le_bytes(first)
    }
}

impl PartialEq for TlsRules {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for TlsRules {}

/// Without the key.
impl fmt::Debug for TlsRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsRules").field(&self.group()).finish()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key);
        (certificate.unwrap().pem(), key.serialize_pem())
    }

    fn identity(chain: &str, key: &str) -> Result<Identity, TlsError> {
        Identity::new(Identity::chain_from_pem(chain)?, key)
    }

    #[test]
    fn files_that_cannot_be_used_are_refused() {
        let ((chain, key), (_, other)) = (certificate(), certificate());
        assert!(identity(&chain, &key).is_ok());
        assert!(matches!(identity(&chain, &other), Err(TlsError::BadKey(_))));
        assert_eq!(identity(&chain, &chain).err(), Some(TlsError::NoKey));
        assert_eq!(identity(&key, &key).err(), Some(TlsError::NoCertificate));
        assert!(Authorities::from_pem(&chain).is_ok());
        for (pem, error) in [
            ("", TlsError::NoCertificate),
            (&*key, TlsError::NoCertificate),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                TlsError::BadCertificate,
            ),
            ("-----BEGIN CERTIFICATE-----\n!\n", TlsError::BadCertificate),
        ] {
            assert_eq!(Authorities::from_pem(pem).err(), Some(error), "{pem}");
        }
    }

    #[test]
    fn rules_are_equal_when_every_part_is() {
        let ((one, key), (two, _)) = (certificate(), certificate());
        let authorities = |pem: &str| Some(Authorities::from_pem(pem).unwrap());
        let rules = [
            TlsRules::default(),
            TlsRules::new(authorities(&one), None, None),
            TlsRules::new(authorities(&two), None, None),
            TlsRules::new(None, None, Some("a".into())),
            TlsRules::new(authorities(&one), None, Some("a".into())),
            TlsRules::new(None, Some(identity(&one, &key).unwrap()), None),
        ];
        for (nth, a) in rules.iter().enumerate() {
            for (other, b) in rules.iter().enumerate() {
                assert_eq!((a == b, a.group() == b.group()), (nth == other, nth == other));
            }
        }
        assert_eq!(rules[1], TlsRules::new(authorities(&one), None, None));
    }
}
