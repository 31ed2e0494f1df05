//! Servers, proxies and clients of others on both sides of the gateway: nginx, HAProxy, Caddy, Node, curl, h2load and
//! openssl, in every protocol that they speak. It must not know how the gateway speaks any of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::http2::H2Client;
use support::process::{LARGE, Process, fixture, free_ports, local};
use support::tls::{Authority, listeners};
use support::*;
use tempfile::TempDir;

/// The protocols that each server speaks, in the order of its ports.
const PROTOCOLS: [&str; 4] = ["http", "tls", "h2", "h2c"];

/// An origin with the paths that [`exercise`] asks for, as `tests/fixtures/foreign/origin.js` has them.
fn origin() -> Origin {
    let origin = Origin::start();
    let long = "y".repeat(4000);
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Long: {long}\r\n\r\n");
    origin.on("/text", move |request, stream| {
        stream.write_all(text.as_bytes())?;
        stream.write_all(if request.method() == "HEAD" { b"" } else { b"text" }).map(|()| true)
    });
    let large = vec![b'x'; LARGE];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
    let whole = [head.as_bytes(), &large].concat();
    let length = head.len();
    origin.on("/large", move |request, stream| {
        let sent = if request.method() == "HEAD" { length } else { whole.len() };
        stream.write_all(&whole[..sent]).map(|()| true)
    });
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    origin.reply("/chunked", [&head[..], &chunked(&large, 100_000)].concat());
    origin.reply("/none", "HTTP/1.1 204 No Content\r\n\r\n");
    origin.reply("/unchanged", "HTTP/1.1 304 Not Modified\r\nETag: \"one\"\r\n\r\n");
    origin.on("/closing", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ntext").map(|()| false)
    });
    origin.reply(
        "/trailers",
        "HTTP/1.1 200 OK\r\nTrailer: X-End\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntext\r\n0\r\nX-End: yes\r\n\r\n",
    );
    origin
}

/// A client of one of both protocols.
enum Asker {
    Http1(SocketAddr, Client),
    Http2(H2Client),
}

impl Asker {
    fn http1(address: SocketAddr) -> Self {
        Self::Http1(address, Client::connect(address))
    }

    /// The answer; on a new connection where the last answer has ended the old one.
    fn ask(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Message, String> {
        match self {
            Self::Http2(client) => {
                client.call(method, path, fields, body).map_err(|e| e.to_string())
            }
            Self::Http1(address, client) => {
                client.send(request(method, path, fields, body));
                let mut answer = client.try_read(method == "HEAD").map_err(|e| e.to_string())?;
                while answer.status() == 100 {
                    answer = client.try_read(false).map_err(|e| e.to_string())?;
                }
                if answer.header("connection").is_some_and(|options| options.contains("close")) {
                    *client = Client::connect(*address);
                }
                Ok(answer)
            }
        }
    }
}

/// One request, and what is to come of it: the status, and the body or its length.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    Vec<(&'static str, &'static str)>,
    Vec<u8>,
    u16,
    usize,
);

fn cases() -> Vec<Case> {
    let large = vec![b'x'; LARGE];
    let (coded, pieces) = (vec![("Transfer-Encoding", "chunked")], chunked(&large, 70_000));
    vec![
        ("text", "GET", "/text?q=%20&x=a+b;c=%2F/../", vec![], vec![], 200, 4),
        ("head", "HEAD", "/text", vec![], vec![], 200, 0),
        ("head of a large one", "HEAD", "/large", vec![], vec![], 200, 0),
        ("no content", "GET", "/none", vec![], vec![], 204, 0),
        ("unchanged", "GET", "/unchanged", vec![("If-None-Match", "\"one\"")], vec![], 304, 0),
        ("large", "GET", "/large", vec![], vec![], 200, LARGE),
        ("chunked", "GET", "/chunked", vec![], vec![], 200, LARGE),
        ("upload", "POST", "/echo", vec![], large.clone(), 200, LARGE),
        ("replacement", "PUT", "/echo", vec![], large, 200, LARGE),
        ("chunked upload", "POST", "/echo", coded.clone(), pieces, 200, LARGE),
        ("small chunks", "POST", "/echo", coded, chunked(b"some bytes", 1), 200, 10),
        ("with leave", "POST", "/echo", vec![("Expect", "100-continue")], b"body".to_vec(), 200, 4),
        ("deleted", "DELETE", "/text", vec![], vec![], 200, 4),
        ("closing", "GET", "/closing", vec![], vec![], 200, 4),
        ("after the close", "POST", "/echo", vec![], b"four".to_vec(), 200, 4),
        ("trailers", "GET", "/trailers", vec![], vec![], 200, 4),
        ("long fields", "GET", "/text", vec![("Cookie", LONG), ("Cookie", "b=2")], vec![], 200, 4),
        ("at the end", "GET", "/text", vec![], vec![], 200, 4),
    ]
}

