//! Tokens that need no record (`require_record: false`): what their claims grant, and how they are revoked.
//! It must not know how gateways hear of revocations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::token::{claims, now};
use support::*;

fn yaml(redis: Option<&Redis>, origin: &Origin) -> String {
    let redis =
        redis.map(|redis| format!("redis: {{ url: \"{}\", timeout: 500ms }}\n", redis.url()));
    format!(
        "{}auth:
  max_failures: none
  jwt: {{ keys: [ {{ algorithm: HS256, secret: \"{SECRET}\" }} ], require_record: false }}
  tokens: [ {{ api_key: known, limits: [ 3/day ] }}, {{ api_key: banned, disabled: true }} ]
  cache: {{ ttl: 1h, max_stale: 2s }}
plans: {{ gold: {{ limits: [ 777/day ] }} }}
limits: {{ default: [ 555/day ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        redis.unwrap_or_default(),
        origin.url()
    )
}

fn token(api_key: &str, more: Value) -> String {
    let mut body = json!({ "api_key": api_key, "exp": now() + 3600 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims(body)
}

fn ask(gateway: &Gateway, path: &str, token: &str, case: &str) -> Message {
    let credential = format!("Bearer {token}");
    gateway.call("GET", path, &[("Authorization", &credential), ("X-Case", case)], b"")
}

fn status(gateway: &Gateway, token: &str) -> (u16, String) {
    let answer = ask(gateway, "/", token, "status");
    (answer.status(), if answer.status() == 200 { String::new() } else { answer.code() })
}

#[test]
fn claims_alone_say_what_a_token_may() {
    let origin = Origin::start();
    let gateway = Gateway::start(&yaml(None, &origin));
    for (case, claims, expected, policy) in [
        ("nothing", json!({}), 200, "\"day\";q=555;w=86400"),
        (
            "plan",
            json!({ "plan": "gold", "organization_id": "acme" }),
            200,
            "\"day\";q=777;w=86400",
        ),
        ("limits", json!({ "limits": ["9/day"], "plan": "gold" }), 200, "\"day\";q=9;w=86400"),
        ("rate", json!({ "rate_limit": "8/day" }), 200, "\"day\";q=8;w=86400"),
        ("unknown plan", json!({ "plan": "tin" }), 403, ""),
        (
            "unknown plan beside limits",
            json!({ "plan": "tin", "limits": ["9/day"] }),
            200,
            "\"day\";q=9;w=86400",
        ),
        ("route", json!({ "allowed_routes": ["/"] }), 200, "\"day\";q=555;w=86400"),
        ("other route", json!({ "allowed_routes": ["/x"] }), 403, ""),
        ("expired", json!({ "expires_at": "2020-01-01T00:00:00Z" }), 401, ""),
        ("wrong limits", json!({ "limits": ["9/fortnight"] }), 401, ""),
        ("no field", json!({ "organization_id": "a\r\nx: y" }), 401, ""),
        (
            "empty names",
            json!({ "organization_id": "", "plan": "", "limits": ["9/day"] }),
            200,
            "\"day\";q=9;w=86400",
        ),
        ("milliseconds", json!({ "expires_at": 1_893_456_000_000_u64 }), 401, ""),
        ("no pattern", json!({ "allowed_routes": ["/", "api/*"] }), 401, ""),
    ] {
        let answer = ask(&gateway, "/", &token(&case.replace(' ', "-"), claims), case);
        assert_eq!(answer.status(), expected, "{case}: {}", answer.text());
        let said = answer.header("ratelimit-policy").unwrap_or_default();
        assert!(policy.is_empty() || said == policy, "{case}: {said}");
    }
    let seen = origin.case("empty names").unwrap();
    assert_eq!(seen.all("x-organization-id").len() + seen.all("x-plan-tier").len(), 0);
    let seen = origin.case("plan").unwrap();
    assert_eq!(seen.all("x-token-id"), ["plan"]);
    assert_eq!(seen.all("x-organization-id"), ["acme"]);
    assert_eq!(seen.all("x-plan-tier"), ["gold"]);
    let count = |plan: &str| {
        gateway.metric(&format!("tollgate_plan_requests_total{{plan=\"{plan}\"}}")).unwrap_or(0.0)
    };
    assert_eq!((count("gold"), count("other"), count("tin")), (2.0, 2.0, 0.0));
    gateway.wait_log("plan and organization in the log", |line| {
        line["plan"] == "gold" && line["organization_id"] == "acme"
    });

    // A record of the configuration counts before claims, and claims count where the record says nothing.
    let known = ask(&gateway, "/", &token("known", json!({ "limits": ["9/day"] })), "known");
    assert_eq!(known.header("ratelimit-policy").unwrap(), "\"day\";q=3;w=86400");
    assert_eq!(status(&gateway, &token("banned", json!({}))), (401, "revoked_token".into()));
    let narrow = token("known", json!({ "allowed_routes": ["/read"] }));
    assert_eq!(status(&gateway, &narrow), (403, "route_not_permitted".into()));
    let late = token("known", json!({ "expires_at": "2020-01-01T00:00:00Z" }));
    assert_eq!(status(&gateway, &late), (401, "expired_token".into()));
}

#[test]
fn a_revocation_is_in_effect_at_once_and_ends_when_it_is_taken_back() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateways: Vec<_> = (0..3).map(|_| Gateway::start(&yaml(Some(&redis), &origin))).collect();
    let everywhere = |token: &str, expected: (u16, &str)| {
        wait_for(&format!("{expected:?} everywhere"), || {
            let all = gateways.iter().all(|gateway| {
                let (status, code) = status(gateway, token);
                (status, code.as_str()) == expected
            });
            all.then_some(())
        });
    };
    let (one, two) =
        (token("alice", json!({ "jti": "one" })), token("alice", json!({ "jti": "two" })));
    everywhere(&one, (200, ""));
    everywhere(&two, (200, ""));
    redis.command(&["SET", "revoked:one", "1"]);
    everywhere(&one, (401, "revoked_token"));
    everywhere(&two, (200, ""));
    redis.command(&["SET", "revoked:alice", "1", "EX", "3600"]);
    everywhere(&two, (401, "revoked_token"));
    redis.command(&["DEL", "revoked:alice"]);
    everywhere(&two, (200, ""));
    everywhere(&one, (401, "revoked_token"));

    // The same holds where the configuration has a record.
    let known = token("known", json!({ "jti": "three" }));
    everywhere(&known, (200, ""));
    redis.command(&["SET", "revoked:three", "1"]);
    everywhere(&known, (401, "revoked_token"));

    // A revocation that no gateway could hear of.
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    redis.command(&["SET", "revoked:two", "1"]);
    everywhere(&two, (401, "revoked_token"));
}

#[test]
fn without_redis_it_is_not_known_who_is_revoked() {
    let (mut redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&yaml(Some(&redis), &origin));
    let (known, revoked) = (token("alice", json!({})), token("bob", json!({})));
    redis.command(&["SET", "revoked:bob", "1"]);
    assert_eq!(status(&gateway, &known).0, 200);
    assert_eq!(status(&gateway, &revoked), (401, "revoked_token".into()));
    redis.kill();
    assert_eq!(status(&gateway, &known).0, 200, "known as good, for max_stale");
    assert_eq!(status(&gateway, &revoked), (401, "revoked_token".into()), "stays revoked");
    let another = token("bob", json!({ "jti": "new" }));
    assert_eq!(
        status(&gateway, &another),
        (401, "revoked_token".into()),
        "and so does every other"
    );
    let stranger = token("carol", json!({}));
    assert_eq!(status(&gateway, &stranger), (503, "store_unavailable".into()));
    wait_for("max_stale to be over", || {
        (status(&gateway, &known) == (503, "store_unavailable".into())).then_some(())
    });
}

#[test]
fn the_command_line_makes_and_revokes_tokens_without_records() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&yaml(Some(&redis), &origin));
    let run = |words: &[&str]| {
        let output = tollgate()
            .arg("token")
            .args(words)
            .args(["-c", gateway.config.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let made = run(&[
        "create",
        "--limit",
        "6/day",
        "--routes",
        "/a/*",
        "--organization",
        "acme",
        "--json",
    ]);
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["stored"], false);
    assert_eq!(redis.command(&["DBSIZE"]).trim(), "1", "nothing but the gateway's heartbeat");
    let token = made["credential"].as_str().unwrap();
    let answer = ask(&gateway, "/a/b", token, "made");
    assert_eq!(answer.header("ratelimit-policy").unwrap(), "\"day\";q=6;w=86400");
    assert_eq!(origin.case("made").unwrap().all("x-organization-id"), ["acme"]);
    assert_eq!(ask(&gateway, "/b", token, "elsewhere").code(), "route_not_permitted");
    run(&["revoke", made["api_key"].as_str().unwrap()]);
    wait_for("the revocation", || {
        (ask(&gateway, "/a/b", token, "revoked").code() == "revoked_token").then_some(())
    });
    let key = format!("revoked:{}", made["api_key"].as_str().unwrap());
    assert!(redis.command(&["TTL", &key]).trim().parse::<i64>().unwrap() > 86_400);
}
