//! SIGHUP: the new configuration takes effect as a whole, or the old configuration stays.
//! It must not know what the gateway keeps a configuration in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use support::*;

/// A configuration on the embedded store with these `routes`, and `more` top-level keys.
fn config(origin: &Origin, routes: &str, more: &str) -> String {
    format!(
        "auth: {}\nlimits: {{ default: [ 3/day ] }}\nupstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /old, upstream: up, auth: none }}, {{ prefix: /counted, upstream: up }}{routes} ]\n{more}",
        auth("[ { api_key: alice } ]"),
        origin.url()
    )
}

const NEW: &str = ", { prefix: /new, upstream: up, auth: none }";

fn wait_metric(gateway: &Gateway, series: &str, value: f64) {
    wait_for(&format!("{series} to be {value}"), || {
        (gateway.metric(series) == Some(value)).then_some(())
    });
}

#[test]
fn a_good_change_takes_effect_and_nothing_else_changes() {
    let origin = Origin::start();
    let gateway = Gateway::start_with_one_thread(&config(&origin, "", ""));
    assert_eq!(gateway.get("/new").status(), 404);
    for _ in 0..2 {
        assert_eq!(gateway.get_as("alice", "/counted").status(), 200);
    }
    let mut kept = gateway.connect();
    assert_eq!(kept.call("GET", "/old/kept", &[], b"").status(), 200);
    let gate = origin.hold("/old/flying");
    let mut flying = gateway.connect();
    flying.send(request("GET", "/old/flying", &[], b""));
    origin.one("/old/flying");

    gateway.reload(&config(&origin, NEW, ""));
    wait_for("the new route", || (gateway.get("/new").status() == 200).then_some(()));
    wait_metric(&gateway, "tollgate_config_generation", 2.0);
    wait_metric(&gateway, "tollgate_config_last_reload_success", 1.0);

    assert_eq!(
        kept.call("GET", "/new", &[], b"").status(),
        200,
        "the connection has survived, on the new routes"
    );
    gate.open();
    assert_eq!(flying.read().text(), "held", "the request in flight has survived");
    let last = gateway.get_as("alice", "/counted");
    assert_eq!((last.status(), last.header("x-ratelimit-remaining").as_deref()), (200, Some("0")));
    assert_eq!(gateway.get_as("alice", "/counted").status(), 429, "the count has survived");

    gateway.reload(&config(&origin, "", ""));
    wait_for("the route to go", || (gateway.get("/new").status() == 404).then_some(()));
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let origin = Origin::start();
    let gateway = Gateway::start_with_one_thread(&config(&origin, "", ""));
    let bad = [
        (config(&origin, NEW, "colour: blue"), "colour"),
        (config(&origin, ", { prefix: /new, upstream: nowhere }", ""), "nowhere"),
        (config(&origin, NEW, "plans: { p: { limits: [ 5/fortnight ] } }"), "fortnight"),
        (config(&origin, NEW, "max_body: [ }"), "tollgate.yaml"),
    ];
    for (yaml, reason) in bad {
        let before = gateway.log().len();
        gateway.reload(&yaml);
        let line = wait_for("a line that says why", || {
            let lines = gateway.log().into_iter().skip(before);
            lines.into_iter().find(|line| {
                line["level"].as_str().is_some_and(|l| l.eq_ignore_ascii_case("error"))
            })
        });
        let message = line["message"].as_str().unwrap();
        assert!(
            message.contains(reason) && message.contains("tollgate.yaml:"),
            "{reason}: {message}"
        );
        wait_metric(&gateway, "tollgate_config_last_reload_success", 0.0);
        wait_metric(&gateway, "tollgate_config_generation", 1.0);
        assert_eq!(gateway.get("/old").status(), 200, "{reason}");
        assert_eq!(gateway.get("/new").status(), 404, "{reason}: half of a bad file is live");
    }
    gateway.reload(&config(&origin, NEW, ""));
    wait_for("the new route", || (gateway.get("/new").status() == 200).then_some(()));
    wait_metric(&gateway, "tollgate_config_last_reload_success", 1.0);
}

#[test]
fn sighup_during_the_start_does_not_kill() {
    let origin = Origin::start();
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("tollgate.yaml");
    let yaml = format!(
        "{}\nserver: {{ upgrade_sock: {} }}\nlisteners: [ {{ address: \"127.0.0.1:0\" }} ]
metrics: {{ address: \"127.0.0.1:0\" }}\nlog: {{ format: json }}\n",
        config(&origin, "", ""),
        dir.path().join("upgrade.sock").display()
    );
    // Reading a pipe holds the gateway at its first step for as long as the test wants.
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let mut gateway = Gateway::launch(&["run", "-c", path.to_str().unwrap()], dir);
    let mut pipe = wait_for("the gateway to read its file", || {
        // Without a reader this fails, where a blocking open would wait for good.
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path).ok()
    });
    // By then the path is a file again, which the signal makes the gateway read.
    let file = path.with_extension("new");
    std::fs::write(&file, &yaml).unwrap();
    std::fs::rename(&file, &path).unwrap();
    gateway.signal("HUP");
    pipe.write_all(yaml.as_bytes()).unwrap();
    drop(pipe);
    gateway.find_addresses();
    for _ in 0..5 {
        gateway.signal("HUP");
    }
    gateway.wait_ready();
    assert_eq!(gateway.get("/old").status(), 200);
}

#[test]
fn a_reload_that_hangs_hinders_neither_requests_nor_the_end() {
    let origin = Origin::start();
    let mut gateway = Gateway::start_with_one_thread(&config(&origin, "", ""));
    let pipe = gateway.config.with_extension("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::rename(&pipe, &gateway.config).unwrap();
    gateway.signal("HUP");
    let _never_written = wait_for("the gateway to read its file", || {
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&gateway.config).ok()
    });
    assert_eq!(gateway.get("/old").status(), 200);
    gateway.signal("TERM");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn keys_that_need_a_restart_are_named() {
    let origin = Origin::start();
    let gateway = Gateway::start_with_one_thread(&config(&origin, "", ""));
    let restart = r#"
server: { threads: 1, grace_period_seconds: 1 }
listeners: [ { address: "127.0.0.1:0" }, { address: "127.0.0.2:0" } ]
metrics: { address: "127.0.0.2:0" }
redis: { url: "redis://127.0.0.1:1" }
"#;
    let before = gateway.log().len();
    gateway.reload(&config(&origin, NEW, restart));
    wait_for("the rest of the file to take effect", || {
        (gateway.get("/new").status() == 200).then_some(())
    });
    for key in ["server", "listeners", "metrics", "redis"] {
        wait_for(&format!("a line that names {key}"), || {
            gateway.log().into_iter().skip(before).find(|line| {
                let message = line["message"].as_str().unwrap_or_default();
                message.contains(key) && message.contains("restart")
            })
        });
    }
    for _ in 0..3 {
        assert_eq!(
            gateway.get_as("alice", "/counted").status(),
            200,
            "the store is the one it started with"
        );
    }
}