const LONG: &str = match std::str::from_utf8(&[b'c'; 4000]) {
    Ok(text) => text,
    Err(_) => "",
};

/// Sends every case on one connection where that is possible, and gives what went wrong.
fn exercise(name: &str, prefix: &str, asker: &mut Asker) -> Vec<String> {
    let mut wrong = Vec::new();
    for (case, method, path, fields, body, status, length) in cases() {
        let over_http2 = matches!(asker, Asker::Http2(_));
        if over_http2
            && fields.iter().any(|(name, _)| ["Transfer-Encoding", "Expect"].contains(name))
        {
            continue;
        }
        let found = match asker.ask(method, &format!("{prefix}{path}"), &fields, &body) {
            Ok(answer) if answer.status() == status && answer.body.len() == length => continue,
            Ok(answer) => format!("{} with {} bytes", answer.line, answer.body.len()),
            Err(error) => error,
        };
        wrong.push(format!("{name}, {case}, HTTP/{}: {found}", if over_http2 { 2 } else { 1 }));
        if let Asker::Http1(address, client) = asker {
            *client = Client::connect(*address);
        }
    }
    wrong
}

/// What the gateway says about requests that failed.
fn failures(gateway: &Gateway) -> Vec<String> {
    let failed = |line: &String| line.contains("\"reason\":") && !line.contains("client_gone");
    gateway.lines().into_iter().filter(failed).collect()
}

/// A client that leaves in the middle of a large answer.
fn leave(address: SocketAddr, path: &str) {
    let mut client = Client::connect(address);
    client.send(request("GET", path, &[], b""));
    let _ = client.head();
}

struct Servers {
    /// The name of a server, its protocol, and its port.
    endpoints: Vec<(String, &'static str, u16)>,
    origin: Origin,
    dir: TempDir,
    processes: Vec<Process>,
}

/// Every server, in every protocol.
fn servers(authority: &Authority) -> Servers {
    let (origin, dir) = (origin(), TempDir::new().unwrap());
    let files = authority.issue(&["a.test", "127.0.0.1"]).write(dir.path(), "server");
    let [certificate, key] =
        [&files.certificate, &files.key].map(|file| std::fs::read_to_string(file).unwrap());
    std::fs::write(dir.path().join("both.pem"), certificate + &key).unwrap();
    std::fs::write(dir.path().join("ca.pem"), &authority.pem).unwrap();
    let (mut endpoints, mut processes) = (Vec::new(), Vec::new());
    for (program, file) in [
        ("nginx", "nginx.conf"),
        ("haproxy", "haproxy.cfg"),
        ("caddy", "Caddyfile"),
        ("node", "origin.js"),
    ] {
        let ports: [u16; 4] = free_ports();
        let mut values = vec![("ORIGIN", origin.address.to_string())];
        for (place, port) in
            ["HTTP_PORT", "TLS_PORT", "H2_PORT", "H2C_PORT"].into_iter().zip(&ports)
        {
            values.push((place, port.to_string()));
        }
        let file = fixture(dir.path(), file, &values);
        let (file, texts) = (file.to_str().unwrap(), ports.map(|port| port.to_string()));
        let home = dir.path().to_str().unwrap();
        let [a, b, c, d] = texts.each_ref().map(String::as_str);
        let arguments = match program {
            "nginx" => vec!["-c", file],
            "haproxy" => vec!["-f", file],
            "caddy" => vec!["run", "--adapter", "caddyfile", "--config", file],
            _ => vec![file, home, a, b, c, d],
        };
        processes.push(Process::start(program, &arguments, dir.path(), &ports));
        for (protocol, port) in PROTOCOLS.into_iter().zip(ports) {
            endpoints.push((format!("{program}-{protocol}"), protocol, port));
        }
    }
    Servers { endpoints, origin, dir, processes }
}

impl Servers {
    fn nginx(&self) -> &Process {
        &self.processes[0]
    }

