//! Which route a request takes, what the route lets in, and what it makes of the path.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Read as _;

use support::http2::H2Client;
use support::*;

/// A gateway with these routes, whose upstreams `up` and `other` echo.
fn gateway(origin: &Origin, routes: &str, more: &str) -> Gateway {
    Gateway::start(&config(origin, routes, more))
}

fn config(origin: &Origin, routes: &str, more: &str) -> String {
    format!(
        "auth: {}\nupstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {routes} ]\n{more}",
        auth("[ { api_key: alice } ]"),
        origin.url()
    )
}

/// The route that the access log names for a request with this host.
fn route_of(gateway: &Gateway, host: &str, path: &str) -> String {
    let id = format!("{}-{}", host.replace(['[', ']', ':'], "_"), path.replace('/', "-"));
    let fields = [("Host", host), ("X-Request-ID", &id)];
    gateway.call("GET", path, &fields, b"");
    let line = gateway.wait_log(&id, |line| line["request_id"] == *id);
    line["route"].as_str().unwrap_or("none").to_owned()
}

#[test]
fn the_host_itself_comes_before_names_above_it_and_those_before_none() {
    let origin = Origin::start();
    let routes = r#"
  { prefix: /, host: "*.example.com", upstream: up, auth: none },
  { prefix: /, host: "*.eu.example.com", upstream: up, auth: none },
  { prefix: /, host: a.eu.example.com, upstream: up, auth: none },
  { prefix: /any, upstream: up, auth: none }"#;
    let gateway = gateway(&origin, routes, "");
    for (host, path, route) in [
        ("a.eu.example.com", "/", "a.eu.example.com/"),
        ("A.EU.Example.com:8080", "/", "a.eu.example.com/"),
        ("b.eu.example.com.", "/", "*.eu.example.com/"),
        ("x.b.eu.example.com", "/", "*.eu.example.com/"),
        ("eu.example.com", "/", "*.example.com/"),
        ("example.com", "/", "none"),
        ("badexample.com", "/", "none"),
        ("a.eu.example.com", "/any", "/any"),
        ("127.0.0.1", "/any", "/any"),
        ("[::1]:80", "/", "none"),
    ] {
        assert_eq!(route_of(&gateway, host, path), route, "{host} {path}");
    }
}

/// A method that the closest host does not serve is not looked for in a route for more hosts, which may be open.
#[test]
fn the_closest_host_decides_alone() {
    let origin = Origin::start();
    let routes = r#"
  { prefix: /admin, host: "*.example.com", methods: [ GET ], upstream: up, networks: { allow: [ 10.0.0.0/8 ] } },
  { prefix: /admin, host: own.example.com, methods: [ PUT ], upstream: up },
  { prefix: /admin, upstream: up, auth: none }"#;
    let gateway = gateway(&origin, routes, "");
    for (host, method, status) in [
        ("x.example.com", "GET", 403),
        ("x.example.com", "HEAD", 403),
        ("x.example.com", "POST", 405),
        ("x.example.com", "OPTIONS", 405),
        ("x.example.com", "get", 405),
        ("own.example.com", "PUT", 401),
        ("own.example.com", "GET", 405),
        ("own.example.com", "POST", 405),
    ] {
        let answer = gateway.connect().call(method, "/admin/x", &[("Host", host)], b"");
        assert_eq!(answer.status(), status, "{host} {method}");
    }
    assert!(origin.requests().is_empty());
    let other = gateway.call("POST", "/admin/x", &[("Host", "example.com")], b"");
    assert_eq!(other.status(), 200, "no closer route names this host");
}

