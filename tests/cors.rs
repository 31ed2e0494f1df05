//! Scripts of other origins, as browsers ask for them: preflights, and the fields of every answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::*;

const APP: &str = "https://app.example.com";

/// A gateway with a route for listed origins, one for all origins, and one that leaves CORS to its upstream.
fn gateway(origin: &Origin) -> Gateway {
    Gateway::start(&format!(
        r#"auth: {}
limits: {{ default: [ 2/day ] }}
upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes:
  - prefix: /api
    methods: [ GET, POST ]
    upstream: up
    cors:
      origins: [ {APP}, "https://*.example.org" ]
      methods: [ GET, POST ]
      headers: [ Authorization, content-type ]
      expose: [ X-Request-ID, ratelimit ]
      credentials: true
      max_age: 1h
  - {{ prefix: /api, methods: [ DELETE ], upstream: up }}
  - {{ prefix: /public, upstream: up, auth: none, cors: {{ origins: [ "*" ] }} }}
  - {{ prefix: /inside, upstream: up, cors: {{ origins: [ "*" ] }}, networks: {{ deny: [ 127.0.0.0/8 ] }} }}
  - prefix: /ruled
    upstream: up
    auth: none
    methods: [ GET, PUT ]
    cors: {{ origins: [ {APP} ], methods: [ GET, PUT, DELETE ] }}
    deprecated: {{ since: 2026-06-01, link: "https://example.com/migration" }}
    headers: {{ response: {{ set: {{ Vary: Accept, Link: "</next>" }} }} }}
  - {{ prefix: /other, upstream: up, auth: none }}"#,
        auth("[ { api_key: alice } ]"),
        origin.url(),
    ))
}

/// The fields of `answer` that are about other origins.
fn fields(answer: &Message) -> Vec<(String, String)> {
    let mut fields: Vec<_> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.to_lowercase(), value.clone()))
        .filter(|(name, _)| name.starts_with("access-control-") || name == "vary")
        .collect();
    fields.sort();
    fields
}

fn expected(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn preflight(gateway: &Gateway, path: &str, origin: &str, method: &str) -> Message {
    let fields = [
        ("Origin", origin),
        ("Access-Control-Request-Method", method),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    gateway.call("OPTIONS", path, &fields, b"")
}

const VARIES: (&str, &str) =
    ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers");

#[test]
fn preflights_are_answered_without_a_token_and_count_for_nothing() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    for allowed in [APP, "https://a.b.example.org"] {
        for method in ["GET", "POST"] {
            let answer = preflight(&gateway, "/api/users", allowed, method);
            assert_eq!((answer.status(), answer.text().as_str()), (204, ""));
            assert_eq!(
                fields(&answer),
                expected(&[
                    ("access-control-allow-credentials", "true"),
                    ("access-control-allow-headers", "authorization, content-type"),
                    ("access-control-allow-methods", "GET, POST"),
                    ("access-control-allow-origin", allowed),
                    ("access-control-max-age", "3600"),
                    VARIES,
                ])
            );
            assert!(answer.header("x-request-id").is_some());
            assert_eq!(answer.header("ratelimit"), None);
        }
    }
    for stranger in
        ["https://evil.example", "http://app.example.com", "null", "https://example.org"]
    {
        let answer = preflight(&gateway, "/api/users", stranger, "GET");
        assert_eq!(answer.status(), 204);
        assert_eq!(fields(&answer), expected(&[VARIES]), "{stranger}");
    }
    let public = preflight(&gateway, "/public", "https://anyone.example", "PUT");
    assert_eq!(
        fields(&public),
        expected(&[
            ("access-control-allow-methods", "GET, HEAD, POST, PUT, PATCH, DELETE"),
            ("access-control-allow-origin", "*"),
            ("access-control-max-age", "600"),
            VARIES,
        ])
    );
    assert!(origin.requests().is_empty(), "the upstream is not asked");
    let line = gateway.wait_log("a preflight", |line| line["status"] == 204);
    assert_eq!((&line["route"], &line["method"]), (&"/api".into(), &"OPTIONS".into()));
    for status in [200, 200, 429] {
        assert_eq!(gateway.get_as("alice", "/api/users").status(), status, "no unit was taken");
    }
    // A connection serves requests after a preflight.
    let mut client = gateway.connect();
    for _ in 0..3 {
        let fields = [("Origin", APP), ("Access-Control-Request-Method", "GET")];
        assert_eq!(client.call("OPTIONS", "/api", &fields, b"").status(), 204);
    }
}

#[test]
fn the_route_of_a_preflight_is_that_of_the_method_it_asks_for() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    // The route for DELETE has no rules: nobody answers for it, and OPTIONS is not one of its methods.
    assert_eq!(preflight(&gateway, "/api/users", APP, "DELETE").status(), 405);
    assert_eq!(preflight(&gateway, "/api/users", APP, "PATCH").status(), 405);
    assert_eq!(preflight(&gateway, "/nowhere", APP, "GET").status(), 404);
    assert_eq!(preflight(&gateway, "/inside", APP, "GET").code(), "network_not_permitted");
    // Requests that are no preflight go the usual way.
    assert_eq!(gateway.call("OPTIONS", "/api/users", &[("Origin", APP)], b"").status(), 405);
    let asked = [("Access-Control-Request-Method", "GET")];
    assert_eq!(gateway.call("OPTIONS", "/api/users", &asked, b"").status(), 405);
    // A route without rules leaves preflights to its upstream.
    origin.reply(
        "/other",
        "HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: https://up.example\r\n\r\n",
    );
    let answer = preflight(&gateway, "/other", APP, "GET");
    assert_eq!(fields(&answer), expected(&[("access-control-allow-origin", "https://up.example")]));
}

