//! Requests and answers that two servers may read differently: hosts, paths, field names, credentials, framing. Over raw
//! sockets, against an origin that records every byte. It must not know how the gateway decides.
#![allow(clippy::type_complexity, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;

use support::*;

/// Names and values of fields, as bytes.
type Fields<'a> = &'a [(&'a str, &'a [u8])];

/// One gateway; tests keep apart by `X-Case`.
struct World {
    gateway: Gateway,
    open: Origin,
    admin: Origin,
}

static WORLD: Shared<World> = Shared::new();

fn world() -> Arc<World> {
    WORLD.get(|| {
        let (open, admin) = (Origin::start(), Origin::start());
        let yaml = format!(
            r#"
trusted_proxies: [ 10.0.0.0/8 ]
auth: {auth}
upstreams:
  open: {{ endpoints: [ "{open}" ] }}
  admin: {{ endpoints: [ "{admin}" ] }}
routes:
  - {{ prefix: /, upstream: open, auth: none }}
  - {{ prefix: /, host: admin.example, upstream: admin }}
  - {{ prefix: /, host: "[::1]", upstream: admin }}
  - {{ prefix: /admin, upstream: admin }}
  - {{ prefix: /login, upstream: open, auth: none, limits: [ {{ rate: 1/day, by: route }} ] }}
  - {{ prefix: /strip/me, upstream: open, auth: none, strip_prefix: true }}
  - {{ prefix: /app, upstream: open, auth: none, strip_prefix: true, rewrite: {{ answers: true }} }}
"#,
            auth = auth(
                "[ { api_key: alice }, { api_key: narrow, allowed_routes: [ /admin/mine/* ] } ]"
            ),
            open = open.url(),
            admin = admin.url(),
        );
        World { gateway: Gateway::start_with_one_thread(&yaml), open, admin }
    })
}

impl World {
    /// Sends bytes as they are, on a connection of their own.
    fn send(&self, bytes: impl AsRef<[u8]>) -> Message {
        self.gateway.connect().send(bytes).read()
    }