#[test]
fn only_the_networks_of_a_route_are_let_in() {
    let origin = Origin::start();
    let routes = r#"
  { prefix: /inside, upstream: up, networks: { allow: [ 10.0.0.0/8, "fd00::/8" ], deny: [ 10.9.0.0/16 ] } },
  { prefix: /outside, upstream: up, auth: none, networks: { deny: [ 203.0.113.0/24 ] } },
  { prefix: /local, upstream: up, auth: none, networks: { allow: [ 127.0.0.0/8 ] } },
  { prefix: /open, upstream: up, auth: none }"#;
    let gateway = gateway(&origin, routes, "trusted_proxies: [ 127.0.0.0/8 ]");
    let bearer = bearer("alice");
    let call = |client: &str, path: &str, token: &str| {
        let fields = [("X-Forwarded-For", client), ("Authorization", token)];
        gateway.call("GET", path, &fields, b"")
    };
    for (client, path, token, status) in [
        ("10.1.2.3", "/inside", &*bearer, 200),
        ("::ffff:10.1.2.3", "/inside", &bearer, 200),
        ("fd00::7", "/inside", &bearer, 200),
        ("10.9.2.3", "/inside", &bearer, 403),
        ("192.0.2.1", "/inside", &bearer, 403),
        // A token is not looked at before, so nobody can try tokens from there.
        ("192.0.2.1", "/inside", "Bearer wrong", 403),
        ("10.1.2.3", "/inside", "Bearer wrong", 401),
        ("203.0.113.5", "/outside", "", 403),
        ("192.0.2.1", "/outside", "", 200),
        ("203.0.113.5", "/open", "", 200),
        // The client wrote the first address; only the last one comes from a trusted proxy.
        ("10.1.2.3, 192.0.2.1", "/inside", &bearer, 403),
        // Nobody knows the client that the proxy means.
        ("unknown", "/local", "", 403),
        ("unknown, 127.0.0.1", "/local", "", 403),
        ("10.1.2.3, _hidden", "/outside", "", 403),
        ("unknown", "/open", "", 200),
        ("127.0.0.1", "/local", "", 200),
    ] {
        let answer = call(client, path, token);
        assert_eq!(answer.status(), status, "{client} {path}");
        if status == 403 {
            assert_eq!(answer.code(), "network_not_permitted");
            assert_eq!(answer.header("www-authenticate"), None);
        }
    }
    assert!(origin.requests().iter().all(|request| request.target() != "/wrong"));
    gateway.wait_log("the refusal", |line| {
        line["code"] == "network_not_permitted" && line["client_ip"] == "10.9.2.3"
    });

    let everyone = routes.replace("10.0.0.0/8", "0.0.0.0/0");
    gateway.reload(&config(&origin, &everyone, "trusted_proxies: [ 127.0.0.0/8 ]"));
    wait_for("the new networks", || {
        (call("192.0.2.1", "/inside", &bearer).status() == 200).then_some(())
    });
}

#[test]
fn a_routes_own_bound_for_bodies_replaces_that_of_all_routes() {
    let origin = Origin::start();
    let routes = r#"
  { prefix: /small, upstream: up, auth: none, max_body: 10B },
  { prefix: /large, upstream: up, auth: none, max_body: 1MiB },
  { prefix: /usual, upstream: up, auth: none }"#;
    let gateway = gateway(&origin, routes, "max_body: 1KiB");
    for (path, largest) in [("/small", 10), ("/large", 1 << 20), ("/usual", 1 << 10)] {
        for (size, status) in [(largest, 200), (largest + 1, 413)] {
            let body = vec![b'x'; size];
            let announced = gateway.call("POST", path, &[], &body);
            assert_eq!(announced.status(), status, "{path} {size}");
            let mut client = gateway.connect();
            client.send(request("POST", path, &[("Transfer-Encoding", "chunked")], b""));
            client.send(chunked(&body, 8_192));
            let answer = client.read();
            assert_eq!(answer.status(), status, "{path} {size} in chunks");
            if status == 413 {
                assert!(answer.text().contains(&format!("larger than {largest} bytes")));
            }
        }
    }
}

