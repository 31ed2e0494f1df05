//! Routes whose requests several upstreams share: who goes where, and who moves when a weight changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::*;

/// How many tokens there are.
const TOKENS: usize = 200;

/// A route whose requests `old` and `new` share by these weights.
fn config(old: &Origin, new: &Origin, weights: [u32; 2]) -> String {
    let tokens: Vec<_> = (0..TOKENS).map(|nth| format!("{{ api_key: t{nth} }}")).collect();
    format!(
        "auth: {}\ntrusted_proxies: [ 127.0.0.0/8 ]
upstreams: {{ old: {{ endpoints: [ \"{}\" ] }}, new: {{ endpoints: [ \"{}\" ] }} }}
routes:
  - {{ prefix: /split, split: [ {{ upstream: old, weight: {a} }}, {{ upstream: new, weight: {b} }} ] }}
  - {{ prefix: /open, auth: none, split: [ {{ upstream: old, weight: {a} }}, {{ upstream: new, weight: {b} }} ] }}",
        auth(&format!("[ {} ]", tokens.join(", "))),
        old.url(),
        new.url(),
        a = weights[0],
        b = weights[1],
    )
}

/// Two origins that say which they are.
fn origins() -> [Origin; 2] {
    ["old", "new"].map(|name| {
        let origin = Origin::start();
        for path in ["/split", "/open"] {
            origin.reply(path, format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{name}"));
        }
        origin
    })
}

/// The side of each token.
fn sides(gateway: &Gateway) -> Vec<String> {
    let mut client = gateway.connect();
    let mut side = |nth: usize| {
        let bearer = bearer(&format!("t{nth}"));
        let answer = client.call("GET", "/split", &[("Authorization", &bearer)], b"");
        assert_eq!(answer.status(), 200);
        answer.text()
    };
    (0..TOKENS).map(&mut side).collect()
}

fn count(sides: &[String], name: &str) -> usize {
    sides.iter().filter(|side| *side == name).count()
}

#[test]
fn a_token_stays_on_its_side_and_only_those_move_that_must() {
    let [old, new] = origins();
    let gateway = Gateway::start(&config(&old, &new, [80, 20]));
    let before = sides(&gateway);
    assert_eq!(sides(&gateway), before, "each token stays");
    assert!((15..70).contains(&count(&before, "new")), "{}", count(&before, "new"));

    let second = Gateway::start(&config(&old, &new, [80, 20]));
    assert_eq!(sides(&second), before, "every gateway agrees");

    let mut moved = before.clone();
    for (weights, to) in [([60, 40], "new"), ([60, 10], "old"), ([0, 10], "new")] {
        let generation = gateway.metric("tollgate_config_generation").unwrap();
        gateway.reload(&config(&old, &new, weights));
        wait_for("the reload", || {
            (gateway.metric("tollgate_config_generation")? > generation).then_some(())
        });
        let after = sides(&gateway);
        assert!(
            after.iter().zip(&moved).all(|(now, then)| now == then || now == to),
            "{weights:?}"
        );
        assert_ne!(after, moved, "{weights:?}");
        moved = after;
    }
    assert_eq!(count(&moved, "old"), 0, "a weight of 0 gets nothing");
}

#[test]
fn without_a_token_the_clients_network_stays_on_its_side() {
    let [old, new] = origins();
    let gateway = Gateway::start(&config(&old, &new, [50, 50]));
    let side = |client: &str| {
        let answer = gateway.call("GET", "/open", &[("X-Forwarded-For", client)], b"");
        assert_eq!(answer.status(), 200);
        answer.text()
    };
    let clients: Vec<_> = (0..40).map(|nth| format!("2001:db8:0:{nth:x}::1")).collect();
    let first: Vec<_> = clients.iter().map(|client| side(client)).collect();
    assert!((5..36).contains(&count(&first, "new")), "{first:?}");
    for (client, side_of_client) in clients.iter().zip(&first) {
        assert_eq!(side(&client.replace("::1", "::2")), *side_of_client, "the same network");
    }
}

#[test]
fn the_access_log_and_the_metrics_name_the_upstream_that_was_asked() {
    let [old, new] = origins();
    let gateway = Gateway::start(&config(&old, &new, [50, 50]));
    let answered = sides(&gateway);
    for (nth, side) in answered.iter().enumerate().take(20) {
        let line = gateway.wait_log("the line", |line| line["token_id"] == format!("t{nth}"));
        assert_eq!(line["upstream"], **side, "{line}");
        assert_eq!(line["route"], "/split");
    }
    for name in ["old", "new"] {
        let series = format!("tollgate_upstream_duration_seconds_count{{upstream=\"{name}\"}}");
        assert_eq!(gateway.metric(&series), Some(count(&answered, name) as f64));
    }
}

#[test]
fn check_says_where_requests_go_and_who_gets_copies() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("gateway.yaml");
    let yaml = r#"upstreams: { old: { endpoints: [ http://a ] }, new: { endpoints: [ http://b ] } }
routes:
  - { prefix: /split, auth: none, split: [ { upstream: old, weight: 95 }, { upstream: new, weight: 5 } ] }
  - { prefix: /copied, auth: none, host: "*.example.com", upstream: old, mirror: { upstream: new } }
"#;
    std::fs::write(&file, yaml).unwrap();
    let output = tollgate().args(["check", "-c", file.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for part in [
        "* /split",
        "-> old (weight 95) or new (weight 5), auth none",
        "* *.example.com/copied",
        "-> old, auth none, copies to new",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}
