//! The variants that are compared, each with its proxy, its configuration and its load. A new case is a line in `VARIANTS`.
//! It must not know how figures are printed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;

use crate::Failure;
use crate::load::{self, Outcome, TokenFile};
use crate::processes::{Placement, Process, Side, free_address, is_installed};
use crate::redis::{self, Redis};
use crate::report::Measurement;

/// When the records of all tokens expire.
const EXPIRES_AT: &str = "2099-01-01T00:00:00Z";
/// The routes of all tokens, as their records write them.
const ALLOWED_ROUTES: &str = r#"["/api/*"]"#;

const SECRET: &str = "signs the tokens of the load bench and nothing else, 64 bytes ok";
const MANY_TOKENS: u64 = 10_000;
const ALL_TOKENS: u64 = 100_000;
const LONGEST_WARM_UP_SECONDS: u64 = 64;
/// How often every token has been used before anything is measured: the first uses verify it, fetch its record and find
/// out how fast it is.
const WARM_UP_USES: u64 = 10;
/// So many requests are enough: every token has been used.
const ENOUGH_WARM_UP: u64 = 150_000;

/// Requests a minute no run reaches.
const NEVER_REACHED: u64 = 1_000_000_000;
/// A flood's limit is the highest rate of this run so far divided by this ...
const FLOOD_FACTOR: f64 = 10.0;
/// ... or, before anything else was measured, this many requests a second.
const LEAST_FLOODED: u64 = 300;

/// A case that is measured.
pub struct Variant {
    /// The name on the command line and in reports.
    pub name: &'static str,
    /// A description of a few words.
    pub what: &'static str,
    proxy: Proxy,
    tokens: u64,
    /// Whether requests come about ten times as fast as the limit admits.
    flood: bool,
}

enum Proxy {
    Bare,
    Tollgate(Store),
    Nginx,
    Haproxy,
}

