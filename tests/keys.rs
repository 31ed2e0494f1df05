//! Keys that issuers publish, as the running gateway fetches and uses them: over https and from a file,
//! through rotation and outages. It must not know how sets are kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::token::now;
use support::*;

struct World {
    server: KeyServer,
    gateway: Gateway,
    _origin: Origin,
}

/// A gateway whose keys come from a server that publishes `keys`.
fn world(keys: &[Value], jwks: &str) -> World {
    let (server, origin) = (KeyServer::start(), Origin::start());
    server.publish(keys);
    let gateway = start(&server, &origin, jwks);
    World { server, gateway, _origin: origin }
}

fn start(server: &KeyServer, origin: &Origin, jwks: &str) -> Gateway {
    let yaml = format!(
        "auth: {{ max_failures: none, jwt: {{ jwks: {{ url: \"{}\"{jwks} }} }}, tokens: [ {{ api_key: alice }} ] }}
limits: {{ default: [] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        server.url(),
        origin.url()
    );
    let gateway =
        Gateway::spawn_with(&yaml, &[("SSL_CERT_FILE", server.authority().to_str().unwrap())]);
    gateway.wait_ready();
    gateway
}

fn get(gateway: &Gateway, token: &str) -> (u16, String) {
    let answer = gateway.call("GET", "/", &[("Authorization", &format!("Bearer {token}"))], b"");
    match answer.status() {
        200 => (200, String::new()),
        status => (status, answer.code()),
    }
}

fn metric(gateway: &Gateway, series: &str) -> f64 {
    gateway.metric(series).unwrap_or_default()
}

fn claims() -> Value {
    json!({ "api_key": "alice", "exp": now() + 3600 })
}

fn invalid() -> (u16, String) {
    (401, "invalid_token".into())
}

fn unavailable() -> (u16, String) {
    (503, "keys_unavailable".into())
}

#[test]
fn published_keys_verify_and_one_fetch_serves_all() {
    let signers: Vec<(String, Signer)> =
        ALGORITHMS.iter().map(|name| (format!("key-{name}"), Signer::new(name))).collect();
    let keys: Vec<Value> = signers.iter().map(|(kid, signer)| signer.jwk(Some(kid))).collect();
    let world = world(&keys, "");
    assert_eq!(world.server.asked(), 1, "before the first request");
    for (kid, signer) in &signers {
        let expected = match signer.secret() {
            // A secret that everybody can read is no secret, so it verifies nothing.
            Some(_) => invalid(),
            None => (200, String::new()),
        };
        assert_eq!(get(&world.gateway, &signer.token(Some(kid), &claims())), expected, "{kid}");
    }
    // The tokens of the skipped secrets have an unknown kid, which may cause a fetch.
    assert!(world.server.asked() <= 2, "{}", world.server.asked());
    assert_eq!(metric(&world.gateway, "tollgate_key_fetches_total{outcome=\"failed\"}"), 0.0);
}

#[test]
fn a_new_key_is_found_by_one_fetch_and_guesses_do_not_cause_more() {
    let (old, new) = (Signer::new("ES256"), Signer::new("ES256"));
    let world = world(&[old.jwk(Some("old"))], "");
    assert_eq!(get(&world.gateway, &old.token(Some("old"), &claims())).0, 200);
    world.server.publish(&[old.jwk(Some("old")), new.jwk(Some("new"))]);
    world.server.delay(Duration::from_millis(300));
    // The fetch at the start was just now: the next one may be 10 s after it.
    let token = new.token(Some("new"), &claims());
    wait_for("the new key", || (get(&world.gateway, &token).0 == 200).then_some(()));
    let asked = world.server.asked();
    assert!(asked <= 3, "{asked} fetches");
    std::thread::scope(|scope| {
        for nth in 0..50 {
            let (gateway, old) = (&world.gateway, &old);
            scope.spawn(move || {
                let token = old.token(Some(&format!("guess-{nth}")), &claims());
                assert_eq!(get(gateway, &token), invalid());
            });
        }
    });
    assert!(world.server.asked() <= asked + 1, "{} fetches for 50 guesses", world.server.asked());
    assert_eq!(get(&world.gateway, &old.token(Some("old"), &claims())).0, 200);
}

#[test]
fn a_withdrawn_key_no_longer_verifies_not_even_what_it_verified_before() {
    let (leaked, kept) = (Signer::new("RS256"), Signer::new("EdDSA"));
    let world = world(&[leaked.jwk(Some("leaked")), kept.jwk(Some("kept"))], ", refresh: 1s");
    let token = leaked.token(Some("leaked"), &claims());
    assert_eq!(get(&world.gateway, &token).0, 200);
    world.server.publish(&[kept.jwk(Some("kept"))]);
    wait_for("the leaked key to be forgotten", || {
        (get(&world.gateway, &token) == invalid()).then_some(())
    });
    assert_eq!(get(&world.gateway, &kept.token(Some("kept"), &claims())).0, 200);
}

#[test]
fn the_last_good_set_survives_every_failure() {
    let signer = Signer::new("PS256");
    let world = world(&[signer.jwk(Some("a"))], ", refresh: 1s, timeout: 500ms");
    let token = |nth: usize| {
        let mut claims = claims();
        claims["nth"] = json!(nth);
        signer.token(Some("a"), &claims)
    };
    let set = json!({ "keys": [signer.jwk(Some("a"))] }).to_string();
    let large = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(300 << 10));
    let answers: [(&str, &str, Duration); 8] = [
        ("500 Internal Server Error", &set, Duration::ZERO),
        ("404 Not Found", "{\"keys\":[]}", Duration::ZERO),
        ("302 Found", r#"{"keys":[]}"#, Duration::ZERO),
        ("204 No Content", "", Duration::ZERO),
        ("200 OK", "<html>", Duration::ZERO),
        ("200 OK", "{}", Duration::ZERO),
        ("200 OK", &large, Duration::ZERO),
        ("200 OK", "{\"keys\":[]}", Duration::from_secs(2)),
    ];
    let failed = || metric(&world.gateway, "tollgate_key_fetches_total{outcome=\"failed\"}");
    for (nth, (status, body, delay)) in answers.iter().enumerate() {
        let before = failed();
        world.server.answer(status, body);
        world.server.delay(*delay);
        wait_for("a failed fetch", || (failed() > before).then_some(()));
        assert_eq!(
            get(&world.gateway, &token(nth)).0,
            200,
            "{status} {}",
            &body[..body.len().min(20)]
        );
    }
    assert_eq!(metric(&world.gateway, "tollgate_key_sources_failing"), 1.0);
    // A token that cannot be verified now is not called invalid.
    assert_eq!(get(&world.gateway, &signer.token(Some("unknown"), &claims())), unavailable());
    world.server.delay(Duration::ZERO);
    world.server.answer("200 OK", &set);
    wait_for("a fetch that succeeds", || {
        (metric(&world.gateway, "tollgate_key_sources_failing") == 0.0).then_some(())
    });
    assert_eq!(get(&world.gateway, &signer.token(Some("unknown"), &claims())), invalid());
}

#[test]
fn an_issuer_that_is_away_at_the_start_is_waited_for_by_nobody_and_used_when_it_is_back() {
    let signer = Signer::new("ES384");
    let (server, origin) = (KeyServer::start(), Origin::start());
    server.answer("503 Service Unavailable", "");
    let gateway = start(&server, &origin, "");
    let token = signer.token(Some("a"), &claims());
    assert_eq!(get(&gateway, &token), unavailable());
    server.publish(&[signer.jwk(Some("a"))]);
    wait_for("the keys", || (get(&gateway, &token).0 == 200).then_some(()));
}

#[test]
fn an_issuer_that_says_nothing_holds_up_no_start_and_is_not_taken_for_one_that_denies() {
    let signer = Signer::new("ES256");
    let (server, origin) = (KeyServer::start(), Origin::start());
    server.publish(&[signer.jwk(Some("a"))]);
    server.delay(Duration::from_secs(6));
    let started = std::time::Instant::now();
    let gateway = start(&server, &origin, ", timeout: 15s");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // The first token waits for the fetch that is under way, or gets 503.
    let known = signer.token(Some("a"), &claims());
    wait_for("the keys", || match get(&gateway, &known) {
        (200, _) => Some(()),
        other => {
            assert_eq!(other, unavailable());
            None
        }
    });
    std::thread::sleep(Duration::from_secs(10));
    // A request with an unknown key waits for the set that has the key, and its token expires meanwhile.
    server.publish(&[signer.jwk(Some("b"))]);
    let brief = {
        let mut claims = claims();
        claims["exp"] = json!(now() + 2);
        signer.token(Some("b"), &claims)
    };
    assert_eq!(get(&gateway, &brief), (401, "expired_token".into()));
    gateway.reload(&std::fs::read_to_string(&gateway.config).unwrap().replace("15s", "1s"));
    wait_for("the reload", || {
        (metric(&gateway, "tollgate_config_generation") == 2.0).then_some(())
    });
    let known = signer.token(Some("b"), &claims());
    assert_eq!(get(&gateway, &known).0, 200, "another timeout does not forget the keys");
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(get(&gateway, &signer.token(Some("c"), &claims())), unavailable());
}

#[test]
fn a_key_without_a_name_does_not_hide_that_another_is_missing() {
    let (fixed, published, later) =
        (Signer::new("RS256"), Signer::new("RS256"), Signer::new("RS256"));
    let (server, origin) = (KeyServer::start(), Origin::start());
    server.publish(&[published.jwk(None)]);
    let gateway = start(&server, &origin, "");
    assert_eq!(get(&gateway, &published.token(None, &claims())).0, 200);
    server.publish(&[later.jwk(None)]);
    // By the next fetch, ten seconds after the first.
    let token = later.token(None, &claims());
    wait_for("the new key without a name", || (get(&gateway, &token).0 == 200).then_some(()));
    server.publish(&[later.jwk(None), published.jwk(Some("named"))]);
    let token = published.token(Some("named"), &claims());
    wait_for("the named key", || (get(&gateway, &token).0 == 200).then_some(()));
    assert_eq!(get(&gateway, &fixed.token(None, &claims())), invalid());
}

#[test]
fn a_certificate_that_is_not_trusted_gives_no_keys() {
    let signer = Signer::new("ES256");
    let (server, other, origin) = (KeyServer::start(), KeyServer::start(), Origin::start());
    server.publish(&[signer.jwk(Some("a"))]);
    let yaml = format!(
        "auth: {{ max_failures: none, jwt: {{ jwks: {{ url: \"{}\" }} }}, tokens: [ {{ api_key: alice }} ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }} ]",
        server.url(),
        origin.url()
    );
    let gateway =
        Gateway::spawn_with(&yaml, &[("SSL_CERT_FILE", other.authority().to_str().unwrap())]);
    gateway.wait_ready();
    assert_eq!(get(&gateway, &signer.token(Some("a"), &claims())), unavailable());
    assert_eq!(server.asked(), 0);
}

#[test]
fn a_file_of_keys_is_read_again() {
    let (old, new) = (Signer::new("HS256"), Signer::new("ES512"));
    let (origin, dir) = (Origin::start(), tempfile::TempDir::new().unwrap());
    let file = dir.path().join("jwks.json");
    let write = |keys: &[Value]| {
        // The file is replaced by renaming, so no reader sees half of it.
        let next = dir.path().join("next.json");
        std::fs::write(&next, json!({ "keys": keys }).to_string()).unwrap();
        std::fs::rename(next, &file).unwrap();
    };
    write(&[old.jwk(Some("old"))]);
    let gateway = Gateway::start(&format!(
        "auth: {{ max_failures: none, jwt: {{ jwks: {{ file: {}, refresh: 1s }} }}, tokens: [ {{ api_key: alice }} ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }} ]",
        file.display(),
        origin.url()
    ));
    let (first, second) = (old.token(Some("old"), &claims()), new.token(Some("new"), &claims()));
    assert_eq!(get(&gateway, &first).0, 200, "secrets in a file of one's own are secrets");
    write(&[new.jwk(Some("new"))]);
    wait_for("the new key", || (get(&gateway, &second).0 == 200).then_some(()));
    assert_eq!(get(&gateway, &first), invalid());

    // A reload reads it at once.
    let slow =
        std::fs::read_to_string(&gateway.config).unwrap().replace("refresh: 1s", "refresh: 1h");
    gateway.reload(&slow);
    let generation = |number: f64| {
        wait_for("the reload", || {
            (metric(&gateway, "tollgate_config_generation") == number).then_some(())
        });
    };
    generation(2.0);
    write(&[old.jwk(Some("old"))]);
    assert_eq!(get(&gateway, &second).0, 200);
    gateway.reload(&slow);
    generation(3.0);
    assert_eq!((get(&gateway, &first).0, get(&gateway, &second)), (200, invalid()));
}

#[test]
fn several_issuers_keep_apart_and_survive_a_reload() {
    let (ours, theirs) = (Signer::new("RS512"), Signer::new("EdDSA"));
    let (server, origin) = (KeyServer::start(), Origin::start());
    server.publish(&[theirs.jwk(Some("a"))]);
    let dir = tempfile::TempDir::new().unwrap();
    let pem = dir.path().join("ours.pem");
    std::fs::write(&pem, ours.pem()).unwrap();
    let yaml = |leeway: u8| {
        format!(
            "auth:
  max_failures: none
  jwt:
    leeway: {leeway}s
    issuers:
      - {{ issuer: us, audience: api, keys: [ {{ kid: a, algorithm: RS512, public_key_file: {} }} ] }}
      - {{ issuer: them, jwks: {{ url: \"{}\" }} }}
  tokens: [ {{ api_key: alice }} ]
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
            pem.display(),
            server.url(),
            origin.url()
        )
    };
    let gateway =
        Gateway::spawn_with(&yaml(0), &[("SSL_CERT_FILE", server.authority().to_str().unwrap())]);
    gateway.wait_ready();
    let token = |signer: &Signer, iss: Value, aud: Value| {
        let mut claims = claims();
        claims["iss"] = iss;
        claims["aud"] = aud;
        signer.token(Some("a"), &claims)
    };
    let check = || {
        for (signer, iss, aud, expected) in [
            (&ours, json!("us"), json!("api"), (200, String::new())),
            (&ours, json!("us"), json!("web"), invalid()),
            (&ours, json!("them"), json!("api"), invalid()),
            (&theirs, json!("them"), Value::Null, (200, String::new())),
            (&theirs, json!("us"), json!("api"), invalid()),
            (&theirs, json!("nobody"), json!("api"), invalid()),
            (&theirs, Value::Null, json!("api"), invalid()),
        ] {
            assert_eq!(get(&gateway, &token(signer, iss.clone(), aud)), expected, "{iss}");
        }
    };
    check();
    let asked = server.asked();
    server.answer("503 Service Unavailable", "");
    gateway.reload(&yaml(1));
    wait_for("the reload", || {
        (metric(&gateway, "tollgate_config_generation") == 2.0).then_some(())
    });
    check();
    assert_eq!(server.asked(), asked, "what was fetched stays good");
}
