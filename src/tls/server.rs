//! The TLS of a listener: its rules and its certificates, as one configuration that is replaced as a whole.
//!
//! A connection keeps the configuration that it began with, so that a new certificate harms no connection.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use log::error;
use rustls::crypto::ring::Ticketer;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::version::{TLS12, TLS13};
use rustls::{Error, ServerConfig, SupportedProtocolVersion};

use super::certificate::Certificate;
use super::choice::Choice;
use super::client::{ClientAuth, ClientAuthorities};
use super::provider;
use crate::base::clock::UnixTime;

/// HTTP/1.1 and HTTP/2 in ALPN (RFC 7301).
const HTTP_1_1: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";

/// The oldest version of TLS that clients may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// The rules of a listener's TLS, besides its certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The oldest version that clients may speak.
    pub minimum_version: Version,
    /// Whether clients may speak HTTP/2.
    pub http2: bool,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
}

/// The TLS of a listener.
pub struct TlsServer {
    rules: Rules,
    /// The keys of session tickets. All threads share them.
    tickets: Arc<dyn ProducesTickets>,
    live: ArcSwap<Live>,
}

struct Live {
    certificates: Vec<Arc<Certificate>>,
    authorities: Option<Arc<ClientAuthorities>>,
    config: Arc<ServerConfig>,
}

impl TlsServer {
    /// A server that shows `certificates`, of which there is at least one, and asks clients for certificates of `authorities`.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new(
        rules: Rules,
        certificates: Vec<Certificate>,
        authorities: Option<ClientAuthorities>,
    ) -> Result<Self, Error> {
        let certificates = certificates.into_iter().map(Arc::new).collect();
        Self::assemble(rules, certificates, authorities.map(Arc::new), Ticketer::new()?)
    }

    fn assemble(
        rules: Rules,
        certificates: Vec<Arc<Certificate>>,
        authorities: Option<Arc<ClientAuthorities>>,
        tickets: Arc<dyn ProducesTickets>,
    ) -> Result<Self, Error> {
        let live = Live::new(&rules, certificates, authorities, &tickets)?;
        Ok(Self { rules, tickets, live: ArcSwap::from_pointee(live) })
    }

    /// This server after `previous`: the previous one itself where both are the same, and else one that knows the sessions
    /// of the previous one.
    pub fn after(self: Arc<Self>, previous: &Arc<Self>) -> Arc<Self> {
        let (new, old) = (self.live.load(), previous.live.load());
        let is_same = self.rules == previous.rules
            && new.certificates.len() == old.certificates.len()
            && new.certificates.iter().zip(&old.certificates).all(|(new, old)| new.is_same(old))
            && match (&new.authorities, &old.authorities) {
                (Some(new), Some(old)) => new.is_same(old),
                (new, old) => new.is_none() && old.is_none(),
            };
        if is_same {
            return Arc::clone(previous);
        }
        let (certificates, authorities) = (new.certificates.clone(), new.authorities.clone());
        let tickets = Arc::clone(&previous.tickets);
        let assembled = Self::assemble(self.rules.clone(), certificates, authorities, tickets);
        assembled.map_or_else(|_| Arc::clone(&self), Arc::new)
    }

    /// The configuration for a new connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.live.load().config)
    }

    /// The certificates of the moment.
    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.live.load().certificates.clone()
    }

    /// The authorities that vouch for clients now; `None` where clients are not asked for certificates.
    pub fn authorities(&self) -> Option<Arc<ClientAuthorities>> {
        self.live.load().authorities.clone()
    }

    /// Whether clients show certificates.
    pub fn client_auth(&self) -> ClientAuth {
        self.rules.client_auth
    }

    /// Takes up the certificates whose files have changed. It reads files, so it must not run on a thread of requests.
    pub fn refresh(&self, now: UnixTime) {
        let live = self.live.load();
        let mut changed = false;
        let certificates = live.certificates.iter().map(|old| match old.newer(now) {
            Some(newer) => {
                changed = true;
                Arc::new(newer)
            }
            None => Arc::clone(old),
        });
        let certificates = certificates.collect();
        let authorities = live.authorities.as_ref().map(|old| {
            match old.newer(self.rules.client_auth == ClientAuth::Optional) {
                Some(newer) => {
                    changed = true;
                    Arc::new(newer)
                }
                None => Arc::clone(old),
            }
        });
        if changed {
            match Live::new(&self.rules, certificates, authorities, &self.tickets) {
                Ok(live) => self.live.store(Arc::new(live)),
                Err(failure) => error!("certificates not replaced: {failure}"),
            }
        }
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = self.live.load();
        let files: Vec<_> = live.certificates.iter().map(|one| one.files()).collect();
        let authorities = live.authorities.as_ref().map(|authorities| authorities.path());
        f.debug_struct("TlsServer")
            .field("rules", &self.rules)
            .field("files", &files)
            .field("authorities", &authorities)
            .finish()
    }
}

impl Live {
    fn new(
        rules: &Rules,
        certificates: Vec<Arc<Certificate>>,
        authorities: Option<Arc<ClientAuthorities>>,
        tickets: &Arc<dyn ProducesTickets>,
    ) -> Result<Self, Error> {
        let versions: &[&SupportedProtocolVersion] = match rules.minimum_version {
            Version::Tls12 => &[&TLS13, &TLS12],
            Version::Tls13 => &[&TLS13],
        };
        let config =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
        let config = match &authorities {
            Some(authorities) => config.with_client_cert_verifier(authorities.verifier()),
            None => config.with_no_client_auth(),
        };
        let mut config = config.with_cert_resolver(Arc::new(Choice::new(&certificates)));
        let protocols: &[&[u8]] = if rules.http2 { &[HTTP_2, HTTP_1_1] } else { &[HTTP_1_1] };
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        // A session is in its ticket alone: no memory grows with the number of clients.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match authorities {
            None => config.ticketer = Arc::clone(tickets),
            // A session would bring the certificate of its client back without asking whether it still holds.
            Some(_) => config.send_tls13_tickets = 0,
        }
        Ok(Self { certificates, authorities, config: Arc::new(config) })
    }
}