    /// A gateway with a route and an upstream for each endpoint.
    fn gateway(&self, retries: usize) -> Gateway {
        let ca = self.dir.path().join("ca.pem").display().to_string();
        let (mut upstreams, mut routes) = (String::new(), String::new());
        for (name, protocol, port) in &self.endpoints {
            let (scheme, more) = match *protocol {
                "http" => ("http", String::new()),
                "h2c" => ("h2c", String::new()),
                "tls" => ("https", format!(", http2: auto, tls: {{ ca: {ca} }}")),
                _ => ("https", format!(", http2: always, tls: {{ ca: {ca} }}")),
            };
            upstreams += &format!(
                "  {name}: {{ endpoints: [ \"{scheme}://127.0.0.1:{port}\" ], retries: {retries}{more} }}\n"
            );
            routes += &format!(
                "  - {{ prefix: /by-{name}, upstream: {name}, auth: none, strip_prefix: true }}\n"
            );
        }
        Gateway::start(&format!(
            "listeners: [ {{ address: \"127.0.0.1:0\", http2: true }} ]
max_body: 1GiB
upstreams:\n{upstreams}routes:\n{routes}"
        ))
    }
}

#[test]
fn servers_of_others_are_upstreams_in_every_protocol() {
    let authority = Authority::new("tests");
    let servers = servers(&authority);
    let gateway = servers.gateway(0);
    let wrong = parking_lot::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for part in servers.endpoints.chunks(4) {
            let (gateway, wrong) = (&gateway, &wrong);
            scope.spawn(move || {
                for (name, _, _) in part {
                    let prefix = format!("/by-{name}");
                    let mut http1 = Asker::http1(gateway.address);
                    wrong.lock().extend(exercise(name, &prefix, &mut http1));
                    leave(gateway.address, &format!("{prefix}/large"));
                    let mut http2 = Asker::Http2(H2Client::connect(gateway.address));
                    wrong.lock().extend(exercise(name, &prefix, &mut http2));
                }
            });
        }
    });
    // The servers have closed their connections meanwhile. A POST is not sent twice.
    thread::sleep(Duration::from_millis(2_500));
    let mut client = Asker::http1(gateway.address);
    for (name, _, _) in &servers.endpoints {
        let answer = client.ask("POST", &format!("/by-{name}/echo"), &[], b"late");
        if !answer.as_ref().is_ok_and(|answer| answer.text() == "late") {
            wrong.lock().push(format!("{name}, after a pause: {answer:?}"));
        }
    }
    let mut wrong = wrong.into_inner();
    wrong.sort();
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}; {:#?}", wrong.len(), failures(&gateway));
    let queries = servers.origin.requests_for("/text");
    assert!(queries.iter().any(|r| r.target() == "/text?q=%20&x=a+b;c=%2F/../"), "{queries:?}");
}

/// A gateway before [`origin`], with a listener without TLS, one with it, and one that expects the PROXY protocol before
/// it.
struct Edge {
    gateway: Gateway,
    plain: SocketAddr,
    tls: SocketAddr,
    proxied: SocketAddr,
    origin: Origin,
    dir: TempDir,
}