enum Store {
    /// With this `limits.sync`.
    Redis(&'static str),
    /// The same, with the access log.
    Logged(&'static str),
    Embedded,
}

/// All of them, in the order they are measured.
pub const VARIANTS: [Variant; 10] = [
    Variant {
        name: "bare",
        what: "Pingora, no decisions",
        proxy: Proxy::Bare,
        tokens: 1,
        flood: false,
    },
    Variant {
        name: "leased-hot",
        what: "Tollgate on Redis, leased, one token",
        proxy: Proxy::Tollgate(Store::Redis("leased")),
        tokens: 1,
        flood: false,
    },
    Variant {
        name: "leased-log",
        what: "the same, with the access log",
        proxy: Proxy::Tollgate(Store::Logged("leased")),
        tokens: 1,
        flood: false,
    },
    Variant {
        name: "leased-100k",
        what: "Tollgate on Redis, leased, 100,000 tokens",
        proxy: Proxy::Tollgate(Store::Redis("leased")),
        tokens: ALL_TOKENS,
        flood: false,
    },
    Variant {
        name: "exact-hot",
        what: "Tollgate on Redis, exact, one token",
        proxy: Proxy::Tollgate(Store::Redis("exact")),
        tokens: 1,
        flood: false,
    },
    Variant {
        name: "exact-10k",
        what: "Tollgate on Redis, exact, 10,000 tokens",
        proxy: Proxy::Tollgate(Store::Redis("exact")),
        tokens: MANY_TOKENS,
        flood: false,
    },
    Variant {
        name: "embedded-hot",
        what: "Tollgate without a store, one token",
        proxy: Proxy::Tollgate(Store::Embedded),
        tokens: 1,
        flood: false,
    },
    Variant {
        name: "flood",
        what: "Tollgate on Redis, one token ten times over its limit",
        proxy: Proxy::Tollgate(Store::Redis("leased")),
        tokens: 1,
        flood: true,
    },
    Variant {
        name: "haproxy",
        what: "HAProxy with jwt_verify and a table of its own, one token",
        proxy: Proxy::Haproxy,
        tokens: 1,
        flood: false,
    },
    Variant {
        name: "nginx-lua",
        what: "nginx + Lua on Redis, one token",
        proxy: Proxy::Nginx,
        tokens: 1,
        flood: false,
    },
];

const NGINX_MODULES: &str = "/usr/lib/nginx/modules";
const NGINX_SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load/nginx");

/// Why this machine cannot measure it; `None` where it can.
pub fn reason_to_skip(variant: &Variant) -> Option<&'static str> {
    let lua = Path::new(NGINX_MODULES).join("ngx_http_lua_module.so");
    match variant.proxy {
        Proxy::Nginx if !(is_installed("nginx") && lua.is_file()) => {
            Some("it needs: sudo apt-get install -y nginx libnginx-mod-http-lua")
        }
        Proxy::Haproxy if !is_installed("haproxy") => {
            Some("it needs: sudo apt-get install -y haproxy")
        }
        _ => None,
    }
}

/// The parts that all variants share: an origin, a Redis with all records, and tokens.
pub struct Bench {
    placement: Placement,
    threads: usize,
    gateway: PathBuf,
    origin_address: SocketAddr,
    redis: Redis,
    one_token: TokenFile,
    many_tokens: TokenFile,
    all_tokens: TokenFile,
    /// The highest rate of this run so far, in requests a second.
    fastest: f64,
    _origin: Process,
    // Last, because fields are dropped in order: the processes write into it.
    directory: TempDir,
}

impl Bench {
    /// Starts it, for proxies with so many threads.
    ///
    /// # Errors
    /// When a process does not start.
    pub fn start(threads: usize, gateway: PathBuf) -> Result<Self, Failure> {
        let placement = Placement::of_this_machine(threads)?;
        let directory = tempfile::tempdir()?;
        let mut redis = Redis::start(&placement, directory.path())?;
        let api_keys: Vec<_> = (0..ALL_TOKENS).map(api_key).collect();
        let fields = format!("expires_at {EXPIRES_AT} allowed_routes '{ALLOWED_ROUTES}'");
        redis.store_records(api_keys.iter().map(String::as_str), &fields)?;
        let tokens = api_keys.iter().map(|api_key| sign(api_key)).collect::<Result<Vec<_>, _>>()?;

        let origin_address = free_address()?;
        let mut command = placement.command(Side::Rest, std::env::current_exe()?);
        command.args(["origin", &origin_address.to_string()]);
        let mut origin = Process::start(command, directory.path().join("origin.log"))?;
        origin
            .wait_until_listening(origin_address)
            .map_err(|failure| format!("origin: {failure}"))?;

        Ok(Self {
            one_token: TokenFile::write(&directory.path().join("one"), &tokens[..1])?,
            many_tokens: TokenFile::write(
                &directory.path().join("many"),
                &tokens[..MANY_TOKENS as usize],
            )?,
            all_tokens: TokenFile::write(&directory.path().join("all"), &tokens)?,
            placement,
            threads,
            gateway,
            origin_address,
            redis,
            fastest: 0.0,
            _origin: origin,
            directory,
        })
    }

    /// Which cores everything runs on.
    pub fn placement(&self) -> String {
        self.placement.describe()
    }

    /// One round: starts the variant's proxy, warms it up, measures and ends it.
    ///
    /// # Errors
    /// When the proxy does not start, or gives other answers than the variant measures.
    pub fn measure(&mut self, variant: &Variant, seconds: u64) -> Result<Measurement, Failure> {
        let address = free_address()?;
        let limit = if variant.flood {
            LEAST_FLOODED.max((self.fastest / FLOOD_FACTOR) as u64)
        } else {
            NEVER_REACHED
        };
        let command = self.proxy_command(variant, limit, address)?;
        let mut proxy = Process::start(command, self.directory.path().join("proxy.log"))?;
        let observed = self.observe(variant, limit, &mut proxy, address, seconds);
        let observed = observed.map_err(|failure| format!("{failure}\n{}", proxy.last_lines()))?;
        if matches!(variant.proxy, Proxy::Tollgate(_)) {
            proxy.end()?;
        }
        Ok(observed)
    }

