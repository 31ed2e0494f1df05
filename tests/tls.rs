//! Listeners that speak TLS: certificates by name, handshakes that fail, files that change under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustls::HandshakeKind;
use support::http2::{H2Client, PREFACE};
use support::tls::{Authority, Files, Issued, TlsClient, listeners, plain};
use support::*;
use tempfile::TempDir;

/// A gateway with a listener without TLS and one with TLS, before one origin.
struct Edge {
    gateway: Gateway,
    address: SocketAddr,
    origin: Origin,
    authority: Authority,
    dir: TempDir,
}

impl Edge {
    /// Each of `certificates` has some names.
    fn start(certificates: &[&[&str]]) -> Self {
        Self::start_with(certificates, "", "")
    }

    /// The same with more keys of `tls` and more sections.
    fn start_with(certificates: &[&[&str]], keys: &str, sections: &str) -> Self {
        let authority = Authority::new("tests");
        let dir = TempDir::new().unwrap();
        for (i, names) in certificates.iter().enumerate() {
            authority.issue(names).write(dir.path(), &i.to_string());
        }
        let files: Vec<_> = (0..certificates.len()).map(|i| files(dir.path(), i)).collect();
        let origin = Origin::start();
        let gateway = Gateway::start(&yaml(&files, keys, sections, &origin));
        let address = listeners(&gateway)[1];
        Self { gateway, address, origin, authority, dir }
    }

    fn files(&self, number: usize) -> Files {
        files(self.dir.path(), number)
    }

    fn client(&self) -> TlsClient {
        self.authority.client()
    }

    fn handshakes(&self, outcome: &str) -> f64 {
        let series = format!("tollgate_tls_handshakes_total{{outcome=\"{outcome}\"}}");
        self.gateway.metric(&series).unwrap_or(0.0)
    }

    fn wait_handshakes(&self, outcome: &str, number: f64) {
        wait_for(outcome, || (self.handshakes(outcome) >= number).then_some(()));
    }

    /// The lines of these levels in the log.
    fn lines_at(&self, levels: &[&str]) -> Vec<String> {
        let log = self.gateway.log();
        let wanted = log.iter().filter(|line| levels.contains(&line["level"].as_str().unwrap()));
        wanted.map(|line| line["message"].to_string()).collect()
    }
}

fn files(dir: &Path, number: usize) -> Files {
    Files { certificate: dir.join(format!("{number}.pem")), key: dir.join(format!("{number}.key")) }
}

