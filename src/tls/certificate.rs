//! A certificate and its private key: read from files, checked, and read again when a file changes.
//!
//! Errors name files and never their contents, which may be secret.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, SecondsFormat};
use log::{error, info, warn};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::provider;
use crate::base::clock::UnixTime;
use crate::base::files::{Stamp, read_bytes};

/// Largest file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How long before its end a certificate is warned of, in seconds.
const WARN_BEFORE: u64 = 14 * 24 * 60 * 60;

/// How long it takes to the next warning of the same certificate, in seconds.
const WARN_AGAIN: u64 = 24 * 60 * 60;

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate and its chain, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub private_key: PathBuf,
    /// What its issuer says about revocation: an OCSP response, in DER.
    pub ocsp: Option<PathBuf>,
}

/// The file of a certificate that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The certificate and its chain.
    Certificate,
    /// The private key.
    PrivateKey,
    /// The OCSP response.
    Ocsp,
}

/// Why a certificate cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct CertificateError {
    /// The file that is wrong.
    pub part: Part,
    /// What is wrong and what is allowed. It names the file, unless the file cannot be read: then the name itself may be a
    /// secret that was written in the wrong place.
    pub message: String,
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CertificateError {}

/// A certificate that is valid, with its key.
#[derive(Debug)]
pub struct Certificate {
    files: CertificateFiles,
    stamps: Stamps,
    key: Arc<CertifiedKey>,
    names: Vec<Box<str>>,
    not_after: UnixTime,
    /// The files that could not be used the last time.
    refused: Mutex<Option<Stamps>>,
    /// When the log was told last that the certificate ends soon, in Unix seconds.
    warned: AtomicU64,
}

/// The state of the files of a certificate.
type Stamps = [Option<Stamp>; 3];

impl CertificateFiles {
    fn stamps(&self) -> Stamps {
        let ocsp = self.ocsp.as_deref().and_then(Stamp::of);
        [Stamp::of(&self.certificate), Stamp::of(&self.private_key), ocsp]
    }
}

impl Certificate {
    /// Reads `files`.
    ///
    /// # Errors
    /// [`CertificateError`] when a file cannot be used, the key is another certificate's, or the certificate is not valid
    /// at `now`.
    pub fn load(files: CertificateFiles, now: UnixTime) -> Result<Self, CertificateError> {
        // Before the files are read: a file that changes meanwhile is read again.
        let stamps = files.stamps();
        let chain = chain(&files.certificate)?;
        let leaf = chain.first().ok_or_else(|| malformed(&files.certificate))?;
        let (names, not_after) = names_and_end(leaf, &files.certificate, now)?;
        let mut key = certified(chain.clone(), &files)?;
        key.ocsp = files.ocsp.as_deref().map(ocsp).transpose()?;
        Ok(Self {
            stamps,
            key: Arc::new(key),
            names,
            not_after,
            refused: Mutex::new(None),
            warned: AtomicU64::new(0),
            files,
        })
    }

    /// The certificate as its files have it at `now`, where they have changed and can be used. Files that cannot be used are
    /// told to the log once.
    pub fn newer(&self, now: UnixTime) -> Option<Self> {
        let stamps = self.files.stamps();
        if stamps == self.stamps || *self.refused.lock() == Some(stamps) {
            return None;
        }
        match Self::load(self.files.clone(), now) {
            Ok(newer) => {
                let file = self.files.certificate.display();
                info!("certificate replaced: {file} is valid until {}", date(newer.not_after));
                Some(newer)
            }
            Err(error) => {
                let file = self.files.certificate.display();
                error!("certificate not replaced, the old one of {file} stays: {error}");
                *self.refused.lock() = Some(stamps);
                None
            }
        }
    }

    /// Warns of a certificate that ends soon, or has ended; once a day.
    pub fn warn_of_end(&self, now: UnixTime) {
        let (now, end) = (now.as_secs(), self.not_after.as_secs());
        let warned = self.warned.load(Ordering::Relaxed);
        if end > now.saturating_add(WARN_BEFORE) || now < warned.saturating_add(WARN_AGAIN) {
            return;
        }
        self.warned.store(now, Ordering::Relaxed);
        let (file, date) = (self.files.certificate.display(), date(self.not_after));
        match end > now {
            true => warn!("certificate {file} expires at {date}; replace the file"),
            false => warn!("certificate {file} has expired at {date}; replace the file"),
        }
    }