#[test]
fn another_prefix_stands_for_that_of_the_route() {
    let origin = Origin::start();
    let routes = r#"
  { prefix: /api, upstream: up, auth: none, rewrite: { prefix: /v2, answers: true } },
  { prefix: /cut, upstream: up, auth: none, rewrite: { prefix: "" } },
  { prefix: /moved, upstream: up, auth: none, rewrite: { prefix: /a%20b/c } },
  { prefix: /, upstream: up, auth: none, rewrite: { prefix: /base } }"#;
    let gateway = gateway(&origin, routes, "");
    for (path, target) in [
        ("/api/users/7?x=/api", "/v2/users/7?x=/api"),
        ("/api", "/v2"),
        ("/api/", "/v2/"),
        ("/api?q", "/v2?q"),
        ("/api;v=1/users;w=2", "/v2/users;w=2"),
        ("//api//users", "/v2/users"),
        ("/api/%41", "/v2/A"),
        ("/cut/x", "/x"),
        ("/cut", "/"),
        ("/moved/d", "/a%20b/c/d"),
        ("/apis", "/base/apis"),
        ("/", "/base/"),
    ] {
        assert_eq!(gateway.get(path).text(), format!("GET {target} HTTP/1.1"), "{path}");
    }
    let prefixes = |path: &str| origin.one(path).header("x-forwarded-prefix");
    assert_eq!(prefixes("/x").as_deref(), Some("/cut"), "it is cut off");
    assert_eq!(prefixes("/v2/A"), None, "another one stands for it");
    for path in ["/api/..", "/api/%2e%2e/x", "/api/..;/x", "/api/%2Fx"] {
        assert_eq!(gateway.get(path).status(), 400, "{path}");
    }

    origin.reply(
        "/v2/login",
        "HTTP/1.1 302 Found\r\nLocation: /v2/home\r\nSet-Cookie: a=b; Path=/v2\r\nContent-Length: 0\r\n\r\n",
    );
    let answer = gateway.get("/api/login");
    assert_eq!(answer.header("location").as_deref(), Some("/api/home"));
    assert_eq!(answer.header("set-cookie").as_deref(), Some("a=b; Path=/api"));
}

#[test]
fn a_path_in_an_answer_never_leads_to_another_server() {
    let origin = Origin::start();
    let routes = "{ prefix: /, upstream: up, auth: none, rewrite: { prefix: /v2, answers: true } }";
    let gateway = gateway(&origin, routes, "");
    let endpoint = origin.url();
    for (location, expected) in [
        ("/v2//evil.test/x".to_owned(), "/evil.test/x"),
        (format!("{endpoint}//evil.test"), "/evil.test"),
        (format!("{endpoint}/v2/\\evil.test"), "/evil.test"),
        (endpoint.clone(), "/"),
        ("https://elsewhere.test//x".to_owned(), "https://elsewhere.test//x"),
    ] {
        let head =
            format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        origin.reply("/v2/login", head);
        let answer = gateway.get("/login");
        assert_eq!(answer.header("location").as_deref(), Some(expected), "{location}");
    }
}

#[test]
fn a_deprecated_route_says_so_in_every_answer() {
    let origin = Origin::start();
    let routes = r#"
  { prefix: /old, upstream: up, deprecated: { since: 2026-06-01, sunset: 2027-01-01, link: "https://example.com/migration" } },
  { prefix: /older, upstream: up, auth: none, deprecated: { since: 2025-06-01T12:00:00Z } }"#;
    let gateway = gateway(&origin, routes, "");
    let own = "HTTP/1.1 200 OK\r\nDeprecation: true\r\nLink: </next>; rel=\"next\"\r\nSunset: never\r\nContent-Length: 0\r\n\r\n";
    origin.reply("/old", own);
    for (answer, links) in [
        (gateway.get_as("alice", "/old"), 2),
        (gateway.get("/old"), 1),
        (gateway.get_as("stranger", "/old"), 1),
    ] {
        assert_eq!(answer.all("deprecation"), ["@1780272000"], "{answer:?}");
        assert_eq!(answer.all("sunset"), ["Fri, 01 Jan 2027 00:00:00 GMT"]);
        let all = answer.all("link");
        assert_eq!(all.len(), links);
        assert!(all.contains(&"<https://example.com/migration>; rel=\"deprecation\""), "{all:?}");
    }
    let older = gateway.get("/older");
    assert_eq!(older.header("deprecation").as_deref(), Some("@1748779200"));
    assert_eq!((older.header("sunset"), older.header("link")), (None, None));
    assert_eq!(gateway.get("/elsewhere").header("deprecation"), None);
}

