//! The gateway's own answers, rate fields, the access log and metrics.
//! It must not know which part of the gateway made an answer.
// Tables of cases have the type they have.
#![allow(clippy::type_complexity, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use support::token::{claims, now, unsigned};
use support::*;

/// A gateway on the embedded store with a token for every outcome.
fn gateway(origin: &Origin, limits: &str) -> Gateway {
    Gateway::start(&format!(
        r#"
max_body: 1KiB
plans: {{ gold: {{ limits: [ 100000/day ] }} }}
auth: {auth}
limits: {{ {limits} }}
upstreams:
  up: {{ endpoints: [ "{up}" ], retries: 0, timeouts: {{ connect: 1s, read: 300ms }} }}
  nobody: {{ endpoints: [ "http://{NOBODY}" ] }}
routes:
  - {{ prefix: /up, upstream: up }}
  - {{ prefix: /get, upstream: up, methods: [ GET ] }}
  - {{ prefix: /nobody, upstream: nobody }}
"#,
        auth = auth(
            "[ { api_key: alice, organization_id: acme, plan: gold },
               { api_key: free },
               { api_key: narrow, allowed_routes: [ /up/mine ] },
               { api_key: disabled, disabled: true },
               { api_key: lapsed, expires_at: \"2020-01-01T00:00:00Z\" },
               { api_key: two, limits: [ 2/day ] },
               { api_key: spent, limits: [ 1/day ] },
               { api_key: pair, limits: [ 50/hour, 2/day ] } ]"
        ),
        up = origin.url(),
    ))
}

/// Asserts what all problem answers have in common.
fn assert_problem(name: &str, answer: &Message, status: u16, code: &str) -> Value {
    let problem = answer.json();
    assert_eq!((answer.status(), &problem["code"]), (status, &json!(code)), "{name}: {problem}");
    let title = match status {
        413 => "Content Too Large", // RFC 9110 section 15.5.14
        status => ::http::StatusCode::from_u16(status).unwrap().canonical_reason().unwrap(),
    };
    assert_eq!(problem["type"], "about:blank", "{name}");
    assert_eq!(problem["title"], title, "{name}");
    assert_eq!(problem["status"], status, "{name}");
    assert!(
        problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()),
        "{name}: {problem}"
    );
    assert_eq!(problem["request_id"].as_str(), answer.header("x-request-id").as_deref(), "{name}");
    let time: DateTime<Utc> = problem["timestamp"].as_str().unwrap().parse().unwrap();
    assert!((time - Utc::now()).num_seconds().abs() < 60, "{name}: {time}");
    assert_eq!(answer.all("content-type"), ["application/problem+json"], "{name}");
    assert_eq!(answer.all("cache-control"), ["no-store"], "{name}");
    assert!(!answer.header("server").unwrap_or_default().contains("Pingora"), "{name}");
    problem
}

