//! What the gateway makes of damage in Redis and of floods of invalid tokens: each concerns its own token or client
//! alone. It must not know how the gateway keeps them apart.
#![allow(clippy::type_complexity, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::token::now;
use support::*;

struct World {
    redis: Redis,
    gateway: Gateway,
    _origin: Origin,
}

/// A gateway on `redis`, with these further keys of `auth` and of `limits`.
fn world(redis: Redis, auth: &str, limits: &str) -> World {
    let origin = Origin::start();
    let gateway = Gateway::start(&format!(
        r#"
redis: {{ url: "{}", timeout: 300ms }}
auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret: "{SECRET}" }} ] }}, max_failures: none, {auth} }}
limits: {{ default: [ 1000/day ], {limits} }}
trusted_proxies: [ 127.0.0.1/32 ]
upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]
"#,
        redis.url(),
        origin.url(),
    ));
    World { redis, gateway, _origin: origin }
}

fn status(gateway: &Gateway, api_key: &str) -> u16 {
    gateway.get_as(api_key, "/").status()
}

fn breakers(gateway: &Gateway) -> f64 {
    gateway.metric("tollgate_store_breakers_open").unwrap()
}

#[test]
fn a_damaged_record_costs_its_own_token_alone() {
    let World { redis, gateway, .. } = &world(Redis::start(), "", "");
    let eval = |script: &str, key: &str| redis.command(&["EVAL", script, "1", key]);
    // (what is at the key, the script that puts it there, a part of the log's reason)
    let damages = [
        ("set", "redis.call('SADD', KEYS[1], 'x')", "a set"),
        ("list", "redis.call('RPUSH', KEYS[1], 'x')", "a list"),
        ("zset", "redis.call('ZADD', KEYS[1], 1, 'x')", "a zset"),
        ("stream", "redis.call('XADD', KEYS[1], '1-1', 'x', 'y')", "a stream"),
        ("binary", "redis.call('HSET', KEYS[1], 'plan', 'basic', 'note', '\\255\\0')", "`note`"),
        ("name", "redis.call('HSET', KEYS[1], 'plan', 'basic', '\\255', 'x')", "name of a field"),
        ("text", "redis.call('SET', KEYS[1], '{\"name\":\"\\255\"}')", "UTF-8"),
        ("fields", "for n = 1, 400000 do redis.call('HSET', KEYS[1], n, 'x') end", "400000 fields"),
        ("value", "redis.call('HSET', KEYS[1], 'x', string.rep('x', 20000000))", "20000001 bytes"),
        ("long", "redis.call('HSET', KEYS[1], string.rep('x', 20000000), 'x')", "20000001 bytes"),
        (
            "json",
            "redis.call('SET', KEYS[1], '{\"name\":\"' .. string.rep('x', 20000000) .. '\"}')",
            "20000011 bytes",
        ),
    ];
    for (name, script, _) in damages {
        eval(script, &format!("token:{name}"));
    }
    for (nth, (name, _, reason)) in damages.into_iter().enumerate() {
        for _ in 0..5 {
            let refused = gateway.get_as(name, "/");
            assert_eq!(
                (refused.status(), refused.code().as_str()),
                (401, "invalid_token"),
                "{name}"
            );
        }
        let line = gateway.wait_log(name, |line| {
            let message = line["message"].as_str().unwrap_or_default();
            message.contains(&format!("the record of {name} cannot be read"))
        });
        assert!(line["message"].as_str().unwrap().contains(reason), "{line}");
        assert_eq!(line["level"], "warn", "{line}");
        let healthy = format!("healthy-{nth}");
        redis.record(&healthy, &[("name", "x")]);
        assert_eq!(status(gateway, &healthy), 200, "after {name}");
        assert_eq!(breakers(gateway), 0.0, "after {name}");
    }
    // What is just within the bounds is read.
    eval("for n = 1, 1000 do redis.call('HSET', KEYS[1], n, 'x') end", "token:many");
    eval("redis.call('HSET', KEYS[1], 'note', string.rep('x', 262140))", "token:big");
    assert_eq!((status(gateway, "many"), status(gateway, "big")), (200, 200));
    // A record that is repaired is used at once.
    redis.record("set", &[("name", "x")]);
    wait_for("the repaired record", || (status(gateway, "set") == 200).then_some(()));
}