    /// Sends a GET with these fields, as bytes, and gives back what the admin origin saw.
    fn admin_saw(&self, case: &str, fields: Fields<'_>) -> (Message, Option<Message>) {
        let mut bytes = b"GET /admin/x HTTP/1.1\r\nHost: gateway.test\r\n".to_vec();
        bytes.extend_from_slice(format!("X-Case: {case}\r\n").as_bytes());
        for (name, value) in fields {
            bytes.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        bytes.extend_from_slice(b"\r\n");
        (self.send(bytes), self.admin.case(case))
    }
}

#[test]
fn every_spelling_of_a_host_takes_the_hosts_route() {
    let world = world();
    for (nth, (head, status)) in [
        ("GET / HTTP/1.1\r\nHost: admin.example", 401),
        ("GET / HTTP/1.1\r\nHost: admin.example.", 401),
        ("GET / HTTP/1.1\r\nHost: ADMIN.example.:8080", 401),
        ("GET / HTTP/1.1\r\nHost: admin.example:080", 401),
        ("GET http://admin.example/ HTTP/1.1\r\nHost: admin.example", 401),
        // Host repeats the authority of the target, also in its spelling (RFC 9112 section 3.2).
        ("GET http://admin.example/ HTTP/1.1\r\nHost: admin.example.", 400),
        ("GET http://admin.example/ HTTP/1.0", 401),
        ("GET HTTP://Admin.Example.:80?x HTTP/1.0", 401),
        ("GET / HTTP/1.1\r\nHost: [0:0:0::1]:80", 401),
        ("GET / HTTP/1.1\r\nHost: other.example", 200),
        ("GET / HTTP/1.0", 200),
        ("GET http://other.example/ HTTP/1.0", 200),
        ("GET http://%61dmin.example/ HTTP/1.0", 400),
        ("GET http://admin.example,x/ HTTP/1.0", 400),
        ("GET / HTTP/1.1\r\nHost: admin%2Eexample", 400),
        ("GET / HTTP/1.1\r\nHost: %61dmin.example", 400),
        ("GET / HTTP/1.1\r\nHost: admin.example,other.example", 400),
        ("GET / HTTP/1.1\r\nHost: other.example;admin.example", 400),
        ("GET / HTTP/1.1\r\nHost: admin..example", 400),
        ("GET / HTTP/1.1\r\nHost: .admin.example", 400),
        ("GET / HTTP/1.1\r\nHost: admin.example..", 400),
        ("GET / HTTP/1.1\r\nHost: .", 400),
    ]
    .into_iter()
    .enumerate()
    {
        let case = format!("host-{nth}");
        let answer = world.send(format!("{head}\r\nX-Case: {case}\r\n\r\n"));
        assert_eq!(answer.status(), status, "{head}");
        assert!(world.admin.case(&case).is_none(), "{head} reached the admin upstream");
        assert_eq!(world.open.case(&case).is_some(), status == 200, "{head}");
    }
}

#[test]
fn the_host_that_was_matched_is_forwarded_and_logged() {
    let world = world();
    for (nth, (head, host)) in [
        ("GET / HTTP/1.1\r\nHost: Other.Example.:8080", "other.example:8080".to_owned()),
        ("GET / HTTP/1.1\r\nHost: a.example", "a.example".to_owned()),
        ("GET http://B.example./ HTTP/1.0", "b.example".to_owned()),
        // An HTTP/1.0 client without a host: the request goes on as HTTP/1.1, which needs one.
        ("GET / HTTP/1.0", world.open.address.to_string()),
    ]
    .into_iter()
    .enumerate()
    {
        let case = format!("forwarded-host-{nth}");
        let answer =
            world.send(format!("{head}\r\nX-Case: {case}\r\nX-Request-ID: {case}\r\n\r\n"));
        assert_eq!(answer.status(), 200, "{head}");
        let seen = world.open.case(&case).unwrap();
        assert_eq!(seen.all("host"), [host.as_str()], "{head}");
        assert!(seen.line.ends_with("HTTP/1.1") && seen.target() == "/", "{head}: {}", seen.line);
        let named = head.contains("xample");
        assert_eq!(
            seen.all("x-forwarded-host"),
            if named { vec![&*host] } else { vec![] },
            "{head}"
        );
        let line = world.gateway.wait_log("the access line", |line| {
            line["request_id"] == case.as_str() && line["status"] == 200
        });
        assert_eq!(line["host"].as_str(), named.then_some(&*host), "{head}: {line}");
    }
}

#[test]
fn a_credential_that_was_not_verified_is_not_forwarded() {
    let world = world();
    let good = token("alice");
    let bearer_good = format!("Bearer {good}");
    let (good, bearer_good) = (good.as_bytes(), bearer_good.as_bytes());
    let key = ("X-API-Key", good);
    let forged = b"FORGED";
    let refused: &[(&str, Fields<'_>)] = &[
        ("tab", &[key, ("Authorization", b"Bearer\tFORGED")]),
        ("no-break space", &[key, ("Authorization", b"Bearer\xa0FORGED")]),
        ("leading no-break space", &[key, ("Authorization", b"\xa0Bearer FORGED")]),
        ("comma", &[key, ("Authorization", b"Bearer,FORGED")]),
        ("basic and bearer", &[("Authorization", b"Basic dTpw"), ("Authorization", bearer_good)]),
        ("bearer and basic", &[("Authorization", bearer_good), ("Authorization", b"Basic dTpw")]),
        ("another bearer", &[key, ("Authorization", b"bearer FORGED")]),
        ("another key", &[("Authorization", bearer_good), ("X-API-Key", forged)]),
    ];
    for (name, fields) in refused {
        let case = format!("refused {name}");
        let (answer, seen) = world.admin_saw(&case, fields);
        assert_eq!((answer.status(), answer.code().as_str()), (400, "bad_request"), "{name}");
        assert!(seen.is_none(), "{name}");
    }
    let passed: &[(&str, Fields<'_>)] = &[
        ("verified", &[key]),
        ("empty key", &[("Authorization", bearer_good), ("X-API-Key", b"")]),
        ("empty bearer", &[key, ("Authorization", b"Bearer")]),
        ("basic", &[key, ("Authorization", b"Basic FORGED")]),
        ("bearer in a list", &[key, ("Authorization", b"Basic x, Bearer FORGED")]),
        ("no scheme", &[key, ("Authorization", forged)]),
        ("underscores", &[key, ("X_API_Key", forged)]),
        ("signs", &[key, ("X!API~Key", forged)]),
        ("dots", &[key, ("X.API.Key", forged)]),
        ("proxy", &[key, ("Proxy-Authorization", forged), ("Proxy_Authorization", forged)]),
    ];
    for (name, fields) in passed {
        let case = format!("passed {name}");
        let (answer, seen) = world.admin_saw(&case, fields);
        assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
        let seen = seen.unwrap();
        let spoofed: Vec<_> =
            seen.headers.iter().filter(|(_, value)| value.contains("FORGED")).collect();
        assert!(spoofed.is_empty(), "{name}: {spoofed:?}");
        let empty: Vec<_> = seen.headers.iter().filter(|(_, value)| value.is_empty()).collect();
        assert!(empty.is_empty(), "{name}: {empty:?}");
    }
    // On a route that needs no token nothing is verified.
    let open = [("X-Case", "open credential"), ("Authorization", "Bearer x"), ("X-API-Key", "x")];
    assert_eq!(world.gateway.call("GET", "/x", &open, b"").status(), 200);
    let seen = world.open.case("open credential").unwrap();
    assert_eq!((seen.header("authorization"), seen.header("x-api-key")), (None, None));
}

#[test]
fn fields_that_redirect_or_identify_do_not_come_from_clients() {
    let world = world();
    let names = [
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Original-URI",
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "Proxy",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Client-IP",
        "X-Cluster-Client-IP",
        "X-Real-IP",
        "X-Forwarded-Scheme",
        "X-Forwarded-Ssl",
        "X-Forwarded-Server",
        "X-Forwarded-User",
        "X-Forwarded-Client-Cert",
        "X-Forwarded-Uri",
        "X-Forwarded-Method",
        "X-Forwarded-Prefix",
        "Forwarded",
        "X_Original_URL",
        "X.Rewrite.URL",
        "X~Token~ID",
        "X+Organization+ID",
        "X'Plan'Tier",
        "X|Token|ID",
        "X_Request_ID",
        "X^Forwarded^For",
        "true_client_ip",
        "Remote-User",
        "Remote_User",
        "X-Forwarded",
        "X_Forwarded",
        "X-Middleware-Subrequest",
        "X-Envoy-Original-Dst-Host",
        "X-Amzn-Oidc-Identity",
        "X-Amzn-Oidc-Data",
        "X-Amzn-Oidc-Accesstoken",
        "X-Goog-Authenticated-User-Email",
        "X-Goog-Authenticated-User-Id",
        "X-Goog-Iap-Jwt-Assertion",
        "Cf-Access-Authenticated-User-Email",
        "Cf-Access-Jwt-Assertion",
        "X-Ms-Client-Principal-Id",
        "X-Ms-Client-Principal-Name",
        "X-Ms-Client-Principal-Idp",
        "X-Arr-ClientCert",
        "Ssl-Client-S-Dn",
    ];
    let mut fields: Vec<_> = names.iter().map(|name| (*name, "spoofed")).collect();
    fields.push(("X-Case", "overrides"));
    fields.push(("X-Custom", "kept"));
    assert_eq!(world.gateway.call("GET", "/x", &fields, b"").status(), 200);
    let seen = world.open.case("overrides").unwrap();
    let left: Vec<_> = seen.headers.iter().filter(|(_, value)| value == "spoofed").collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(seen.all("x-custom"), ["kept"]);
}

#[test]
fn the_configuration_lets_fields_pass() {
    let origin = Origin::start();
    let gateway = Gateway::start_with_one_thread(&format!(
        "pass_fields: [ X-HTTP-Method-Override, Authorization ]
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }}, {{ prefix: /open, upstream: up, auth: none }} ]",
        origin.url()
    ));
    let key = token("alice-of-no-record");
    let sent = [
        ("X-Case", "pass"),
        ("X-HTTP-Method-Override", "PATCH"),
        ("X_HTTP_Method_Override", "DELETE"),
        ("X-Original-URL", "/admin"),
        ("Authorization", "Basic dTpw"),
        ("X-API-Key", &key),
    ];
    assert_eq!(gateway.call("GET", "/open", &sent, b"").status(), 200);
    let seen = origin.case("pass").unwrap();
    assert_eq!(seen.all("x-http-method-override"), ["PATCH"]);
    assert_eq!(seen.all("authorization"), ["Basic dTpw"]);
    for name in ["x_http_method_override", "x-original-url", "x-api-key"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
}

#[test]
fn parameters_take_no_part_in_choosing_a_route() {
    let world = world();
    for (target, status) in [
        ("/admin;x", 401),
        ("/admin;x/y", 401),
        ("/;/admin", 401),
        ("/;a/;b/admin/c", 401),
        ("/admin%3Bx", 401),
        ("/admin%3bx/y", 401),
        ("/;x%3By/admin", 401),
        ("/adm;in", 200),
        ("/x;/admin", 200),
        ("/health;x", 200),
    ] {
        assert_eq!(world.gateway.get(target).status(), status, "{target}");
    }
    assert!(world.open.requests_for("/health;x").is_empty(), "the gateway's own");
    let alice = [("Authorization", bearer("alice")), ("X-Case", "parameters".into())];
    let alice = alice.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(world.gateway.call("GET", "/;a/admin;b=1/c;d", &alice, b"").status(), 200);
    let seen = world.admin.case("parameters").unwrap();
    assert_eq!(seen.target(), "/;a/admin;b=1/c;d", "the upstream gets its parameters");
    for (target, status) in [
        ("/admin/mine/x", 200),
        ("/admin/mine;a/x", 200),
        ("/;/admin/mine/x", 200),
        ("/admin/mine", 403),
        ("/admin;/mine;x", 403),
    ] {
        assert_eq!(world.gateway.get_as("narrow", target).status(), status, "{target}");
    }
    let statuses = ["/login", "/login;a", "/;b/login", "/login%3Bc"]
        .map(|target| world.gateway.get(target).status());
    assert_eq!(statuses, [200, 429, 429, 429], "one limit counts every spelling");
    for (nth, (target, forwarded)) in
        [("/strip;a/me;b/c;d", "/c;d"), ("/;/strip/me", "/"), ("/strip/me;x?y", "/?y")]
            .into_iter()
            .enumerate()
    {
        let case = format!("strip-parameters-{nth}");
        world.gateway.call("GET", target, &[("X-Case", &case)], b"");
        let seen = world.open.case(&case).unwrap();
        assert_eq!(seen.target(), forwarded, "{target}");
        assert_eq!(seen.all("x-forwarded-prefix"), ["/strip/me"], "{target}");
    }
}

#[test]
fn case_and_trailing_dots_are_an_option() {
    let origin = Origin::start();
    let yaml = |fold: bool| {
        format!(
            "fold_paths: {fold}\nupstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }}, {{ prefix: /Admin, upstream: up }} ]",
            origin.url()
        )
    };
    let gateway = Gateway::start_with_one_thread(&yaml(true));
    for target in ["/admin", "/ADMIN", "/admin.", "/aDmin%20", "/Admin.%20/x", "/admin;x"] {
        assert_eq!(gateway.get(target).status(), 401, "{target}");
    }
    assert_eq!(gateway.get("/Administrator").status(), 200);
    let exact = Gateway::start_with_one_thread(&yaml(false));
    assert_eq!((exact.get("/Admin").status(), exact.get("/admin").status()), (401, 200));
    let check = |fold| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{}\nauth: {}", yaml(fold), auth("[]"))).unwrap();
        let output = tollgate().arg("check").arg("-c").arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().contains("warning: routes[0] needs no token")
    };
    assert_eq!((check(false), check(true)), (true, false));
}

