//! The log as its reader meets it: whole, prompt, and never in the way of requests. It must not know how lines are kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::*;

fn config(origin: &Origin) -> String {
    format!(
        "upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up, auth: none }} ]\n",
        origin.url()
    )
}

/// A gateway whose log nobody reads but the test.
struct Unread {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
    address: SocketAddr,
    metrics: SocketAddr,
    // It writes the configuration, and has ended.
    _first: Gateway,
}

impl Unread {
    fn start(origin: &Origin) -> Self {
        let mut first = Gateway::start(&config(origin));
        first.signal("TERM");
        assert_eq!(first.wait_exit().code(), Some(0));
        let mut command = tollgate();
        command.args(["run", "-c", first.config.to_str().unwrap()]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (mut address, mut metrics) = (None, None);
        while address.is_none() || metrics.is_none() {
            let message = next(&mut out).unwrap()["message"].as_str().unwrap().to_owned();
            let after = |prefix| message.strip_prefix(prefix)?.parse().ok();
            address = address.or(after("listening on "));
            metrics = metrics.or(after("metrics on "));
        }
        let (address, metrics) = (address.unwrap(), metrics.unwrap());
        Self { child, out: Some(out), address, metrics, _first: first }
    }

    /// Sends `count` requests with a long path; each must be answered.
    fn call(&self, count: usize) {
        let mut client = Client::connect(self.address);
        let path = format!("/{}", "x".repeat(4_000));
        for _ in 0..count {
            assert_eq!(client.call("GET", &path, &[], b"").status(), 200);
        }
    }

    fn dropped(&self) -> u64 {
        let page = Client::connect(self.metrics).call("GET", "/metrics", &[], b"").text();
        let series = "tollgate_log_lines_dropped_total ";
        page.lines().find_map(|line| line.strip_prefix(series)?.parse().ok()).unwrap()
    }

    /// The next line of the log, which must be a JSON object; `None` at the end.
    fn next(&mut self) -> Option<Value> {
        next(self.out.as_mut()?)
    }

    fn end(&self) {
        signal("TERM", self.child.id());
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn next(out: &mut impl BufRead) -> Option<Value> {
    let mut line = String::new();
    (out.read_line(&mut line).unwrap() > 0).then(|| serde_json::from_str(&line).expect(&line))
}

fn is_request(line: &Value) -> bool {
    line["message"] == "request"
}

#[test]
fn a_log_that_nobody_reads_holds_neither_requests_nor_the_end_up() {
    let origin = Origin::start();
    let mut gateway = Unread::start(&origin);
    // The pipe is full after some lines.
    gateway.call(100);
    assert_eq!(gateway.dropped(), 0);
    gateway.end();
    let status =
        wait_for("the end of a gateway whose log is full", || gateway.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn lines_that_are_lost_are_counted_and_the_others_are_whole() {
    let origin = Origin::start();
    let mut gateway = Unread::start(&origin);
    let mut sent = 0;
    while gateway.dropped() == 0 {
        gateway.call(100);
        sent += 100;
        assert!(sent < 10_000, "nothing is lost");
    }
    let dropped = gateway.dropped();
    gateway.end();
    let mut written = 0;
    while let Some(line) = gateway.next() {
        written += u64::from(is_request(&line));
    }
    assert_eq!(written + dropped, sent);
}

#[test]
fn a_line_is_written_at_once_and_none_is_lost_at_the_end() {
    let origin = Origin::start();
    let mut gateway = Unread::start(&origin);
    for _ in 0..5 {
        gateway.call(1);
        let answered = Instant::now();
        while !is_request(&gateway.next().unwrap()) {}
        assert!(answered.elapsed() < Duration::from_millis(100), "{:?}", answered.elapsed());
    }
    gateway.call(200);
    gateway.end();
    let rest = std::iter::from_fn(|| gateway.next());
    assert_eq!(rest.filter(is_request).count(), 200);
}

#[test]
fn a_log_that_is_closed_leaves_requests_served() {
    let origin = Origin::start();
    let mut gateway = Unread::start(&origin);
    drop(gateway.out.take());
    gateway.call(500);
    gateway.end();
    let status = wait_for("the end", || gateway.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}
