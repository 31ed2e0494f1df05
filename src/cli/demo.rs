//! `tollgate demo`: a gateway to try, with everything it needs in one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::run::{catch_hangup, failure, start_log};
use super::token::Connection;
use super::{DemoArguments, Failure};
use crate::base::clock::{Clock as _, SystemClock};
use crate::config::{self, Config, Environment};
use crate::gateway::Gateway;
use crate::listener::sockets::BoundSocket;
use crate::store::NewRecord;
use crate::tokens::{Signer, SignerError};

/// Requests a minute that the demo's token may make.
const LIMIT: u64 = 20;

/// How long the demo's token lives.
const LIFE: Duration = Duration::from_secs(24 * 3_600);

/// Runs the demo until Ctrl-C.
///
/// # Errors
/// [`Failure::Unavailable`] when the port is taken or Redis does not answer.
pub fn run(arguments: &DemoArguments) -> Result<(), Failure> {
    let pending = catch_hangup()?;
    let echo = BoundSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .map_err(|error| Failure::Unavailable(error.to_string()))?;
    let source = Source::new(arguments, echo.address())?;
    let config = source.load()?;
    let _log = start_log(&config)?;
    let now = SystemClock::default().now();
    let expires = now + LIFE;
    if let Some(redis) = &config.startup.redis {
        let record =
            NewRecord { id: "demo".into(), fields: record_fields(), expires_at: Some(expires) };
        Connection::open(&redis.url, &redis.prefix)?.put(&record)?;
    }
    let token = Signer::configured(&config.live.auth.jwt.issuers)
        .ok_or(SignerError::NoKey)
        .and_then(|signer| signer.sign("demo", &serde_json::Map::new(), now, expires))
        .map_err(|error| Failure::Internal(error.to_string()))?;
    let gateway = Gateway::prepare(config, false).map_err(|error| match error {
        crate::gateway::StartError::Bind(error) => Failure::Unavailable(format!(
            "{error}; choose another port with --port N, or --port 0 for any"
        )),
        other => failure(other),
    })?;
    let address = gateway.address().ok_or_else(|| Failure::Internal("no listener".into()))?;
    super::say(&welcome(address, token.expose(), arguments.redis.is_some()))?;
    let load = Arc::new(move || source.load().map_err(|failure| failure.to_string()));
    gateway.with_echo(echo).run(load, pending).map_err(failure)
}

/// The demo's configuration as text, with the variables it refers to.
struct Source {
    text: String,
    environment: Environment,
}

impl Source {
    fn new(arguments: &DemoArguments, echo: SocketAddr) -> Result<Self, Failure> {
        let secret = super::secret::generate()?;
        let port = arguments.port;
        let record = format!(
            r#"{{ api_key: demo, limits: [ {LIMIT}/minute ], allowed_routes: [ "/api/*" ] }}"#
        );
        let store = match &arguments.redis {
            Some(_) => "redis: { url: \"${DEMO_REDIS}\", timeout: 250ms }".to_owned(),
            None => String::new(),
        };
        let tokens = if arguments.redis.is_some() { String::new() } else { record };
        let text = format!(
            "listeners: [ {{ address: 127.0.0.1:{port} }} ]
metrics: {{ address: none }}
server: {{ threads: 1, grace_period_seconds: 0 }}
log: {{ level: info, format: console }}
{store}
auth:
  jwt: {{ keys: [ {{ algorithm: HS256, secret: \"${{DEMO_SECRET}}\" }} ] }}
  tokens: [ {tokens} ]
upstreams: {{ echo: {{ endpoints: [ \"http://{echo}\" ] }} }}
routes:
  - {{ prefix: /api, upstream: echo }}
  - {{ prefix: /admin, upstream: echo }}
"
        );
        let mut variables = vec![("DEMO_SECRET".to_owned(), secret.expose().to_owned())];
        if let Some(redis) = &arguments.redis {
            variables.push(("DEMO_REDIS".to_owned(), redis.expose().to_owned()));
        }
        Ok(Self { text, environment: variables.into_iter().collect() })
    }

    fn load(&self) -> Result<Config, Failure> {
        config::parse(&self.text, "the demo's configuration", &self.environment)
            .map_err(|faults| Failure::Configuration(faults.to_string()))
    }
}

fn record_fields() -> Vec<(String, String)> {
    [
        ("api_key", "demo".to_owned()),
        ("limits", format!(r#"["{LIMIT}/minute"]"#)),
        ("allowed_routes", r#"["/api/*"]"#.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn welcome(address: SocketAddr, token: &str, redis: bool) -> String {
    let store = if redis { "Redis" } else { "the embedded store" };
    // More requests than two windows admit: the loop meets the limit even if a minute ends meanwhile.
    let more = 2 * LIMIT + 5;
    format!(
        r#"Tollgate demo on http://{address}, with {store} and an upstream that says back what it gets.
The token may use /api/*, {LIMIT} times a minute. Paste into another terminal:

  TOKEN={token}

  # admitted: 200, and what the upstream was sent
  curl -i -H "Authorization: Bearer $TOKEN" http://{address}/api/hello

  # a route the token does not permit: 403
  curl -i -H "Authorization: Bearer $TOKEN" http://{address}/admin

  # no token: 401
  curl -i http://{address}/api/hello

  # more than the limit: 200 until it is used up, then 429
  for i in $(seq {more}); do curl -s -o /dev/null -w '%{{http_code}} ' -H "Authorization: Bearer $TOKEN" http://{address}/api/hello; done; echo

Ctrl-C ends it. Each request:
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demos_configuration_is_valid_on_either_store() {
        for redis in [None, Some(crate::base::secret::Secret::new("redis://127.0.0.1"))] {
            let arguments = DemoArguments { redis: redis.clone(), port: 0 };
            let source = Source::new(&arguments, "127.0.0.1:9".parse().unwrap()).unwrap();
            let config = source.load().unwrap();
            assert_eq!(config.startup.redis.is_some(), redis.is_some());
            assert_eq!(config.live.auth.tokens.len(), usize::from(redis.is_none()));
            Gateway::prepare(config, false).unwrap();
        }
    }

    #[test]
    fn the_record_is_one_the_gateway_reads() {
        use crate::record::{StoredRecord, TokenRecord};
        let stored = StoredRecord::Fields(record_fields().into_iter().collect());
        let record = TokenRecord::read(&"demo".into(), &stored).unwrap();
        assert!(record.grant.allowed_routes.unwrap().permit("/api/hello"));
    }
}
