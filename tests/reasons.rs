//! Why a request was refused, as the access log tells the operator, and as no answer tells the client.
//! It must not know which part of the gateway found the cause.
// Tables of cases have the type they have.
#![allow(clippy::type_complexity, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use support::token::{now, sign, unsigned};
use support::*;

/// A secret that signs for the key `other`.
const OTHER: &str = "other-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";

/// The line that the access log has of the request with this id.
fn line(gateway: &Gateway, id: &str) -> Value {
    gateway.wait_log(id, |line| line["request_id"] == id && line["status"].is_u64())
}

/// Status, code and reason of the request with this id, as the access log has them.
fn logged(gateway: &Gateway, id: &str) -> (u64, String, String) {
    let line = line(gateway, id);
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    (line["status"].as_u64().unwrap(), text("code"), text("reason"))
}

fn expected(status: u64, code: &str, reason: &str) -> (u64, String, String) {
    (status, code.to_owned(), reason.to_owned())
}

/// What a client sees of an answer, but for its id and its time.
fn seen(answer: &Message) -> (String, Vec<(String, String)>, Value) {
    let mut problem = answer.json();
    for own in ["request_id", "timestamp"] {
        problem.as_object_mut().unwrap().remove(own).unwrap();
    }
    let own = ["x-request-id", "date", "content-length"];
    let fields = answer.headers.iter();
    let fields = fields.filter(|(name, _)| !own.contains(&name.to_lowercase().as_str()));
    (answer.line.clone(), fields.cloned().collect(), problem)
}

/// The claims of a token that is valid but for what `more` says; `null` takes a claim away.
fn claims(api_key: &str, more: Value) -> Value {
    let mut claims = json!({ "api_key": api_key, "exp": now() + 3600, "iss": "us", "aud": "api" });
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

/// A token of the key `main` with these claims.
fn with_claims(api_key: &str, more: Value) -> String {
    sign(
        &json!({ "alg": "HS256", "kid": "main" }),
        &claims(api_key, more),
        SECRET,
        Algorithm::HS256,
    )
}

/// A token of `good` with this header, signed with the secret of the key `main`.
fn with_header(header: Value, algorithm: Algorithm) -> String {
    sign(&header, &claims("good", json!({})), SECRET, algorithm)
}

fn yaml(redis: &Redis, origin: &Origin, auth: &str) -> String {
    // One more than are tried for a token that names none.
    let spare: String = (0..9)
        .map(|nth| {
            format!("      - {{ kid: spare-{nth}, algorithm: HS384, secret: \"{nth}{OTHER}\" }}\n")
        })
        .collect();
    format!(
        r#"redis: {{ url: "{}", timeout: 1s }}
auth:
  jwt:
    issuer: us
    audience: api
    keys:
      - {{ kid: main, algorithm: HS256, secret: "{SECRET}" }}
      - {{ kid: other, algorithm: HS256, secret: "{OTHER}" }}
{spare}    {auth}
limits: {{ default: [] }}
upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]"#,
        redis.url(),
        origin.url()
    )
}

