//! The rules of an upstream, as a configuration gives them: values that can be compared, without any state.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderName;

use super::tls::TlsRules;

/// The rules of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamRules {
    /// The upstream's name.
    pub name: String,
    /// The servers of the upstream; at least one.
    pub endpoints: Vec<EndpointRules>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// An endpoint that is new or works again gets its share over this time; zero: at once.
    pub slow_start: Duration,
    /// How connections are made.
    pub connections: ConnectionRules,
    /// How many further attempts a request gets after the first has failed.
    pub retries: usize,
    /// How many percent of the requests may be retries.
    pub retry_budget: u32,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// When an endpoint gets no requests because it failed.
    pub breaker: BreakerRules,
    /// How often a name that has an address is looked up again.
    pub resolve_every: Duration,
    /// How the gateway checks the endpoints; `None`: not at all.
    pub health: Option<HealthRules>,
}

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRules {
    /// Where it is.
    pub url: EndpointUrl,
    /// Its share of the requests, relative to the other endpoints.
    pub weight: u32,
}

/// The URL of an endpoint: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUrl {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What is spoken.
    pub scheme: Scheme,
}

/// What is spoken with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP/1.1 without TLS.
    Http,
    /// HTTP with TLS.
    Https,
    /// HTTP/2 without TLS.
    H2c,
}

impl Scheme {
    /// The scheme as it is written, and its own port.
    fn written(self) -> (&'static str, u16) {
        match self {
            Self::Http => ("http", 80),
            Self::Https => ("https", 443),
            Self::H2c => ("h2c", 80),
        }
    }
}

/// `https://host`, or `https://host:port` where the port is not the scheme's own.
impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, scheme } = self;
        let (scheme, own_port) = scheme.written();
        write!(f, "{scheme}://{host}")?;
        if *port != own_port {
            write!(f, ":{port}")?;
        }
        Ok(())
    }
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// In turn.
    #[default]
    RoundRobin,
    /// The one with the fewest requests under way.
    LeastConnections,
    /// The one that a key of the request belongs to; in turn where the request has no such key.
    Hash(HashKey),
}

/// What the requests of one endpoint have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The token.
    Token,
    /// The organization of the token.
    Organization,
    /// The client's address; of an IPv6 address the first 64 bits.
    Ip,
    /// The value of a header field.
    Header(HeaderName),
}

/// How connections to the endpoints of an upstream are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionRules {
    /// Certificates.
    pub tls: TlsRules,
    /// Whether HTTP/2 is spoken over TLS.
    pub http2: Http2,
}

/// Whether HTTP/2 is spoken over TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http2 {
    /// Where the endpoint agrees (ALPN, RFC 7301).
    #[default]
    Auto,
    /// An endpoint that does not agree has failed.
    Always,
    /// Not at all.
    Never,
}

/// Deadlines towards an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To establish a connection.
    pub connect: Duration,
    /// Between two reads.
    pub read: Duration,
    /// For one write.
    pub write: Duration,
    /// How long an unused connection is kept.
    pub idle: Duration,
    /// Deadlines of more than one step.
    pub deadlines: Deadlines,
}

/// Deadlines of more than one step; `None`: the deadlines of the steps are all there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadlines {
    /// Of one attempt: from the end of the request to the header of its answer.
    pub first_byte: Option<Duration>,
    /// Of all attempts: from the header of the request to the end of its answer.
    pub total: Option<Duration>,
}

impl Deadlines {
    /// The earlier of these and of `other`.
    pub fn narrowed(self, other: Self) -> Self {
        let earlier = |one: Option<Duration>, other: Option<Duration>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self {
            first_byte: earlier(self.first_byte, other.first_byte),
            total: earlier(self.total, other.total),
        }
    }
}

/// When the breaker of an endpoint opens, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerRules {
    /// Failures in a row that open it; `None`: it never opens.
    pub failures: Option<u32>,
    /// How long the endpoint gets no requests.
    pub open_for: Duration,
    /// Answers that are failures.
    pub statuses: Statuses,
}

/// How the gateway checks endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthRules {
    /// What a check does.
    pub check: Check,
    /// How often an endpoint is checked.
    pub interval: Duration,
    /// The deadline of a check, from its connection to its end.
    pub timeout: Duration,
    /// Failed checks in a row that make an endpoint unhealthy.
    pub unhealthy_after: u32,
    /// Passed checks in a row that make it healthy again.
    pub healthy_after: u32,
}

/// What a check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It makes a connection, with TLS where requests use it.
    Connect,
    /// It asks for a path.
    Http {
        /// The path, with or without a query.
        path: String,
        /// The statuses that pass.
        statuses: Statuses,
    },
    /// It asks by gRPC's health protocol.
    Grpc {
        /// The name of the service; empty for the whole server.
        service: String,
    },
}

/// A set of statuses, as ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statuses(pub Vec<RangeInclusive<u16>>);

impl Statuses {
    /// Whether the set has `status`.
    pub fn contain(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_as_urls() {
        for (host, port, scheme, text) in [
            ("127.0.0.1", 3001, Scheme::Http, "http://127.0.0.1:3001"),
            ("a", 80, Scheme::Http, "http://a"),
            ("a", 443, Scheme::Http, "http://a:443"),
            ("a", 443, Scheme::Https, "https://a"),
            ("[::1]", 8443, Scheme::Https, "https://[::1]:8443"),
            ("a", 80, Scheme::H2c, "h2c://a"),
        ] {
            assert_eq!(EndpointUrl { host: host.into(), port, scheme }.to_string(), text);
        }
    }
}
