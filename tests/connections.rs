//! Connections as clients and operators meet them: bounds, descriptors, addresses of a name, chunk extensions. It must not know how connections are kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};
use support::*;

fn config(origin: &Origin, more: &str) -> String {
    format!(
        "upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up, auth: none }} ]\n{more}",
        origin.url()
    )
}

/// A connection from the address `source`, which must be one of 127.0.0.0/8.
fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else { panic!("{to} is not IPv4") };
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new(source.parse().unwrap(), 0)).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The status of `GET /health` on `stream`; `None` when the gateway has closed it.
fn health_on(stream: &mut TcpStream) -> Option<u16> {
    stream.write_all(&request("GET", "/health", &[], b"")).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.split(' ').nth(1)?.parse().ok()
}

#[test]
fn a_client_at_its_bound_leaves_the_others_served() {
    let origin = Origin::start();
    let bounds =
        "max_connections: 40\nmax_connections_per_client: 5\ntrusted_proxies: [ 127.0.0.4/32 ]";
    let gateway = Gateway::start(&config(&origin, bounds));
    let open = |source: &str, number: usize| -> Vec<TcpStream> {
        (0..number).map(|_| connect_from(source, gateway.address)).collect()
    };
    let mut greedy = open("127.0.0.2", 100);
    let served = greedy.iter_mut().filter_map(health_on).filter(|status| *status == 200).count();
    assert_eq!(served, 5, "of one client");
    let mut modest = open("127.0.0.3", 5);
    assert_eq!(modest.iter_mut().filter_map(health_on).collect::<Vec<_>>(), [200; 5]);
    let mut proxy = open("127.0.0.4", 20);
    assert_eq!(proxy.iter_mut().filter_map(health_on).collect::<Vec<_>>(), [200; 20], "a proxy");

    let refused = |bound: &str| {
        let series = format!("tollgate_client_connections_refused_total{{bound=\"{bound}\"}}");
        gateway.metric(&series)
    };
    assert_eq!(refused("max_connections_per_client"), Some(95.0));
    assert_eq!(refused("max_connections"), Some(0.0));
    let line = gateway.wait_log("a line about the refusals", |line| {
        line["message"].as_str().is_some_and(|text| text.contains("max_connections_per_client"))
    });
    assert_eq!((&line["level"], &line["client_ip"]), (&"warn".into(), &"127.0.0.2".into()));

    drop((greedy, modest, proxy));
    wait_for("the client to be served again", || {
        (health_on(&mut connect_from("127.0.0.2", gateway.address)) == Some(200)).then_some(())
    });
}

#[test]
fn connections_beyond_all_are_counted_and_logged_once_a_second() {
    let origin = Origin::start();
    let gateway =
        Gateway::start(&config(&origin, "max_connections: 3\nmax_connections_per_client: none"));
    let mut held: Vec<_> = Vec::new();
    wait_for("three connections", || {
        let mut stream = connect_from("127.0.0.1", gateway.address);
        if health_on(&mut stream) == Some(200) {
            held.push(stream);
        }
        (held.len() == 3).then_some(())
    });
    for _ in 0..200 {
        assert_eq!(health_on(&mut connect_from("127.0.0.5", gateway.address)), None);
    }
    let lines = || {
        let log = gateway.log();
        let texts = log.iter().filter_map(|line| line["message"].as_str());
        texts.filter(|text| text.contains("max_connections are open")).count()
    };
    wait_for("a line about the refusals", || (lines() > 0).then_some(()));
    let counted = "tollgate_client_connections_refused_total{bound=\"max_connections\"}";
    assert!(gateway.metric(counted).unwrap() >= 200.0);
    assert!(lines() <= 5, "{} lines for 200 connections", lines());
}

#[test]
fn a_refused_client_that_stays_loses_its_connection_within_seconds() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, "timeouts: { write: 60s, header: 1s }"));
    let open = || gateway.metric("tollgate_client_connections");
    wait_for("no connection", || (open() == Some(0.0)).then_some(()));
    for (sent, status) in [
        (&b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"[..], 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", 408),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
    ] {
        let mut client = gateway.connect();
        client.send(sent);
        assert_eq!(client.read().status(), status);
        let since = Instant::now();
        wait_for("the connection to end", || (open() == Some(0.0)).then_some(()));
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        drop(client);
    }
}