#[test]
fn header_rules_take_values_from_the_request() {
    let origin = Origin::start();
    let tokens =
        auth("[ { api_key: alice, organization_id: acme, plan: gold }, { api_key: bob } ]");
    let config = |set: &str| {
        format!(
            r#"auth: {tokens}
trusted_proxies: [ 127.0.0.0/8 ]
plans: {{ gold: {{ limits: [] }} }}
upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes:
  - prefix: /made
    upstream: up
    headers:
      request: {{ set: {{ X-Real-IP: "%{{client_ip}}", X-Who: "%{{token_id}}@%{{organization_id}}/%{{plan}}", X-Where: "%{{host}}%{{route}}", X-Plain: '{{"a":"%%{{plan}}"}}', Host: "%{{organization_id}}.internal" }} }}
      response: {{ set: {{ X-Tenant: "{set}", X-Trace: "%{{request_id}}" }} }}
  - {{ prefix: /open, upstream: up, auth: none, headers: {{ request: {{ set: {{ X-Who: "%{{token_id}}", X-Real-IP: "%{{client_ip}}" }} }} }} }}"#,
            origin.url()
        )
    };
    let gateway = Gateway::start(&config("%{organization_id}"));
    let call = |case: &str, path: &str, api_key: &str| {
        let bearer = bearer(api_key);
        let fields = [
            ("Authorization", &*bearer),
            ("Host", "Shop.Example:80"),
            ("X-Forwarded-For", "192.0.2.7"),
            ("X-Request-ID", case),
            ("X-Case", case),
            ("X-Who", "forged"),
        ];
        let answer = gateway.call("GET", path, &fields, b"");
        assert_eq!(answer.status(), 200);
        (answer, origin.case(case).unwrap())
    };
    let (answer, seen) = call("one", "/made", "alice");
    assert_eq!(seen.all("x-real-ip"), ["192.0.2.7"]);
    assert_eq!(seen.all("x-who"), ["alice@acme/gold"]);
    assert_eq!(seen.all("x-where"), ["shop.example:80/made"]);
    assert_eq!(seen.all("x-plain"), [r#"{"a":"%{plan}"}"#]);
    assert_eq!(seen.all("host"), ["acme.internal"]);
    assert_eq!(answer.all("x-tenant"), ["acme"]);
    assert_eq!(answer.all("x-trace"), ["one"]);

    let (answer, seen) = call("two", "/made", "bob");
    assert_eq!(seen.header("x-who"), None, "neither empty nor the client's");
    assert_eq!(seen.all("host"), ["shop.example:80"]);
    assert_eq!(answer.header("x-tenant"), None);
    let (_, seen) = call("three", "/open", "alice");
    assert_eq!(seen.header("x-who"), None, "the route looks at no token");
    assert_eq!(seen.all("x-real-ip"), ["192.0.2.7"]);

    gateway.reload(&config("of %{organization_id}"));
    wait_for("the new rule", || {
        let answer = gateway.get_as("alice", "/made");
        (answer.header("x-tenant")? == "of acme").then_some(())
    });
}

#[test]
fn what_a_header_rule_sets_or_removes_cannot_be_sent_in_another_spelling() {
    let origin = Origin::start();
    let routes = r#"
  { prefix: /ruled, upstream: up, headers: { request: { set: { X-Tenant: "%{organization_id}", X-Fixed: "1" }, remove: [ X-Internal ] } } },
  { prefix: /plain, upstream: up }"#;
    let gateway = gateway(&origin, routes, "");
    let bearer = bearer("alice");
    let fields = [
        ("Authorization", &*bearer),
        ("X_Tenant", "forged"),
        ("X.Tenant", "forged"),
        ("x-tenant", "forged"),
        ("X_Fixed", "forged"),
        ("X_Internal", "forged"),
        ("X~Internal", "forged"),
        ("X_Other", "stays"),
    ];
    for (path, count) in [("/ruled", 1), ("/plain", 7)] {
        assert_eq!(gateway.call("GET", path, &fields, b"").status(), 200);
        let seen = origin.one(path);
        let own = seen.headers.iter().filter(|(_, value)| value == "forged" || value == "stays");
        assert_eq!(own.count(), count, "{path}: {:?}", seen.headers);
    }
    assert_eq!(origin.one("/ruled").all("x_other"), ["stays"]);
}

/// A token's values make a host, or the client's stays.
#[test]
fn a_rule_makes_a_host_or_none() {
    let origin = Origin::start();
    let tokens = auth(
        r#"[ { api_key: alice, organization_id: "a b/evil" }, { api_key: bob, organization_id: acme } ]"#,
    );
    let gateway = Gateway::start(&format!(
        r#"auth: {tokens}
upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes: [ {{ prefix: /, upstream: up, headers: {{ request: {{ set: {{ Host: "%{{organization_id}}", X-Asked: "%{{host}}" }} }} }} }} ]"#,
        origin.url()
    ));
    for (api_key, host) in [("alice", "shop.test"), ("bob", "acme")] {
        let bearer = bearer(api_key);
        let fields = [("Authorization", &*bearer), ("Host", "shop.test"), ("X-Case", api_key)];
        assert_eq!(gateway.call("GET", "/", &fields, b"").status(), 200);
        let seen = origin.case(api_key).unwrap();
        assert_eq!((seen.all("host"), seen.all("x-asked")), (vec![host], vec!["shop.test"]));
    }
    let mut old = gateway.connect();
    let bearer = bearer("bob");
    old.send(format!("GET /old HTTP/1.0\r\nAuthorization: {bearer}\r\n\r\n"));
    assert_eq!(old.read().status(), 200);
    assert_eq!(origin.one("/old").header("x-asked"), None, "the client named no host");
}

#[test]
fn routes_mean_the_same_over_http2() {
    let (origin, shadow) = (Origin::start(), Origin::start());
    let gateway = Gateway::start(&format!(
        r#"listeners: [ {{ address: "127.0.0.1:0", http2: true }} ]
upstreams: {{ up: {{ endpoints: [ "{}" ] }}, shadow: {{ endpoints: [ "{}" ] }} }}
routes:
  - prefix: /api
    host: "*.test"
    upstream: up
    auth: none
    max_body: 10B
    rewrite: {{ prefix: /v2 }}
    mirror: {{ upstream: shadow, methods: [ GET, POST ] }}
    cors: {{ origins: [ "https://app.example.com" ] }}
    compress: [ gzip ]
    deprecated: {{ since: 2026-06-01 }}
    headers: {{ request: {{ set: {{ X-Where: "%{{host}} %{{route}}" }} }} }}
  - {{ prefix: /closed, upstream: up, networks: {{ deny: [ 127.0.0.0/8 ] }} }}"#,
        origin.url(),
        shadow.url(),
    ));
    let mut client = H2Client::connect(gateway.address);
    let mut call = |method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]| {
        let fields = [&[("Origin", "https://app.example.com")][..], fields].concat();
        client.call(method, path, &fields, body).unwrap()
    };
    let answer = call("GET", "/api/x?q", &[], b"");
    assert_eq!((answer.status(), &*answer.text()), (200, "GET /v2/x?q HTTP/1.1"));
    assert_eq!(origin.one("/v2/x").all("x-where"), ["gateway.test *.test/api"]);
    assert_eq!(call("POST", "/api/post", &[], b"small").text(), "small");
    let large = call("POST", "/api/large", &[], b"eleven byte");
    assert_eq!((large.status(), &*large.code()), (413, "body_too_large"));
    for answer in [&answer, &large] {
        assert_eq!(answer.all("access-control-allow-origin"), ["https://app.example.com"]);
        assert_eq!(answer.all("deprecation"), ["@1780272000"]);
    }
    let preflight = call("OPTIONS", "/api/x", &[("Access-Control-Request-Method", "PUT")], b"");
    assert_eq!((preflight.status(), preflight.body.len()), (204, 0));
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("PUT"));
    assert_eq!(call("GET", "/closed", &[], b"").code(), "network_not_permitted");

    let text = "a line of text\n".repeat(1_000);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    origin.reply("/v2/text", format!("{head}{text}"));
    let answer = call("GET", "/api/text", &[("Accept-Encoding", "gzip")], b"");
    assert_eq!(answer.all("content-encoding"), ["gzip"]);
    assert_eq!(answer.header("transfer-encoding"), None);
    let mut plain = String::new();
    flate2::read::GzDecoder::new(&*answer.body).read_to_string(&mut plain).unwrap();
    assert!(plain == text);

    assert_eq!(shadow.one("/v2/post").text(), "small");
    assert_eq!(shadow.one("/v2/x").all("host"), ["gateway.test"]);
    assert!(shadow.requests_for("/v2/large").is_empty());
}