#[test]
fn a_token_ends_when_the_key_of_its_record_does() {
    // Redis tells of no key that it has not found expired, as with many keys.
    let redis = Redis::start_with("enable-debug-command yes");
    redis.command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let World { redis, gateway, .. } = &world(redis, "", "");
    redis.command(&["HSET", "token:hash", "name", "x"]);
    redis.command(&["SET", "token:json", "{}"]);
    redis.command(&["HSET", "token:lasting", "name", "x"]);
    for id in ["hash", "json"] {
        redis.command(&["PEXPIRE", &format!("token:{id}"), "2500"]);
    }
    let set = Instant::now();
    let ids = ["hash", "json", "lasting"];
    while set.elapsed() < Duration::from_millis(2_000) {
        for id in ids {
            assert_eq!(status(gateway, id), 200, "{id} after {:?}", set.elapsed());
        }
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(2_550).saturating_sub(set.elapsed()));
    assert_eq!(ids.map(|id| status(gateway, id)), [401, 401, 200]);
    // Nor is a record used longer while Redis is away.
    redis.command(&["PEXPIRE", "token:lasting", "1500"]);
    let set = Instant::now();
    wait_for("the expiry to be known", || {
        (status(gateway, "lasting") == 200 && set.elapsed() > Duration::from_millis(200))
            .then_some(())
    });
    redis.freeze();
    thread::sleep(Duration::from_millis(1_600).saturating_sub(set.elapsed()));
    assert_eq!(status(gateway, "lasting"), 503);
    redis.thaw();
}

