//! The ends of a gateway: SIGTERM, SIGINT, and SIGQUIT with a successor.
//! It must not know how a gateway drains.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use support::*;

fn config(origin: &Origin) -> String {
    format!(
        "upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up, auth: none }} ]",
        origin.url()
    )
}

/// The status of `/ready` on a connection of its own; `None` when no connection can be made.
fn ready(gateway: &Gateway) -> Option<u16> {
    let mut client = Client::try_connect(gateway.address).ok()?;
    client.send(request("GET", "/ready", &[], b""));
    client.try_read(false).ok().map(|answer| answer.status())
}

#[test]
fn sigterm_drains_and_exits_with_0() {
    let origin = Origin::start();
    let mut gateway = Gateway::start_with_one_thread(&config(&origin));
    let gate = origin.hold("/flying");
    let mut flying = gateway.connect();
    flying.send(request("GET", "/flying", &[], b""));
    origin.one("/flying");

    gateway.signal("TERM");
    // Load balancers look at /ready, so it must say 503 before the listeners close.
    wait_for("/ready to give 503", || match ready(&gateway) {
        Some(503) => Some(()),
        Some(_) => None,
        None => panic!("the listeners closed before /ready told"),
    });
    wait_for("the listeners to close", || {
        Client::try_connect(gateway.address).is_err().then_some(())
    });
    gate.open();
    assert_eq!(flying.read().text(), "held", "the request in flight has finished");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn sigint_ends_at_once_with_0() {
    let origin = Origin::start();
    let mut gateway = Gateway::start_with_one_thread(&config(&origin));
    assert_eq!(gateway.get("/").status(), 200);
    gateway.signal("INT");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn a_successor_takes_over_without_a_lost_request() {
    let origin = Origin::start();
    let mut old = Gateway::start_with_one_thread(&config(&origin));
    let address = old.address;
    let (stop, served, failed) =
        (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
    let new = std::thread::scope(|scope| {
        for method in ["GET", "POST", "GET"] {
            let (stop, served, failed) = (&stop, &served, &failed);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let answer = Client::try_connect(address).and_then(|mut client| {
                        client.send(request(method, "/load", &[], b"body"));
                        client.try_read(false)
                    });
                    match answer {
                        Ok(answer) if answer.status() == 200 && answer.text() == "body" => {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        other => failed.lock().push(format!("{method}: {other:?}")),
                    }
                }
            });
        }
        let progress = |what: &str| {
            let before = served.load(Ordering::Relaxed);
            wait_for(what, || (served.load(Ordering::Relaxed) > before + 20).then_some(()));
        };
        // Stops the load whatever happens here, or the scope would never end.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            progress("load on the old gateway");
            let new = old.successor();
            old.signal("QUIT");
            let status = old.wait_exit();
            assert_eq!(status.code(), Some(0), "the old gateway");
            progress("load on the new gateway");
            new
        }));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let failed = failed.into_inner();
    assert!(
        failed.is_empty(),
        "{} of {served:?} requests failed: {:#?}",
        failed.len(),
        &failed[..failed.len().min(5)]
    );
    assert_eq!(new.get("/after").status(), 200);
    new.wait_ready();
}