#[test]
fn dots_before_a_separator_of_any_kind_are_refused() {
    let world = world();
    for target in [
        "/a/..%E0%80%AFb",
        "/a/..%F0%80%80%AE",
        "/a/..%3F/",
        "/a/..%20/",
        "/a/..%0D%0A",
        "/a/..%09/b",
        "/a/.%20/b",
        "/a/%20../b",
        "/a/..%23",
        "/a/..%EF%BC%8Fb",
        "/a/..:b",
        "/a/..,/b",
        "/a%E0%80%AFb",
        "/a/..[/b",
        "/a/..%7Cb",
    ] {
        let answer = world.gateway.get(target);
        assert_eq!((answer.status(), answer.code().as_str()), (400, "bad_request"), "{target}");
    }
    for target in ["/a..b", "/..a/b", "/.well-known/x", "/a/...", "/a%20..", "/a.%20b", "/%C3%A9.."]
    {
        assert_eq!(world.gateway.get(target).status(), 200, "{target}");
    }
}

#[test]
fn browsers_may_send_what_they_send_raw() {
    let world = world();
    for (nth, (target, forwarded)) in [
        (&b"/a/[id]"[..], &b"/a/%5Bid%5D"[..]),
        (b"/a/{x}|y^z", b"/a/%7Bx%7D%7Cy%5Ez"),
        (b"/a/%5bid%5d", b"/a/%5Bid%5D"),
        (b"/a?filter[x]=^`{|}\\&y='!~", b"/a?filter[x]=^`{|}\\&y='!~"),
        ("/a?q=\u{e9}\u{20ac}".as_bytes(), "/a?q=\u{e9}\u{20ac}".as_bytes()),
        ("/a//b?q=\u{e9}".as_bytes(), "/a/b?q=\u{e9}".as_bytes()),
        ("http://gateway.test/a?q=\u{e9}[".as_bytes(), "/a?q=\u{e9}[".as_bytes()),
        ("/strip/me/b?q=\u{e9}[".as_bytes(), "/b?q=\u{e9}[".as_bytes()),
    ]
    .into_iter()
    .enumerate()
    {
        let case = format!("raw-{nth}");
        let fields = format!(" HTTP/1.1\r\nHost: gateway.test\r\nX-Case: {case}\r\n\r\n");
        let answer = world.send([b"GET ", target, fields.as_bytes()].concat());
        let shown = String::from_utf8_lossy(target);
        assert_eq!(answer.status(), 200, "{shown}: {}", answer.text());
        assert_eq!(world.open.case(&case).unwrap().target().as_bytes(), forwarded, "{shown}");
    }
    for bad in [
        &b"/a?x=\x01"[..],
        b"/a?x=\x7f",
        b"/a?x=\xff",
        b"/a?x=\ty",
        b"/a?x#y",
        b"/a?\"",
        b"/a?<",
        b"/a\\b",
        b"/a\"b",
        b"/a`b",
        b"/\xc3\xa9",
        b"/a#",
    ] {
        let bytes = [b"GET ", bad, b" HTTP/1.1\r\nHost: gateway.test\r\n\r\n"].concat();
        assert_eq!(world.send(bytes).status(), 400, "{}", String::from_utf8_lossy(bad));
    }
}

