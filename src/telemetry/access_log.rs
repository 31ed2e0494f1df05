//! One log line for each request. The line holds no credential, and no query, which may contain a credential.

use std::time::Duration;

use log::info;

use super::log_output::ACCESS;

/// The line of one request.
#[derive(Debug)]
pub struct AccessLine<'a> {
    /// `X-Request-ID`.
    pub request_id: &'a str,
    /// The method as sent.
    pub method: &'a str,
    /// `Host`, in canonical form.
    pub host: Option<&'a str>,
    /// The path, in its canonical form where it has one.
    pub path: &'a str,
    /// The route's label.
    pub route: Option<&'a str>,
    /// The status of the answer; 499 when the client closed the connection before the answer.
    pub status: u16,
    /// From the end of the header to the end of the answer.
    pub duration: Duration,
    /// The upstream's name.
    pub upstream: Option<&'a str>,
    /// From choosing an endpoint to the header of its answer.
    pub upstream_duration: Option<Duration>,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// The client's address, from `X-Forwarded-For` where the peer is a trusted proxy.
    pub client_ip: Option<&'a str>,
    /// The token's public id.
    pub token_id: Option<&'a str>,
    /// The organization of the token.
    pub organization_id: Option<&'a str>,
    /// The plan of the token.
    pub plan: Option<&'a str>,
    /// The code of an answer that the gateway made itself.
    pub code: Option<&'a str>,
    /// The cause of that answer, or of an answer's early end: a word of a fixed set.
    pub reason: Option<&'a str>,
    /// The text of the cause, where it adds to the reason; its length is bounded.
    pub error: Option<&'a str>,
}

impl AccessLine<'_> {
    /// Writes the line.
    pub fn write(&self) {
        info!(
            target: ACCESS,
            request_id = self.request_id,
            method = self.method,
            host = self.host,
            path = self.path,
            route = self.route,
            status = self.status,
            duration_ms = millis(self.duration),
            upstream = self.upstream,
            upstream_ms = self.upstream_duration.map(millis),
            bytes = self.bytes,
            client_ip = self.client_ip,
            token_id = self.token_id,
            organization_id = self.organization_id,
            plan = self.plan,
            code = self.code,
            reason = self.reason,
            error = self.error;
            "request"
        );
    }
}

/// Milliseconds with three decimals.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