/// Rules come before the fields of the route, on answers of the upstream as on others.
#[test]
fn header_rules_cannot_undo_what_depends_on_the_origin() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    origin.reply(
        "/ruled/own",
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Private-Network: true\r\nVary: Cookie\r\nContent-Length: 0\r\n\r\n",
    );
    let answer = gateway.call("GET", "/ruled/own", &[("Origin", APP)], b"");
    assert_eq!(
        fields(&answer),
        expected(&[("access-control-allow-origin", APP), ("vary", "Accept"), ("vary", "Origin"),])
    );
    assert_eq!(answer.all("deprecation"), ["@1780272000"]);
    let links = ["</next>", "<https://example.com/migration>; rel=\"deprecation\""];
    assert_eq!(answer.all("link"), links);
    let preflight = preflight(&gateway, "/ruled/own", APP, "PUT");
    let methods = preflight.header("access-control-allow-methods");
    assert_eq!(methods.as_deref(), Some("GET, PUT"), "the route does not serve DELETE");
}

#[test]
fn every_answer_has_the_fields_and_the_upstreams_own_are_replaced() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    let own = "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: false\r\nAccess-Control-Expose-Headers: X-Internal\r\nAccess-Control-Allow-Methods: PUT\r\nVary: Accept\r\nContent-Length: 0\r\n\r\n";
    origin.reply("/api/own", own);
    origin.reply("/public/own", own);
    let bearer = bearer("alice");
    let call = |path: &str, origin: Option<&str>, token: &str| {
        let mut fields = vec![("Authorization", token)];
        fields.extend(origin.map(|origin| ("Origin", origin)));
        gateway.call("GET", path, &fields, b"")
    };
    let allowed = [
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-origin", APP),
        ("access-control-expose-headers", "x-request-id, ratelimit"),
    ];
    let answer = call("/api/own", Some(APP), &bearer);
    assert_eq!(answer.status(), 200);
    assert_eq!(
        fields(&answer),
        expected(&[&allowed[..], &[("vary", "Accept"), ("vary", "Origin")]].concat())
    );
    for (origin, token, status) in [
        (Some("https://evil.example"), &*bearer, 200),
        (None, &bearer, 429),
        (Some("null"), "Bearer wrong", 401),
    ] {
        let answer = call("/api/plain", origin, token);
        assert_eq!(answer.status(), status);
        assert_eq!(fields(&answer), expected(&[("vary", "Origin")]), "{origin:?}");
    }
    // A script learns why it was refused.
    for (token, status) in [("Bearer wrong", 401), ("", 401), (&bearer, 429)] {
        let answer = call("/api/plain", Some(APP), token);
        assert_eq!(answer.status(), status);
        assert_eq!(fields(&answer), expected(&[&allowed[..], &[("vary", "Origin")]].concat()));
    }
    let public = call("/public/own", Some("https://anyone.example"), "");
    assert_eq!(
        fields(&public),
        expected(&[("access-control-allow-origin", "*"), ("vary", "Accept")])
    );
    let two = [("Origin", APP), ("Origin", "https://evil.example")];
    let answer = gateway.call("GET", "/api", &two, b"");
    assert_eq!(fields(&answer), expected(&[("vary", "Origin")]), "two origins are none");
}