#[test]
fn one_bad_hop_does_not_hide_the_client() {
    let origin = Origin::start();
    let gateway = Gateway::start_with_one_thread(&format!(
        "trusted_proxies: [ 127.0.0.0/8 ]\nupstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none, limits: [ {{ rate: 1/day, by: ip }} ] }} ]",
        origin.url()
    ));
    let ask = |list: &[u8], id: &str| {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Case: {id}\r\nX-Request-ID: {id}\r\nX-Forwarded-For: "
        );
        gateway.connect().send([head.as_bytes(), list, b"\r\n\r\n"].concat()).read().status()
    };
    assert_eq!(ask(b"\xff, 203.0.113.9", "first"), 200);
    assert_eq!(ask(b"\xff\xfe, x, 203.0.113.9", "same client"), 429);
    assert_eq!(ask(b"\xff, 203.0.113.10", "another client"), 200, "each client has its own count");
    let line = gateway.wait_log("the access line", |line| line["request_id"] == "first");
    assert_eq!(line["client_ip"], "203.0.113.9", "{line}");
    let seen = origin.case("first").unwrap();
    assert_eq!(seen.all("x-forwarded-for"), ["203.0.113.9, 127.0.0.1"]);
}

#[test]
fn credentials_come_from_the_places_of_the_configuration() {
    let origin = Origin::start();
    origin.on("/ws", |_, stream| {
        use std::io::Write as _;
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
        Ok(false)
    });
    let all = "from: [ authorization, x-api-key, query:access_token, cookie:session, subprotocol:bearer ]";
    let rules = auth("[ { api_key: alice } ]").replacen('{', &format!("{{ {all},"), 1);
    let gateway = Gateway::start_with_one_thread(&format!(
        "auth: {rules}\nupstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }} ]",
        origin.url()
    ));
    let good = token("alice");
    let case = |nth: usize| format!("from-{nth}");
    let cookie = format!("a=1; session={good}; b=2");
    let listed = format!("a=1,session={good},c; b=2");
    for (nth, (target, field, forwarded, left)) in [
        (format!("/x?a=1&access_token={good}&b=[2]"), None, "/x?a=1&b=[2]", None),
        (format!("/x?access_token={good}"), None, "/x", None),
        (format!("/x//y?access%5Ftoken={good};a"), None, "/x/y?a", None),
        (format!("/x?a[]=1&access_token[]={good}"), None, "/x?a[]=1", None),
        ("/x?a".into(), Some(("Cookie", cookie.as_str())), "/x?a", Some("a=1; b=2")),
        ("/x?a".into(), Some(("Cookie", listed.as_str())), "/x?a", Some("a=1,c; b=2")),
    ]
    .into_iter()
    .enumerate()
    {
        let case = case(nth);
        let mut fields = vec![("X-Case", case.as_str()), ("X-Request-ID", &case)];
        fields.extend(field);
        assert_eq!(gateway.call("GET", &target, &fields, b"").status(), 200, "{target}");
        let seen = origin.case(&case).unwrap();
        assert_eq!(seen.target(), forwarded, "{target}");
        assert_eq!(seen.header("cookie").as_deref(), left, "{target}");
        assert_eq!(seen.header("x-token-id").as_deref(), Some("alice"));
    }
    let protocols = format!("bearer, {good}");
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Protocol", &protocols),
        ("X-Case", "ws"),
    ];
    let mut client = gateway.connect();
    client.send(request("GET", "/ws", &upgrade, b""));
    let answer = client.head().unwrap().unwrap();
    assert_eq!((answer.status(), answer.all("sec-websocket-protocol")), (101, vec!["bearer"]));
    assert_eq!(origin.case("ws").unwrap().header("sec-websocket-protocol"), None);

    let two = [("Authorization", bearer("alice"))];
    let two = two.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(gateway.call("GET", "/x?access_token=other", &two, b"").status(), 400);
    for name in [
        "ACCESS-TOKEN",
        "access_token[]",
        "access_token[x]",
        "%20access_token",
        "+access_token",
        "access_token%00x",
    ] {
        let target = format!("/x?{name}=other");
        assert_eq!(gateway.call("GET", &target, &two, b"").status(), 400, "{target}");
    }
    for cookie in ["a=b, session=other", "session%00=other", "session[x]=other"] {
        let fields = [two[0], ("Cookie", cookie)];
        assert_eq!(gateway.call("GET", "/x", &fields, b"").status(), 400, "{cookie}");
    }
    assert_eq!(gateway.get("/x?access_token=forged").status(), 401);
    assert_eq!(gateway.get("/x").status(), 401);
    let told: Vec<_> = gateway.lines().into_iter().filter(|line| line.contains(&good)).collect();
    assert!(told.is_empty(), "a credential in the log: {told:#?}");
}

