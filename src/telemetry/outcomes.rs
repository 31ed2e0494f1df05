//! Counters by outcome, where all outcomes are known: a counter is found without its label. It must not know names of metrics.

use pingora_prometheus::prometheus::{IntCounter, IntCounterVec};

/// Look-ups in the cache of token records, by outcome. The handles are kept, because every request counts one.
pub struct TokenCache {
    /// The cache had the record.
    pub hit: IntCounter,
    /// The store was asked.
    pub miss: IntCounter,
    /// The cache had a record that was too old, and the store did not answer.
    pub stale: IntCounter,
}

impl TokenCache {
    pub(super) fn new(lookups: &IntCounterVec) -> Self {
        let handle = |outcome| lookups.with_label_values(&[outcome]);
        Self { hit: handle("hit"), miss: handle("miss"), stale: handle("stale") }
    }
}

/// Client connections refused, by bound.
pub struct ConnectionsRefused {
    /// `max_connections` were open.
    pub all: IntCounter,
    /// The client had `max_connections_per_client` open.
    pub per_client: IntCounter,
}

impl ConnectionsRefused {
    pub(super) fn new(refused: &IntCounterVec) -> Self {
        let handle = |bound| refused.with_label_values(&[bound]);
        Self { all: handle("max_connections"), per_client: handle("max_connections_per_client") }
    }
}

/// Headers of the PROXY protocol, by outcome.
pub struct ProxyHeaders {
    /// The header was read.
    pub ok: IntCounter,
    /// The peer is no trusted proxy.
    pub untrusted: IntCounter,
    /// The bytes are no header.
    pub malformed: IntCounter,
    /// The peer left before the end of the header.
    pub closed: IntCounter,
    /// It took too long.
    pub timeout: IntCounter,
}

impl ProxyHeaders {
    pub(super) fn new(headers: &IntCounterVec) -> Self {
        let handle = |outcome| headers.with_label_values(&[outcome]);
        Self {
            ok: handle("ok"),
            untrusted: handle("untrusted"),
            malformed: handle("malformed"),
            closed: handle("closed"),
            timeout: handle("timeout"),
        }
    }
}

/// TLS handshakes with clients, by outcome.
pub struct TlsHandshakes {
    /// The connection is encrypted.
    pub ok: IntCounter,
    /// The client offered nothing that fits, or its bytes were not TLS.
    pub failed: IntCounter,
    /// The client showed no certificate, or one that is not vouched for.
    pub certificate: IntCounter,
    /// The client spoke HTTP without TLS.
    pub plain: IntCounter,
    /// The client left before the end.
    pub closed: IntCounter,
    /// It took too long.
    pub timeout: IntCounter,
}

impl TlsHandshakes {
    pub(super) fn new(handshakes: &IntCounterVec) -> Self {
        let handle = |outcome| handshakes.with_label_values(&[outcome]);
        Self {
            ok: handle("ok"),
            failed: handle("failed"),
            certificate: handle("certificate"),
            plain: handle("plain"),
            closed: handle("closed"),
            timeout: handle("timeout"),
        }
    }
}
