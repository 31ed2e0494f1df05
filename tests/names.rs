//! Names of endpoints that move to other addresses. It must not know how often names are looked up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use support::*;
use tempfile::TempDir;

/// Origins at one port of the addresses 127.0.0.1, 127.0.0.2 and 127.0.0.3.
fn origins() -> Vec<Origin> {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let others = [2, 3].map(|last| TcpListener::bind(format!("127.0.0.{last}:{port}")));
        if let [Ok(second), Ok(third)] = others {
            return [first, second, third].into_iter().map(Origin::start_on).collect();
        }
    }
}

#[test]
fn requests_follow_a_name_to_its_new_addresses_and_none_is_harmed() {
    let (dir, origins) = (TempDir::new().unwrap(), origins());
    let hosts = dir.path().join("hosts");
    let moves = |addresses: &[usize]| {
        let lines = addresses.iter().map(|at| format!("127.0.0.{at} moves.test\n"));
        fs::write(&hosts, lines.collect::<String>()).unwrap();
    };
    moves(&[1]);
    let port = origins[0].address.port();
    let gateway = Gateway::start_with_hosts(
        &hosts,
        &format!(
            "upstreams: {{ up: {{ endpoints: [ \"http://moves.test:{port}\" ], resolve_every: 1s }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]"
        ),
    );
    let moved_to = |addresses: &[usize]| {
        let addresses = addresses.iter().map(|at| format!("127.0.0.{at}:{port}"));
        let text = format!("resolved to [{}]", addresses.collect::<Vec<_>>().join(", "));
        gateway.wait_log(&text, |line| {
            line["message"].as_str().is_some_and(|message| message.ends_with(&text))
        });
    };
    moved_to(&[1]);
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        for nth in 0..4 {
            let (gateway, ends) = (&gateway, &ends);
            scope.spawn(move || {
                let mut client = gateway.connect();
                while !ends.load(Ordering::Relaxed) {
                    // A method that is not repeated: each of them must succeed at once.
                    let answer = client.call("POST", "/load", &[], b"body");
                    assert_eq!(answer.text(), "body", "{nth}");
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        for addresses in [&[2][..], &[1, 3], &[3]] {
            moves(addresses);
            moved_to(addresses);
            // Requests that had chosen an address may still be on their way.
            thread::sleep(Duration::from_millis(100));
            let counts =
                || origins.iter().map(|origin| origin.requests().len()).collect::<Vec<_>>();
            let before = counts();
            thread::sleep(Duration::from_millis(300));
            let after = counts();
            for (at, (before, after)) in before.iter().zip(&after).enumerate() {
                let is_there = addresses.contains(&(at + 1));
                assert_eq!(after > before, is_there, "127.0.0.{}: {addresses:?}", at + 1);
            }
        }
        ends.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_client_learns_when_a_name_without_an_address_is_looked_up_again() {
    let dir = TempDir::new().unwrap();
    let hosts = dir.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 other.test\n").unwrap();
    let origin = Origin::start();
    let gateway = Gateway::start_with_hosts(
        &hosts,
        &format!(
            "upstreams: {{ up: {{ endpoints: [ \"http://absent.test:{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]",
            origin.address.port()
        ),
    );
    let failed = || {
        let lines = gateway.log();
        let fits = |line: &&serde_json::Value| {
            line["message"].as_str().is_some_and(|message| message.contains("cannot be resolved"))
        };
        lines.iter().filter(fits).count()
    };
    // The pauses after failed look-ups are 1, 2, 4 and 8 seconds.
    wait_longer_for(Duration::from_secs(30), "four look-ups", || (failed() == 4).then_some(()));
    let answer = gateway.get("/");
    assert_eq!((answer.status(), answer.code().as_str()), (503, "upstream_unavailable"));
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((6..=8).contains(&wait), "{wait}");
    // The wait grows shorter, and what it promises holds.
    fs::write(&hosts, "127.0.0.1 absent.test\n").unwrap();
    thread::sleep(Duration::from_secs(wait - 2));
    let answer = gateway.get("/");
    let left: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&left), "{left}");
    thread::sleep(Duration::from_secs(left) + Duration::from_millis(500));
    assert_eq!(gateway.get("/").status(), 200);
}