    /// The files.
    pub fn files(&self) -> &CertificateFiles {
        &self.files
    }

    /// The certificate with its chain and its key.
    pub fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The host names that the certificate is for, in small letters; a name may begin with `*.`.
    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Whether both are the same certificate. The keys are the same then, too.
    pub fn is_same(&self, other: &Self) -> bool {
        self.files == other.files
            && self.key.cert == other.key.cert
            && self.key.ocsp == other.key.ocsp
    }
}

/// Reads the certificates in the PEM file at `path`; there is at least one.
pub(super) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let pem = read(path, Part::Certificate, "the path of a PEM file with the certificate")?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        // The error may hold a line of the file.
        _ => Err(malformed(path)),
    }
}

fn malformed(path: &Path) -> CertificateError {
    let message = format!(
        "{} has no certificate that can be read; write the path of a PEM file with the certificate and its chain",
        path.display()
    );
    CertificateError { part: Part::Certificate, message }
}

fn read(path: &Path, part: Part, allowed: &str) -> Result<Vec<u8>, CertificateError> {
    read_bytes(path, MAX_FILE).map_err(|error| CertificateError {
        part,
        message: format!("cannot be read: {error}; write {allowed}"),
    })
}

/// The names of a certificate and its end.
fn names_and_end(
    leaf: &CertificateDer<'_>,
    path: &Path,
    now: UnixTime,
) -> Result<(Vec<Box<str>>, UnixTime), CertificateError> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return Err(malformed(path)) };
    let second = |time: i64| UnixTime::from_secs(u64::try_from(time).unwrap_or(0));
    let not_before = second(leaf.validity().not_before.timestamp());
    let not_after = second(leaf.validity().not_after.timestamp());
    let invalid = |how: String| {
        let message =
            format!("the certificate in {} {how}; write one that is valid now", path.display());
        Err(CertificateError { part: Part::Certificate, message })
    };
    if now > not_after {
        return invalid(format!("expired at {}", date(not_after)));
    }
    if now < not_before {
        return invalid(format!("is not valid before {}", date(not_before)));
    }
    let Ok(alternatives) = leaf.subject_alternative_name() else { return Err(malformed(path)) };
    let alternatives = alternatives.iter().flat_map(|names| &names.value.general_names);
    let names = alternatives.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into_boxed_str()),
        _ => None,
    });
    Ok((names.collect(), not_after))
}

/// The certificate with its key, which fits it.
fn certified(
    chain: Vec<CertificateDer<'static>>,
    files: &CertificateFiles,
) -> Result<CertifiedKey, CertificateError> {
    const ALLOWED: &str = "the path of a PEM file with the private key";
    let pem = read(&files.private_key, Part::PrivateKey, ALLOWED)?;
    let path = files.private_key.display();
    let wrong = |how: &str| {
        let message = format!("{path} {how}; write {ALLOWED} of the certificate");
        CertificateError { part: Part::PrivateKey, message }
    };
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_may_hold_a_line_of_the_file| {
        let is_encrypted = pem.windows(9).any(|text| text == b"ENCRYPTED");
        match is_encrypted {
            true => wrong("is encrypted, which is not supported"),
            false => wrong("has no private key that can be read"),
        }
    })?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            let certificate = files.certificate.display();
            wrong(&format!("is not the key of the certificate in {certificate}"))
        }
        TlsError::InvalidCertificate(_) => malformed(&files.certificate),
        _ => wrong("has a private key of a kind that is not supported"),
    })
}

/// Reads an OCSP response (RFC 6960 section 4.2.1), whose status must be `successful`.
fn ocsp(path: &Path) -> Result<Vec<u8>, CertificateError> {
    const ALLOWED: &str = "the path of an OCSP response in DER";
    let der = read(path, Part::Ocsp, ALLOWED)?;
    let is_successful = x509_parser::der_parser::parse_der(&der).is_ok_and(|(rest, response)| {
        let status = response.as_sequence().ok().and_then(|parts| parts.first()?.as_u32().ok());
        rest.is_empty() && status == Some(0)
    });
    match is_successful {
        true => Ok(der),
        false => {
            let message =
                format!("{} is no successful OCSP response; write {ALLOWED}", path.display());
            Err(CertificateError { part: Part::Ocsp, message })
        }
    }
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let date = DateTime::from_timestamp(seconds, 0).unwrap_or(DateTime::<chrono::Utc>::MAX_UTC);
    date.to_rfc3339_opts(SecondsFormat::Secs, true)
}