#[test]
fn by_default_only_two_fields_hold_a_credential() {
    let world = world();
    let good = token("alice");
    let fields = [("Cookie", format!("session={good}")), ("X-Case", "default-from".into())];
    let fields = fields.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(
        world.gateway.call("GET", &format!("/admin?access_token={good}"), &fields, b"").status(),
        401
    );
    let answer = world.gateway.call("GET", &format!("/x?access_token={good}"), &fields, b"");
    assert_eq!(answer.status(), 200);
    let seen = world.open.case("default-from").unwrap();
    assert_eq!(seen.target(), format!("/x?access_token={good}"), "not the gateway's business");
    assert_eq!(seen.header("cookie"), Some(format!("session={good}")));
}

#[test]
fn answers_have_one_framing() {
    let world = world();
    for (path, head, body, expected) in [
        ("/framed/list", "Content-Length: 2, 2", "ok", Some("2")),
        ("/framed/lists", "Content-Length: 2\r\nContent-Length: 2,2", "ok", Some("2")),
        ("/framed/differing", "Content-Length: 2, 3", "ok", None),
        ("/framed/two", "Content-Length: 2\r\nContent-Length: 3", "ok", None),
        ("/framed/twice", "Transfer-Encoding: chunked, chunked", "2\r\nok\r\n0\r\n\r\n", None),
        (
            "/framed/lines",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "2\r\nok\r\n0\r\n\r\n",
            None,
        ),
        ("/framed/gzip", "Transfer-Encoding: gzip, chunked", "2\r\nok\r\n0\r\n\r\n", None),
    ] {
        world.open.reply(path, format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"));
        let answer = world.gateway.get(path);
        match expected {
            Some(length) => {
                assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"), "{head}");
                assert_eq!(answer.all("content-length"), [length], "{head}");
            }
            None => assert_eq!(answer.status(), 502, "{head}: {answer:?}"),
        }
    }
}

#[test]
fn options_requests_stop_where_their_hops_end() {
    let world = world();
    for (nth, (sent, status, seen)) in [
        (&["5"][..], 200, Some("4")),
        (&["1"], 200, Some("0")),
        (&["0"], 200, None),
        (&["00"], 200, None),
        (&["-1"], 400, None),
        (&["x"], 400, None),
        (&[""], 400, None),
        (&["1", "2"], 400, None),
    ]
    .into_iter()
    .enumerate()
    {
        let case = format!("hops-{nth}");
        let mut fields: Vec<_> = sent.iter().map(|hops| ("Max-Forwards", *hops)).collect();
        fields.push(("X-Case", &case));
        let answer = world.gateway.call("OPTIONS", "/x", &fields, b"");
        assert_eq!(answer.status(), status, "{sent:?}");
        let reached = world.open.case(&case).map(|seen| seen.all("max-forwards").join(","));
        assert_eq!(reached.as_deref(), seen, "{sent:?}");
        if seen.is_none() && status == 200 {
            assert_eq!(answer.header("content-length").as_deref(), Some("0"), "{sent:?}");
            assert!(answer.header("x-request-id").is_some(), "{sent:?}");
        }
    }
    let get = [("Max-Forwards", "0"), ("X-Case", "hops-get")];
    assert_eq!(world.gateway.call("GET", "/x", &get, b"").status(), 200, "other methods ignore it");
    assert!(world.open.case("hops-get").is_some());
    let closed = world.gateway.call("OPTIONS", "/admin", &[("Max-Forwards", "0")], b"");
    assert_eq!(closed.status(), 401, "a token is needed first");
}

#[test]
fn answers_get_the_stripped_prefix_back() {
    let world = world();
    let own = world.open.address;
    let answer = format!(
        "HTTP/1.1 302 Found\r\nLocation: /login?next=/x\r\nContent-Location: http://{own}/y\r\nSet-Cookie: a=b; Path=/; Secure\r\nSet-Cookie: c=d; path=/z\r\nContent-Length: 0\r\n\r\n"
    );
    world.open.reply("/redirect", answer.clone());
    let sent = [("X-Case", "answers")];
    let found = world.gateway.call("GET", "/app/redirect", &sent, b"");
    assert_eq!(found.all("location"), ["/app/login?next=/x"]);
    assert_eq!(found.all("content-location"), ["/app/y"]);
    assert_eq!(found.all("set-cookie"), ["a=b; Path=/app; Secure", "c=d; path=/app/z"]);
    assert_eq!(world.open.case("answers").unwrap().all("x-forwarded-prefix"), ["/app"]);
    world.open.reply(
        "/absolute",
        "HTTP/1.1 302 Found\r\nLocation: http://gateway.test/x\r\nContent-Length: 0\r\n\r\n",
    );
    assert_eq!(world.gateway.get("/app/absolute").all("location"), ["http://gateway.test/app/x"]);
    world.open.reply(
        "/heeded",
        "HTTP/1.1 302 Found\r\nLocation: /app/x\r\nSet-Cookie: a=b; Path=/app\r\nContent-Length: 0\r\n\r\n",
    );
    let heeded = world.gateway.get("/app/heeded");
    assert_eq!(
        (heeded.all("location"), heeded.all("set-cookie")),
        (vec!["/app/x"], vec!["a=b; Path=/app"])
    );
    world.open.reply(
        "/foreign",
        "HTTP/1.1 302 Found\r\nLocation: http://other.test/x\r\nContent-Length: 0\r\n\r\n",
    );
    assert_eq!(world.gateway.get("/app/foreign").all("location"), ["http://other.test/x"]);
    let unasked = world.gateway.get("/strip/me/redirect");
    assert_eq!(unasked.all("location"), ["/login?next=/x"], "only when asked");
}

#[test]
fn an_organization_cannot_imitate_anothers_counter() {
    let origin = Origin::start();
    let tokens = "[
      { api_key: a, organization_id: \"acme|ip:127.0.0.1\", limits: [ { rate: 1/day, by: organization, name: n } ] },
      { api_key: b, organization_id: acme, limits: [ { rate: 1/day, by: [ organization, ip ], name: n } ] } ]";
    let gateway = Gateway::start_with_one_thread(&format!(
        "auth: {}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }} ]",
        auth(tokens),
        origin.url()
    ));
    assert_eq!(gateway.get_as("a", "/").status(), 200);
    assert_eq!(gateway.get_as("b", "/").status(), 200, "another organization");
    assert_eq!(["a", "b"].map(|key| gateway.get_as(key, "/").status()), [429, 429]);
}