impl Edge {
    fn start() -> Self {
        let (origin, authority, dir) = (origin(), Authority::new("tests"), TempDir::new().unwrap());
        std::fs::write(dir.path().join("ca.pem"), &authority.pem).unwrap();
        let files = authority.issue(&["a.test"]).write(dir.path(), "gateway").yaml();
        let gateway = Gateway::start(&format!(
            "listeners:
  - {{ address: \"127.0.0.1:0\", http2: true }}
  - {{ address: \"127.0.0.1:0\", tls: {{ certificates: [ {files} ] }} }}
  - {{ address: \"127.0.0.1:0\", tls: {{ certificates: [ {files} ] }}, proxy_protocol: true }}
trusted_proxies: [ 127.0.0.1/32 ]
max_body: 1GiB
upstreams: {{ up: {{ endpoints: [ \"{}\" ], retries: 0 }} }}
routes: [ {{ prefix: /, host: b.test, methods: [ PATCH ], upstream: up, auth: none }}, {{ prefix: /, upstream: up, auth: none }} ]",
            origin.url()
        ));
        let [plain, tls, proxied] =
            wait_for("three listeners", || listeners(&gateway).try_into().ok());
        Self { gateway, plain, tls, proxied, origin, dir }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

/// The ways through proxies to the gateway, each on a port of its own.
const FRONTS: [&str; 7] = [
    "HAProxy, TLS, HTTP/1.1",
    "HAProxy, TLS, HTTP/2",
    "HAProxy, HTTP/2 without TLS",
    "HAProxy, PROXY protocol, TLS, HTTP/2",
    "nginx, TLS, HTTP/1.1",
    "Caddy, TLS, HTTP/2",
    "Caddy, HTTP/2 without TLS",
];

#[test]
fn proxies_of_others_bring_their_clients() {
    let edge = Edge::start();
    let ports: [u16; 7] = free_ports();
    let mut values = vec![
        ("TLS_GATEWAY", edge.tls.to_string()),
        ("PLAIN_GATEWAY", edge.plain.to_string()),
        ("PROXY_GATEWAY", edge.proxied.to_string()),
    ];
    let places = ["FRONT0", "FRONT1", "FRONT2", "FRONT3", "FRONT4", "FRONT5", "FRONT6"];
    values.extend(places.into_iter().zip(ports.map(|port| port.to_string())));
    let [haproxy, nginx, caddy] = ["fronts.cfg", "fronts.conf", "Frontfile"]
        .map(|name| fixture(edge.dir.path(), name, &values).display().to_string());
    let dir = edge.dir.path();
    let _proxies = [
        Process::start("haproxy", &["-f", &haproxy], dir, &ports[..4]),
        Process::start("nginx", &["-c", &nginx], dir, &ports[4..5]),
        Process::start(
            "caddy",
            &["run", "--adapter", "caddyfile", "--config", &caddy],
            dir,
            &ports[5..],
        ),
    ];
    let wrong = parking_lot::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (name, port) in FRONTS.into_iter().zip(ports) {
            let (wrong, edge) = (&wrong, &edge);
            scope.spawn(move || {
                wrong.lock().extend(exercise(name, "", &mut Asker::http1(local(port))));
                // Where the client is, which the proxy tells.
                let curl = curl(&["--interface", "127.0.0.9", "-H", &format!("X-Case: {name}")])
                    .arg(format!("http://127.0.0.1:{port}/from"))
                    .output()
                    .unwrap();
                assert_eq!(String::from_utf8_lossy(&curl.stdout), "GET /from HTTP/1.1", "{name}");
                let seen = edge.origin.case(name).unwrap();
                let from = seen.header("x-forwarded-for").unwrap();
                assert_eq!(from.split(',').next(), Some("127.0.0.9"), "{name}: {from}");
            });
        }
    });
    let wrong = wrong.into_inner();
    let failed = failures(&edge.gateway);
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}; {failed:#?}", wrong.len());
    wait_for("the line of each proxy's request", || {
        let lines = edge.gateway.log().into_iter().filter(|line| line["path"] == "/from");
        let told: Vec<_> = lines.map(|line| line["client_ip"].clone()).collect();
        assert!(told.iter().all(|client| client == "127.0.0.9"), "{told:?}");
        (told.len() == FRONTS.len()).then_some(())
    });
}

/// curl, which says nothing of its progress.
fn curl(arguments: &[&str]) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20"]).args(arguments);
    curl
}

#[test]
fn clients_of_others_are_served_in_every_protocol() {
    let edge = Edge::start();
    let (ca, large) = (edge.file("ca.pem"), edge.file("large"));
    std::fs::write(&large, vec![b'x'; LARGE]).unwrap();
    let resolve = format!("a.test:{}:127.0.0.1", edge.tls.port());
    let (plain, tls) =
        (format!("http://{}", edge.plain), format!("https://a.test:{}", edge.tls.port()));
    let (upload, whole) = (format!("@{large}"), format!("200 {LARGE}"));
    for (name, version, options, url) in [
        ("HTTP/1.0", "1.1", vec!["--http1.0"], &plain),
        ("HTTP/1.1", "1.1", vec!["--http1.1"], &plain),
        ("HTTP/1.1 asks for HTTP/2", "1.1", vec!["--http2"], &plain),
        ("HTTP/2", "2", vec!["--http2-prior-knowledge"], &plain),
        ("TLS 1.2, HTTP/1.1", "1.1", vec!["--http1.1", "--tls-max", "1.2"], &tls),
        ("TLS 1.2, HTTP/2", "2", vec!["--http2", "--tls-max", "1.2"], &tls),
        ("TLS 1.3, HTTP/1.1", "1.1", vec!["--http1.1", "--tlsv1.3"], &tls),
        ("TLS 1.3, HTTP/2", "2", vec!["--http2", "--tlsv1.3"], &tls),
        ("without ALPN", "1.1", vec!["--no-alpn"], &tls),
    ] {
        for (path, more, expected) in [
            ("/text", vec![], "200 4"),
            ("/text", vec!["--head"], "200 0"),
            ("/none", vec![], "204 0"),
            ("/unchanged", vec!["-H", "If-None-Match: \"one\""], "304 0"),
            ("/large", vec![], &*whole),
            ("/chunked", vec![], &*whole),
            ("/trailers", vec![], "200 4"),
            // With `Expect: 100-continue`, which curl sends before a large body.
            ("/echo", vec!["--data-binary", &upload], &*whole),
            ("/echo", vec!["-H", "Transfer-Encoding: chunked", "-T", &large], &*whole),
            ("/closing", vec![], "200 4"),
        ] {
            if name == "HTTP/1.0" && more.contains(&"Transfer-Encoding: chunked") {
                continue;
            }
            let output = curl(&options)
                .args(["--cacert", &ca, "--resolve", &resolve, "-o", "/dev/null"])
                .args(["-w", "%{http_version} %{response_code} %{size_download}"])
                .args(&more)
                .arg(format!("{url}{path}"))
                .output()
                .unwrap();
            let found = String::from_utf8_lossy(&output.stdout).into_owned();
            let version =
                if name == "HTTP/1.0" { found.split(' ').next().unwrap() } else { version };
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(found, format!("{version} {expected}"), "{name}, {path}: {error}");
        }
    }

    for (url, ca) in
        [(&plain, None), (&format!("https://127.0.0.1:{}", edge.tls.port()), Some(&ca))]
    {
        let script = fixture(edge.dir.path(), "client.js", &[]);
        let output = Command::new("node")
            .arg(script)
            .arg(url)
            .args(ca)
            .env("LARGE", LARGE.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, "done\n", "{url}: {}", String::from_utf8_lossy(&output.stderr));
    }

    let tls = format!("https://{}/text", edge.tls);
    for (name, arguments) in [
        ("HTTP/1.1", vec!["-c4", "-n2000", "--h1", &tls]),
        ("HTTP/2", vec!["-c4", "-m50", "-n4000", &tls]),
        ("uploads", vec!["-c2", "-m4", "-n16", "-d", &large, &tls]),
    ] {
        let output = Command::new("h2load").args(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let number = arguments.iter().find_map(|argument| argument.strip_prefix("-n")).unwrap();
        let expected = format!(
            "requests: {number} total, {number} started, {number} done, {number} succeeded, 0 failed, 0 errored, 0 timeout"
        );
        assert!(said.contains(&expected), "{name}: {said}");
    }

    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-quiet", "-connect", &edge.tls.to_string()]);
    openssl.args(["-servername", "a.test", "-CAfile", &ca, "-verify_return_error"]);
    let mut openssl =
        openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let ask = b"GET /text HTTP/1.1\r\nHost: a.test\r\n\r\nGET /none HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    openssl.stdin.as_mut().unwrap().write_all(ask).unwrap();
    let said = openssl.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(said.contains("HTTP/1.1 200") && said.contains("HTTP/1.1 204"), "{said}");
    let broken = edge.gateway.metric("tollgate_tls_handshakes_total{outcome=\"failed\"}");
    assert_eq!(broken, Some(0.0));
}

#[test]
fn no_client_sees_that_nginx_takes_its_connections_down() {
    let authority = Authority::new("tests");
    let mut servers = servers(&authority);
    servers.endpoints.retain(|(name, _, _)| ["nginx-http", "nginx-h2"].contains(&name.as_str()));
    let gateway = servers.gateway(2);
    let (ends, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wrong = parking_lot::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (name, protocol, _) in &servers.endpoints {
            let (gateway, ends, served, wrong) = (&gateway, &ends, &served, &wrong);
            for _ in 0..2 {
                scope.spawn(move || {
                    let mut client = Asker::http1(gateway.address);
                    while !ends.load(Ordering::Relaxed) {
                        // A server of HTTP/2 says which requests it has not processed, of any method.
                        let method = if *protocol == "h2" { "POST" } else { "GET" };
                        match client.ask(method, &format!("/by-{name}/text"), &[], b"") {
                            Ok(answer) if answer.status() == 200 => {}
                            Ok(answer) => wrong.lock().push(format!(
                                "{name}: {} {}",
                                answer.line,
                                answer.text()
                            )),
                            Err(error) => wrong.lock().push(format!("{name}: {error}")),
                        }
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        // New workers take over, and the old ones end their connections: `nginx -s reload`.
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(150));
            servers.nginx().signal("HUP");
        }
        ends.store(true, Ordering::Relaxed);
    });
    let wrong = wrong.into_inner();
    let served = served.into_inner();
    assert!(served > 200, "{served}");
    let failed = failures(&gateway);
    assert!(wrong.is_empty(), "{} of {served}: {wrong:#?}; {failed:#?}", wrong.len());
}