/// A script learns why it was refused, whatever the reason is.
#[test]
fn every_refusal_of_a_route_has_the_fields() {
    let origin = Origin::start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cors = format!("cors: {{ origins: [ {APP} ], expose: [ x-request-id ] }}");
    let gateway = Gateway::start(&format!(
        r#"auth: {}
timeouts: {{ read: 100ms }}
limits: {{ default: [ 100/day ] }}
upstreams:
  up: {{ endpoints: [ "{}" ], timeouts: {{ read: 100ms }}, retries: 0 }}
  down: {{ endpoints: [ "http://{closed}" ], retries: 0, breaker: {{ failures: 1, open_for: 1m }} }}
routes:
  - {{ prefix: /, upstream: up, max_body: 8B, {cors} }}
  - {{ prefix: /open, upstream: up, auth: none, max_body: 8B, {cors} }}
  - {{ prefix: /down, upstream: down, auth: none, {cors} }}
  - {{ prefix: /inside, upstream: up, networks: {{ deny: [ 127.0.0.0/8 ] }}, {cors} }}
  - {{ prefix: /once, upstream: up, auth: none, limits: [ {{ rate: 1/day, by: route }} ], {cors} }}"#,
        auth("[ { api_key: alice }, { api_key: narrow, allowed_routes: [ /only ] } ]"),
        origin.url(),
    ));
    let _silent = origin.hold("/open/silent");
    origin.reply("/open/broken", "no HTTP\r\n\r\n");
    let (alice, narrow) = (bearer("alice"), bearer("narrow"));
    let (alice, narrow) = (("Authorization", &*alice), ("Authorization", &*narrow));
    let wrong = ("Authorization", "Bearer wrong");
    let chunked = ("Transfer-Encoding", "chunked");
    let (nine, large) = (b"123456789".as_slice(), ("Content-Length", "9"));
    assert_eq!(gateway.get("/once").status(), 200);
    for (path, fields, body, status, code) in [
        ("/", &[][..], &b""[..], 401, "missing_token"),
        ("/", &[wrong], b"", 401, "invalid_token"),
        ("/", &[alice, wrong], b"", 400, "bad_request"),
        ("/", &[narrow], b"", 403, "route_not_permitted"),
        ("/inside", &[alice], b"", 403, "network_not_permitted"),
        ("/open", &[large], nine, 413, "body_too_large"),
        ("/open", &[chunked], b"9\r\n123456789\r\n0\r\n\r\n", 413, "body_too_large"),
        ("/open", &[("Content-Length", "4")], b"12", 408, "request_timeout"),
        ("/once", &[], b"", 429, "rate_limited"),
        ("/open/broken", &[], b"", 502, "upstream_invalid"),
        ("/open/silent", &[], b"", 504, "upstream_timeout"),
        ("/down", &[], b"", 502, "upstream_unreachable"),
        ("/down", &[], b"", 503, "upstream_unavailable"),
    ] {
        let mut head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nOrigin: {APP}\r\n");
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut client = gateway.connect();
        client.send([head.as_bytes(), b"\r\n", body].concat());
        let answer = client.read();
        assert_eq!((answer.status(), answer.code()), (status, code.to_owned()), "{path}");
        let expected = expected(&[
            ("access-control-allow-origin", APP),
            ("access-control-expose-headers", "x-request-id"),
            ("vary", "Origin"),
        ]);
        assert_eq!(self::fields(&answer), expected, "{path} {status}");
    }
}

#[test]
fn a_405_has_the_fields_of_the_first_route_that_lets_the_origin_in() {
    let origin = Origin::start();
    let gateway = Gateway::start(&format!(
        r#"auth: {}
upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes:
  - {{ prefix: /api, methods: [ HEAD ], upstream: up }}
  - {{ prefix: /api, methods: [ PUT ], upstream: up, cors: {{ origins: [ {APP} ], credentials: true }} }}
  - {{ prefix: /api, methods: [ DELETE ], upstream: up, cors: {{ origins: [ {APP}, "https://b.example" ], expose: [ etag ] }} }}
  - {{ prefix: /api, host: inside.example, methods: [ PUT ], upstream: up }}
  - {{ prefix: /all, methods: [ PUT ], upstream: up, cors: {{ origins: [ "*" ] }} }}
  - {{ prefix: /plain, methods: [ PUT ], upstream: up }}
  - {{ prefix: /, upstream: up, cors: {{ origins: [ {APP} ] }} }}"#,
        auth("[ { api_key: alice } ]"),
        origin.url(),
    ));
    let vary = ("vary", "Origin");
    let allow = |origin: &'static str| ("access-control-allow-origin", origin);
    for (host, path, origin, fields) in [
        ("h", "/api", APP, &[("access-control-allow-credentials", "true"), allow(APP), vary][..]),
        (
            "h",
            "/api",
            "https://b.example",
            &[allow("https://b.example"), ("access-control-expose-headers", "etag"), vary],
        ),
        ("h", "/api", "https://evil.example", &[vary]),
        // Routes for other hosts, and for a shorter prefix, have no say.
        ("inside.example", "/api", APP, &[]),
        ("h", "/plain", APP, &[]),
        ("h", "/all", "https://evil.example", &[allow("*")]),
    ] {
        let answer = gateway.call("POST", path, &[("Host", host), ("Origin", origin)], b"");
        assert_eq!(answer.status(), 405, "{host} {path}");
        assert!(answer.header("allow").is_some_and(|methods| methods.contains("PUT")));
        assert_eq!(self::fields(&answer), expected(fields), "{host} {path} {origin}");
    }
    // A preflight for a method that no route serves fails all the same.
    assert_eq!(preflight(&gateway, "/api", APP, "PATCH").status(), 405);
}