/// A gateway under a limit of open files, and its log until it listens.
fn start_under(ulimit: &str, gateway: &Gateway) -> (Child, String) {
    let config = std::fs::read_to_string(&gateway.config).unwrap();
    let file = gateway.config.with_file_name("limited.yaml");
    std::fs::write(&file, config).unwrap();
    let script = format!("{ulimit}; exec \"$0\" run -c \"$1\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_tollgate")]).arg(&file).stdout(Stdio::piped());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TOLLGATE_")) {
        command.env_remove(name);
    }
    let mut child = command.spawn().unwrap();
    let mut log = String::new();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
    while !log.contains("listening on ") {
        assert!(lines.read_line(&mut log).unwrap() > 0, "{log}");
    }
    (child, log)
}

#[test]
fn the_limit_of_open_files_is_raised_or_the_log_says_that_it_is_too_low() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, "max_connections: 500"));
    for (ulimit, soft, said) in [
        ("ulimit -S -n 256; ulimit -H -n 4096", "1128", "raised from 256 to 1128"),
        (
            "ulimit -S -n 256; ulimit -H -n 512",
            "512",
            "max_connections is 500, which may need 1128 open files",
        ),
        ("ulimit -S -n 2048; ulimit -H -n 4096", "2048", "listening on"),
    ] {
        let (mut child, log) = start_under(ulimit, &gateway);
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(line.split_whitespace().nth(3), Some(soft), "{ulimit}");
        assert!(log.contains(said), "{ulimit}: {log}");
        assert_eq!(log.contains("may need"), said.contains("may need"), "{ulimit}: {log}");
    }
}

#[test]
fn an_attempt_moves_on_through_the_addresses_of_a_name() {
    let origin = Origin::start();
    // The origin listens at 127.0.0.1 alone. Where `localhost` is ::1 too, every second attempt begins there.
    let port = origin.address.port();
    let gateway = Gateway::start(&format!(
        "upstreams: {{ up: {{ endpoints: [ \"http://localhost:{port}\" ], retries: 0 }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]"
    ));
    for nth in 0..10 {
        assert_eq!(gateway.call("POST", "/", &[], b"body").status(), 200, "request {nth}");
    }
    let health = tollgate()
        .args(["health", "--url", &format!("http://localhost:{}/ready", gateway.address.port())])
        .status();
    assert!(health.unwrap().success());
}

#[test]
fn names_that_cannot_be_resolved_do_not_hold_the_listener_up() {
    let origin = Origin::start();
    let upstreams: Vec<_> = (0..50)
        .map(|nth| format!("n{nth}: {{ endpoints: [ \"http://n{nth}.invalid:80\" ] }}"))
        .collect();
    let yaml = format!(
        "upstreams: {{ up: {{ endpoints: [ \"{}\" ] }}, {} }}
routes: [ {{ prefix: /, upstream: up, auth: none }}, {{ prefix: /n, upstream: n0, auth: none }} ]",
        origin.url(),
        upstreams.join(", ")
    );
    let started = Instant::now();
    let gateway = Gateway::start_with_one_thread(&yaml);
    assert_eq!(gateway.get("/").status(), 200);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    assert_eq!(gateway.get("/n").code(), "upstream_unavailable");
    // One look-up that has failed is followed by another.
    wait_for("a second look-up", || {
        let log = gateway.log();
        let texts = log.iter().filter_map(|line| line["message"].as_str());
        (texts.filter(|text| text.contains("n0.invalid cannot")).count() >= 2).then_some(())
    });
}

#[test]
fn chunk_extensions_may_have_spaces_around_their_parts() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, ""));
    let head = "POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (body, status) in [
        ("4;a=b\r\nbody\r\n0\r\n\r\n", 200),
        ("4 ; a = b\r\nbody\r\n0\r\n\r\n", 200),
        ("2\t;\ta\r\nbo\r\n2  ;a ; b=\"c d\"\r\ndy\r\n0 ;x\r\n\r\n", 200),
        ("4 \r\nbody\r\n0\r\n\r\n", 400),
        (" 4;a\r\nbody\r\n0\r\n\r\n", 400),
        ("4 a;b\r\nbody\r\n0\r\n\r\n", 400),
    ] {
        let mut client = gateway.connect();
        client.send([head, body].concat());
        let answer = client.read();
        assert_eq!(answer.status(), status, "{body:?}");
        if status == 200 {
            assert_eq!(answer.text(), "body", "{body:?}");
        }
    }
}