/// Makes a Redis that refuses writes, and one that takes them again.
type Refusal = (&'static str, fn(&Redis), fn(&Redis));

const REFUSALS: [Refusal; 4] = [
    (
        "OOM",
        |redis| drop(redis.command(&["CONFIG", "SET", "maxmemory", "1"])),
        |redis| drop(redis.command(&["CONFIG", "SET", "maxmemory", "0"])),
    ),
    (
        "NOREPLICAS",
        |redis| drop(redis.command(&["CONFIG", "SET", "min-replicas-to-write", "1"])),
        |redis| drop(redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"])),
    ),
    (
        "READONLY",
        |redis| drop(redis.command(&["REPLICAOF", "127.0.0.1", "1"])),
        |redis| drop(redis.command(&["REPLICAOF", "NO", "ONE"])),
    ),
    (
        "MISCONF",
        |redis| {
            redis.command(&["CONFIG", "SET", "save", "1000 1000000"]);
            redis.spoil_directory();
            redis.command(&["BGSAVE"]);
            wait_for("the save to fail", || {
                let info = redis.command(&["INFO", "persistence"]);
                info.contains("rdb_last_bgsave_status:err").then_some(())
            });
        },
        |redis| drop(redis.command(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"])),
    ),
];

#[test]
fn a_redis_that_takes_no_writes_is_still_read() {
    thread::scope(|scope| {
        for refusal in REFUSALS {
            scope.spawn(move || reads_without_writes(refusal));
        }
    });
}

fn reads_without_writes((name, refuse, accept): Refusal) {
    let World { redis, gateway, .. } = &world(Redis::start(), "", "on_store_failure: local");
    let tokens: Vec<String> = (0..280).map(|nth| format!("{name}-{nth}")).collect();
    for id in &tokens {
        redis.record(id, &[("name", "x")]);
    }
    redis.record("busy", &[("limits", "[\"100000/day\"]")]);
    redis.record("poor", &[("limits", "[\"3/day\"]")]);
    assert_eq!(status(gateway, "busy"), 200);
    refuse(redis);
    for _ in 0..30 {
        assert_eq!(status(gateway, "busy"), 200, "{name}");
    }
    for id in &tokens[..30] {
        assert_eq!(status(gateway, id), 200, "{name}: {id}");
    }
    gateway.wait_log("the log to say it", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains("refuses writes and is only read") && message.contains(name)
    });
    wait_for("the metrics to say it", || {
        (gateway.metric("tollgate_store_available") == Some(0.0)).then_some(())
    });
    // Reads go on while probes keep writing in vain.
    for id in &tokens[30..] {
        assert_eq!(status(gateway, id), 200, "{name}: {id}");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(gateway.get_as("nobody", "/").code(), "invalid_token", "{name}");
    // The policy decides about limits: this gateway counts by itself.
    let poor: Vec<u16> = (0..6).map(|_| status(gateway, "poor")).collect();
    assert_eq!(poor, [200, 200, 200, 429, 429, 429], "{name}");
    assert_eq!(gateway.get("/ready").status(), 200, "{name}");
    accept(redis);
    wait_for("writes again", || {
        (gateway.metric("tollgate_store_available") == Some(1.0)).then_some(())
    });
    wait_for("the counts to be told", || {
        status(gateway, "poor");
        redis.command(&["EXISTS", "quota:{token:poor}:day:86400"]).contains('1').then_some(())
    });
    assert_eq!(status(gateway, "poor"), 429, "{name}");
}

#[test]
fn the_policy_to_deny_holds_while_redis_takes_no_writes() {
    let World { redis, gateway, .. } = &world(Redis::start(), "", "on_store_failure: deny");
    redis.record("a", &[("name", "x")]);
    assert_eq!(status(gateway, "a"), 200);
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    wait_for("requests to be denied", || (status(gateway, "a") == 503).then_some(()));
    wait_for("/ready to say so", || (gateway.get("/ready").status() == 503).then_some(()));
    assert_eq!(gateway.get_as("nobody", "/").status(), 401, "records are read");
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_for("requests to be admitted", || (status(gateway, "a") == 200).then_some(()));
}

#[test]
fn credentials_may_hold_any_characters() {
    let redis = Redis::start();
    let origin = Origin::start();
    redis.record("a", &[("name", "x")]);
    for (nth, (password, encoded)) in [
        ("a b\"", "a%20b%22"),
        ("'", "%27"),
        (" x ", "%20x%20"),
        ("\\x41\\", "%5Cx41%5C"),
        ("\u{fc}\u{20ac}", "%C3%BC%E2%82%AC"),
        ("a\r\nPING", "a%0D%0APING"),
        ("#<>:@/%", "%23%3C%3E%3A%40%2F%25"),
    ]
    .into_iter()
    .enumerate()
    {
        let user = format!("user{nth}");
        let rule = format!(">{password}");
        redis.command(&["ACL", "SETUSER", &user, "reset", "on", &rule, "~*", "&*", "+@all"]);
        let url = format!("redis://{user}:{encoded}@127.0.0.1:{}", redis.port());
        let gateway = Gateway::start(&format!(
            "redis: {{ url: \"{url}\", timeout: 1s }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
            origin.url()
        ));
        assert_eq!(status(&gateway, "a"), 200, "{password:?}");
        // The connection that tells of changes works too.
        redis.record("a", &[("disabled", "true")]);
        wait_for("the change", || (status(&gateway, "a") == 401).then_some(()));
        redis.record("a", &[("name", "x")]);
        let cli = tollgate().args(["token", "list", "--redis", &url]).output().unwrap();
        assert!(cli.status.success(), "{password:?}: {cli:?}");
    }
}

#[test]
fn the_documented_permissions_are_enough_with_a_prefix_and_without() {
    for prefix in ["", "shop:eu-1/"] {
        let origin = Origin::start();
        let user = |name: &str, names: &[&str]| {
            let rules = support::redis::documented_rules(names, prefix);
            format!("user {name} on >pw {rules}")
        };
        let redis = Redis::start_with(&format!(
            "{}\n{}",
            user("gateway", &["gateway"]),
            user("cli", &["cli"])
        ));
        let url = |user: &str| format!("redis://{user}:pw@127.0.0.1:{}/0", redis.port());
        let gateway = Gateway::start(&format!(
            r#"
redis: {{ url: "{}", timeout: 1s, prefix: "{prefix}" }}
auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret: "{SECRET}" }} ], require_record: false }}, max_failures: none }}
limits:
  default: [ 3/day, {{ rate: 5/hour, algorithm: sliding_window }}, {{ rate: 5/minute, algorithm: sliding_log }}, {{ rate: 9/minute, algorithm: token_bucket, name: b }} ]
upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]
"#,
            url("gateway"),
            origin.url(),
        ));
        let cli = |arguments: &[&str]| {
            let named = ["--redis", &url("cli"), "--redis-prefix", prefix];
            let out = tollgate().args(arguments).args(named).output().unwrap();
            assert!(out.status.success(), "{arguments:?}: {out:?}");
            String::from_utf8(out.stdout).unwrap()
        };
        let made = |arguments: &[&str]| -> Value {
            serde_json::from_str(&cli(&[&["token", "create", "--json"], arguments].concat()))
                .unwrap()
        };
        let key = made(&["--kind", "key"])["credential"].as_str().unwrap().to_owned();
        let get = |credential: &str| {
            let fields = [("Authorization", format!("Bearer {credential}"))];
            gateway.call("GET", "/", &[(fields[0].0, &fields[0].1)], b"").status()
        };
        let statuses: Vec<u16> = (0..5).map(|_| get(&key)).collect();
        assert_eq!(statuses, [200, 200, 200, 429, 429], "{prefix:?}");
        assert_eq!(gateway.get_as("stateless", "/").status(), 200);
        // Keys have the prefix, and no others are there.
        let keys = redis.command(&["KEYS", "*"]);
        assert!(keys.lines().count() >= 4, "{keys}");
        assert!(keys.lines().all(|key| key.starts_with(prefix)), "{keys}");

        let list = cli(&["token", "list", "--json"]);
        let id = serde_json::from_str::<Value>(list.lines().next().unwrap_or_default())
            .ok()
            .and_then(|line| line["api_key"].as_str().map(str::to_owned));
        assert!(list.contains("api_key"), "{list}");
        let id = id.unwrap_or_else(|| {
            let hash = hash_of(&key);
            hash[..16].to_owned()
        });
        cli(&["token", "show", &id]);
        cli(&["token", "revoke", &id]);
        wait_for("the revocation to be told", || (get(&key) == 401).then_some(()));
        let refused = |user: &str, command: &[&str]| {
            let login = ["--user", user, "--pass", "pw", "--no-auth-warning"];
            redis.try_command(&[&login, command].concat()).is_err()
        };
        assert!(refused("gateway", &["DEL", "token:x"]), "the gateway deletes no record");
        assert!(refused("cli", &["GET", "quota:{x}:day:86400"]), "the commands see no counter");
        assert!(refused("gateway", &["FLUSHALL"]) && refused("cli", &["CONFIG", "GET", "*"]));
    }
}