#[test]
fn every_refusal_has_its_answer_and_keeps_the_connection() {
    let origin = Origin::start();
    let gateway = gateway(&origin, "default: []");
    let _never = origin.hold("/up/slow");
    origin.on("/up/closes", |_, _| Ok(false));
    origin.reply("/up/rubbish", "rubbish\r\n\r\n");
    assert_eq!(gateway.get_as("spent", "/up").status(), 200, "the only request of the day");

    let alice = bearer("alice");
    let expired = format!("Bearer {}", claims(json!({ "api_key": "alice", "exp": now() - 60 })));
    let [narrow, lapsed, disabled, spent] = ["narrow", "lapsed", "disabled", "spent"].map(bearer);
    let (other, challenge) = (token("narrow"), "Bearer realm=\"tollgate\"");
    let rows: [(&str, &str, &str, Vec<(&str, &str)>, u16, &str); 15] = [
        ("path", "GET", "/up/%2e%2e", vec![("Authorization", &alice)], 400, "bad_request"),
        (
            "two credentials",
            "GET",
            "/up",
            vec![("Authorization", &alice), ("X-API-Key", &other)],
            400,
            "bad_request",
        ),
        ("no token", "GET", "/up", vec![], 401, "missing_token"),
        ("no token", "HEAD", "/up", vec![], 401, ""),
        ("rubbish", "GET", "/up", vec![("Authorization", "Bearer a.b.c")], 401, "invalid_token"),
        ("exp is past", "GET", "/up", vec![("Authorization", &expired)], 401, "expired_token"),
        (
            "expires_at is past",
            "GET",
            "/up",
            vec![("Authorization", &lapsed)],
            401,
            "expired_token",
        ),
        ("disabled", "GET", "/up", vec![("Authorization", &disabled)], 401, "revoked_token"),
        (
            "not permitted",
            "GET",
            "/up/other",
            vec![("Authorization", &narrow)],
            403,
            "route_not_permitted",
        ),
        ("no route", "GET", "/nowhere", vec![("Authorization", &alice)], 404, "no_route"),
        ("method", "DELETE", "/get", vec![("Authorization", &alice)], 405, "method_not_allowed"),
        ("limit", "GET", "/up", vec![("Authorization", &spent)], 429, "rate_limited"),
        (
            "nobody there",
            "GET",
            "/nobody",
            vec![("Authorization", &alice)],
            502,
            "upstream_unreachable",
        ),
        (
            "no answer",
            "GET",
            "/up/closes",
            vec![("Authorization", &alice)],
            502,
            "upstream_unreachable",
        ),
        ("too slow", "GET", "/up/slow", vec![("Authorization", &alice)], 504, "upstream_timeout"),
    ];
    let mut client = gateway.connect();
    for (name, method, target, headers, status, code) in rows {
        let answer = client.call(method, target, &headers, b"");
        if method == "HEAD" {
            assert_eq!((answer.status(), answer.body.len()), (status, 0), "{name}");
        } else {
            assert_problem(name, &answer, status, code);
        }
        let field = |field: &str| answer.header(field).unwrap_or_default();
        match (status, code) {
            (401, "missing_token" | "") => {
                assert_eq!(field("www-authenticate"), challenge, "{name}")
            }
            (401, _) => {
                let found = field("www-authenticate");
                assert!(
                    found.starts_with(challenge) && found.contains("error=\"invalid_token\""),
                    "{name}: {found}"
                );
            }
            (403, _) => {
                let found = field("www-authenticate");
                assert!(
                    found.starts_with(challenge) && found.contains("error=\"insufficient_scope\""),
                    "{name}: {found}"
                );
            }
            _ => assert_eq!(answer.header("www-authenticate"), None, "{name}"),
        }
        assert_eq!(answer.header("retry-after").is_some(), [429, 503].contains(&status), "{name}");
        assert_eq!(answer.header("allow"), (status == 405).then(|| "GET".to_owned()), "{name}");
        let next = client.call("GET", "/up/next", &[("Authorization", &alice)], b"");
        assert_eq!(next.text(), "GET /up/next HTTP/1.1", "after `{name}` on the same connection");
    }

    // A body that was read to its end does not end the connection either.
    let refused = client.call("POST", "/up", &[("Content-Length", "4")], b"body");
    assert_problem("a small body", &refused, 401, "missing_token");
    let next = client.call("GET", "/up/next", &[("Authorization", &alice)], b"");
    assert_eq!(next.text(), "GET /up/next HTTP/1.1", "after a refused request with a small body");

    // A request that was not read in full ends the connection, after the answer.
    let rubbish = gateway.get_as("alice", "/up/rubbish");
    assert_problem("an answer that is not HTTP", &rubbish, 502, "upstream_invalid");
    let mut client = gateway.connect();
    let too_large = client.call(
        "POST",
        "/up",
        &[("Authorization", &alice), ("Content-Length", "1000000")],
        b"",
    );
    assert_problem("body", &too_large, 413, "body_too_large");
    assert!(client.is_closed());
    let mut client = gateway.connect();
    let large = client.call("GET", "/up", &[("X-Large", &"x".repeat(2 << 20))], b"");
    assert_problem("header", &large, 431, "header_too_large");
    assert!(client.is_closed());
    let mut client = gateway.connect();
    let hosts = client.call("GET", "/up", &[("Host", "a"), ("Host", "b")], b"");
    assert_problem("shape", &hosts, 400, "bad_request");
    assert!(client.is_closed());
}