#[test]
fn every_refused_token_has_its_reason_in_the_log_and_nowhere_else() {
    let (redis, origin) = (Redis::start(), Origin::start());
    redis.record("good", &[("name", "x")]);
    redis.record("disabled", &[("disabled", "true")]);
    redis.record("over", &[("expires_at", "2020-01-01T00:00:00Z")]);
    redis.record("unreadable", &[("rate_limit", "5/fortnight")]);
    let gateway = Gateway::start(&yaml(&redis, &origin, "leeway: 0s\n  max_failures: none"));
    let good = with_claims("good", json!({}));
    assert_eq!(gateway.call("GET", "/", &[("X-API-Key", &good)], b"").status(), 200);

    let (head, signature) = good.rsplit_once('.').unwrap();
    // The last character of a signature has bits that must be 0; the first one has none.
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let altered = format!("{head}.{first}{}", &signature[1..]);
    let another = with_claims("another", json!({}));
    let swapped = format!("{}.{signature}", another.rsplit_once('.').unwrap().0);
    let none = format!("{}.", unsigned(&json!({ "alg": "none" }), &claims("good", json!({}))));
    let main = |more: Value| {
        let mut header = json!({ "alg": "HS256", "kid": "main" });
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with_header(header, Algorithm::HS256)
    };
    let invalid: Vec<(&str, String, &str, &str)> = vec![
        ("two-parts", "two.parts".into(), "no_record", "no record"),
        ("not-json", "not.a.token".into(), "malformed", "base64url"),
        ("spaces", "a b".into(), "malformed", "malformed"),
        ("empty-signature", format!("{head}."), "malformed", "base64url"),
        ("crit", main(json!({ "crit": ["b64"] })), "crit", "crit"),
        ("typ", main(json!({ "typ": "logout+jwt" })), "typ", "typ"),
        ("none", none, "algorithm", "alg"),
        (
            "hs512",
            with_header(json!({ "alg": "HS512", "kid": "main" }), Algorithm::HS512),
            "algorithm",
            "alg",
        ),
        ("stranger", with_claims("good", json!({ "iss": "stranger" })), "issuer", "iss"),
        ("no-issuer", with_claims("good", json!({ "iss": null })), "issuer", "iss"),
        ("unknown-kid", main(json!({ "kid": "unknown" })), "unknown_kid", "kid"),
        (
            "no-kid",
            with_header(json!({ "alg": "HS384" }), Algorithm::HS384),
            "missing_kid",
            "too many keys",
        ),
        ("altered", altered, "signature", "signature"),
        ("swapped", swapped, "signature", "signature"),
        ("other-key", main(json!({ "kid": "other" })), "signature", "signature"),
        ("audience", with_claims("good", json!({ "aud": ["else"] })), "audience", "aud"),
        ("no-exp", with_claims("good", json!({ "exp": null })), "missing_claim", "exp is missing"),
        ("exp-text", with_claims("good", json!({ "exp": "soon" })), "wrong_claim", "claim exp"),
        (
            "limits",
            with_claims("good", json!({ "limits": ["s3cr3t-claim"] })),
            "wrong_claim",
            "claim limits",
        ),
        ("nbf", with_claims("good", json!({ "nbf": now() + 600 })), "not_yet_valid", "nbf"),
        ("stranger-key", "tg_of-somewhere-else".into(), "checksum", "checksum"),
        ("nobody", with_claims("nobody", json!({})), "no_record", "no record"),
        ("opaque", "an-opaque-key".into(), "no_record", "no record"),
        ("unreadable", with_claims("unreadable", json!({})), "unreadable_record", "rate_limit"),
    ];
    let mut answers = Vec::new();
    for (id, token, reason, error) in &invalid {
        let fields = [("X-API-Key", token.as_str()), ("X-Request-ID", id)];
        let answer = gateway.call("GET", "/", &fields, b"");
        answers.push((*id, seen(&answer)));
        assert_eq!(logged(&gateway, id), expected(401, "invalid_token", reason), "{id}");
        let told = line(&gateway, id)["error"].as_str().unwrap().to_owned();
        assert!(told.contains(error) && told.len() <= 210, "{id}: {told}");
        assert!(!told.contains("s3cr3t"), "{id}: {told}");
    }
    let (_, first) = &answers[0];
    for (id, answer) in &answers {
        assert_eq!(answer, first, "the client learns no more of `{id}`");
    }

    let late = with_claims("good", json!({ "exp": now() - 60 }));
    for (id, token, code, reason, error) in [
        ("exp", late, "expired_token", "expired", "exp has passed"),
        ("over", with_claims("over", json!({})), "expired_token", "expired", "expires_at"),
        ("disabled", with_claims("disabled", json!({})), "revoked_token", "disabled", "disabled"),
    ] {
        gateway.call("GET", "/", &[("X-API-Key", &token), ("X-Request-ID", id)], b"");
        assert_eq!(logged(&gateway, id), expected(401, code, reason), "{id}");
        assert!(line(&gateway, id)["error"].as_str().unwrap().contains(error), "{id}");
    }
    let credentials = invalid.iter().map(|(_, token, ..)| token.as_str()).filter(|t| t.len() > 20);
    for credential in credentials {
        let told: Vec<_> =
            gateway.lines().into_iter().filter(|line| line.contains(credential)).collect();
        assert!(told.is_empty(), "a credential in the log: {told:#?}");
    }

    // A request that is served, or that has one cause only, has no reason.
    for (id, token, target, status) in [
        ("served", good.as_str(), "/", 200),
        ("none-sent", "", "/", 401),
        ("route", &good, "/%2e%2e", 400),
    ] {
        let mut fields = vec![("X-Request-ID", id)];
        if !token.is_empty() {
            fields.push(("X-API-Key", token));
        }
        assert_eq!(gateway.call("GET", target, &fields, b"").status(), status, "{id}");
        let line = line(&gateway, id);
        let has_cause = status == 400;
        assert_eq!(line.get("reason").is_some(), has_cause, "{line}");
        assert_eq!(line.get("error").is_some(), has_cause, "{line}");
    }
}