    fn observe(
        &mut self,
        variant: &Variant,
        limit: u64,
        proxy: &mut Process,
        address: SocketAddr,
        seconds: u64,
    ) -> Result<Measurement, Failure> {
        let tokens = match variant.tokens {
            ALL_TOKENS => &self.all_tokens,
            MANY_TOKENS => &self.many_tokens,
            _ => &self.one_token,
        };
        load::wait_until_ready(proxy, address, &tokens.first)?;

        let expected: &[u16] = if variant.flood { &[200, 429] } else { &[200] };
        // However slow the machine is. Each run begins with the first token, so it is one run that must use all of them.
        let mut warm_up_seconds = 1;
        while load::run(&self.placement, address, tokens, warm_up_seconds, expected)?.requests
            < (variant.tokens * WARM_UP_USES).min(ENOUGH_WARM_UP)
        {
            warm_up_seconds *= 2;
            if warm_up_seconds > LONGEST_WARM_UP_SECONDS {
                return Err("too slow to warm up".into());
            }
        }
        let (calls_before, cpu_before) = (self.redis.calls()?, proxy.cpu_time()?);
        let outcome = load::run(&self.placement, address, tokens, seconds, expected)?;
        let (calls_after, cpu_after) = (self.redis.calls()?, proxy.cpu_time()?);

        check(variant, limit, &outcome)?;

        let redis_calls = redis::difference(&calls_before, &calls_after);
        let requests = outcome.requests as f64;
        let run_us = outcome.duration_us as f64;
        let cpu_us = (cpu_after - cpu_before).as_micros() as f64;
        let requests_per_second = requests * 1e6 / run_us;
        if !variant.flood {
            self.fastest = self.fastest.max(requests_per_second);
        }
        Ok(Measurement {
            requests_per_second,
            p50_us: outcome.p50_us as f64,
            p99_us: outcome.p99_us as f64,
            cpu_us_per_request: cpu_us / requests,
            busy: cpu_us / run_us,
            redis_operations_per_request: redis::operations(&redis_calls) as f64 / requests,
            refused: outcome.not_2xx as f64 / requests,
            redis_calls,
        })
    }

    fn proxy_command(
        &self,
        variant: &Variant,
        limit: u64,
        listen: SocketAddr,
    ) -> Result<Command, Failure> {
        match &variant.proxy {
            Proxy::Bare => {
                let mut command = self.placement.command(Side::Proxy, std::env::current_exe()?);
                command.args(["bare", &listen.to_string(), &self.origin_address.to_string()]);
                command.arg(self.threads.to_string());
                Ok(command)
            }
            Proxy::Tollgate(store) => {
                let file = self.directory.path().join("tollgate.yaml");
                std::fs::write(
                    &file,
                    self.tollgate_yaml(
                        store,
                        &format!("{limit}/{}", if variant.flood { "second" } else { "minute" }),
                        listen,
                    )?,
                )?;
                let mut command = self.placement.command(Side::Proxy, &self.gateway);
                command.arg("run").arg("-c").arg(file);
                // Variables of the environment would override the configuration.
                for (name, _) in std::env::vars_os() {
                    if name.as_encoded_bytes().starts_with(b"TOLLGATE_") {
                        command.env_remove(name);
                    }
                }
                Ok(command)
            }
            Proxy::Nginx => {
                let file = self.directory.path().join("nginx.conf");
                std::fs::write(&file, self.nginx_conf(limit, listen))?;
                let mut command = self.placement.command(Side::Proxy, "nginx");
                command
                    .arg("-c")
                    .arg(file)
                    .arg("-p")
                    .arg(self.directory.path())
                    .args(["-e", "stderr"]);
                Ok(command)
            }
            Proxy::Haproxy => {
                let file = self.directory.path().join("haproxy.cfg");
                std::fs::write(&file, self.haproxy_cfg(limit, listen))?;
                let mut command = self.placement.command(Side::Proxy, "haproxy");
                command.arg("-db").arg("-f").arg(file);
                Ok(command)
            }
        }
    }