fn yaml(files: &[Files], keys: &str, sections: &str, origin: &Origin) -> String {
    let certificates: Vec<_> = files.iter().map(Files::yaml).collect();
    format!(
        "listeners:
  - {{ address: \"127.0.0.1:0\" }}
  - {{ address: \"127.0.0.1:0\", tls: {{ certificates: [ {} ]{keys} }} }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]
{sections}",
        certificates.join(", "),
        origin.url(),
    )
}

fn leaf(files: &Files) -> rustls::pki_types::CertificateDer<'static> {
    let certificate = std::fs::read_to_string(&files.certificate).unwrap();
    Issued { certificate, key: String::new() }.der()
}

#[test]
fn requests_come_and_go_over_tls() {
    let edge = Edge::start(&[&["a.test"]]);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let provider = Arc::clone(edge.client().0.crypto_provider());
        let mut roots = rustls::RootCertStore::empty();
        use rustls::pki_types::pem::PemObject as _;
        roots
            .add(
                rustls::pki_types::CertificateDer::from_pem_slice(edge.authority.pem.as_bytes())
                    .unwrap(),
            )
            .unwrap();
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = TlsClient(Arc::new(config)).connect(edge.address, "a.test");
        assert_eq!(client.session().protocol_version().unwrap(), version.version);
        assert_eq!(client.get("/one").text(), "GET /one HTTP/1.1");
        let large = vec![b'x'; 3 << 20];
        let answer = client.call("POST", "/two", &[("X-Forwarded-Proto", "gopher")], &large);
        assert!(answer.body == large, "{}", answer.line);
        let pieces = chunked(&large, 1000);
        let answer = client.call("POST", "/three", &[("Transfer-Encoding", "chunked")], &pieces);
        assert!(answer.body == large, "{}", answer.line);
        // Requests that are sent together are answered in their order.
        let two = [request("GET", "/x", &[], b""), request("GET", "/y", &[], b"")].concat();
        client.send(two);
        assert_eq!(client.try_read().unwrap().text(), "GET /x HTTP/1.1");
        assert_eq!(client.try_read().unwrap().text(), "GET /y HTTP/1.1");
    }
    for request in edge.origin.requests() {
        assert_eq!(request.all("x-forwarded-proto"), ["https"]);
        assert_eq!(request.all("x-forwarded-for"), ["127.0.0.1"]);
    }
    edge.gateway.get("/plain");
    assert_eq!(edge.origin.one("/plain").all("x-forwarded-proto"), ["http"]);
    assert_eq!(edge.handshakes("ok"), 2.0);
}

#[test]
fn a_client_gets_the_certificate_of_the_host_that_it_names() {
    let edge = Edge::start(&[
        &["first.test"],
        &["*.wild.test", "other.test"],
        &["exact.wild.test"],
        &["*.exact.wild.test", "UPPER.test"],
    ]);
    let client = edge.client();
    // The names of certificates are not the matter here: every certificate is accepted.
    let any = client.with(|config| {
        config.dangerous().set_certificate_verifier(Arc::new(AnyCertificate::default()));
    });
    for (name, certificate) in [
        ("first.test", 0),
        ("unknown.test", 0),
        ("127.0.0.1", 0),
        ("wild.test", 0),
        ("a.b.wild.test", 0),
        ("a.wild.test", 1),
        ("A.Wild.Test", 1),
        ("other.test", 1),
        ("exact.wild.test", 2),
        ("EXACT.wild.test", 2),
        ("x.exact.wild.test", 3),
        ("upper.test", 3),
    ] {
        let connection = any.connect(edge.address, name);
        assert!(connection.certificate() == leaf(&edge.files(certificate)), "{name}");
    }
    let mut connection = client.connect(edge.address, "a.wild.test");
    assert_eq!(connection.get("/").status(), 200);
}

#[test]
fn a_client_gets_the_ocsp_response_with_the_certificate() {
    let (origin, authority, dir) =
        (Origin::start(), Authority::new("tests"), TempDir::new().unwrap());
    let files = authority.issue(&["a.test"]).write(dir.path(), "a");
    let response = dir.path().join("response.der");
    // The shortest response there is: successful, and without bytes.
    std::fs::write(&response, [0x30, 3, 0x0a, 1, 0]).unwrap();
    let with = files.yaml().replace(" }", &format!(", ocsp: {} }}", response.display()));
    let yaml = yaml(std::slice::from_ref(&files), "", "", &origin).replace(&files.yaml(), &with);
    let gateway = Gateway::start(&yaml);
    let address = listeners(&gateway)[1];
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let client = authority.client().with(|config| {
        let verifier = AnyCertificate(Arc::clone(&seen));
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
    });
    // Without a session, with which no certificate comes.
    let client = client.with(|config| config.resumption = rustls::client::Resumption::disabled());
    client.connect(address, "a.test");
    assert_eq!(*seen.lock(), [0x30, 3, 0x0a, 1, 0]);
    // The file is replaced, and one of an authority that could not answer keeps the old one.
    let longer = [0x30, 7, 0x0a, 1, 0, 0xa0, 2, 0x30, 0];
    std::fs::write(&response, longer).unwrap();
    wait_for("the new response", || {
        client.connect(address, "a.test");
        (*seen.lock() == longer).then_some(())
    });
    std::fs::write(&response, [0x30, 3, 0x0a, 1, 6]).unwrap();
    gateway.wait_log("the refusal", |line| {
        line["message"].as_str().unwrap().contains("no successful OCSP response")
    });
    client.connect(address, "a.test");
    assert_eq!(*seen.lock(), longer);
}

/// Accepts every certificate, and keeps the OCSP response that came with the last one.
#[derive(Debug, Default)]
struct AnyCertificate(Arc<parking_lot::Mutex<Vec<u8>>>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        ocsp: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        *self.0.lock() = ocsp.to_vec();
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn a_client_without_tls_is_told_so() {
    let edge = Edge::start(&[&["a.test"]]);
    for sent in ["GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "P"] {
        let mut client = plain(edge.address, sent.as_bytes());
        let answer = client.read();
        assert_eq!((answer.status(), answer.code()), (400, "bad_request".into()), "{sent}");
        assert!(answer.text().contains("this port speaks TLS; use https"), "{}", answer.text());
        assert!(client.is_closed());
    }
    assert_eq!(edge.handshakes("plain"), 2.0);
    assert!(edge.origin.requests().is_empty());
}

#[test]
fn handshakes_that_fail_are_counted_and_do_not_fill_the_log() {
    let edge =
        Edge::start_with(&[&["a.test"]], ", minimum_version: 1.3", "timeouts: { header: 300ms }");
    // Bytes that are no handshake, a record that is none, one that is too long, and one that ends early.
    for garbage in [
        &[0_u8, 1, 2, 3, 4, 5, 6, 7][..],
        &[0x80, 0x2e, 1, 3, 1, 0, 0, 0],
        &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3],
        &[0x16, 3, 1, 0, 4, 2, 0, 0, 0],
        &[0x16, 3, 3, 0, 2, 1, 1],
    ] {
        let mut client = plain(edge.address, garbage);
        let started = Instant::now();
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(client.stream(), &mut rest);
        assert!(rest.len() <= 7, "more than an alert: {rest:?}");
        assert!(started.elapsed() < Duration::from_secs(2));
    }
    let silent = Client::connect(edge.address).is_closed();
    assert!(silent, "a client that says nothing keeps its connection");
    // A client that sends a byte now and then.
    let mut slow = TcpStream::connect(edge.address).unwrap();
    let started = Instant::now();
    while slow.write_all(&[0x16]).is_ok() && started.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(50));
    }
    assert!(started.elapsed() < Duration::from_secs(2), "it had {:?}", started.elapsed());
    drop(TcpStream::connect(edge.address).unwrap());
    let old = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &edge.address.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!old.status.success(), "TLS 1.2 was accepted");
    let mut client = edge.client().connect(edge.address, "a.test");
    assert_eq!(client.get("/").status(), 200);
    edge.wait_handshakes("closed", 1.0);
    edge.wait_handshakes("timeout", 2.0);
    edge.wait_handshakes("failed", 2.0);
    assert_eq!(edge.handshakes("ok"), 1.0);
    let lines = edge.lines_at(&["error", "warn", "info"]);
    assert!(!lines.iter().any(|line| line.contains("andshake")), "{lines:?}");
}

