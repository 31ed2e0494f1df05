//! Ends and upgrades that cost no request: draining with kept connections, and successors that fail.
//! It must not know how sockets are handed over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use support::*;

fn config(origin: &Origin) -> String {
    format!(
        "upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up, auth: none }} ]",
        origin.url()
    )
}

/// What became of a client that goes on asking on a kept connection until the gateway ends the connection.
#[derive(Debug, PartialEq)]
enum Parting {
    /// The last answer said that the connection ends, and it did.
    Told,
    /// The connection was closed, and a request was lost.
    Lost(usize),
}

fn ask_until_told(address: std::net::SocketAddr, pause: Duration) -> Parting {
    let mut client = Client::connect(address);
    for nth in 0.. {
        client.send(request("GET", "/load", &[], b""));
        match client.try_read(false) {
            Ok(answer) if answer.status() == 200 => {
                if answer.header("connection").is_some_and(|value| value == "close") {
                    assert!(client.is_closed());
                    return Parting::Told;
                }
            }
            _ => return Parting::Lost(nth),
        }
        thread::sleep(pause);
    }
    unreachable!()
}

/// Twenty clients with a kept connection each, once they have sent requests for a while.
fn kept_connections(gateway: &Gateway, origin: &Origin) -> Vec<JoinHandle<Parting>> {
    let address = gateway.address;
    let clients = (0..20).map(|nth| {
        let pause = Duration::from_millis(10 + nth * 15);
        thread::spawn(move || ask_until_told(address, pause))
    });
    let clients = clients.collect();
    wait_for("load", || (origin.requests_for("/load").len() > 100).then_some(()));
    clients
}

#[test]
fn kept_connections_lose_no_request_when_the_gateway_drains() {
    let origin = Origin::start();
    let mut gateway = Gateway::start(&config(&origin));
    let clients = kept_connections(&gateway, &origin);
    gateway.signal("TERM");
    let partings: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let lost: Vec<_> = partings.iter().filter(|parting| **parting != Parting::Told).collect();
    assert!(lost.is_empty(), "{} of 20 clients lost a request: {lost:?}", lost.len());
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

/// The Unix socket over which `gateway` hands its sockets over.
fn meeting(gateway: &Gateway) -> PathBuf {
    gateway.config.with_file_name("upgrade.sock")
}

fn wait_not_handed_over(gateway: &Gateway, why: &str) {
    gateway.wait_log("the failed upgrade in the log", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("goes on serving") && text.contains(why))
    });
}

#[test]
fn a_successor_that_dies_costs_nothing() {
    let origin = Origin::start();
    let mut gateway = Gateway::start(&config(&origin));
    let mut kept = gateway.connect();
    for round in 0..3 {
        let _ = std::fs::remove_file(meeting(&gateway));
        let successor = UnixListener::bind(meeting(&gateway)).unwrap();
        gateway.signal("QUIT");
        let taken = successor.accept().unwrap();
        drop((taken, successor));
        wait_for("the failure in the log", || {
            let log = gateway.log();
            let texts = log.iter().filter_map(|line| line["message"].as_str());
            (texts.filter(|text| text.contains("has not confirmed")).count() > round).then_some(())
        });
        let answer = kept.call("GET", "/kept", &[], b"");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("connection").as_deref(), Some("keep-alive"));
        assert_eq!(gateway.get("/new").status(), 200);
        assert_eq!(gateway.get("/ready").status(), 200);
    }
    // Signals are still heard.
    gateway.signal("TERM");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn a_successor_that_cannot_serve_costs_nothing() {
    let origin = Origin::start();
    let old = Gateway::start(&config(&origin));
    let good = std::fs::read_to_string(&old.config).unwrap();
    // A configuration with a fault: the successor never comes.
    std::fs::write(&old.config, good.replace("routes:", "roots:")).unwrap();
    assert_eq!(old.successor().wait_exit().code(), Some(78));
    // A store that does not answer: the successor takes the sockets, and cannot serve.
    std::fs::write(&old.config, format!("redis: {{ url: \"redis://{NOBODY}\" }}\n{good}")).unwrap();
    let mut new = old.successor();
    old.signal("QUIT");
    for _ in 0..50 {
        assert_eq!(old.get("/meanwhile").status(), 200);
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(new.wait_exit().code(), Some(69));
    wait_not_handed_over(&old, "has not confirmed");
    assert_eq!(old.get("/after").status(), 200);
    // A good one succeeds after all that.
    std::fs::write(&old.config, good).unwrap();
    let new = old.successor();
    old.signal("QUIT");
    let mut old = old;
    assert_eq!(old.wait_exit().code(), Some(0));
    assert_eq!(new.get("/new").status(), 200);
}

#[test]
fn kept_connections_lose_no_request_when_a_successor_takes_over() {
    let origin = Origin::start();
    let mut old = Gateway::start(&config(&origin));
    let clients = kept_connections(&old, &origin);
    let mut new = old.successor();
    old.signal("QUIT");
    assert_eq!(old.wait_exit().code(), Some(0));
    new.signal("TERM");
    let partings: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(partings.iter().all(|parting| *parting == Parting::Told), "{partings:?}");
    assert_eq!(new.wait_exit().code(), Some(0));
}

#[test]
fn an_upgrade_without_a_predecessor_is_an_unavailable_service() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin));
    assert_eq!(gateway.successor().wait_exit().code(), Some(69));
}

#[test]
fn sockets_are_not_handed_over_in_a_directory_that_everyone_can_write_to() {
    let origin = Origin::start();
    let old = Gateway::start(&config(&origin));
    let directory = old.config.parent().unwrap();
    let set_mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(directory, mode).unwrap();
    };
    set_mode(0o1777);
    // Another process is there first.
    let thief = UnixListener::bind(meeting(&old)).unwrap();
    thief.set_nonblocking(true).unwrap();
    old.signal("QUIT");
    wait_not_handed_over(&old, "mode 0700");
    assert!(thief.accept().is_err(), "the thief got a connection");
    assert_eq!(old.get("/").status(), 200);
    assert_eq!(old.successor().wait_exit().code(), Some(69));
    set_mode(0o700);
}

#[test]
fn an_address_in_use_is_said_once() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin));
    let text = format!("{}\nlisteners: [ {{ address: {} }} ]", config(&origin), gateway.address);
    let file = gateway.config.with_file_name("second.yaml");
    std::fs::write(&file, text + "\nmetrics: { address: none }").unwrap();
    let output = tollgate()
        .args(["run", "-c", file.to_str().unwrap()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(said.matches("cannot listen on").count(), 1, "{said}");
}
