//! Tollgate: an API gateway on Pingora that checks every request's token and counts it exactly.
//!
//! This page is the map. What users see is in the README and in `docs/`; every key is in `docs/configuration.md`.
//! Beside the rooms: `src/main.rs` calls [`cli::main`], `tests/` has the tests of the program, `benches/` the
//! measurements, `conf/` configurations to start from.
//!
//! # The rooms, in reading order
//!
//! The first room knows nothing of the product, the last one knows everything. A room imports only rooms that stand
//! before it in this list; `tests/architecture.rs` reads this table and holds the code to it.
//!
//! | room | what it is for | where to begin |
//! | --- | --- | --- |
//! | [`base`] | time as an argument, secrets that cannot be printed, client networks, bytes, files, hexadecimal digits, short texts, weighted hashing, tasks | [`base::clock::Clock`] |
//! | [`quota`] | what a limit is, how it counts, and by what: pure arithmetic | [`quota::Limit`] |
//! | [`route`] | hosts, the canonical path, reserved paths, the table of prefixes, permitted paths, names of header fields, header rules, shares and copies, other origins, codings | [`route::path`] |
//! | [`record`] | the one schema of a token record: its fields, read and checked in every shape | [`record::field`] |
//! | [`telemetry`] | metrics, the log, the access log; every room after it in the list may use it | [`telemetry::metrics`] |
//! | [`tls`] | TLS towards clients: certificates, chosen by name, read again when their files change | [`tls::server::TlsServer`] |
//! | [`store`] | the traits [`store::RecordStore`], [`store::QuotaStore`], [`store::Membership`], and two kinds of store: memory and Redis | [`fn@store::open`] |
//! | [`auth`] | from a credential to a principal; caches records, fetches issuers' keys, guards against guesses | [`auth::Authenticator`] |
//! | [`limit`] | the ledger: decisions about limits, leases, settlement | [`limit::ledger`] |
//! | [`upstream`] | endpoints, their addresses and breakers, the choice among them, and how each attempt ended | [`upstream::pool`] |
//! | [`config`] | the file and the environment become values of the rooms before it, or a list of faults with their locations | [`config::Config`] |
//! | [`policy`] | one immutable snapshot of a configuration; a file a part | [`policy::Policy`] |
//! | [`admission`] | the order of decisions, the permit, and every reason for a refusal | [`admission::Admission::admit`] |
//! | [`listener`] | client connections: sockets, bounds, timers, and the strict reading of HTTP/1 and HTTP/2 | [`listener::accept`] |
//! | [`proxy`] | Pingora's hooks, header fields, answers, and the outcome of a request | [`proxy::Proxy`] |
//! | [`gateway`] | assembly, reload, shutdown, tasks in the background, and an upgrade: sockets are handed to a successor | [`gateway::Gateway`] |
//! | [`tokens`] | the life of a token: made, found, listed, imported, rotated, revoked | [`tokens::Tokens`] |
//! | [`cli`] | arguments and printing; a file for each command, a directory for the `token` commands | [`cli::main`] |
//!
//! Three choices that are easy to miss:
//!
//! - The arithmetic of windows is in [`quota`], which is before [`store`] in the list. The memory store runs it, and
//!   the scripts of the Redis store must compute the same.
//! - The ledger is in [`limit`], which is after [`store`] in the list. It decides with the quota that any store hands
//!   out.
//! - Breakers and deadlines live inside a store. The ledger and the caches see one kind of failure,
//!   [`store::StoreError`].
//!
//! # Questions and their places
//!
//! **Where does another store go, such as one in SQL?** In a directory beside `store/redis`. It implements the traits
//! that [`store::Stores`] holds: [`store::RecordStore`] (four traits together), [`store::QuotaStore`] and
//! [`store::Membership`]. [`fn@store::open`] chooses the store. Three places name Redis today: the section `redis` of
//! the configuration (`config/file/mod.rs`), [`store::StoreUrl`] (`store/open.rs`), and `--redis` of the commands
//! (`cli/mod.rs`, `cli/token/session.rs`). The tests of every store: `tests/suites` for records and membership,
//! `tests/store.rs` and `tests/limits.rs` for quota.
//!
//! **Where does a new field of a record go?** One entry of [`record::field::FIELDS`], and a member of
//! [`record::Grant`].
//!
//! **Why was this request answered with 401?** The access log says `code`, `reason` and `error`. `missing_token` has
//! neither reason nor error. A 401 without `code` is the upstream's own answer. [`admission::Rejection`], in
//! `src/admission/reject.rs`, maps the errors of each room to the three.
//!
//! **What happens to a lease when Redis is lost?** Requests spend it until it is used up, its window ends or its life
//! is over ([`limit::account`], [`limit::lease`]). What is left then is sent back once (`limit/exchange.rs`). If
//! Redis does not answer, these units stay counted there until their window ends, and no request can spend them.
//! Without a lease, [`limit::ledger::FailurePolicy`] decides. What `local` admits is kept in `limit/unreported.rs`,
//! and the next flight of the subject (`limit/flight.rs`) reports it before it takes units.
//!
//! **Which keys need a restart?** The members of [`config::StartupConfig`]; all others are members of
//! [`config::LiveConfig`].
//!
//! **Is a failed request sent again?** `proxy/failure.rs` decides: how the attempt has ended, who is at fault, and whether
//! another attempt is safe. The upstream has the budget ([`upstream::budget`]).
//!
//! **Where does a connection become TLS?** In [`listener::accept`], before the reader of its protocol is chosen:
//! `listener/handshake.rs` shakes hands with the configuration of [`tls::server`]. [`listener::rules`] judges a parsed head
//! of any protocol, and [`listener::request`] is what the hooks may tell a connection of any protocol.
//!
//! # One request
//!
//! ```text
//! listener::accept      counts the connection
//!   handshake           TLS, where the listener speaks it, with one deadline
//!   http1               one deadline for the whole head, checked byte by byte     400 408 431
//!   http2               h2's frames under bounds; each request is a task          400 431
//!     rules             then Pingora gets a stream that holds this one request
//! proxy::Proxy
//!   new_ctx             the policy of the moment, pinned until the log line
//!   request_filter      CanonicalPath::parse                                      400
//!                       /health, /ready: answered here                            200 503
//!     admission           preflight: answered here, where the route has `cors`    204 403
//!                         RouteTable::find                                        404 405
//!                         the networks of the route                               403
//!                         the one credential that was sent                        400 401
//!                         Authenticator::authenticate (no await when cached)      401 503
//!                           auth::guard: not checked after too many failures      429
//!                         count_failure: an invalid token, one too many           429
//!                         Principal::may                                          403
//!                         how many are in flight                                  429
//!                         Ledger::admit for each subject: in memory, or a flight  429 503
//!                         the announced body size                                 413
//!                       => Permit, with the side of a split
//!   upstream_peer       proxy::forwarding: the permit's route, the next endpoint  503
//!   upstream_request_filter   canonical path, identity, forwarding, header rules; a copy begins (proxy::mirror)
//!   request_body_filter       bytes counted as they pass                          413
//!     fail_to_connect, error_while_proxy   another endpoint, when that is safe, in time, and within the budget
//!   response_filter     rate fields, request id, fields of the route, header rules
//!   response_body_filter      proxy::compression, where the route has `compress`
//!   fail_to_proxy       a Rejection to problem+json                               502 504
//!   logging             proxy::outcome, made once: metrics and one line
//! ```
//!
//! # What outlives what
//!
//! A reload makes a new [`policy::Policy`] and swaps it in one step. Requests that have begun keep the old one. Counters,
//! cached records, connections and the ledger live beside the policy, in [`gateway::Gateway::run`]. A new policy keeps
//! the parts of the old one that have not changed: verified tokens, sets of keys, and each endpoint with its addresses and
//! its breaker, also when other rules of its upstream change.
//!
//! There are three kinds of runtimes. Pingora's workers serve requests; each has one thread and upstream connections of
//! its own ([`listener::worker`]), and the first carries the connection to Redis. One thread serves metrics. One thread runs [`gateway::background`], which
//! starts a task again when the task ends or dies.
//!
//! # Invariants
//!
//! Brackets name what holds each: a type, a lint (`clippy.toml`, `Cargo.toml`) or a test.
//!
//! - **No upstream without a permit.** [`proxy::forwarding::Forwarding`] is made of an [`admission::Permit`], and only
//!   [`admission::Admission::admit`] makes a permit. A forgotten check is not an open door. (type)
//! - **No counting in a hook that repeats.** Quota is taken in `request_filter`, before Pingora's retry loop.
//!   (`tests/faults.rs`)
//! - **One reading of a request.** [`listener::http1::head`], [`listener::http1::chunks`], `http2/head.rs` and [`listener::rules`] refuse a
//!   message that two servers could read differently, before Pingora sees it. [`route::path`] and [`route::host`] leave
//!   one spelling, which is matched, checked, sent and logged. (`tests/requests.rs`, `tests/fuzz.rs`)
//! - **No credential that was not verified**, and no field that a client may not send, reaches an upstream:
//!   [`auth::sources`] and [`route::fields`] are the lists. (`tests/readings.rs`)
//! - **One place for statuses.** [`admission::Rejection`] maps the errors of every room to an answer and to a reason;
//!   [`proxy::problem`] writes the answer, and only the log has the reason. `/health`, `/ready` and the demo's echo answer
//!   for themselves. (`tests/reasons.rs`, `tests/docs.rs`)
//! - **One account of a request**, [`proxy::outcome::RequestOutcome`]. Metrics and the access log are readers of it. (type)
//! - **A store failure never looks like a client's mistake.** A [`store::StoreError`] becomes 503 or the failure policy,
//!   never 401, 403 or 429. (type, `tests/faults.rs`)
//! - **Libraries stay in their rooms.** Only [`gateway`], [`listener`], [`proxy`] and [`upstream`] name Pingora's sessions
//!   and peers, only `store::redis` the Redis client, only [`config`] YAML, only [`cli`] clap. (`tests/architecture.rs`)
//! - **No policy before [`policy`].** The rooms that it compiles for are before [`config`] in the list. They know
//!   neither [`config`] nor [`policy`], so each can be tested with values. (`tests/architecture.rs`)
//! - **Time is an argument.** The wall clock is read in [`base::clock`] alone, apart from places that say why. (lint)
//! - **No wait without a deadline and no growth without a bound** on the way of a request, no blocked thread, and no panic:
//!   `unwrap`, `expect`, `panic!`, sleeping and blocking calls are refused outside tests, apart from places that say
//!   why. (lint)
//! - **No secret that prints.** [`base::secret::Secret`] and [`auth::credential::Credential`] print `***`;
//!   [`config::Environment`] cannot be printed. The access log has no query, because queries hold credentials. (type)
//! - **No label of a metric that a client chooses.** Routes and upstreams come from the file, methods from a list.
//! - **No state in statics**, apart from the metrics and from the sets of permitted paths that equal tokens share
//!   ([`route::pattern`]), which change no decision.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

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
pub mod tls;
pub mod tokens;
pub mod upstream;