#[test]
fn memory_of_idle_connections_is_small() {
    const IDLE: usize = 1_000;
    let origin = Origin::start();
    // Lines that wait for a busy reader of the log would be counted as connections.
    let keys = "max_connections_per_client: none\nlog: { level: info, access: false }";
    let gateway = Gateway::start_with_one_thread(&config(&origin, keys));
    let resident = || {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", gateway.pid())).unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4
    };
    let call = |client: &mut Client| {
        let answer = client.call("POST", "/", &[("X-Filler", &"x".repeat(2_000))], &[b'y'; 5_000]);
        assert_eq!(answer.status(), 200);
    };
    // The first connections pay for what all share.
    let first: Vec<_> = (0..100).map(|_| gateway.connect()).collect();
    let mut first = first;
    first.iter_mut().for_each(call);
    let before = resident();
    let mut idle: Vec<_> = (0..IDLE).map(|_| gateway.connect()).collect();
    idle.iter_mut().for_each(call);
    let each = resident().saturating_sub(before) as f64 / IDLE as f64;
    assert!(each <= 8.0, "{each:.1} KiB for each idle connection");
}

#[test]
fn a_half_sent_line_is_not_needed_to_read_the_rest() {
    // Bytes that come one by one, over several requests on a connection, with and without bodies.
    let origin = Origin::start();
    let gateway = Gateway::start_with_one_thread(&config(&origin, ""));
    let mut client = gateway.connect();
    client.stream().get_mut().set_nodelay(true).unwrap();
    for body in ["", "small", &"large ".repeat(5_000)] {
        let bytes = request("POST", "/bytes", &[], body.as_bytes());
        let cut = bytes.len().min(200);
        for byte in &bytes[..cut] {
            client.send([*byte]);
        }
        client.send(&bytes[cut..]);
        // An empty line between requests, in two pieces (RFC 9112 section 2.2).
        client.send(b"\r");
        let answer = client.read();
        client.send(b"\n");
        assert_eq!(answer.status(), 200);
        if !body.is_empty() {
            assert_eq!(answer.text(), body);
        }
    }
    let mut rest = Vec::new();
    client.stream().get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    client.stream().read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "nothing follows the answers");
    thread::yield_now();
}

/// Requests that wait for Redis, one after the other on each of `clients` connections.
fn exact_requests(clients: usize, requests: usize) -> (usize, Vec<String>) {
    let (origin, redis) = (Origin::start(), Redis::start());
    let gateway = Gateway::start(&format!(
        "redis: {{ url: \"{}\" }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
limits: {{ sync: exact }}
routes: [ {{ prefix: /, upstream: up, auth: none, limits: [ {{ rate: 1000000/minute, by: ip }} ] }} ]",
        redis.url(),
        origin.url()
    ));
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = gateway.connect();
                for _ in 0..requests {
                    let answer = client.call("GET", "/", &[], b"");
                    assert_eq!(
                        (answer.status(), answer.header("ratelimit").is_some()),
                        (200, true)
                    );
                }
            });
        }
    });
    let errors = gateway.lines().into_iter().filter(|line| line.contains("\"error\"")).collect();
    (origin.connections(), errors)
}

#[test]
fn what_a_request_waits_for_does_not_cost_it_its_upstream_connection() {
    for (clients, requests) in [(1, 300), (8, 100)] {
        let (connections, errors) = exact_requests(clients, requests);
        assert!(connections <= clients, "{connections} connections for {clients} clients");
        assert!(errors.is_empty(), "{errors:?}");
    }
}

#[test]
fn a_connection_option_that_is_refused_costs_no_upstream_connection() {
    let origin = Origin::start();
    let gateway = Gateway::start_with_one_thread(&config(&origin, ""));
    assert_eq!(gateway.get("/").status(), 200);
    for options in
        ["Host", "close, X-Forwarded-For", "\"Host\"", ":authority", "a,b,c,d,e,f,g,h,i,j"]
    {
        let answer = gateway.call("GET", "/", &[("Connection", options)], b"");
        assert_eq!(answer.status(), 400, "{options}");
    }
    assert_eq!(gateway.get("/").status(), 200);
    assert_eq!((origin.connections(), origin.requests().len()), (1, 2));
}
