//! Tollgate: an API gateway on Pingora that checks every request's token and counts it exactly.
//!
//! This page is the map. What users see is in the README and in `docs/`; every key is in `docs/configuration.md`.
//!
//! # The rooms, in reading order
//!
//! From what knows nothing to what knows everything. A room imports only rooms above it in this list.
//!
//! | room | what it is for | where to begin |
//! | --- | --- | --- |
//! | [`base`] | time as an argument; values that cannot be printed; what one client is among addresses; classes of bytes; files up to a bound; short text kept in place | [`base::clock::Clock`] |
//! | [`quota`] | what a limit is, how it counts, and by what: pure | [`quota::Limit`] |
//! | [`route`] | one canonical path and host, a table of prefixes, a token's permitted paths, header rules | [`route::path`] |
//! | [`record`] | the one schema of a token record: its fields, read and checked from every shape | [`record::field`] |
//! | [`telemetry`] | metrics, the log, the access log; any room may use it | [`telemetry::metrics`] |
//! | [`store`] | token records, quota, and the gateways that share them, in memory or in Redis, as plain data | [`store::open`] |
//! | [`auth`] | credential, signature, principal; records as they are cached | [`auth::Authenticator`] |
//! | [`limit`] | decisions about limits, and the requests this process may still admit | [`limit::ledger`] |
//! | [`upstream`] | endpoints, whose turn it is, names to addresses | [`upstream::pool`] |
//! | [`config`] | file and environment to valid values of the rooms above, or to every fault with its location | [`config::Config`] |
//! | [`policy`] | one immutable snapshot of a configuration, ready for requests; a file a part | [`policy::Policy`] |
//! | [`admission`] | the order of decisions, and the permit | [`admission::Admission::admit`] |
//! | [`listener`] | client connections: sockets, bounds, timers, HTTP/1 bytes read strictly into requests | [`listener::accept`] |
//! | [`proxy`] | Pingora's hooks, errors to answers | [`proxy::Proxy`] |
//! | [`gateway`] | assembly, listeners, reload, shutdown, work in the background | [`gateway::Gateway`] |
//! | [`tokens`] | the life of a token: made, found, listed, imported, rotated, revoked | [`tokens::Tokens`] |
//! | [`cli`] | one file a command | [`cli::main`] |
//!
//! Two lines that are easy to miss. The arithmetic of windows is in [`quota`], *below* the stores, because the
//! memory store computes it and the script beside the Redis store must compute the same; the [`limit::ledger`] is
//! *above* them, because it decides with whatever a store hands out. And a store's breaker and deadlines live with
//! the Redis client, so the ledger and the record cache see one kind of failure: [`store::StoreError`].
//!
//! # One request
//!
//! ```text
//! listener::accept      counts the connection
//!   http1               one deadline for the whole head, checked byte by byte     400 408 431
//!     rules             then Pingora gets a stream that holds this one request
//! proxy::Proxy
//!   new_ctx             the policy of the moment, pinned until the log line
//!   request_filter      CanonicalPath::parse                                      400
//!                       /health, /ready: answered here                            200 503
//!     admission           RouteTable::find                                        404 405
//!                         Authenticator::authenticate (no await when cached)      400 401 429 503
//!                         Principal::may                                          403
//!                         how many are in flight                                  429
//!                         Ledger::admit for each subject: in memory, or a flight  429 503
//!                         the announced body size                                 413
//!                       => Permit
//!   upstream_peer       proxy::forwarding: the permit's route, the next endpoint  503
//!   upstream_request_filter   canonical path, identity, forwarding, header rules
//!   request_body_filter       bytes counted as they pass                          413
//!     fail_to_connect, error_while_proxy   another endpoint, when that is safe
//!   response_filter     rate fields, request id, header rules
//!   fail_to_proxy       a Rejection to problem+json                               502 504
//!   logging             proxy::outcome, made once: metrics and one line
//! ```
//!
//! # What outlives what
//!
//! A reload makes a new [`policy::Policy`] and swaps it in one step; requests under way keep theirs. Counters, cached
//! records, connections and the ledger live beside the policy, in [`gateway::Gateway::run`], and never notice.
//! A new policy keeps the parts of the old one that have not changed: verified tokens, resolved upstreams. Keys that
//! need a restart are those of [`config::StartupConfig`].
//!
//! Three kinds of runtimes: Pingora's workers serve requests and carry the connection to Redis (a single worker on a
//! runtime without work stealing), one thread serves metrics, one thread does [`gateway::background`]. A task there
//! that ends or dies is started again.
//!
//! # Invariants
//!
//! Most are about what is absent.
//!
//! - **No upstream without a permit.** A request is forwarded by [`proxy::forwarding::Forwarding`], which is made of an
//!   [`admission::Permit`]; only [`admission::Admission::admit`] makes one. A forgotten check is no open door.
//! - **No counting in a hook that repeats.** Quota is taken in `request_filter`. Pingora's retry loop begins after it.
//! - **No second reading of a request.** [`listener::http1::head`], [`listener::http1::chunks`] and
//!   [`listener::rules`] refuse whatever two servers might frame or route differently, before Pingora sees it;
//!   [`route::path`] and [`route::host`] leave one spelling, which is matched, checked, sent and logged.
//! - **No credential that was not verified** reaches an upstream by [`auth::sources`], and no field of
//!   [`route::fields`] that a client may not send.
//! - **No status code outside [`admission::Rejection`].** It maps the errors of every room to an answer and to a reason;
//!   [`proxy::problem`] writes the answer, and the log alone has the reason. The exceptions answer for themselves:
//!   `/health`, `/ready`, the demo's echo.
//! - **One account of what became of a request**, [`proxy::outcome::RequestOutcome`]. Whatever tells of requests reads it.
//! - **No store failure that looks like a client's mistake.** A [`store::StoreError`] becomes 503 or the failure policy,
//!   never 401, 403 or 429.
//! - **No Pingora in the rooms that decide.** Only [`gateway`], [`listener`], [`proxy`] and [`upstream`] name it, and [`telemetry`] its
//!   Prometheus registry. Only `store::redis` names the Redis client. Only [`config`] reads YAML.
//! - **No policy below [`policy`].** It knows the rooms it compiles for; they know neither it nor [`config`], so each can be
//!   tested with values.
//! - **No waiting without a deadline, no growth without a bound** on the way of a request; and no `unwrap`, `expect` or
//!   `panic!` outside tests, which clippy holds; registering the metrics is the one exception.
//! - **No secret that prints.** [`base::secret::Secret`] and [`auth::credential::Credential`] say `***`; an
//!   [`config::Environment`] cannot be printed at all. The access log has no query, for queries hold credentials.
//! - **No label of a metric that a client chooses.** Routes and upstreams come from the file, methods from a list.
//! - **No state in statics**, the metrics aside.

pub mod admission;
pub mod auth;
pub mod base;
pub mod cli;
pub mod config;
pub mod gateway;
pub mod limit;
pub mod listener;
pub mod policy;
pub mod proxy;
pub mod quota;
pub mod record;
pub mod route;
pub mod store;
pub mod telemetry;
pub mod tokens;
pub mod upstream;