#[test]
fn handshakes_count_among_the_connections() {
    let edge = Edge::start_with(&[&["a.test"]], "", "max_connections: 8\ntimeouts: { header: 2s }");
    let silent: Vec<_> = (0..30).map(|_| TcpStream::connect(edge.address).unwrap()).collect();
    wait_for("connections to be refused", || {
        let refused = "tollgate_client_connections_refused_total{bound=\"max_connections\"}";
        (edge.gateway.metric(refused)? >= 22.0).then_some(())
    });
    assert_eq!(edge.gateway.metric("tollgate_client_connections"), Some(8.0));
    drop(silent);
    wait_for("a place", || {
        let mut client = edge.client().try_connect(edge.address, "a.test").ok()?;
        client.try_call("GET", "/", &[], b"").ok()
    });
}

#[test]
fn a_connection_ends_with_an_announcement() {
    let edge = Edge::start_with(&[&["a.test"]], "", "timeouts: { idle: 200ms }");
    // The idle time is over.
    let mut client = edge.client().connect(edge.address, "a.test");
    assert_eq!(client.get("/").status(), 200);
    assert!(client.read_to_end().unwrap().is_empty());
    // The client asks for the end.
    let mut client = edge.client().connect(edge.address, "a.test");
    client.call("GET", "/", &[("Connection", "close")], b"");
    assert!(client.read_to_end().unwrap().is_empty());
    // The head is refused.
    let mut client = edge.client().connect(edge.address, "a.test");
    client.send("GET * HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(String::from_utf8(client.read_to_end().unwrap()).unwrap().contains("400 Bad Request"));
    // An answer without a length that breaks off must not look like one that has ended.
    edge.origin.on("/broken", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")?;
        Ok(false)
    });
    let mut client = edge.client().connect(edge.address, "a.test");
    client.send("GET /broken HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(client.read_to_end().is_err());
}

#[test]
fn the_clients_of_others_can_connect() {
    let edge = Edge::start(&[&["a.test"]]);
    let ca = edge.dir.path().join("ca.pem");
    std::fs::write(&ca, &edge.authority.pem).unwrap();
    let resolve = format!("a.test:{}:127.0.0.1", edge.address.port());
    let url = format!("https://a.test:{}/curl", edge.address.port());
    let curl = Command::new("curl")
        .args(["-sS", "--cacert", ca.to_str().unwrap(), "--resolve", &resolve, &url, &url])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "GET /curl HTTP/1.1".repeat(2));
    let curl = Command::new("curl")
        .args(["-sS", "--http2", "-o", "/dev/null", "-w", "%{http_version}"])
        .args(["--cacert", ca.to_str().unwrap(), "--resolve", &resolve, &url])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "2");
    let request = edge.origin.requests().pop().unwrap();
    assert_eq!(request.all("x-forwarded-proto"), ["https"]);
    let openssl = Command::new("openssl")
        .args(["s_client", "-connect", &edge.address.to_string(), "-servername", "a.test"])
        .args(["-verify_return_error", "-CAfile", ca.to_str().unwrap(), "-alpn", "http/1.1"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&openssl.stdout);
    assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
    assert!(text.contains("ALPN protocol: http/1.1"), "{text}");
}

