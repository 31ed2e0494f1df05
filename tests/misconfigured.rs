//! Configurations and records that do not fit together, or not at all: refused, and the message says which.
//! It must not know where a configuration is checked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::Output;

use support::*;

fn config(redis: &Redis, origin: &Origin, more: &str) -> String {
    format!(
        "redis: {{ url: \"{}\", timeout: 2s }}\nupstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]\n{more}",
        redis.url(),
        origin.url()
    )
}

const GOLD: &str = "plans: { gold: { limits: [ 100/day ] } }\n";

#[test]
fn a_plan_that_does_not_exist_is_no_way_around_limits() {
    let (redis, origin) = (Redis::start(), Origin::start());
    redis.record("typo", &[("plan", "glod")]);
    redis.record("own", &[("plan", "glod"), ("limits", r#"["100/day"]"#)]);
    redis.record("gold", &[("plan", "gold")]);
    redis.record("none", &[("name", "no plan")]);
    let gateway = Gateway::start(&config(&redis, &origin, GOLD));
    let refused = gateway.get_as("typo", "/");
    assert_eq!((refused.status(), refused.code().as_str()), (403, "unknown_plan"));
    assert!(!refused.text().contains("glod"), "a client need not know: {}", refused.text());
    for api_key in ["own", "gold", "none"] {
        assert_eq!(gateway.get_as(api_key, "/").status(), 200, "{api_key}");
    }
    let names = |what: &'static str, plan: &'static str| {
        gateway.wait_log(what, |line| {
            line["level"].as_str().is_some_and(|level| level.eq_ignore_ascii_case("warn"))
                && line["message"].as_str().is_some_and(|m| m.contains(&format!("`{plan}`")))
        })
    };
    let line = names("a warning that names the plan", "glod");
    assert!(line["message"].as_str().unwrap().contains("token typo"), "{line}");
    gateway.wait_log("the access line names it too", |line| {
        line["code"] == "unknown_plan" && line["error"].to_string().contains("`glod`")
    });
    for _ in 0..20 {
        assert_eq!(gateway.get_as("typo", "/").status(), 403);
    }
    let warnings = gateway.log().into_iter().filter(|line| {
        line["message"].as_str().is_some_and(|message| message.starts_with("no plan"))
    });
    assert_eq!(warnings.count(), 1, "once, however many requests there are");

    // A reload takes the plan away.
    gateway.reload(&config(&redis, &origin, ""));
    wait_for("the plan to go", || (gateway.get_as("gold", "/").status() == 403).then_some(()));
    names("a warning that names the plan", "gold");
    let lenient = "limits: { default: [ 100/day ], unknown_plan: default }\n";
    gateway.reload(&config(&redis, &origin, lenient));
    wait_for("the default limits", || {
        let answer = gateway.get_as("gold", "/");
        (answer.status() == 200 && answer.header("x-ratelimit-limit").is_some()).then_some(())
    });
}

fn run(arguments: &[&str]) -> Output {
    tollgate().args(arguments).output().unwrap()
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_configuration_without_routes_is_none() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&config(&redis, &origin, "plans: {}\n"));
    redis.record("alice", &[("limits", r#"["100/day"]"#)]);
    let whole = std::fs::read_to_string(&gateway.config).unwrap();
    let path = gateway.config.to_str().unwrap();
    let cut = whole.split("routes:").next().unwrap();
    let emptied = whole.replace("routes: [ { prefix: /, upstream: up } ]", "routes: []");
    assert_ne!(emptied, whole);
    for (nth, text) in ["", "# nothing\n", "---\n", cut, &emptied].into_iter().enumerate() {
        std::fs::write(&gateway.config, text).unwrap();
        let before = gateway.log().len();
        gateway.signal("HUP");
        wait_for("a line that says why", || {
            gateway.log().into_iter().skip(before).find(|line| {
                line["message"].as_str().is_some_and(|m| m.contains("routes: is missing"))
            })
        });
        assert_eq!(gateway.metric("tollgate_config_last_reload_success"), Some(0.0), "case {nth}");
        assert_eq!(gateway.get_as("alice", "/").status(), 200, "case {nth}");
        for arguments in [["check", "-c", path], ["run", "-c", path]] {
            let output = run(&arguments);
            assert_eq!(output.status.code(), Some(78), "case {nth}: {arguments:?}");
            assert!(said(&output.stderr).contains("routes: is missing"), "case {nth}");
        }
    }
    // Tokens are managed without routes.
    std::fs::write(&gateway.config, cut).unwrap();
    assert_eq!(run(&["token", "list", "-c", path]).status.code(), Some(0));
    std::fs::write(&gateway.config, &whole).unwrap();
    gateway.signal("HUP");
    wait_for("the reload", || {
        (gateway.metric("tollgate_config_last_reload_success") == Some(1.0)).then_some(())
    });
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let (redis, origin) = (Redis::start(), Origin::start());
    redis.record("alice", &[("limits", r#"["100/day"]"#)]);
    let dir = tempfile::TempDir::new().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, format!("\u{feff}{SECRET}\r\n")).unwrap();
    let auth = format!(
        "auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret_file: {} }} ] }} }}\n",
        secret.display()
    );
    let text = format!("\u{feff}{}", config(&redis, &origin, &auth));
    let gateway = Gateway::start(&text);
    assert_eq!(gateway.get_as("alice", "/").status(), 200);
    // Columns count from the first character that an editor shows.
    let path = dir.path().join("bad.yaml");
    std::fs::write(&path, "\u{feff}colour: blue\n").unwrap();
    let output = run(&["check", "-c", path.to_str().unwrap()]);
    assert!(said(&output.stderr).contains("bad.yaml:1:1: colour: "), "{}", said(&output.stderr));
}

#[test]
fn an_address_that_is_taken_is_said_once() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::TempDir::new().unwrap();
    for (nth, listeners) in [
        format!("listeners: [ {{ address: \"{address}\" }} ]\nmetrics: {{ address: none }}\n"),
        format!(
            "listeners: [ {{ address: \"127.0.0.1:0\" }} ]\nmetrics: {{ address: \"{address}\" }}\n"
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{nth}.yaml"));
        std::fs::write(&path, config(&redis, &origin, &listeners)).unwrap();
        let output = run(&["run", "-c", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(69));
        let all = said(&output.stdout) + &said(&output.stderr);
        assert_eq!(all.matches(&address).count(), 1, "{all}");
    }
}
