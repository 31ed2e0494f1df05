//! Which tokens the gateway admits and which it refuses, with records in a real Redis.
//! It must not know how the gateway verifies or caches.
// Tables of cases have the type they have.
#![allow(clippy::type_complexity, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;

use jsonwebtoken::Algorithm::{self, HS256, HS384, HS512};
use serde_json::{Value, json};
use support::token::{claims, now, sign, unsigned};
use support::*;

const SECRET_384: &str = "second-0123456789abcdef0123456789abcdef0123456789abcdef0123456789";
const SECRET_512: &str = "third-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const SECRET_NEW: &str = "fourth-0123456789abcdef0123456789abcdef";

/// A gateway on a Redis. Tests share it, and differ by token.
struct World {
    redis: Redis,
    origin: Origin,
    gateway: Gateway,
}

static WORLD: Shared<World> = Shared::new();

fn world() -> Arc<World> {
    WORLD.get(|| {
        let (redis, origin) = (Redis::start(), Origin::start());
        let gateway = Gateway::start(&format!(
            r#"
redis: {{ url: "{redis}", timeout: 2s }}
plans: {{ gold: {{ limits: [ 777/day ] }} }}
limits: {{ default: [ 555/day ], window: 1h }}
auth:
  max_failures: none
  jwt:
    keys:
      - {{ kid: a, algorithm: HS256, secret: "{SECRET}" }}
      - {{ kid: b, algorithm: HS384, secret: "{SECRET_384}" }}
      - {{ kid: c, algorithm: HS512, secret: "{SECRET_512}" }}
      - {{ kid: d, algorithm: HS256, secret: "{SECRET_NEW}" }}
  cache: {{ ttl: 1s, entries: 1000, max_stale: 0s }}
upstreams: {{ up: {{ endpoints: [ "{origin}" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]
"#,
            redis = redis.url(),
            origin = origin.url(),
        ));
        redis.record("alice", &[("name", "Alice")]);
        World { redis, origin, gateway }
    })
}

impl World {
    fn get(&self, token: &str) -> Message {
        self.gateway.call("GET", "/", &[("Authorization", &format!("Bearer {token}"))], b"")
    }
}

/// A token signed with the key whose id is `a`.
fn with_kid(api_key: &str) -> String {
    sign_a(json!({ "api_key": api_key, "exp": now() + 3600 }))
}

fn sign_a(claims: Value) -> String {
    sign(&json!({ "alg": "HS256", "kid": "a" }), &claims, SECRET, HS256)
}

fn assert_all(world: &World, rows: Vec<(&str, String, u16)>) {
    let failed: Vec<_> = rows
        .into_iter()
        .map(|(name, token, expected)| (name, expected, world.get(&token)))
        .filter(|(_, expected, answer)| answer.status() != *expected)
        .map(|(name, expected, answer)| {
            format!("{name}: {} instead of {expected}: {}", answer.status(), answer.text())
        })
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn the_configured_key_fixes_the_algorithm() {
    let world = world();
    let body = json!({ "api_key": "alice", "exp": now() + 3600 });
    let make = |alg: &str, kid: &str, secret: &str, with: Algorithm| {
        sign(&json!({ "typ": "JWT", "alg": alg, "kid": kid }), &body, secret, with)
    };
    let none = |alg: &str| format!("{}.", unsigned(&json!({ "alg": alg, "kid": "a" }), &body));
    let good = with_kid("alice");
    let (head, signature) = good.rsplit_once('.').unwrap();
    let claims_of = |api_key: &str| with_kid(api_key).split('.').nth(1).unwrap().to_owned();
    assert_all(
        &world,
        vec![
            ("HS256", make("HS256", "a", SECRET, HS256), 200),
            ("HS384", make("HS384", "b", SECRET_384, HS384), 200),
            ("HS512", make("HS512", "c", SECRET_512, HS512), 200),
            ("a second key of the same algorithm", make("HS256", "d", SECRET_NEW, HS256), 200),
            ("the key of another kid", make("HS256", "d", SECRET, HS256), 401),
            ("an unknown kid", make("HS256", "z", SECRET, HS256), 401),
            (
                "another key",
                make("HS256", "a", "wrong-0123456789abcdef0123456789abcdef", HS256),
                401,
            ),
            ("another algorithm with the right secret", make("HS512", "a", SECRET, HS512), 401),
            ("another algorithm in the header alone", make("HS384", "a", SECRET, HS256), 401),
            ("another algorithm in the signature alone", make("HS256", "a", SECRET, HS384), 401),
            ("a public-key algorithm", make("RS256", "a", SECRET, HS256), 401),
            ("none", none("none"), 401),
            ("None", none("None"), 401),
            ("none with a signature", make("none", "a", SECRET, HS256), 401),
            ("no algorithm", sign(&json!({ "kid": "a" }), &body, SECRET, HS256), 401),
            (
                "crit",
                sign(
                    &json!({ "alg": "HS256", "kid": "a", "crit": ["x"], "x": 1 }),
                    &body,
                    SECRET,
                    HS256,
                ),
                401,
            ),
            ("no signature", format!("{head}."), 401),
            ("half a signature", format!("{head}.{}", &signature[..20]), 401),
            ("a signature and more", format!("{good}A"), 401),
            ("a padded signature", format!("{good}="), 401),
            (
                "other claims",
                good.replace(good.split('.').nth(1).unwrap(), &claims_of("mallory")),
                401,
            ),
            (
                "a header that is no JSON",
                format!("e30x.{}", &good[good.find('.').unwrap() + 1..]),
                401,
            ),
            ("three empty parts", "..".into(), 401),
            ("four parts", format!("{good}.x"), 401),
        ],
    );
}

#[test]
fn times_are_numbers_and_are_kept() {
    let world = world();
    let now = now();
    let exp = |exp: Value| sign_a(json!({ "api_key": "alice", "exp": exp }));
    let nbf = |nbf: Value| sign_a(json!({ "api_key": "alice", "exp": now + 3600, "nbf": nbf }));
    assert_all(
        &world,
        vec![
            ("in an hour", exp(json!(now + 3600)), 200),
            ("in an hour and a half second", exp(json!(now as f64 + 3600.5)), 200),
            ("in a far future", exp(json!(99_999_999_999u64)), 200),
            ("a second ago", exp(json!(now - 1)), 401),
            ("a float in the past", exp(json!(now as f64 - 1.5)), 401),
            ("at the epoch", exp(json!(0)), 401),
            ("negative", exp(json!(-1)), 401),
            ("a string", exp(json!((now + 3600).to_string())), 401),
            ("a date", exp(json!("2099-01-01T00:00:00Z")), 401),
            ("null", exp(Value::Null), 401),
            ("true", exp(json!(true)), 401),
            ("a list", exp(json!([now + 3600])), 401),
            ("missing", sign_a(json!({ "api_key": "alice" })), 401),
            ("valid since a minute", nbf(json!(now - 60)), 200),
            ("valid in a minute", nbf(json!(now + 60)), 401),
            ("valid from a string", nbf(json!((now - 60).to_string())), 401),
        ],
    );
    assert_eq!(world.get(&exp(json!(now - 1))).code(), "expired_token");
    assert_eq!(world.get(&nbf(json!(now + 60))).code(), "invalid_token");

    let brief = exp(json!(token::now() + 3));
    assert_eq!(world.get(&brief).status(), 200);
    let late = wait_for("a token in use to expire", || {
        Some(world.get(&brief)).filter(|a| a.status() != 200)
    });
    assert_eq!((late.status(), late.code().as_str()), (401, "expired_token"));
}

#[test]
fn a_token_must_name_its_api_key() {
    let world = world();
    let key = |key: Value| sign_a(json!({ "api_key": key, "exp": now() + 3600 }));
    assert_all(
        &world,
        vec![
            ("present", key(json!("alice")), 200),
            ("without a record", key(json!("nobody-at-all")), 401),
            ("empty", key(json!("")), 401),
            ("a number", key(json!(1)), 401),
            ("null", key(Value::Null), 401),
            ("missing", sign_a(json!({ "sub": "alice", "exp": now() + 3600 })), 401),
            ("claims that are a list", sign_a(json!(["alice"])), 401),
            (
                "16 KiB",
                sign_a(json!({ "api_key": "alice", "exp": now() + 3600, "x": "x".repeat(16_384) })),
                401,
            ),
        ],
    );
}

#[test]
fn issuer_and_audience_are_checked_where_set() {
    let origin = Origin::start();
    let gateway = |more: &str| {
        Gateway::start(&format!(
            "auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret: \"{SECRET}\" }} ]{more} }}, tokens: [ {{ api_key: alice }} ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }} ]",
            origin.url()
        ))
    };
    let (strict, lax) = (gateway(", issuer: us, audience: here"), gateway(""));
    let cases = [
        (json!({ "iss": "us", "aud": "here" }), 200),
        (json!({ "iss": "us", "aud": ["there", "here"] }), 200),
        (json!({ "iss": "them", "aud": "here" }), 401),
        (json!({ "iss": "us", "aud": "there" }), 401),
        (json!({ "iss": "us", "aud": [] }), 401),
        (json!({ "aud": "here" }), 401),
        (json!({ "iss": "us" }), 401),
        (json!({ "iss": 1, "aud": "here" }), 401),
        (json!({}), 401),
    ];
    for (mut body, status) in cases {
        body["api_key"] = json!("alice");
        body["exp"] = json!(now() + 3600);
        let credential = format!("Bearer {}", claims(body.clone()));
        let call = |gateway: &Gateway| {
            gateway.call("GET", "/", &[("Authorization", &credential)], b"").status()
        };
        assert_eq!(call(&strict), status, "{body}");
        assert_eq!(call(&lax), 200, "{body} where neither is set");
    }
}

#[test]
fn a_credential_comes_in_one_of_two_fields() {
    let world = world();
    world.redis.record("bob", &[("name", "Bob")]);
    let (alice, bob) = (with_kid("alice"), with_kid("bob"));
    let bearer = |scheme: &str, token: &str| format!("{scheme} {token}");
    let (a, b) = (bearer("Bearer", &alice), bearer("Bearer", &bob));
    let (lower, upper) = (bearer("bearer", &alice), bearer("BEARER", &alice));
    let (basic, bare) = (bearer("Basic", &alice), alice.as_str());
    let rows: [(&str, &[(&str, &str)], u16, &str); 15] = [
        ("bearer", &[("Authorization", &a)], 200, ""),
        ("lower case", &[("Authorization", &lower)], 200, ""),
        ("upper case", &[("authorization", &upper)], 200, ""),
        ("key", &[("X-API-Key", &alice)], 200, ""),
        ("the same in both", &[("Authorization", &a), ("X-API-Key", &alice)], 200, ""),
        ("different ones", &[("Authorization", &a), ("X-API-Key", &bob)], 400, "bad_request"),
        ("two bearers", &[("Authorization", &a), ("Authorization", &b)], 400, "bad_request"),
        ("two keys", &[("X-API-Key", &alice), ("X-API-Key", &bob)], 400, "bad_request"),
        ("none", &[], 401, "missing_token"),
        ("another scheme", &[("Authorization", &basic)], 401, ""),
        ("no scheme", &[("Authorization", bare)], 401, ""),
        ("no token", &[("Authorization", "Bearer")], 401, ""),
        (
            "an opaque key",
            &[("X-API-Key", "tg_0123456789abcdefghijklmnopqrstuvwxyzABC")],
            401,
            "invalid_token",
        ),
        (
            "another opaque key",
            &[("Authorization", "Bearer some-imported-key")],
            401,
            "invalid_token",
        ),
        ("an api_key is no credential", &[("X-API-Key", "alice")], 401, "invalid_token"),
    ];
    for (name, headers, status, code) in rows {
        let answer = world.gateway.call("GET", "/", headers, b"");
        assert_eq!(answer.status(), status, "{name}: {}", answer.text());
        if !code.is_empty() {
            assert_eq!(answer.code(), code, "{name}");
        }
    }
}

#[test]
fn records_are_read_as_hash_and_as_json() {
    let world = world();
    let soon = chrono::DateTime::from_timestamp(now() as i64 + 3600, 0).unwrap().to_rfc3339();
    let rows: [(&str, Vec<(&str, &str)>, Value, u16, &str); 13] = [
        ("plain", vec![("name", "x")], json!({ "name": "x" }), 200, "\"day\";q=555;w=86400"),
        (
            "rate_limit",
            vec![("rate_limit", "7")],
            json!({ "rate_limit": 7 }),
            200,
            "\"hour\";q=7;w=3600",
        ),
        (
            "limits",
            vec![("limits", "[\"8/day\"]")],
            json!({ "limits": ["8/day"] }),
            200,
            "\"day\";q=8;w=86400",
        ),
        ("plan", vec![("plan", "gold")], json!({ "plan": "gold" }), 200, "\"day\";q=777;w=86400"),
        (
            "its own limit before its plan's",
            vec![("plan", "gold"), ("rate_limit", "7")],
            json!({ "plan": "gold", "rate_limit": 7 }),
            200,
            "\"hour\";q=7;w=3600",
        ),
        ("enabled", vec![("disabled", "false")], json!({ "disabled": false }), 200, ""),
        ("disabled", vec![("disabled", "true")], json!({ "disabled": true }), 401, "revoked_token"),
        ("good for an hour", vec![("expires_at", &soon)], json!({ "expires_at": soon }), 200, ""),
        (
            "expired",
            vec![("expires_at", "2020-01-01T00:00:00Z")],
            json!({ "expires_at": "2020-01-01T00:00:00Z" }),
            401,
            "expired_token",
        ),
        (
            "expired in another time zone",
            vec![("expires_at", "2020-01-01T00:00:00.5+02:00")],
            json!({ "expires_at": "2020-01-01T00:00:00.5+02:00" }),
            401,
            "expired_token",
        ),
        (
            "permitted",
            vec![("allowed_routes", "[\"/\"]")],
            json!({ "allowed_routes": ["/"] }),
            200,
            "",
        ),
        (
            "not permitted",
            vec![("allowed_routes", "[\"/x\"]")],
            json!({ "allowed_routes": ["/x"] }),
            403,
            "route_not_permitted",
        ),
        ("permitted all", vec![("allowed_routes", "[]")], json!({ "allowed_routes": [] }), 200, ""),
    ];
    for (nth, (name, mut fields, mut record, status, expected)) in rows.into_iter().enumerate() {
        let (hash, text) = (format!("hash-{nth}"), format!("json-{nth}"));
        fields.extend([("api_key", hash.as_str()), ("organization_id", "acme")]);
        world.redis.record(&hash, &fields);
        record["api_key"] = json!(text);
        record["organization_id"] = json!("acme");
        world.redis.command(&["SET", &format!("token:{text}"), &record.to_string()]);
        for id in [&hash, &text] {
            let case = format!("record-{id}");
            let credential = format!("Bearer {}", with_kid(id));
            let answer = world.gateway.call(
                "GET",
                "/",
                &[("Authorization", &credential), ("X-Case", &case)],
                b"",
            );
            assert_eq!(answer.status(), status, "{name} as {id}: {}", answer.text());
            let seen = world.origin.case(&case);
            assert_eq!(seen.is_some(), status == 200, "{name} as {id}");
            match seen {
                Some(seen) => {
                    assert_eq!(seen.all("x-token-id"), [id.as_str()], "{name}");
                    assert_eq!(seen.all("x-organization-id"), ["acme"], "{name} as {id}");
                    let policy = answer.header("ratelimit-policy").unwrap_or_default();
                    assert!(expected.is_empty() || policy == expected, "{name} as {id}: {policy}");
                }
                None => assert_eq!(answer.code(), expected, "{name} as {id}"),
            }
        }
    }
}

#[test]
fn claims_fill_in_what_the_record_leaves_open() {
    let world = world();
    world.redis.record("open", &[("name", "x")]);
    world.redis.record("firm", &[("rate_limit", "9"), ("allowed_routes", "[\"/\"]")]);
    let body = |api_key: &str, more: Value| {
        let mut body = json!({ "api_key": api_key, "exp": now() + 3600 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        sign_a(body)
    };
    let policy = |answer: &Message| answer.header("ratelimit-policy").unwrap_or_default();
    let open = world.get(&body("open", json!({ "rate_limit": 5 })));
    assert_eq!((open.status(), policy(&open).as_str()), (200, "\"hour\";q=5;w=3600"));
    let firm = world.get(&body("firm", json!({ "rate_limit": 5000 })));
    assert_eq!((firm.status(), policy(&firm).as_str()), (200, "\"hour\";q=9;w=3600"));
    assert_eq!(world.get(&body("open", json!({ "allowed_routes": ["/x"] }))).status(), 403);
    assert_eq!(world.get(&body("firm", json!({ "allowed_routes": ["/x"] }))).status(), 200);
    assert_eq!(
        world.get(&body("open", json!({ "expires_at": "2020-01-01T00:00:00Z" }))).status(),
        401
    );
}

#[test]
fn a_malformed_record_opens_nothing_and_is_named_in_the_log() {
    let world = world();
    let fields = [
        ("rate_limit", "abc"),
        ("rate_limit", "-1"),
        ("rate_limit", "0"),
        ("limits", "[\"5/fortnight\"]"),
        ("limits", "5/day,"),
        ("expires_at", "tomorrow"),
        ("allowed_routes", "/api, /x"),
        ("allowed_routes", "[1]"),
        ("disabled", "maybe"),
        ("expires_at", "1893456000000"),
        ("allowed_routes", "[\"/%61pi\"]"),
        ("allowed_routes", "[\"/api/*/x\"]"),
        ("plan", "a b"),
    ];
    for (nth, (field, value)) in fields.into_iter().enumerate() {
        world.redis.record(&format!("broken-{nth}"), &[("name", "x"), (field, value)]);
    }
    for (nth, text) in
        ["no json", "[]", "{\"rate_limit\":\"abc\"}", "{\"disabled\":\"maybe\"}"].iter().enumerate()
    {
        world.redis.command(&["SET", &format!("token:broken-text-{nth}"), text]);
    }
    world.redis.command(&["RPUSH", "token:broken-list", "x"]);
    let named = |id: &str, field: &str| {
        let answer = world.get(&with_kid(id));
        assert!(answer.status() >= 400, "{id} ({field}): {}", answer.status());
        assert!(
            world.origin.requests().iter().all(|r| r.all("x-token-id") != [id]),
            "{id} was forwarded"
        );
        world.gateway.wait_log(&format!("a line that names {id} and `{field}`"), |line| {
            let line = line.to_string();
            line.contains(id) && line.contains(field)
        });
    };
    for (nth, (field, _)) in fields.into_iter().enumerate() {
        named(&format!("broken-{nth}"), field);
    }
    for (nth, field) in ["", "", "rate_limit", "disabled"].into_iter().enumerate() {
        named(&format!("broken-text-{nth}"), field);
    }
    assert!(world.get(&with_kid("broken-list")).status() >= 400);
}

#[test]
fn a_record_is_believed_for_its_time_and_no_longer() {
    let world = world();
    let becomes = |id: &str, what: &str, status: u16| {
        wait_for(what, || (world.get(&with_kid(id)).status() == status).then_some(()));
    };
    assert_eq!(world.get(&with_kid("late")).status(), 401);
    world.redis.record("late", &[("name", "x")]);
    becomes("late", "a new record to be found", 200);
    world.redis.command(&["HSET", "token:late", "disabled", "true"]);
    becomes("late", "a change to be noticed", 401);
    world.redis.command(&["HSET", "token:late", "disabled", "false"]);
    becomes("late", "a change back to be noticed", 200);
    world.redis.command(&["DEL", "token:late"]);
    becomes("late", "a deletion to be noticed", 401);
}

#[test]
fn a_token_in_use_costs_few_look_ups() {
    let (redis, origin) = (Redis::start(), Origin::start());
    redis.record("busy", &[("name", "x")]);
    let gateway = Gateway::start(&format!(
        "redis: {{ url: \"{}\", timeout: 2s }}\nupstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        redis.url(),
        origin.url()
    ));
    let work = || {
        let info = redis.command(&["INFO", "commandstats"]);
        // A health probe has no token.
        let about = |line: &&str| {
            !["ping", "info", "config", "client", "hello"].iter().any(|c| line.contains(c))
        };
        let calls =
            |line: &str| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok();
        info.lines().filter(about).filter_map(calls).sum::<u64>()
    };
    assert_eq!(gateway.get_as("busy", "/").status(), 200);
    let before = work();
    let (mut client, credential) = (gateway.connect(), bearer("busy"));
    for _ in 0..50 {
        assert_eq!(client.call("GET", "/", &[("Authorization", &credential)], b"").status(), 200);
        assert_eq!(
            client.call("GET", "/", &[("Authorization", &bearer("unknown"))], b"").status(),
            401
        );
    }
    let spent = work() - before;
    assert!(spent <= 5, "{spent} commands for 100 requests with two tokens");
}

/// The SHA-256 of "abc", as `printf %s abc | sha256sum` prints it.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn opaque_keys_are_known_by_their_hash_alone() {
    let world = world();
    world.redis.record(ABC, &[("name", "imported"), ("limits", "[\"9/day\"]")]);
    let call = |field: &str, value: &str, case: &str| {
        world.gateway.call("GET", "/", &[(field, value), ("X-Case", case)], b"")
    };
    for (case, field, value) in
        [("key-field", "X-API-Key", "abc"), ("key-bearer", "Authorization", "Bearer abc")]
    {
        let answer = call(field, value, case);
        assert_eq!(answer.status(), 200, "{case}: {}", answer.text());
        assert_eq!(answer.header("ratelimit-policy").unwrap(), "\"day\";q=9;w=86400");
        let seen = world.origin.case(case).unwrap();
        assert_eq!(seen.all("x-token-id"), [&ABC[..16]], "the public id is all that is shown");
    }
    for (what, value) in [
        ("the hash is no key", ABC),
        ("nor is the public id", &ABC[..16]),
        ("nor is another spelling", "ABC"),
        ("nor is a prefix", "ab"),
        ("nor the name of a JWT's record", "alice"),
    ] {
        let answer = call("X-API-Key", value, "refused");
        assert_eq!((answer.status(), answer.code().as_str()), (401, "invalid_token"), "{what}");
    }
    world.redis.command(&["DEL", &format!("token:{ABC}")]);
    wait_for("a deleted key to be refused", || {
        (call("X-API-Key", "abc", "deleted").status() == 401).then_some(())
    });
}

#[test]
fn a_mistyped_key_costs_no_look_up() {
    let world = world();
    let asked = || {
        let info = world.redis.command(&["INFO", "commandstats"]);
        let line = info.lines().find(|line| line.starts_with("cmdstat_type:")).map(str::to_owned);
        line.and_then(|line| line.split(['=', ',']).nth(1)?.parse::<u64>().ok()).unwrap_or(0)
    };
    // Other tests share the Redis and its counters: the least of several rounds is without their look-ups.
    let least = |key: &dyn Fn(usize) -> String| {
        let counts = (0..5).map(|round| {
            let before = asked();
            for nth in 0..10 {
                let key = key(round * 10 + nth);
                let answer = world.gateway.call("GET", "/", &[("X-API-Key", &key)], b"");
                assert_eq!((answer.status(), answer.code().as_str()), (401, "invalid_token"));
            }
            asked() - before
        });
        counts.min().unwrap()
    };
    assert!(least(&|nth| format!("some-imported-key-{nth}")) >= 10);
    let spent = least(&|nth| format!("tg_{nth:038}"));
    assert!(spent < 10, "{spent} look-ups for 10 keys with a wrong checksum");
}

#[test]
fn a_configuration_may_hold_opaque_keys() {
    let origin = Origin::start();
    let gateway = Gateway::start(&format!(
        "auth: {{ tokens: [ {{ key_sha256: {ABC}, limits: [ 9/day ] }}, {{ key: \"a-key.with-one-dot\", plan: p }}, {{ key: off, disabled: true }} ] }}
plans: {{ p: {{ limits: [ 8/day ] }} }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }} ]",
        origin.url()
    ));
    let get = |key: &str| {
        let answer = gateway.call("GET", "/", &[("X-API-Key", key)], b"");
        let policy = answer.header("ratelimit-policy").unwrap_or_default();
        (answer.status(), if answer.status() == 200 { policy } else { answer.code() })
    };
    assert_eq!(get("abc"), (200, "\"day\";q=9;w=86400".into()));
    assert_eq!(get("a-key.with-one-dot"), (200, "\"day\";q=8;w=86400".into()));
    assert_eq!(get("off"), (401, "revoked_token".into()));
    assert_eq!(get("other"), (401, "invalid_token".into()));
    assert_eq!(get(ABC), (401, "invalid_token".into()));
}