#[test]
fn a_bad_certificate_is_a_fault_that_names_the_file() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let authority = Authority::new("tests");
    authority.issue(&["a.test"]).write(dir.path(), "good");
    authority.issue(&["b.test"]).write(dir.path(), "other");
    authority.issue(&[]).write(dir.path(), "nameless");
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    authority.issue_valid(&["a.test"], now - 2 * hour, now - hour).write(dir.path(), "old");
    authority.issue_valid(&["a.test"], now + hour, now + 2 * hour).write(dir.path(), "new");
    std::fs::write(at("empty.pem"), "").unwrap();
    std::fs::write(at("text.pem"), "-----BEGIN CERTIFICATE-----\nnot-to-be-printed\n").unwrap();
    std::fs::write(at("der.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    std::fs::write(
        at("locked.key"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    let check = |certificates: &str| {
        let file = dir.path().join("tollgate.yaml");
        let text = format!(
            "listeners: [ {{ address: \"127.0.0.1:0\", tls: {{ certificates: [ {certificates} ] }} }} ]
upstreams: {{ up: {{ endpoints: [ \"http://127.0.0.1:1\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]"
        );
        std::fs::write(&file, text).unwrap();
        let output = tollgate().args(["check", "-c", file.to_str().unwrap()]).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let pair = |certificate: &str, key: &str| {
        format!("{{ certificate: {}, private_key: {} }}", at(certificate), at(key))
    };
    let good = pair("good.pem", "good.key");
    assert_eq!(check(&good), "");
    for (certificates, place, parts) in [
        (pair("none.pem", "good.key"), "[0].certificate", vec!["cannot be read: No such file"]),
        (pair("good.pem", "none.key"), "[0].private_key", vec!["cannot be read: No such file"]),
        (pair("empty.pem", "good.key"), "[0].certificate", vec!["empty.pem", "no certificate"]),
        (pair("text.pem", "good.key"), "[0].certificate", vec!["text.pem", "no certificate"]),
        (pair("der.pem", "good.key"), "[0].certificate", vec!["der.pem", "no certificate"]),
        (pair("good.key", "good.key"), "[0].certificate", vec!["good.key", "no certificate"]),
        (pair("good.pem", "good.pem"), "[0].private_key", vec!["good.pem", "no private key"]),
        (pair("good.pem", "locked.key"), "[0].private_key", vec!["locked.key", "encrypted"]),
        (
            pair("good.pem", "other.key"),
            "[0].private_key",
            vec!["other.key", "is not the key of the certificate in", "good.pem"],
        ),
        (pair("old.pem", "old.key"), "[0].certificate", vec!["old.pem", "expired at 20"]),
        (pair("new.pem", "new.key"), "[0].certificate", vec!["new.pem", "not valid before 20"]),
        (
            format!("{good}, {}", pair("nameless.pem", "nameless.key")),
            "[1].certificate",
            vec!["nameless.pem", "no DNS name"],
        ),
    ] {
        let faults = check(&certificates);
        assert_eq!(faults.lines().count(), 1, "{certificates}: {faults}");
        let place = format!("listeners[0].tls.certificates{place}: ");
        for part in parts.iter().copied().chain([&*place, "; write "]) {
            assert!(faults.contains(part), "{certificates}: no `{part}` in {faults}");
        }
        assert!(!faults.contains("not-to-be-printed"), "{faults}");
    }
    assert_eq!(check(&pair("nameless.pem", "nameless.key")), "");
}

/// Asks over and over, on connections that are kept and on new ones, and counts what fails.
struct Load {
    stop: Arc<AtomicBool>,
    failures: Arc<AtomicUsize>,
    answers: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(client: &TlsClient, address: SocketAddr, name: &'static str) -> Self {
        let (stop, failures, answers) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { stop, failures, answers, threads: Vec::new() };
        for keeps in [true, true, false] {
            let (stop, failures) = (Arc::clone(&load.stop), Arc::clone(&load.failures));
            let (client, answers) = (client.clone(), Arc::clone(&load.answers));
            load.threads.push(thread::spawn(move || {
                let mut connection = None;
                while !stop.load(Ordering::Relaxed) {
                    let kept = connection
                        .take()
                        .filter(|_| keeps)
                        .map_or_else(|| client.try_connect(address, name), Ok);
                    match kept.and_then(|mut kept| {
                        let answer = kept.try_call("GET", "/", &[], b"")?;
                        Ok((kept, answer.status()))
                    }) {
                        Ok((kept, 200)) => {
                            answers.fetch_add(1, Ordering::Relaxed);
                            connection = Some(kept);
                        }
                        other => {
                            eprintln!("{:?}", other.map(|(_, status)| status));
                            failures.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }));
        }
        load
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        assert_eq!(self.failures.load(Ordering::Relaxed), 0);
        assert!(self.answers.load(Ordering::Relaxed) > 50);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn certificates_are_replaced_under_load_without_harm() {
    let edge = Edge::start(&[&["a.test"]]);
    let (client, files) = (edge.client(), edge.files(0));
    let metric = format!(
        "tollgate_certificate_expiry_seconds{{certificate=\"{}\"}}",
        files.certificate.display()
    );
    let expires = |days: u64| SystemTime::now() + Duration::from_secs(days * 86_400);
    let before = wait_for("the expiry", || edge.gateway.metric(&metric));
    let year = token::now() as f64 + 365.0 * 86_400.0;
    assert!((before - year).abs() < 60.0, "{before}");
    let mut kept = client.connect(edge.address, "a.test");
    let load = Load::start(&client, edge.address, "a.test");
    // Without a session: a client keeps the certificate of its session.
    let shown = || edge.client().connect(edge.address, "a.test").certificate();
    // The files are written over.
    let second = edge.authority.issue(&["a.test"]);
    second.replace(&files);
    wait_for("the second certificate", || (shown() == second.der()).then_some(()));
    // Bad files keep the old certificate, and the log says so once.
    std::fs::write(&files.key, "nothing").unwrap();
    let told = |line: &serde_json::Value| {
        let message = line["message"].as_str().unwrap();
        message.contains("certificate not replaced") && message.contains("no private key")
    };
    edge.gateway.wait_log("the refusal", told);
    thread::sleep(Duration::from_secs(5));
    assert_eq!(edge.gateway.log().iter().filter(|line| told(line)).count(), 1);
    assert!(shown() == second.der());
    // Files that a link leads to are replaced by another link, as Kubernetes does.
    let volume = edge.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let third = edge.authority.issue_valid(&["a.test"], SystemTime::now(), expires(7));
    third.write(&volume, "0");
    for file in [&files.certificate, &files.key] {
        let link = edge.dir.path().join("link");
        symlink(volume.join(file.file_name().unwrap()), &link).unwrap();
        std::fs::rename(&link, file).unwrap();
    }
    wait_for("the third certificate", || (shown() == third.der()).then_some(()));
    let third_expiry = token::now() as f64 + 7.0 * 86_400.0;
    wait_for("the new expiry", || {
        ((edge.gateway.metric(&metric)? - third_expiry).abs() < 60.0).then_some(())
    });
    edge.gateway.wait_log("the warning", |line| {
        let message = line["message"].as_str().unwrap();
        line["level"] == "warn" && message.contains("expires at") && message.contains("0.pem")
    });
    // SIGHUP takes up another file.
    let fourth = edge.authority.issue(&["a.test"]).write(edge.dir.path(), "fourth");
    edge.gateway.reload(&yaml(std::slice::from_ref(&fourth), "", "", &edge.origin));
    wait_for("the fourth certificate", || (shown() == leaf(&fourth)).then_some(()));
    wait_for("the expiry of the first file to go", || {
        edge.gateway.metric(&metric).is_none().then_some(())
    });
    // A bad file keeps everything.
    let mut bad = fourth.clone();
    bad.key = files.key.clone();
    edge.gateway.reload(&yaml(&[bad], "", "", &edge.origin));
    edge.gateway.wait_log("the fault", |line| {
        let message = line["message"].as_str().unwrap();
        message.contains("configuration not reloaded") && message.contains("is not the key of")
    });
    assert!(shown() == leaf(&fourth));
    assert_eq!(kept.get("/").status(), 200);
    load.end();
}

#[test]
fn a_storm_of_reloads_ends_no_connection() {
    let edge = Edge::start(&[&["a.test"]]);
    let client = edge.client();
    let mut kept = client.connect(edge.address, "a.test");
    assert_eq!(kept.get("/").status(), 200);
    let load = Load::start(&client, edge.address, "a.test");
    let files = [edge.files(0)];
    for i in 0..40 {
        if i % 4 == 0 {
            edge.authority.issue(&["a.test"]).replace(&files[0]);
        }
        let version = if i % 2 == 0 { "1.2" } else { "1.3" };
        let keys = format!(", minimum_version: {version}");
        edge.gateway.reload(&yaml(&files, &keys, "", &edge.origin));
        wait_for("the reload", || {
            (edge.gateway.metric("tollgate_config_generation")? >= f64::from(i + 2)).then_some(())
        });
        assert_eq!(kept.get("/").status(), 200);
    }
    load.end();
}

#[test]
fn a_session_goes_on_at_any_thread_and_after_a_new_certificate() {
    let edge = Edge::start(&[&["a.test"]]);
    let client = edge.client();
    let kind = |client: &TlsClient| {
        let mut connection = client.connect(edge.address, "a.test");
        // Tickets come after the handshake.
        assert_eq!(connection.get("/").status(), 200);
        connection.session().handshake_kind().unwrap()
    };
    assert_eq!(kind(&client), HandshakeKind::Full);
    for _ in 0..6 {
        assert_eq!(kind(&client), HandshakeKind::Resumed);
    }
    let second = edge.authority.issue(&["a.test"]);
    second.replace(&edge.files(0));
    wait_for("the second certificate", || {
        let shown = edge.client().connect(edge.address, "a.test").certificate();
        (shown == second.der()).then_some(())
    });
    assert_eq!(kind(&client), HandshakeKind::Resumed);
    edge.gateway.reload(&yaml(&[edge.files(0)], ", minimum_version: 1.3", "", &edge.origin));
    edge.gateway.wait_log("the reload", |line| {
        line["message"].as_str().unwrap().contains("configuration reloaded")
    });
    assert_eq!(kind(&client), HandshakeKind::Resumed);
}

#[test]
fn the_program_has_one_provider_of_cryptography_for_tls() {
    let lock = include_str!("../Cargo.lock");
    let rustls = lock.split("[[package]]").find(|package| package.contains("name = \"rustls\"\n"));
    let needs: Vec<_> =
        rustls.unwrap().lines().filter_map(|line| line.trim().strip_prefix('"')).collect();
    assert!(needs.iter().any(|name| name.starts_with("ring\"")), "{needs:?}");
    assert!(!needs.iter().any(|name| name.starts_with("aws-lc-rs")), "{needs:?}");
    tollgate::tls::install_provider();
    tollgate::tls::install_provider();
    let installed = rustls::crypto::CryptoProvider::get_default().unwrap();
    assert_eq!(installed.cipher_suites, tollgate::tls::provider().cipher_suites);
}

#[test]
fn a_listener_can_send_its_clients_to_https() {
    let (origin, authority, dir) =
        (Origin::start(), Authority::new("tests"), TempDir::new().unwrap());
    let files = authority.issue(&["a.test"]).write(dir.path(), "a");
    let gateway = Gateway::start(&format!(
        "listeners:
  - {{ address: \"127.0.0.1:0\", redirect_https: true }}
  - {{ address: \"127.0.0.1:0\", tls: {{ certificates: [ {} ] }} }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        files.yaml(),
        origin.url()
    ));
    let port = listeners(&gateway)[1].port();
    let mut client = gateway.connect();
    for (method, target, host, location) in [
        ("GET", "/", "A.test.", "a.test:PORT/"),
        ("GET", "/a/b;v=1/%41?q=%20&x", "a.test:80", "a.test:PORT/a/b;v=1/%41?q=%20&x"),
        ("POST", "/x", "[::1]:8080", "[::1]:PORT/x"),
        ("GET", "http://b.test:81/y?z", "b.test:81", "b.test:PORT/y?z"),
        ("OPTIONS", "/no/route", "a.test", "a.test:PORT/no/route"),
        ("GET", "//evil.test/x", "a.test", "a.test:PORT//evil.test/x"),
    ] {
        // A token is not looked at.
        let fields = [("Host", host), ("Authorization", "Bearer none")];
        let answer =
            client.call(method, target, &fields, if method == "POST" { b"body" } else { b"" });
        let location = format!("https://{}", location.replace("PORT", &port.to_string()));
        assert_eq!((answer.status(), answer.header("location")), (308, Some(location)), "{target}");
    }
    assert_eq!(client.call("GET", "/%2e%2e/x", &[], b"").code(), "bad_request");
    for path in ["/health", "/ready", "/health/live"] {
        assert_eq!(client.call("GET", path, &[], b"").status(), 200, "{path}");
    }
    let mut old = gateway.connect();
    old.send("GET / HTTP/1.0\r\nX-Request-ID: hostless\r\n\r\n");
    assert_eq!(old.read().code(), "bad_request");
    let line = gateway.wait_log("the refusal", |line| line["request_id"] == "hostless");
    assert_eq!(line["reason"], "no_host");
    let mut tls = authority.client().connect(listeners(&gateway)[1], "a.test");
    assert_eq!(tls.get("/").status(), 401);
    assert!(origin.requests().is_empty());
    assert_eq!(
        gateway.metric("tollgate_requests_total{method=\"OPTIONS\",route=\"-\",status=\"308\"}"),
        Some(1.0)
    );
    assert_eq!(gateway.metric("tollgate_token_cache_total{outcome=\"miss\"}"), Some(0.0));
}

#[test]
fn a_client_of_http2_is_sent_to_https_too() {
    let (origin, authority, dir) =
        (Origin::start(), Authority::new("tests"), TempDir::new().unwrap());
    let files = authority.issue(&["gateway.test"]).write(dir.path(), "a");
    let gateway = Gateway::start(&format!(
        "listeners:
  - {{ address: \"127.0.0.1:0\", redirect_https: true, http2: true }}
  - {{ address: \"127.0.0.1:0\", tls: {{ certificates: [ {} ] }} }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        files.yaml(),
        origin.url()
    ));
    let encrypted = listeners(&gateway)[1];
    let mut client = H2Client::connect(listeners(&gateway)[0]);
    for (method, target, body) in
        [("GET", "/a/b;v=1/%41?q=%20&x", &b""[..]), ("POST", "/x", b"body"), ("HEAD", "/", b"")]
    {
        let fields = [("Authorization", "Bearer none")];
        let answer = client.call(method, target, &fields, body).unwrap();
        let location = format!("https://gateway.test:{}{target}", encrypted.port());
        assert_eq!((answer.status(), answer.header("location")), (308, Some(location)), "{target}");
    }
    assert_eq!(client.call("GET", "/%2e%2e/x", &[], b"").unwrap().code(), "bad_request");
    assert_eq!(client.call("GET", "/health", &[], b"").unwrap().status(), 200);
    let mut client = H2Client::connect_tls(&authority.client(), encrypted, "gateway.test");
    assert_eq!(client.call("GET", "/", &[], b"").unwrap().code(), "missing_token");
    assert!(origin.requests().is_empty());
}

#[test]
fn a_client_that_agrees_on_http2_must_begin_in_time() {
    let edge = Edge::start_with(&[&["a.test"]], "", "timeouts: { header: 500ms, idle: 30s }");
    let client = edge.client().with(|config| config.alpn_protocols = vec![b"h2".to_vec()]);
    for begin in [&b""[..], &PREFACE[..10]] {
        let mut connection = client.connect(edge.address, "a.test");
        let since = Instant::now();
        connection.send(begin);
        // The gateway may have sent its settings.
        let _ = connection.read_to_end();
        let lasted = since.elapsed().as_millis();
        assert!((400..5_000).contains(&lasted), "{begin:?}: {lasted} ms");
    }
}
