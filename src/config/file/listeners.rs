//! `listeners`, and `timeouts` of clients.

use std::net::SocketAddr;

use serde::Deserialize;
use serde::de::Deserializer;

use super::super::scalar::FilePath;
use super::{Deadline, List, Maybe};
use crate::tls::client::ClientAuth;
use crate::tls::server::Version as TlsVersion;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    pub address: Maybe<SocketAddr>,
    #[serde(default, deserialize_with = "not_empty")]
    pub tls: Option<Tls>,
    pub http2: Maybe<bool>,
    pub http3: Maybe<bool>,
    pub proxy_protocol: Maybe<bool>,
    pub redirect_https: Maybe<bool>,
}

/// A mapping that may be absent but not empty: what is empty must not mean that it is off.
fn not_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub certificates: List<Certificate>,
    pub minimum_version: Maybe<TlsVersion>,
    pub client_ca: Maybe<FilePath>,
    pub client_auth: Maybe<ClientAuth>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub certificate: Maybe<FilePath>,
    pub private_key: Maybe<FilePath>,
    pub ocsp: Maybe<FilePath>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTimeouts {
    pub header: Maybe<Deadline>,
    pub read: Maybe<Deadline>,
    pub write: Maybe<Deadline>,
    pub idle: Maybe<Deadline>,
    pub tunnel: Maybe<Deadline>,
}