#[test]
fn beyond_its_failures_a_client_is_refused_before_anything_is_checked() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&guarded(&redis, &origin));
    let key = |nth: usize| format!("opaque-key-{nth}");
    let ask = |credential: &str, client: &str| {
        let fields = [("Authorization", credential), ("X-Forwarded-For", client)];
        gateway.call("GET", "/", &fields, b"")
    };
    for nth in 0..3 {
        redis.record(&hash_of(&key(nth)), &[("name", "x")]);
        redis.record(&format!("jwt-{nth}"), &[("name", "x")]);
    }
    let jwt = |nth: usize| bearer(&format!("jwt-{nth}"));
    let opaque = |nth: usize| format!("Bearer {}", key(nth));
    let (known_jwt, attacker) = (jwt(0), "192.0.2.66");
    assert_eq!(ask(&known_jwt, attacker).status(), 200);
    assert_eq!(ask(&opaque(0), attacker).status(), 200);
    let limited = |answer: &Message| answer.code() == "too_many_failures";
    wait_for("too many failures", || limited(&ask("Bearer guess", attacker)).then_some(()));

    let asked = || {
        let series = "tollgate_store_operations_total{operation=\"record\",outcome=\"ok\"}";
        gateway.metric(series).unwrap()
    };
    let before = asked();
    for nth in 0..10 {
        assert!(limited(&ask(&format!("Bearer guess-{nth}"), attacker)));
        assert!(limited(&ask(&bearer(&format!("forged-{nth}")), attacker)));
    }
    assert!(limited(&ask(&jwt(1), attacker)), "a valid token that was never seen");
    assert!(limited(&ask(&opaque(1), attacker)), "a valid key that was never seen");
    assert_eq!(asked(), before, "Redis is not asked");
    assert_eq!(ask(&known_jwt, attacker).status(), 200, "a token that was verified before");
    assert_eq!(ask(&opaque(0), attacker).status(), 200, "a key whose record is in memory");
    assert_eq!(ask(&jwt(2), "192.0.2.67").status(), 200, "another client");
    assert_eq!(ask(&opaque(2), "192.0.2.67").status(), 200, "another client");
    let line = gateway.wait_log("the reason", |line| line["reason"] == "unchecked");
    assert_eq!(line["status"], 429, "{line}");
}

fn guarded(redis: &Redis, origin: &Origin) -> String {
    format!(
        r#"
redis: {{ url: "{}", timeout: 300ms }}
auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret: "{SECRET}" }} ] }}, max_failures: 5/hour }}
limits: {{ default: [] }}
trusted_proxies: [ 127.0.0.1/32 ]
upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]
"#,
        redis.url(),
        origin.url(),
    )
}

fn hash_of(key: &str) -> String {
    tollgate::record::key::hash(key).unwrap().to_string()
}