    /// Metrics and rate fields on, access log as the store says; JSON is YAML.
    fn tollgate_yaml(
        &self,
        store: &Store,
        limit: &str,
        listen: SocketAddr,
    ) -> Result<String, Failure> {
        let mut config = json!({
            "server": { "threads": self.threads, "grace_period_seconds": 0 },
            "listeners": [{ "address": listen }],
            "metrics": { "address": free_address()? },
            "log": { "level": "info", "access": matches!(store, Store::Logged(_)) },
            "auth": { "jwt": { "keys": [{ "algorithm": "HS256", "secret": SECRET }] } },
            "limits": { "default": [limit] },
            "upstreams": { "origin": {
                "endpoints": [format!("http://{}", self.origin_address)],
                // As in the bare proxy.
                "timeouts": { "connect": "1s", "read": "30s", "write": "30s", "idle": "60s" },
            } },
            "routes": [{ "prefix": "/api", "upstream": "origin" }],
        });
        match store {
            Store::Redis(sync) | Store::Logged(sync) => {
                config["limits"]["sync"] = json!(sync);
                config["redis"] = json!({
                    // The same deadline as in nginx: a core that is taken away for a moment is no outage.
                    "url": format!("redis://{}", self.redis.address), "timeout": "1s",
                })
            }
            Store::Embedded => {
                let routes: serde_json::Value = serde_json::from_str(ALLOWED_ROUTES)?;
                config["auth"]["tokens"] = json!([{ "api_key": api_key(0), "expires_at": EXPIRES_AT, "allowed_routes": routes }]);
            }
        }
        Ok(serde_json::to_string_pretty(&config)?)
    }

    fn haproxy_cfg(&self, limit: u64, listen: SocketAddr) -> String {
        include_str!("haproxy.cfg")
            .replace("@THREADS@", &self.threads.to_string())
            .replace("@LISTEN@", &listen.to_string())
            .replace("@ORIGIN@", &self.origin_address.to_string())
            .replace("@SECRET@", SECRET)
            // Its counters have 32 bits.
            .replace("@LIMIT@", &limit.min(u32::MAX.into()).to_string())
    }

    fn nginx_conf(&self, limit: u64, listen: SocketAddr) -> String {
        include_str!("nginx/nginx.conf")
            .replace("@MODULES@", NGINX_MODULES)
            .replace("@SCRIPTS@", NGINX_SCRIPTS)
            .replace("@LISTEN@", &listen.to_string())
            .replace("@ORIGIN@", &self.origin_address.to_string())
            .replace("@REDIS_PORT@", &self.redis.address.port().to_string())
            .replace("@SECRET@", SECRET)
            .replace("@LIMIT@", &limit.to_string())
    }
}

/// Whether the variant got the answers that it measures.
fn check(variant: &Variant, limit: u64, outcome: &Outcome) -> Result<(), Failure> {
    let Outcome { requests, not_2xx, broken, .. } = *outcome;
    if requests == 0 || broken > 0 {
        return Err(format!("{requests} answers, {broken} broken connections").into());
    }
    if !variant.flood {
        return match not_2xx {
            0 => Ok(()),
            _ => Err(format!("{not_2xx} of {requests} answers are not 2xx").into()),
        };
    }
    // n seconds touch at most n + 1 windows of one second.
    let most = limit * (outcome.duration_us.div_ceil(1_000_000) + 1);
    let admitted = requests - not_2xx;
    if not_2xx == 0 || admitted > most {
        return Err(format!("{admitted} of {requests} admitted, {most} allowed").into());
    }
    Ok(())
}

fn api_key(number: u64) -> String {
    format!("bench-{number}")
}

fn sign(api_key: &str) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Claims<'a> {
        api_key: &'a str,
        exp: u64,
    }
    let exp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 86_400;
    Ok(jsonwebtoken::encode(
        &Header::default(),
        &Claims { api_key, exp },
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )?)
}