#[test]
fn a_store_outage_is_nothing_but_a_store_outage() {
    let gateway = Gateway::spawn(&format!(
        "redis: {{ url: \"redis://{NOBODY}\", timeout: 200ms }}\nlimits: {{ default: [ 1/day ], on_store_failure: deny }}
auth: {}
upstreams: {{ up: {{ endpoints: [ \"http://{NOBODY}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }} ]",
        auth("[ { api_key: known } ]")
    ));
    let mut client = gateway.connect();
    for name in ["unknown", "known", "unknown", "known"] {
        let answer = client.call("GET", "/", &[("Authorization", &bearer(name))], b"");
        assert_problem(name, &answer, 503, "store_unavailable");
        assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1, "{answer:?}");
    }
}

#[test]
fn a_refused_token_never_tells_why() {
    let origin = Origin::start();
    let gateway = gateway(&origin, "default: []");
    let good = token("alice");
    let (head, signature) = good.rsplit_once('.').unwrap();
    let other = token("narrow");
    let header = json!({ "alg": "none" });
    let details: Vec<_> = [
        format!("{head}.{}", signature.chars().rev().collect::<String>()),
        format!("{}.{signature}", other.rsplit_once('.').unwrap().0),
        format!("{head}.AAAA"),
        format!("{}.", unsigned(&header, &json!({ "api_key": "alice", "exp": now() + 60 }))),
        token::sign(
            &json!({ "alg": "HS512" }),
            &json!({ "api_key": "alice", "exp": now() + 60 }),
            SECRET,
            jsonwebtoken::Algorithm::HS512,
        ),
        "not.a.token".into(),
    ]
    .iter()
    .map(|token| {
        let answer = gateway.call("GET", "/up", &[("X-API-Key", token)], b"");
        let problem = assert_problem(token, &answer, 401, "invalid_token");
        (problem["detail"].clone(), answer.header("www-authenticate"))
    })
    .collect();
    assert!(details.windows(2).all(|two| two[0] == two[1]), "{details:#?}");
    assert!(!details[0].0.to_string().to_lowercase().contains("signature"), "{details:#?}");
}

/// The parameters of each member: `"day";q=2;w=86400` is `("day", [("q", 2), ("w", 86400)])`.
fn members(field: &str) -> Vec<(String, Vec<(String, u64)>)> {
    let member = |text: &str| {
        let mut parts = text.trim().split(';');
        let name = parts.next().unwrap().strip_prefix('"').unwrap().strip_suffix('"').unwrap();
        let parameter = |text: &str| {
            text.split_once('=').map(|(n, v)| (n.to_owned(), v.parse().unwrap())).unwrap()
        };
        (name.to_owned(), parts.map(parameter).collect())
    };
    field.split(',').map(member).collect()
}

#[test]
fn rate_fields_say_what_is_left() {
    for mode in ["standard", "legacy", "both", "none"] {
        let origin = Origin::start();
        let gateway = gateway(&origin, &format!("default: [], headers: {mode}"));
        let has = |answer: &Message, name: &str| answer.header(name).is_some();
        for (left, status) in [(1, 200), (0, 200), (0, 429), (0, 429)] {
            let answer = gateway.get_as("two", "/up");
            assert_eq!(answer.status(), status, "{mode}");
            let day = 86_400 - now() % 86_400;
            let near = |seconds: u64| seconds.abs_diff(day) <= 2;
            let standard = ["standard", "both"].contains(&mode);
            assert_eq!(
                [has(&answer, "ratelimit"), has(&answer, "ratelimit-policy")],
                [standard; 2],
                "{mode}"
            );
            if standard {
                assert_eq!(answer.header("ratelimit-policy").unwrap(), "\"day\";q=2;w=86400");
                let (name, parameters) = members(&answer.header("ratelimit").unwrap()).remove(0);
                assert_eq!((name.as_str(), &parameters[0]), ("day", &("r".into(), left)));
                assert!(parameters[1].0 == "t" && near(parameters[1].1), "{parameters:?}");
            }
            let legacy = ["legacy", "both"].contains(&mode);
            let names = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
            assert_eq!(names.map(|name| has(&answer, name)), [legacy; 3], "{mode}");
            if legacy {
                let [limit, remaining, reset] =
                    names.map(|name| answer.header(name).unwrap().parse::<u64>().unwrap());
                assert_eq!((limit, remaining), (2, left));
                assert!(near(reset), "{reset} is not close to {day}");
            }
            if status == 429 {
                let retry: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                let problem = assert_problem(mode, &answer, 429, "rate_limited");
                let limit = &problem["limit"];
                assert_eq!(problem["detail"], "2 requests per day used up");
                for (key, value) in
                    [("name", json!("day")), ("quota", json!(2)), ("window_seconds", json!(86_400))]
                {
                    assert_eq!(limit[key], value, "{limit}");
                }
                assert_eq!(
                    (&limit["remaining"], &limit["retry_after"]),
                    (&json!(0), &json!(retry)),
                    "{limit}"
                );
                let reset: DateTime<Utc> = limit["reset_at"].as_str().unwrap().parse().unwrap();
                assert_eq!(reset.timestamp() % 86_400, 0, "{reset}");
                let left = reset.timestamp() - Utc::now().timestamp();
                assert!(
                    near(retry) && retry as i64 >= left - 1,
                    "retry after {retry}, reset in {left}"
                );
            }
        }
        let answer = gateway.get_as("free", "/up");
        assert!(
            !has(&answer, "ratelimit") && !has(&answer, "x-ratelimit-limit"),
            "{mode}: no limit, no fields"
        );
    }
}

#[test]
fn rate_fields_name_every_limit_and_the_tightest() {
    let origin = Origin::start();
    let gateway = gateway(&origin, "default: []");
    for left in [1, 0] {
        let answer = gateway.get_as("pair", "/up");
        let policy = members(&answer.header("ratelimit-policy").unwrap());
        let named = |name: &str| policy.iter().find(|(n, _)| n == name).unwrap().1.clone();
        assert_eq!(policy.len(), 2);
        assert_eq!(named("hour"), [("q".into(), 50), ("w".into(), 3600)]);
        assert_eq!(named("day"), [("q".into(), 2), ("w".into(), 86_400)]);
        let state = members(&answer.header("ratelimit").unwrap());
        let of = |name: &str| state.iter().find(|(n, _)| n == name).unwrap().1[0].clone();
        assert_eq!((of("hour"), of("day")), (("r".into(), 48 + left), ("r".into(), left)));
        assert_eq!(
            answer.header("x-ratelimit-limit").unwrap(),
            "2",
            "the legacy fields are the tightest limit's"
        );
        assert_eq!(answer.header("x-ratelimit-remaining").unwrap(), left.to_string());
    }
    assert_eq!(gateway.get_as("pair", "/up").json()["limit"]["name"], "day");
}

#[test]
fn an_answer_that_breaks_off_does_not_look_whole() {
    let origin = Origin::start();
    let gateway = gateway(&origin, "default: []");
    for (path, answer) in [
        ("/up/length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npartial"),
        ("/up/chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\npartial\r\n"),
    ] {
        origin.on(path, move |_, stream| stream.write_all(answer.as_bytes()).map(|()| false));
        let mut client = gateway.connect();
        client.send(request("GET", path, &[("Authorization", &bearer("alice"))], b""));
        let read = client.try_read(false);
        assert!(read.is_err(), "{path}: {read:?}");
    }
}

#[test]
fn the_access_log_has_a_line_for_each_request() {
    let origin = Origin::start();
    let gateway = gateway(&origin, "default: []");
    let (credential, forged) = (bearer("alice"), format!("{}x", bearer("alice")));
    let line = |id: &str, headers: &[(&str, &str)], target: &str| {
        let headers = [headers, &[("X-Request-ID", id)]].concat();
        gateway.call("GET", target, &headers, b"");
        gateway
            .wait_log("the access line", |line| line["request_id"] == id && line["status"].is_u64())
    };
    let served = line("log-served", &[("Authorization", &credential)], "/up/x?secret=s3cr3t-query");
    for (field, value) in [
        ("method", json!("GET")),
        ("route", json!("/up")),
        ("status", json!(200)),
        ("upstream", json!("up")),
        ("client_ip", json!("127.0.0.1")),
        ("token_id", json!("alice")),
        ("organization_id", json!("acme")),
        ("plan", json!("gold")),
        ("bytes", json!("GET /up/x?secret=s3cr3t-query HTTP/1.1".len())),
    ] {
        assert_eq!(served[field], value, "{field} in {served}");
    }
    assert_eq!(served["path"].as_str().unwrap().split('?').next(), Some("/up/x"), "{served}");
    assert!(
        served["duration_ms"].as_f64().unwrap() >= served["upstream_ms"].as_f64().unwrap(),
        "{served}"
    );
    assert!(served["timestamp"].as_str().unwrap().parse::<DateTime<Utc>>().is_ok(), "{served}");
    assert!(served["level"].is_string(), "{served}");

    let refused = line("log-refused", &[("Authorization", &forged)], "/up/x");
    assert_eq!(
        (&refused["status"], &refused["code"]),
        (&json!(401), &json!("invalid_token")),
        "{refused}"
    );
    let missed = line("log-missed", &[("X-API-Key", "opaque-s3cr3t-key")], "/nowhere");
    assert_eq!((&missed["status"], &missed["code"]), (&json!(404), &json!("no_route")), "{missed}");

    origin.on("/up/garbled", |_, stream| {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nSet-Cookie: s3cr3t-cookie\r\nbad\r\n\r\n")
            .map(|()| false)
    });
    line("log-garbled", &[("Authorization", &credential)], "/up/garbled");

    let signature = credential.rsplit('.').next().unwrap();
    for secret in [SECRET, "opaque-s3cr3t-key", signature, "s3cr3t-cookie"] {
        let told: Vec<_> =
            gateway.lines().into_iter().filter(|line| line.contains(secret)).collect();
        assert!(told.is_empty(), "a credential in the log: {told:#?}");
    }
}

#[test]
fn metrics_are_there_and_name_no_one() {
    let (redis, origin) = (Redis::start(), Origin::start());
    redis.record("metered-token", &[("rate_limit", "2")]);
    let gateway = Gateway::start(&format!(
        "redis: {{ url: \"{}\", timeout: 1s }}\nlimits: {{ default: [], window: 1d }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }}, nobody: {{ endpoints: [ \"http://{NOBODY}\" ] }} }}
routes: [ {{ prefix: /up, upstream: up }}, {{ prefix: /nobody, upstream: nobody, auth: none }} ]",
        redis.url(),
        origin.url()
    ));
    for (target, status) in
        [("/up/some-path", 200), ("/up/some-path", 200), ("/up/some-path", 429), ("/away", 404)]
    {
        assert_eq!(gateway.get_as("metered-token", target).status(), status);
    }
    assert_eq!(gateway.get_as("strange-token", "/up").status(), 401);
    assert_eq!(gateway.call("BREW", "/nobody", &[], b"").status(), 502);

    for (series, value) in [
        ("tollgate_requests_total{method=\"GET\",route=\"/up\",status=\"200\"}", 2.0),
        ("tollgate_requests_total{method=\"GET\",route=\"/up\",status=\"429\"}", 1.0),
        ("tollgate_rejections_total{code=\"rate_limited\"}", 1.0),
        ("tollgate_rejections_total{code=\"no_route\"}", 1.0),
        ("tollgate_request_duration_seconds_count{route=\"/up\"}", 4.0),
        ("tollgate_upstream_duration_seconds_count{upstream=\"up\"}", 2.0),
        ("tollgate_in_flight_requests", 0.0),
        ("tollgate_config_last_reload_success", 1.0),
        ("tollgate_config_generation", 1.0),
    ] {
        // A request is counted when it is over, a moment after its answer arrived.
        wait_for(series, || (gateway.metric(series) == Some(value)).then_some(()));
    }
    let page = gateway.scrape();
    for family in [
        "tollgate_limit_decisions_total",
        "tollgate_store_operations_total",
        "tollgate_store_duration_seconds",
        "tollgate_token_cache_total",
        "tollgate_build_info",
    ] {
        let present = page
            .lines()
            .any(|line| line.starts_with("# TYPE") && line.contains(&format!(" {family} ")));
        let counted = page.lines().any(|line| line.starts_with(family));
        assert!(present && counted, "{family} in\n{page}");
    }
    for name in ["metered", "strange", "some-path", "away", "BREW", "127.0.0.1", &redis.url()] {
        // The endpoint is named as in the file, and has the client's address here.
        let told = page.lines().filter(|line| !line.contains("{endpoint=\"http://127.0.0.1:"));
        let told: Vec<_> = told.filter(|line| line.contains(name)).collect();
        assert!(told.is_empty(), "{name} in {told:#?}");
    }
}