/// Clients that send forged tokens at the same time.
const FORGERS: usize = 100;

#[test]
fn a_flood_of_forged_tokens_does_not_open_the_breaker() {
    for threads in [1, 2] {
        let (redis, origin) = (Redis::start(), Origin::start());
        let signer = Signer::new("ES512");
        let yaml = format!(
            "redis: {{ url: \"{}\", timeout: 100ms }}
auth: {{ max_failures: none, jwt: {{ keys: [ {{ algorithm: ES512, public_key: {} }} ] }} }}
limits: {{ default: [ 1000/day ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
            redis.url(),
            json!(signer.pem()),
            origin.url()
        );
        let gateway = match threads {
            1 => Gateway::start_with_one_thread(&yaml),
            _ => Gateway::start(&yaml),
        };
        let claims = |api_key: &str| json!({ "api_key": api_key, "exp": now() + 3600 });
        let unseen: Vec<String> = (0..8)
            .map(|nth| {
                redis.record(&format!("new-{nth}"), &[("name", "x")]);
                format!("Bearer {}", signer.token(None, &claims(&format!("new-{nth}"))))
            })
            .collect();
        let (ends, forged) = (AtomicBool::new(false), AtomicUsize::new(0));
        // A right signature of another token: it fails only after all of the work.
        let signature = signer.token(None, &claims("x")).rsplit_once('.').unwrap().1.to_owned();
        thread::scope(|scope| {
            for _ in 0..FORGERS {
                scope.spawn(|| {
                    let mut client = gateway.connect();
                    while !ends.load(Ordering::Relaxed) {
                        let nth = forged.fetch_add(1, Ordering::Relaxed);
                        let message = support::token::unsigned(
                            &json!({ "alg": "ES512" }),
                            &claims(&format!("forged-{nth}")),
                        );
                        let token = format!("Bearer {message}.{signature}");
                        let answer = client.call("GET", "/", &[("Authorization", &token)], b"");
                        assert_eq!(answer.status(), 401);
                    }
                });
            }
            thread::sleep(Duration::from_millis(300));
            let statuses: Vec<u16> = unseen
                .iter()
                .map(|token| gateway.call("GET", "/", &[("Authorization", token)], b"").status())
                .collect();
            ends.store(true, Ordering::Relaxed);
            assert_eq!(statuses, vec![200; unseen.len()], "{threads} threads");
        });
        assert!(forged.load(Ordering::Relaxed) >= FORGERS, "it was a flood");
        assert_eq!(breakers(&gateway), 0.0);
        let opened = |line: &Value| {
            line["message"].as_str().is_some_and(|message| message.contains("failed repeatedly"))
        };
        assert!(!gateway.log().iter().any(opened), "the breaker never opened");
    }
}

/// A gateway whose keys are in a file that holds `keys`.
fn with_key_set(keys: &[Value]) -> (Gateway, Origin, tempfile::TempDir) {
    let (origin, dir) = (Origin::start(), tempfile::TempDir::new().unwrap());
    let path = dir.path().join("keys.json");
    std::fs::write(&path, json!({ "keys": keys }).to_string()).unwrap();
    let gateway = Gateway::start(&format!(
        "auth: {{ max_failures: none, jwt: {{ jwks: {{ file: \"{}\" }} }}, tokens: [ {{ api_key: alice }} ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        path.display(),
        origin.url()
    ));
    (gateway, origin, dir)
}

fn alice() -> Value {
    json!({ "api_key": "alice", "exp": now() + 3600 })
}

fn with_token(gateway: &Gateway, token: &str) -> u16 {
    gateway.call("GET", "/", &[("Authorization", &format!("Bearer {token}"))], b"").status()
}

#[test]
fn ed25519_is_an_algorithm_by_its_own_name() {
    let signer = Signer::new("EdDSA");
    for own in [None, Some("EdDSA"), Some("Ed25519")] {
        let mut jwk = signer.jwk(None);
        match own {
            Some(name) => jwk["alg"] = json!(name),
            None => drop(jwk.as_object_mut().unwrap().remove("alg")),
        }
        let (gateway, ..) = with_key_set(&[jwk]);
        for (alg, expected) in
            [("EdDSA", 200), ("Ed25519", 200), ("Ed448", 401), ("ed25519", 401), ("ES256", 401)]
        {
            let token = signer.token_with(&json!({ "alg": alg }), &alice());
            assert_eq!(with_token(&gateway, &token), expected, "{alg} with a key for {own:?}");
        }
    }
}

#[test]
fn every_key_that_a_token_may_mean_is_tried() {
    for algorithm in ["ES256", "RS256", "EdDSA"] {
        let signers: Vec<Signer> = (0..4).map(|_| Signer::new(algorithm)).collect();
        // (the kid of each key, the kid of the token, which keys may have signed it)
        let cases: [([Option<&str>; 3], Option<&str>, [bool; 3]); 5] = [
            ([None, None, None], None, [true, true, true]),
            ([None, None, None], Some("x"), [true, true, true]),
            ([Some("a"), Some("b"), None], None, [true, true, true]),
            ([Some("a"), Some("b"), None], Some("b"), [false, true, false]),
            ([Some("a"), Some("b"), None], Some("x"), [false, false, true]),
        ];
        for (kids, kid, expected) in cases {
            let keys: Vec<Value> =
                kids.iter().zip(&signers).map(|(kid, signer)| signer.jwk(*kid)).collect();
            let (gateway, ..) = with_key_set(&keys);
            for (signer, expected) in signers.iter().zip(expected) {
                let status = with_token(&gateway, &signer.token(kid, &alice()));
                assert_eq!(status == 200, expected, "{algorithm}: {kids:?}, {kid:?}: {status}");
            }
            assert_eq!(with_token(&gateway, &signers[3].token(kid, &alice())), 401);
        }
    }
}

#[test]
fn an_rsa_modulus_may_have_zeros_in_front() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let signer = Signer::new("RS256");
    for (member, zeros) in [("n", 1), ("n", 3), ("e", 1), ("e", 5)] {
        let mut jwk = signer.jwk(None);
        let digits = URL_SAFE_NO_PAD.decode(jwk[member].as_str().unwrap()).unwrap();
        jwk[member] = json!(URL_SAFE_NO_PAD.encode([vec![0; zeros], digits].concat()));
        let (gateway, ..) = with_key_set(&[jwk]);
        assert_eq!(with_token(&gateway, &signer.token(None, &alice())), 200, "{member}: {zeros}");
    }
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_set_of_keys_may_be_compressed_and_an_empty_one_is_told() {
    let (server, origin, signer) = (KeyServer::start(), Origin::start(), Signer::new("ES256"));
    let set = json!({ "keys": [signer.jwk(None)] }).to_string();
    server.answer_bytes("200 OK\r\ncontent-encoding: gzip", &gzip(set.as_bytes()));
    let yaml = format!(
        "auth: {{ max_failures: none, jwt: {{ jwks: {{ url: \"{}\", refresh: 1s }} }}, tokens: [ {{ api_key: alice }} ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        server.url(),
        origin.url()
    );
    let gateway =
        Gateway::spawn_with(&yaml, &[("SSL_CERT_FILE", server.authority().to_str().unwrap())]);
    gateway.wait_ready();
    let token = signer.token(None, &alice());
    assert_eq!(with_token(&gateway, &token), 200);
    let warned = |text: &str| {
        gateway.wait_log(text, |line| {
            line["level"] == "warn"
                && line["message"].as_str().is_some_and(|message| message.contains(text))
        });
    };
    // Neither of these replaces the keys.
    server.answer_bytes("200 OK\r\ncontent-encoding: br", b"\x0b\x02\x80");
    warned("not with gzip");
    assert_eq!(with_token(&gateway, &token), 200);
    // The set itself, and ten million spaces.
    let bomb = gzip(&[set.as_bytes(), &vec![b' '; 10_000_000]].concat());
    assert!(bomb.len() < 100_000, "{}", bomb.len());
    server.answer_bytes("200 OK\r\ncontent-encoding: gzip", &bomb);
    let asked = server.asked();
    wait_for("two more fetches", || (server.asked() >= asked + 2).then_some(()));
    assert_eq!(gateway.metric("tollgate_key_sources_failing"), Some(1.0));
    assert_eq!(with_token(&gateway, &token), 200);

    server.publish(&[]);
    warned("none can be used");
    wait_for("the metric", || {
        (gateway.metric("tollgate_key_sources_empty") == Some(1.0)).then_some(())
    });
    assert_eq!(with_token(&gateway, &token), 401);
    server.publish(&[signer.jwk(None)]);
    wait_for("the keys", || (with_token(&gateway, &token) == 200).then_some(()));
    wait_for("the metric", || {
        (gateway.metric("tollgate_key_sources_empty") == Some(0.0)).then_some(())
    });
}
