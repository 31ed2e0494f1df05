//! The configuration as its users meet it: files that load, and files that do not load, with their exact messages.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tollgate::auth::issuer::KeyMaterial;
use tollgate::base::secret::Secret;
use tollgate::config::{Config, Environment, Faults, StaticToken, load, parse};
use tollgate::store::StoreUrl;

/// 48 bytes: enough for HS256 and HS384, not for HS512.
const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().copied().chain([("TOLLGATE_JWT_SECRET", SECRET)]).collect()
}

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Reads `text` with no environment variables but these.
fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, Faults> {
    parse(text, "t.yaml", &variables.iter().copied().collect())
}

fn store_url(text: &str) -> Option<StoreUrl> {
    StoreUrl::parse(&Secret::new(text)).ok()
}

/// The secret of the first key.
fn first_secret(config: &Config) -> &str {
    match &config.live.auth.jwt.issuers[0].keys[0].material() {
        KeyMaterial::Secret(secret) => secret.expose(),
        KeyMaterial::Public(_) => "a public key",
    }
}

#[test]
fn bad_files_lead_to_their_exact_messages() {
    let mut fixtures = 0;
    for entry in fs::read_dir(at("tests/fixtures/config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let secret =
            text.contains("TOLLGATE_JWT_SECRET").then_some(("TOLLGATE_JWT_SECRET", SECRET));
        let faults = parse(&text, name, &secret.into_iter().collect())
            .map(|_| ())
            .expect_err(name)
            .to_string();
        assert!(!faults.contains("not-to-be-printed") && !faults.contains(SECRET), "{faults}");
        let expected = path.with_extension("txt");
        let expected = fs::read_to_string(&expected).expect(name);
        assert_eq!(format!("{faults}\n"), expected, "{name}");
        fixtures += 1;
    }
    assert!(fixtures >= 25, "only {fixtures} fixtures were found");
}

#[test]
fn the_shipped_configurations_load() {
    let full = load(&at("conf/tollgate.yaml"), &environment(&[])).unwrap();
    assert_eq!(first_secret(&full), SECRET);
    assert_eq!(full.startup.redis.map(|redis| redis.url), store_url("redis://redis:6379"));
    let embedded = load(&at("conf/embedded.yaml"), &environment(&[])).unwrap();
    assert!(embedded.startup.redis.is_none());
    assert_eq!(&*embedded.live.auth.tokens[0].id, "local");
}

/// Every key that is known is in the shipped file, so that the file can serve as the reference.
#[test]
fn the_shipped_configuration_has_every_key() {
    let text = fs::read_to_string(at("conf/tollgate.yaml")).unwrap();
    // An unknown key in each kind of mapping makes the loader say which keys that mapping has.
    let probe = "
unknown: 1
server: { unknown: 1 }
listeners: [ { unknown: 1, tls: { unknown: 1, certificates: [ { unknown: 1 } ] } } ]
metrics: { unknown: 1 }
log: { unknown: 1 }
timeouts: { unknown: 1 }
redis: { unknown: 1 }
auth: { unknown: 1, jwt: { unknown: 1, keys: [ { unknown: 1 } ], jwks: { unknown: 1 }, issuers: [ { unknown: 1 } ] }, tokens: [ { unknown: 1 } ], cache: { unknown: 1 } }
plans: { basic: { unknown: 1 } }
limits: { unknown: 1 }
upstreams: { a: { unknown: 1, endpoints: [ { unknown: 1 } ], timeouts: { unknown: 1 }, breaker: { unknown: 1 }, tls: { unknown: 1 }, health: { unknown: 1 }, hash: { unknown: 1 } } }
routes: [ { unknown: 1, split: [ { unknown: 1 } ], networks: { unknown: 1 }, rewrite: { unknown: 1 }, mirror: { unknown: 1 }, cors: { unknown: 1 }, deprecated: { unknown: 1 }, timeouts: { unknown: 1 }, headers: { unknown: 1, request: { unknown: 1 }, response: { unknown: 1 } } } ]
";
    let faults = read(probe, &[]).unwrap_err();
    let known: Vec<&str> = faults
        .lines()
        .filter_map(|line| line.split_once("is not a known key; known are "))
        .flat_map(|(_, keys)| keys.split(", "))
        .collect();
    assert!(known.len() > 60, "{known:?}");
    for key in known {
        let named = |line: &str| {
            let words: Vec<_> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            words.contains(&key)
        };
        assert!(text.lines().any(named), "`{key}` is not in conf/tollgate.yaml");
    }
}

#[test]
fn nothing_written_means_the_defaults() {
    for text in ["", "# nothing\n", "---\n", "{}", "listeners:\nauth: {}\n"] {
        let config = read(text, &[]).unwrap();
        assert_eq!(config.startup.listeners[0].address.to_string(), "0.0.0.0:8080");
        assert_eq!(config.startup.metrics.unwrap().to_string(), "127.0.0.1:9090");
        assert!(config.startup.server.threads > 0);
        assert_eq!(config.startup.server.grace_period_seconds, 5);
        assert_eq!(config.startup.server.graceful_shutdown_timeout_seconds, 10);
        assert_eq!(config.startup.server.upgrade_sock, None);
        assert_eq!(config.live.timeouts.header, Duration::from_secs(5));
        assert_eq!((config.live.max_body, config.live.max_connections), (10 << 20, 10_000));
        assert!(config.startup.redis.is_none() && config.live.auth.jwt.issuers.is_empty());
        assert_eq!(config.startup.token_cache.ttl, Duration::from_secs(900));
        let default = &config.live.limits.default.rules()[0];
        assert_eq!(default.to_string(), "100/minute");
        assert!(config.live.routes.is_empty() && config.live.upstreams.is_empty());
    }
}

#[test]
fn the_shipped_configuration_holds_the_defaults() {
    let shipped = load(&at("conf/tollgate.yaml"), &environment(&[])).unwrap();
    let least = read(
        "upstreams: { users: { endpoints: [ http://a ] } }\nroutes: [ { prefix: /, upstream: users, auth: none } ]",
        &[],
    )
    .unwrap();
    assert_eq!(shipped.startup.server, least.startup.server);
    assert_eq!(shipped.startup.listeners, least.startup.listeners);
    assert_eq!(shipped.startup.metrics, least.startup.metrics);
    assert_eq!(shipped.startup.log_format, least.startup.log_format);
    assert_eq!(shipped.startup.log_color, least.startup.log_color);
    assert_eq!(shipped.live.log_level, least.live.log_level);
    assert_eq!(shipped.live.access_log, least.live.access_log);
    assert_eq!(shipped.live.timeouts, least.live.timeouts);
    assert_eq!(shipped.live.max_body, least.live.max_body);
    assert_eq!(shipped.live.max_connections, least.live.max_connections);
    assert_eq!(shipped.live.trusted_proxies, least.live.trusted_proxies);
    assert_eq!(shipped.live.pass_fields, least.live.pass_fields);
    assert_eq!(shipped.live.fold_paths, least.live.fold_paths);
    assert_eq!(shipped.live.auth.sources, least.live.auth.sources);
    assert_eq!(shipped.startup.token_cache, least.startup.token_cache);
    assert_eq!(shipped.live.auth.jwt.rules.leeway, least.live.auth.jwt.rules.leeway);
    assert_eq!(shipped.live.limits.default.rules(), least.live.limits.default.rules());
    assert_eq!(shipped.live.limits.window, least.live.limits.window);
    assert_eq!(shipped.live.limits.on_store_failure, least.live.limits.on_store_failure);
    assert_eq!(shipped.live.limits.headers, least.live.limits.headers);
    let (a, b) = (&shipped.live.upstreams["users"], &least.live.upstreams["users"]);
    assert_eq!((a.timeouts, a.retries), (b.timeouts, b.retries));
    assert_eq!(a.endpoints[0].weight, b.endpoints[0].weight);
    let (a, b) = (&shipped.live.routes[0], &least.live.routes[0]);
    assert_eq!(a.forward_credential, b.forward_credential);
    assert_eq!((&a.replacement, a.max_body), (&b.replacement, b.max_body));
    assert_eq!(a.networks, b.networks);
    assert_eq!(a.rewrite_answers, b.rewrite_answers);
    assert_eq!(a.request_headers, b.request_headers);
    assert_eq!(a.response_headers, b.response_headers);
}

#[test]
fn values_arrive_as_written() {
    let text = "
server: { threads: 3 }
metrics: { address: none }
max_body: 512KiB
trusted_proxies: [ 10.0.0.0/8, \"fd00::/8\" ]
redis: { url: \"rediss://:p%40ss@redis:6380/2\", timeout: 20ms }
auth:
  jwt: { keys: [ { algorithm: HS384, secret: \"${TOLLGATE_JWT_SECRET}\", kid: a } ], issuer: me, leeway: 5s }
  tokens:
    - { api_key: a, limits: [ 5 / second ], plan: basic, expires_at: 2030-01-31T12:00:00Z, allowed_routes: [ /x/* ] }
    - { api_key: b, rate_limit: 7, organization_id: acme, disabled: true, name: \"$${x}\" }
plans: { basic: { limits: [] } }
upstreams:
  u: { endpoints: [ \"http://127.0.0.1:1\", { url: \"https://b\", weight: 3 } ], retries: 0 }
routes:
  - prefix: /x
    host: API.Example.com
    methods: [ get ]
    upstream: u
    forward_credential: false
    headers: { request: { set: { X-A: \"1\" }, remove: [ Cookie ] }, response: { remove: [ Server ] } }
";
    let config = read(text, &[("TOLLGATE_JWT_SECRET", SECRET)]).unwrap();
    assert_eq!(config.startup.server.threads, 3);
    assert_eq!(config.startup.metrics, None);
    assert_eq!(config.live.max_body, 512 << 10);
    assert_eq!(config.live.trusted_proxies.len(), 2);
    let redis = config.startup.redis.unwrap();
    assert_eq!(Some(redis.url), store_url("rediss://:p%40ss@redis:6380/2"));
    assert_eq!(redis.timeout, Duration::from_millis(20));
    assert_eq!(config.live.auth.jwt.issuers[0].keys[0].kid(), Some("a"));
    assert_eq!(config.live.auth.jwt.rules.leeway, Duration::from_secs(5));
    let shown = |token: &StaticToken| serde_json::to_string(&token.fields).unwrap();
    assert_eq!(
        shown(&config.live.auth.tokens[0]),
        r#"{"allowed_routes":["/x/*"],"api_key":"a","expires_at":"2030-01-31T12:00:00Z","limits":["5/second"],"plan":"basic"}"#
    );
    assert_eq!(
        shown(&config.live.auth.tokens[1]),
        r#"{"api_key":"b","disabled":true,"name":"${x}","organization_id":"acme","rate_limit":7}"#
    );
    assert!(config.live.plans["basic"].rules().is_empty());
    let upstream = &config.live.upstreams["u"];
    assert_eq!(upstream.endpoints[0].url.to_string(), "http://127.0.0.1:1");
    assert_eq!((upstream.endpoints[1].weight, upstream.retries), (3, 0));
    let route = &config.live.routes[0];
    assert_eq!(route.matcher.host.as_ref().unwrap().to_string(), "api.example.com");
    assert_eq!(route.matcher.methods, ["GET"]);
    assert!(!route.forward_credential);
    assert_eq!(route.request_headers.set[0].0, "x-a");
    assert_eq!(route.request_headers.remove[0], "cookie");
    assert_eq!(route.response_headers.remove[0], "server");
}

#[test]
fn the_environment_alone_is_enough() {
    let config = read(
        "",
        &[
            ("TOLLGATE_JWT_SECRET", SECRET),
            ("TOLLGATE_LISTENERS__0__ADDRESS", "127.0.0.1:0"),
            ("TOLLGATE_LISTENERS__1__ADDRESS", "127.0.0.1:8081"),
            ("TOLLGATE_REDIS__URL", "redis://127.0.0.1:6379"),
            (
                "TOLLGATE_AUTH__JWT__KEYS",
                "[ { algorithm: HS256, secret: \"${TOLLGATE_JWT_SECRET}\" } ]",
            ),
            ("TOLLGATE_AUTH__TOKENS", "[{ api_key: a, plan: basic }]"),
            ("TOLLGATE_PLANS__BASIC__LIMITS", "[ 5/second ]"),
            ("TOLLGATE_UPSTREAMS__USERS__ENDPOINTS__0", "http://127.0.0.1:3001"),
            ("TOLLGATE_ROUTES", "[{ prefix: /, upstream: users }]"),
            ("TOLLGATE_MAX_BODY", "1MiB"),
            ("PATH", "/bin"),
            ("TOLLGATE_CONFIG", "elsewhere.yaml"),
        ],
    )
    .unwrap();
    assert_eq!(config.startup.listeners[1].address.to_string(), "127.0.0.1:8081");
    assert_eq!(first_secret(&config), SECRET);
    assert_eq!(config.live.plans["basic"].rules()[0].to_string(), "5/second");
    assert_eq!(config.live.routes[0].upstreams.get(0).name, "users");
    assert_eq!(config.live.max_body, 1 << 20);
}

/// Kubernetes sets these variables in every container beside a Service called `tollgate`.
#[test]
fn service_links_are_no_overrides() {
    let made = [
        ("TOLLGATE_SERVICE_HOST", "10.0.0.1"),
        ("TOLLGATE_SERVICE_PORT", "80"),
        ("TOLLGATE_SERVICE_PORT_HTTP", "80"),
        ("TOLLGATE_PORT", "tcp://10.0.0.1:80"),
        ("TOLLGATE_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("TOLLGATE_PORT_80_TCP_PROTO", "tcp"),
        ("TOLLGATE_PORT_80_TCP_PORT", "80"),
        ("TOLLGATE_PORT_80_TCP_ADDR", "10.0.0.1"),
    ];
    read("", &made).unwrap();
    for name in ["TOLLGATE_PORT", "TOLLGATE_PORTS", "TOLLGATE_SERVICE", "TOLLGATE_PORT_HTTP"] {
        let fault = read("", &[(name, "80")]).unwrap_err().to_string();
        assert!(fault.starts_with(&format!("environment {name}: ")), "{fault}");
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let text = "
log: { level: info, access: false }
listeners: [ { address: 0.0.0.0:1 }, { address: 0.0.0.0:2 } ]
limits: { default: [ 1/second ] }
upstreams: { Users: { endpoints: [ http://a, http://b ], retries: 1 } }
";
    let config = read(
        text,
        &[
            ("TOLLGATE_LOG__LEVEL", "debug"),
            ("TOLLGATE_LOG__ACCESS", "true"),
            ("TOLLGATE_LISTENERS__1__ADDRESS", "0.0.0.0:3"),
            ("TOLLGATE_LIMITS__DEFAULT", "[]"),
            ("TOLLGATE_UPSTREAMS__USERS__RETRIES", "0"),
            ("TOLLGATE_UPSTREAMS__USERS__ENDPOINTS", "[ http://c ]"),
            ("TOLLGATE_SERVER__THREADS", "${N}"),
            ("N", "2"),
        ],
    )
    .unwrap();
    assert_eq!(config.live.log_level.as_str(), "DEBUG");
    assert!(config.live.access_log);
    let addresses: Vec<_> = config.startup.listeners.iter().map(|l| l.address.port()).collect();
    assert_eq!(addresses, [1, 3]);
    assert!(config.live.limits.default.rules().is_empty());
    assert_eq!(config.live.upstreams["Users"].retries, 0);
    assert_eq!(config.live.upstreams["Users"].endpoints[0].url.to_string(), "http://c");
    assert_eq!(config.startup.server.threads, 2);
}

#[test]
fn faults_of_the_environment_name_the_variable() {
    let text = "log: { level: info }\nlisteners: [ { address: 0.0.0.0:1 } ]\n";
    for (name, value, line) in [
        (
            "TOLLGATE_LOG__LEVEL",
            "loud",
            "environment TOLLGATE_LOG__LEVEL: log.level: is not allowed here; write off, error, warn, info, debug or trace",
        ),
        (
            "TOLLGATE_LOG__LEVLE",
            "info",
            "environment TOLLGATE_LOG__LEVLE: log.levle: is not a known key; known are level, format, color, access",
        ),
        (
            "TOLLGATE_JWT_SECRETS",
            "not-to-be-printed",
            "environment TOLLGATE_JWT_SECRETS: jwt_secrets: is not a known key; known are server, listeners, metrics, \
             log, timeouts, max_body, max_connections, max_connections_per_client, trusted_proxies, pass_fields, fold_paths, redis, auth, plans, limits, upstreams, routes",
        ),
        (
            "TOLLGATE_REDIS__TIMEOUT",
            "20ms",
            "environment TOLLGATE_REDIS__TIMEOUT: redis.url: is missing; write \
             redis://[user:password@]host[:port][/database], \
             redis-sentinel://…?sentinelServiceName=NAME or redis-cluster://…; rediss… for TLS",
        ),
        (
            "TOLLGATE_LISTENERS__2__ADDRESS",
            "0.0.0.0:3",
            "environment TOLLGATE_LISTENERS__2__ADDRESS: `listeners` has 1 elements; the next one has the number 1",
        ),
        (
            "TOLLGATE_LISTENERS__FIRST",
            "{}",
            "environment TOLLGATE_LISTENERS__FIRST: `listeners` is a list; write the number of an element instead of `first`",
        ),
        (
            "TOLLGATE_LOG__LEVEL__X",
            "1",
            "environment TOLLGATE_LOG__LEVEL__X: `log.level` is a single value; it has no keys",
        ),
        (
            "TOLLGATE_ROUTES",
            "[ { prefix: / ",
            "environment TOLLGATE_ROUTES: is not YAML: did not find expected ',' or '}', while parsing a flow mapping \
             at line 1 column 3",
        ),
        (
            "TOLLGATE_",
            "1",
            "environment TOLLGATE_: names no key; write the path of a key joined by `__`",
        ),
        (
            "TOLLGATE_REDIS__URL",
            "valkey://:not-to-be-printed@redis",
            "environment TOLLGATE_REDIS__URL: redis.url: has another scheme; write \
             redis://[user:password@]host[:port][/database], \
             redis-sentinel://…?sentinelServiceName=NAME or redis-cluster://…; rediss… for TLS",
        ),
    ] {
        assert_eq!(read(text, &[(name, value)]).unwrap_err().to_string(), line, "{name}");
    }
}

#[test]
fn faults_of_file_and_environment_come_together() {
    let faults = read("log: { level: loud }\n", &[("TOLLGATE_LOG__FORMAT", "xml")]).unwrap_err();
    assert_eq!(
        faults.lines().collect::<Vec<_>>(),
        [
            "t.yaml:1:8: log.level: is not allowed here; write off, error, warn, info, debug or trace",
            "environment TOLLGATE_LOG__FORMAT: log.format: is not allowed here; write json or console",
        ]
    );
}

#[test]
fn a_secret_may_stand_in_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let text = format!(
        "auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret_file: {} }} ] }} }}",
        path.display()
    );
    for end in ["", "\n", "\r\n"] {
        fs::write(&path, format!("{SECRET}{end}")).unwrap();
        assert_eq!(first_secret(&read(&text, &[]).unwrap()), SECRET);
    }
    fs::write(&path, format!("{}\n", &SECRET[..31])).unwrap();
    let faults = read(&text, &[]).unwrap_err().to_string();
    assert!(faults.contains("secret_file: is 31 bytes long"), "{faults}");
}

#[test]
fn what_is_loaded_does_not_print_secrets() {
    let config = read(
        "redis: { url: \"redis://:not-to-be-printed@redis\" }\n\
         auth: { jwt: { keys: [ { algorithm: HS256, secret: \"${S}\" } ] } }",
        &[("S", SECRET)],
    )
    .unwrap();
    let text = format!("{config:?}");
    assert!(!text.contains(SECRET) && !text.contains("not-to-be-printed"), "{text}");
}

#[test]
fn a_flood_of_faults_is_cut_off() {
    for text in ["trusted_proxies: [", "routes: ["] {
        let text = format!("{text}{}]", "{ x: 1 },".repeat(300));
        let faults = read(&text, &[]).unwrap_err();
        assert_eq!(faults.lines().count(), 101);
        let last = "t.yaml: no more than 100 faults are reported at once";
        assert_eq!(faults.lines().last(), Some(last));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let faults = load(Path::new("no/such/file.yaml"), &environment(&[])).unwrap_err();
    assert_eq!(
        faults.to_string(),
        "no/such/file.yaml: cannot be read: No such file or directory (os error 2)"
    );
}

/// The loader does not panic on any text, and each fault is one line.
#[test]
fn mangled_files_are_refused_in_peace() {
    let text = fs::read_to_string(at("conf/tollgate.yaml")).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    for mangled in 0..lines.len() {
        for replacement in ["", "- x", "  : ", "\t", "a: [", "x: &a [*a]", "é: ${", "? [ a ]", "\0"]
        {
            let mut lines = lines.clone();
            lines[mangled] = replacement;
            if let Err(faults) = read(&lines.join("\n"), &[("TOLLGATE_JWT_SECRET", SECRET)]) {
                assert!(faults.lines().all(|line| !line.contains('\n')));
                assert!(!faults.to_string().contains(SECRET), "{faults}");
            }
        }
    }
}
