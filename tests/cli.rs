//! The command line as people and scripts use it.
//! It must not know how a command does what it does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::*;
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    tollgate().args(arguments).output().unwrap()
}

/// Standard output and standard error.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The part of a configuration that the commands need.
fn config(listener: &str, redis: &str, origin: &str) -> String {
    format!(
        "listeners: [ {{ address: \"{listener}\" }} ]\nredis: {{ url: \"{redis}\", timeout: 2s }}
auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret: \"{SECRET}\" }} ] }}, cache: {{ ttl: 1s, entries: 100, max_stale: 0s }} }}
upstreams: {{ users: {{ endpoints: [ \"{origin}\" ] }} }}
routes: [ {{ prefix: /open, upstream: users }} ]\n"
    )
}

#[test]
fn check_summarises_what_is_right_and_names_what_is_wrong() {
    let dir = TempDir::new().unwrap();
    let good = config("127.0.0.1:0", "redis://127.0.0.1:6379", "http://127.0.0.1:3001");
    let path = write(dir.path(), "good.yaml", &good);
    let output = run(&["check", "-c", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for part in ["/open", "users", "http://127.0.0.1:3001"] {
        assert!(said(&output).contains(part), "{part} is not in the summary:\n{}", said(&output));
    }
    assert!(!said(&output).contains(SECRET));

    for (name, from, to, expected) in [
        ("unknown key", "listeners:", "colour: blue\nlisteners:", vec!["1:1", "colour"]),
        ("unknown inner key", "timeout: 2s", "patience: 2s", vec!["2:", "redis.patience"]),
        (
            "unknown upstream",
            "upstream: users",
            "upstream: nowhere",
            vec!["5:", "routes[0].upstream", "nowhere", "users"],
        ),
        (
            "shadowed endpoint",
            "prefix: /open",
            "prefix: /health",
            vec!["5:", "routes[0].prefix", "/health"],
        ),
        ("a relative prefix", "prefix: /open", "prefix: open", vec!["5:", "routes[0].prefix"]),
        ("a short secret", SECRET, "hunter2", vec!["3:", "auth.jwt.keys[0].secret", "32"]),
        (
            "an unknown algorithm",
            "HS256",
            "HS257",
            vec!["3:", "auth.jwt.keys[0].algorithm", "HS256"],
        ),
        ("no duration", "ttl: 1s", "ttl: soon", vec!["3:", "auth.cache.ttl"]),
        ("no address", "127.0.0.1:0", "localhost", vec!["1:", "listeners[0].address"]),
        ("an unset variable", SECRET, "${TOLLGATE_TEST_UNSET}", vec!["3:", "TOLLGATE_TEST_UNSET"]),
        ("no YAML", "routes: [", "routes: ]", vec!["5:"]),
    ] {
        let path = write(dir.path(), "bad.yaml", &good.replace(from, to));
        let output = run(&["check", "-c", path.to_str().unwrap()]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(78), "{name}: {text}");
        let line = text.lines().find(|line| expected.iter().all(|part| line.contains(part)));
        assert!(
            line.is_some_and(|line| line.contains("bad.yaml:")),
            "{name}: no line with {expected:?} in\n{text}"
        );
        assert!(
            !text.contains("hunter2") && !text.contains(SECRET),
            "{name}: a secret was printed"
        );
        let started = run(&["run", "-c", path.to_str().unwrap()]);
        assert_eq!(started.status.code(), Some(78), "run, {name}: {}", said(&started));
    }

    let two = good.replace("/open", "open").replace("ttl: 1s", "ttl: soon");
    let text = said(&run(&["check", "-c", write(dir.path(), "two.yaml", &two).to_str().unwrap()]));
    assert!(text.contains("auth.cache.ttl"), "{text}");
}

#[test]
fn mistakes_in_the_arguments_are_usage_errors() {
    for arguments in [
        &["frobnicate"][..],
        &["run", "--frobnicate"],
        &["check", "-c"],
        &["token"],
        &["token", "show"],
        &[
            "token",
            "create",
            "--redis",
            "redis://127.0.0.1:1",
            "--secret",
            SECRET,
            "--limit",
            "5/fortnight",
        ],
        &["token", "create", "--redis", "redis://127.0.0.1:1", "--secret", SECRET, "--ttl", "soon"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", said(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?} says nothing");
    }
    let away = run(&["token", "list", "--redis", "redis://127.0.0.1:1"]);
    assert_eq!(away.status.code(), Some(69), "no store to ask: {}", said(&away));
}

#[test]
fn version_help_and_secret() {
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(said(&version).contains(env!("CARGO_PKG_VERSION")), "{}", said(&version));
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for command in ["demo", "run", "check", "token", "secret"] {
        assert!(said(&help).contains(command), "{command}");
    }
    let secrets = [run(&["secret"]), run(&["secret"])].map(|output| {
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    });
    assert_ne!(secrets[0], secrets[1]);
    assert_eq!(STANDARD.decode(&secrets[0]).unwrap().len(), 48, "384 bits");
}

#[test]
fn tokens_are_made_listed_shown_and_revoked() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&config("127.0.0.1:0", &redis.url(), &origin.url()));
    // The commands read the gateway's address from the configuration, to print a curl line that works.
    let dir = TempDir::new().unwrap();
    let file = write(
        dir.path(),
        "t.yaml",
        &with_prefix(&config(&gateway.address.to_string(), &redis.url(), &origin.url())),
    );
    let file = file.to_str().unwrap();
    let program = |arguments: &[&str]| -> Value {
        let output = run(&[arguments, &["-c", file, "--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)))
    };
    let call = |credential: &str, path: &str| {
        gateway.call("GET", path, &[("Authorization", &format!("Bearer {credential}"))], b"")
    };

    let made = program(&[
        "token",
        "create",
        "--limit",
        "5/day",
        "--limit",
        "3/hour",
        "--organization",
        "acme",
        "--routes",
        "/open*,/x",
        "--ttl",
        "24h",
    ]);
    let text =
        |key: &str| made[key].as_str().unwrap_or_else(|| panic!("no `{key}` in {made}")).to_owned();
    let (api_key, credential) = (text("api_key"), text("credential"));
    assert_eq!(text("storage_key"), format!("token:{api_key}"));
    assert_eq!(made["allowed_routes"], json!(["/open*", "/x"]));
    let expires: chrono::DateTime<chrono::Utc> = text("expires_at").parse().unwrap();
    let day = 86_400i64;
    assert!((expires.timestamp() - token::now() as i64 - day).abs() < 60, "{expires}");

    let key = format!("token:{api_key}");
    assert_eq!(redis.command(&["TYPE", &key]), "hash");
    let ttl: i64 = redis.command(&["TTL", &key]).parse().unwrap();
    assert!((ttl - day).abs() < 60, "the key expires with its record: {ttl}");
    assert_eq!(redis.command(&["HGET", &key, "organization_id"]), "acme");
    assert!(!redis.command(&["HGETALL", &key]).contains(&credential), "the credential is not kept");

    let answer = call(&credential, "/open/x");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(origin.one("/open/x").all("x-organization-id"), ["acme"]);
    let policy = answer.header("ratelimit-policy").unwrap();
    assert!(policy.contains("\"day\";q=5;") && policy.contains("\"hour\";q=3;"), "{policy}");
    let pasted = Command::new("sh").args(["-c", &text("curl")]).output().unwrap();
    assert!(pasted.status.success(), "{}: {}", text("curl"), said(&pasted));
    let reached = origin.requests();
    assert_eq!(reached.len(), 2, "`{}` did not get through: {}", text("curl"), said(&pasted));

    // The plain output has the same values.
    let plain = said(&run(&["token", "create", "-c", file, "--routes", "/open"]));
    for part in ["token:", "curl ", "/open", "eyJ"] {
        assert!(plain.contains(part), "{part} is not in\n{plain}");
    }

    let listed = program(&["token", "list"]);
    let mine = listed.as_array().unwrap().iter().find(|entry| entry["api_key"] == api_key.as_str());
    assert!(mine.is_some(), "{listed}");
    let shown = program(&["token", "show", &api_key]);
    assert_eq!(shown["record"]["organization_id"], "acme", "{shown}");
    assert_eq!(shown["record"]["allowed_routes"], json!(["/open*", "/x"]), "{shown}");
    for output in [&listed, &shown] {
        assert!(!output.to_string().contains(&credential), "a credential is shown once");
    }

    assert_eq!(run(&["token", "revoke", &api_key, "-c", file]).status.code(), Some(0));
    wait_for("the revoked token to be refused", || {
        (call(&credential, "/open/y").status() == 401).then_some(())
    });
    assert_ne!(run(&["token", "revoke", "no-such-token", "-c", file]).status.code(), Some(0));
    assert_ne!(run(&["token", "show", "no-such-token", "-c", file]).status.code(), Some(0));

    // Without a configuration file.
    let bare =
        ["token", "create", "--redis", &redis.url(), "--secret", SECRET, "--limit", "9", "--json"];
    let output = run(&bare);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(call(made["credential"].as_str().unwrap(), "/open/z").status(), 200);
}

#[test]
fn the_demo_does_what_its_curl_lines_say() {
    let mut demo = Gateway::launch(&["demo", "--port", "0"], TempDir::new().unwrap());
    // A backslash at the end of a printed line continues the command on the next line.
    let commands = wait_for("three curl lines", || {
        let text = demo.lines().join("\n").replace("\\\n", " ");
        let curl = |line: &str| line.trim_start().starts_with("curl ") || line.contains("do curl ");
        let found: Vec<_> = text.lines().filter(|line| curl(line)).map(str::to_owned).collect();
        (found.len() >= 3).then_some(found)
    });
    let lines = demo.lines();
    let token = lines.iter().find_map(|line| line.trim().strip_prefix("TOKEN=")).unwrap();
    let output: Vec<_> = commands
        .iter()
        .map(|command| {
            let output =
                Command::new("bash").args(["-c", command]).env("TOKEN", token).output().unwrap();
            assert!(output.status.success(), "{command}: {}", said(&output));
            said(&output)
        })
        .collect();
    let shows = |wanted: &str| output.iter().any(|text| text.contains(wanted));
    for wanted in ["200", "403", "429"] {
        assert!(shows(wanted), "no line meets {wanted}: {commands:#?} {output:#?}");
    }
    wait_for("a line for each request in the log", || {
        demo.lines().iter().any(|l| l.contains("429")).then_some(())
    });
    demo.signal("INT");
    assert_eq!(demo.wait_exit().code(), Some(0));
}