#[test]
fn a_revoked_token_and_one_that_is_guessed_too_often_have_their_reasons() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let auth = "require_record: false\n  max_failures: 3/hour";
    let gateway = Gateway::start(&yaml(&redis, &origin, auth));
    redis.command(&["SET", "revoked:alice", "1"]);
    let token = with_claims("alice", json!({}));
    gateway.call("GET", "/", &[("X-API-Key", &token), ("X-Request-ID", "revoked")], b"");
    assert_eq!(logged(&gateway, "revoked"), expected(401, "revoked_token", "revoked"));

    let nameless = with_claims("bob", json!({ "api_key": "a\u{e9}" }));
    gateway.call("GET", "/", &[("X-API-Key", &nameless), ("X-Request-ID", "nameless")], b"");
    assert_eq!(logged(&gateway, "nameless"), expected(401, "invalid_token", "wrong_claim"));

    let forged = format!("{}AAAA", &token[..token.len() - 4]);
    // An hour's end may fall between the first and the last request, but only once.
    let mut nth = 0;
    let (id, _) = wait_for("too many guesses", || {
        nth += 1;
        let id = format!("guess-{nth}");
        let fields = [("X-API-Key", forged.as_str()), ("X-Request-ID", &id)];
        let answer = gateway.call("GET", "/", &fields, b"");
        (answer.status() == 429).then_some((id, answer))
    });
    assert_eq!(logged(&gateway, &id), expected(429, "too_many_failures", "signature"));
}

