//! One line a request. Never a credential, never a query (which may hold one).

use std::time::Duration;

use log::info;

use super::log_output::ACCESS;

/// What is said of one request.
#[derive(Debug)]
pub struct AccessLine<'a> {
    /// `X-Request-ID`.
    pub request_id: &'a str,
    /// The method as sent.
    pub method: &'a str,
    /// `Host`, in canonical form.
    pub host: Option<&'a str>,
    /// The path, canonical where there is a canonical form.
    pub path: &'a str,
    /// The route's label.
    pub route: Option<&'a str>,
    /// The status answered; 499 when the client was gone before.
    pub status: u16,
    /// From the end of the header to the end of the answer.
    pub duration: Duration,
    /// The upstream's name.
    pub upstream: Option<&'a str>,
    /// Until the header of its answer.
    pub upstream_duration: Option<Duration>,
    /// Body bytes answered.
    pub bytes: u64,
    /// The client, as far as it can be believed.
    pub client_ip: Option<&'a str>,
    /// The token's public id.
    pub token_id: Option<&'a str>,
    /// The organization of the token.
    pub organization_id: Option<&'a str>,
    /// The plan of the token.
    pub plan: Option<&'a str>,
    /// The code of an answer of the gateway's own.
    pub code: Option<&'a str>,
    /// The cause of that answer, or why an answer ended early: a word of a fixed set.
    pub reason: Option<&'a str>,
    /// The text of the cause, where it says more than the reason; of a bounded length.
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
