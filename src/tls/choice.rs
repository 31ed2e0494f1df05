//! Which certificate a client gets: by the name that it asks for (SNI, RFC 6066 section 3).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;

/// The certificates of a listener by their names.
#[derive(Debug)]
pub struct Choice {
    /// For clients that name no host of a certificate.
    first: Option<Arc<CertifiedKey>>,
    exact: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
}

impl Choice {
    /// A choice among `certificates`. An earlier one goes before a later one for the same name.
    pub fn new(certificates: &[Arc<Certificate>]) -> Self {
        let first = certificates.first().map(|certificate| Arc::clone(certificate.key()));
        let mut choice = Self { first, exact: HashMap::new(), wildcard: HashMap::new() };
        for certificate in certificates {
            for name in certificate.names() {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut choice.wildcard, parent),
                    None => (&mut choice.exact, &**name),
                };
                names.entry(name.into()).or_default().push(Arc::clone(certificate.key()));
            }
        }
        choice
    }

    /// The certificate for the host `name`, which may verify one of `schemes`: one name may have certificates with keys of
    /// several kinds.
    fn find(&self, name: &str, schemes: &[SignatureScheme]) -> Option<&Arc<CertifiedKey>> {
        let lower;
        let name = match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => {
                lower = name.to_ascii_lowercase();
                &lower
            }
            false => name,
        };
        let parent = || name.split_once('.').map(|(_, parent)| parent);
        let found = self.exact.get(name).or_else(|| self.wildcard.get(parent()?))?;
        found.iter().find(|key| key.key.choose_scheme(schemes).is_some()).or(found.first())
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.find(name, hello.signature_schemes()));
        named.or(self.first.as_ref()).map(Arc::clone)
    }
}