#[test]
fn requests_of_a_wrong_shape_and_too_many_of_them_have_their_reasons() {
    let origin = Origin::start();
    let gateway = Gateway::start(&format!(
        "auth: {}
limits: {{ default: [], max_in_flight: 1 }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes:
  - {{ prefix: /, upstream: up }}
  - {{ prefix: /narrow, upstream: up, auth: none, max_in_flight: 1 }}",
        auth("[ { api_key: alice } ]"),
        origin.url()
    ));
    let (alice, other) = (bearer("alice"), token("other"));
    let credential = ("Authorization", alice.as_str());
    for (id, target, fields, reason) in [
        ("path", "/%2e%2e", vec![], "path"),
        ("two", "/", vec![credential, ("X-API-Key", &other)], "two_credentials"),
    ] {
        let fields = [&fields[..], &[("X-Request-ID", id)]].concat();
        assert_eq!(gateway.call("GET", target, &fields, b"").code(), "bad_request", "{id}");
        assert_eq!(logged(&gateway, id), expected(400, "bad_request", reason), "{id}");
    }

    // Chunks that come with the head are checked with the head, which has no line in the log.
    let fields = [credential, ("Transfer-Encoding", "chunked"), ("X-Request-ID", "chunks")];
    let mut client = gateway.connect();
    client.send(request("POST", "/chunked", &fields, b"4\r\nbody\r\n"));
    origin.one("/chunked");
    assert_eq!(client.send("XX\r\n").read().code(), "bad_request");
    assert_eq!(logged(&gateway, "chunks"), expected(400, "bad_request", "chunks"));

    for (path, id, reason) in
        [("/slow", "of-token", "token"), ("/narrow/slow", "of-route", "route")]
    {
        let gate = origin.hold(path);
        let mut waiting = gateway.connect();
        waiting.send(request("GET", path, &[credential], b""));
        origin.one(path);
        let refused = gateway.call("GET", path, &[credential, ("X-Request-ID", id)], b"");
        assert_eq!(refused.status(), 429, "{path}");
        assert_eq!(logged(&gateway, id), expected(429, "too_many_in_flight", reason), "{path}");
        gate.open();
        assert_eq!(waiting.read().text(), "held");
    }

    // A client that leaves gets no answer, and the log says why there was none.
    let _never = origin.hold("/silent");
    let mut client = gateway.connect();
    client.send(request("GET", "/silent", &[credential, ("X-Request-ID", "gone")], b""));
    origin.one("/silent");
    drop(client);
    assert_eq!(logged(&gateway, "gone"), expected(499, "", "client_gone"));
}

#[test]
fn a_store_that_is_needed_and_fails_has_its_reason() {
    let origin = Origin::start();
    let start = |redis: &Redis| {
        Gateway::start(&format!(
            "redis: {{ url: \"{}\", timeout: 100ms }}
auth: {}
limits: {{ default: [] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
            redis.url(),
            auth("[]"),
            origin.url()
        ))
    };
    let reason_of = |gateway: &Gateway, reason: &str| {
        let mut nth = 0;
        wait_for(reason, || {
            nth += 1;
            let (name, id) = (format!("{reason}-{nth}"), format!("{reason}-id-{nth}"));
            let fields = [("Authorization", bearer(&name)), ("X-Request-ID", id.clone())];
            let fields: Vec<_> =
                fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = gateway.call("GET", "/", &fields, b"");
            assert_eq!(answer.code(), "store_unavailable");
            let line = line(gateway, &id);
            (line["reason"] == reason).then(|| line["error"].as_str().unwrap().to_owned())
        })
    };
    let redis = Redis::start();
    let gateway = start(&redis);
    redis.freeze();
    assert!(reason_of(&gateway, "timeout").contains("100ms"));
    assert!(reason_of(&gateway, "open").contains("probed"));
    redis.thaw();

    let redis = Redis::start();
    let gateway = start(&redis);
    for user in ["tollgate", "default"] {
        redis.command(&["ACL", "SETUSER", user, "-@all", "+ping"]);
    }
    assert!(reason_of(&gateway, "failed").contains("NOPERM"));
}

#[test]
fn keys_that_cannot_be_fetched_have_their_reason() {
    let (server, origin) = (KeyServer::start(), Origin::start());
    server.answer("503 Service Unavailable", "");
    let yaml = format!(
        "auth: {{ max_failures: none, jwt: {{ jwks: {{ url: \"{}\" }} }}, tokens: [ {{ api_key: alice }} ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        server.url(),
        origin.url()
    );
    let authority = server.authority();
    let trusted = [("SSL_CERT_FILE", authority.to_str().unwrap())];
    let gateway = Gateway::spawn_with(&yaml, &trusted);
    gateway.wait_ready();
    let token =
        Signer::new("ES256").token(Some("a"), &json!({ "api_key": "alice", "exp": now() + 60 }));
    gateway.call("GET", "/", &[("X-API-Key", &token), ("X-Request-ID", "keys")], b"");
    assert_eq!(logged(&gateway, "keys"), expected(503, "keys_unavailable", "fetch_failed"));
}

/// An upstream that calls `with` for each connection.
fn raw(with: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(with));
    address
}

/// An address that takes no further connection, and the sockets that keep it full.
fn full() -> (SocketAddr, Vec<TcpStream>, tokio::net::TcpListener) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
    // The kernel takes one connection more than it was asked to.
    let waiting: Vec<_> = std::iter::from_fn(connect).collect();
    (address, waiting, listener)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_upstream_that_fails_has_its_reason() {
    let origin = Origin::start();
    let _never = origin.hold("/silent");
    origin.on("/closes", |_, _| Ok(false));
    origin.reply("/rubbish", "rubbish\r\n\r\n");
    origin.on("/half", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npartial").map(|()| false)
    });
    let (full, _waiting, _listener) = full();
    // Bytes that are there and unread make the kernel reset the connection.
    let resets = raw(|mut stream| drop(stream.read_exact(&mut [0])));
    let plain = raw(|mut stream| drop(stream.write_all(b"220 this is no TLS\r\n")));
    let mute = raw(|stream| {
        std::thread::sleep(Duration::from_secs(10));
        drop(stream);
    });
    let endpoints = [
        ("up", origin.url()),
        ("nobody", format!("http://{NOBODY}")),
        ("full", format!("http://{full}")),
        ("nowhere", "http://255.255.255.255:80".into()),
        ("plain", format!("https://{plain}")),
        ("shy", format!("https://{mute}")),
        ("resets", format!("http://{resets}")),
        ("mute", format!("http://{mute}")),
        ("twice", format!("http://{NOBODY}")),
    ];
    let mut yaml = String::from("max_body: 64MiB\nupstreams:\n");
    for (name, url) in &endpoints {
        let timeouts = "{ connect: 500ms, read: 1s, write: 500ms }";
        let retries = u8::from(*name == "twice");
        let upstream =
            format!("{{ endpoints: [ \"{url}\" ], retries: {retries}, timeouts: {timeouts} }}");
        yaml.push_str(&format!("  {name}: {upstream}\n"));
    }
    yaml.push_str("routes:\n  - { prefix: /, upstream: up, auth: none }\n");
    for (name, _) in &endpoints[1..] {
        yaml.push_str(&format!("  - {{ prefix: /{name}, upstream: {name}, auth: none }}\n"));
    }
    let gateway = Gateway::start(&yaml);
    let large = vec![b'x'; 16 << 20];
    for (target, body, status, reason) in [
        ("/silent", &b""[..], 504, "read_timeout"),
        ("/closes", b"", 502, "closed"),
        ("/rubbish", b"", 502, "malformed_answer"),
        ("/nobody", b"", 502, "connect_refused"),
        ("/full", b"", 504, "connect_timeout"),
        ("/nowhere", b"", 502, "connect_failed"),
        ("/plain", b"", 502, "tls_failed"),
        ("/shy", b"", 504, "connect_timeout"),
        ("/resets", b"", 502, "read_failed"),
        ("/mute", &large, 504, "write_timeout"),
    ] {
        let id = target.trim_start_matches('/');
        let method = if body.is_empty() { "GET" } else { "POST" };
        let mut client = gateway.connect();
        // A client that still sends its body when the connection ends may miss the answer.
        let _ = client.send(request(method, target, &[("X-Request-ID", id)], body)).try_read(false);
        let code = match reason {
            "malformed_answer" => "upstream_invalid",
            _ if status == 504 => "upstream_timeout",
            _ => "upstream_unreachable",
        };
        assert_eq!(logged(&gateway, id), expected(status, code, reason), "{target}");
        assert!(line(&gateway, id)["upstream"].is_string(), "{target}");
    }

    // The line about the failure counts the attempts.
    gateway.call("GET", "/twice", &[("X-Request-ID", "twice")], b"");
    assert_eq!(logged(&gateway, "twice"), expected(502, "upstream_unreachable", "connect_refused"));
    let failed = gateway
        .wait_log("the failure", |line| line["request_id"] == "twice" && line["attempts"].is_u64());
    assert_eq!((&failed["attempts"], &failed["route"]), (&json!(2), &json!("/twice")), "{failed}");

    // The header of the answer is out: there is no other answer, and the log has the reason.
    let mut client = gateway.connect();
    client.send(request("GET", "/half", &[("X-Request-ID", "half")], b""));
    assert!(client.try_read(false).is_err());
    assert_eq!(logged(&gateway, "half"), expected(200, "", "closed"));
}
