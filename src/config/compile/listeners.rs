//! Listeners: where clients connect, and what they speak. Certificates are read here, so that a bad one is a fault.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::super::fault::Report;
use super::super::file::{self, List, Maybe};
use super::super::key_path::KeyPath;
use super::super::scalar::FilePath;
use super::super::{Listener, ListenerRules};
use super::{need, or};
use crate::base::clock::{Clock as _, SystemClock};
use crate::tls::certificate::{Certificate, CertificateFiles, Part};
use crate::tls::client::{ClientAuth, ClientAuthorities};
use crate::tls::server::{Rules, TlsServer, Version};

/// The listeners: the address of each, and its rules.
pub(super) fn compile(
    written: List<file::Listener>,
    report: &mut Report,
) -> Vec<(Listener, ListenerRules)> {
    let at = KeyPath::top("listeners");
    let Some(written) = written else {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080));
        return vec![(Listener { address }, rules(None))];
    };
    if written.is_empty() {
        report
            .fault(&at, "is empty; write at least one listener, such as { address: 0.0.0.0:8080 }");
    }
    let first_with_tls =
        written.iter().position(|one| one.as_ref().is_some_and(|listener| listener.tls.is_some()));
    let mut seen = BTreeSet::new();
    let mut listeners = Vec::new();
    for (i, listener) in written.into_iter().enumerate() {
        let at = at.index(i);
        let file::Listener { address, tls, http2, http3, proxy_protocol, redirect_https } =
            listener.unwrap_or_default();
        if or(http3, false) {
            report.fault(
                &at.key("http3"),
                "is not served: clients speak HTTP/1.1 or HTTP/2; write false, or leave it out",
            );
        }
        let http2 = or(http2, tls.is_some());
        let redirects = or(redirect_https, false);
        if redirects {
            let at = at.key("redirect_https");
            if tls.is_some() {
                report.fault(&at, "stands beside tls, whose clients use https already; write it for a listener without tls");
            } else if first_with_tls.is_none() {
                report.fault(&at, "leads nowhere; write a listener with tls, too");
            }
        }
        let tls = tls.and_then(|written| self::tls(written, http2, &at.key("tls"), report));
        let rules = ListenerRules {
            http2,
            proxy_protocol: or(proxy_protocol, false),
            redirect_to: first_with_tls.filter(|_| redirects),
            ..rules(tls)
        };
        let at = at.key("address");
        let Some(address) = need(address, &at, report) else {
            continue;
        };
        if address.port() != 0 && !seen.insert(address) {
            report.fault(&at, "is the address of another listener; write each address once");
        }
        listeners.push((Listener { address }, rules));
    }
    listeners
}

/// The rules of a listener for which nothing else is written.
fn rules(tls: Option<Arc<TlsServer>>) -> ListenerRules {
    ListenerRules { tls, http2: false, proxy_protocol: false, redirect_to: None }
}

/// The TLS of a listener. `None` only where a fault was reported: a listener that should speak TLS must not speak without.
fn tls(
    written: file::Tls,
    http2: bool,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Arc<TlsServer>> {
    let certificates = certificates(written.certificates, &at.key("certificates"), report);
    let client_auth = or(written.client_auth, ClientAuth::None);
    let authorities = authorities(written.client_ca, client_auth, at, report);
    let minimum_version = or(written.minimum_version, Version::Tls12);
    let rules = Rules { minimum_version, http2, client_auth };
    match TlsServer::new(rules, certificates?, authorities?) {
        Ok(server) => Some(Arc::new(server)),
        Err(error) => {
            report.fault(at, format!("cannot be used: {error}"));
            None
        }
    }
}

/// The authorities that vouch for clients; the outer `None` where a fault was reported.
fn authorities(
    written: Maybe<FilePath>,
    client_auth: ClientAuth,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Option<ClientAuthorities>> {
    let at = at.key("client_ca");
    match (written, client_auth) {
        (None, ClientAuth::None) => Some(None),
        (None, _) => {
            let message = "is missing, without which no client can be trusted; write the path of a PEM file with the certificates of authorities";
            report.fault(&at, message);
            None
        }
        (Some(path), client_auth) => {
            match ClientAuthorities::load(path.0.0, client_auth == ClientAuth::Optional) {
                Ok(authorities) => Some((client_auth != ClientAuth::None).then_some(authorities)),
                Err(error) => {
                    report.fault(&at, error);
                    None
                }
            }
        }
    }
}

fn certificates(
    written: List<file::Certificate>,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Vec<Certificate>> {
    let written = written.unwrap_or_default();
    if written.is_empty() && !report.has_fault_within(at) {
        report.fault(at, "is missing; write at least one { certificate, private_key }");
    }
    let mut certificates = Vec::new();
    let mut is_whole = !written.is_empty();
    for (i, certificate) in written.into_iter().enumerate() {
        match self::certificate(certificate.unwrap_or_default(), i, &at.index(i), report) {
            Some(certificate) => certificates.push(certificate),
            None => is_whole = false,
        }
    }
    is_whole.then_some(certificates)
}

fn certificate(
    written: file::Certificate,
    number: usize,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Certificate> {
    let certificate = need(written.certificate, &at.key("certificate"), report);
    let private_key = need(written.private_key, &at.key("private_key"), report);
    let files = CertificateFiles {
        certificate: certificate?.0,
        private_key: private_key?.0,
        ocsp: written.ocsp.map(|path| path.0.0),
    };
    let file = files.certificate.display().to_string();
    let loaded = Certificate::load(files, SystemClock::default().now());
    match loaded {
        Ok(certificate) if number > 0 && certificate.names().is_empty() => {
            let message = format!(
                "the certificate in {file} has no DNS name among its alternative names, so no client would get it; write one with a name, or write it first"
            );
            report.fault(&at.key("certificate"), message);
            None
        }
        Ok(certificate) => Some(certificate),
        Err(error) => {
            let key = match error.part {
                Part::Certificate => "certificate",
                Part::PrivateKey => "private_key",
                Part::Ocsp => "ocsp",
            };
            report.fault(&at.key(key), error);
            None
        }
    }
}
