//! What a listener agrees to when clients offer anything that TLS ever had: hellos as bytes, as testssl.sh sends them. It
//! must not know the library that shakes hands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use support::tls::{Authority, Files, listeners};
use support::*;
use tempfile::TempDir;

const TLS_1_2: u16 = 0x0303;
const TLS_1_3: u16 = 0x0304;

/// Alerts (RFC 8446 section 6, RFC 7301 section 3.2).
const HANDSHAKE_FAILURE: u8 = 40;
const PROTOCOL_VERSION: u8 = 70;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Extensions (IANA).
const GROUPS: u16 = 10;
const SIGNATURES: u16 = 13;
const HEARTBEAT: u16 = 15;
const ALPN: u16 = 16;
const PADDING: u16 = 21;
const EXTENDED_MASTER_SECRET: u16 = 23;
const VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;
const RENEGOTIATION: u16 = 0xff01;

/// The suites of TLS 1.2 with an ephemeral key and authenticated encryption, by the kind of certificate.
const ECDSA_SUITES: [u16; 3] = [0xc02b, 0xc02c, 0xcca9];
const RSA_SUITES: [u16; 3] = [0xc02f, 0xc030, 0xcca8];
/// The suites of TLS 1.3.
const SUITES_1_3: [u16; 3] = [0x1301, 0x1302, 0x1303];

/// A ClientHello.
#[derive(Clone)]
struct Hello {
    version: u16,
    suites: Vec<u16>,
    compressions: Vec<u8>,
    extensions: Vec<(u16, Vec<u8>)>,
}

/// What the listener says to it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    alert: Option<u8>,
    version: u16,
    suite: u16,
    compression: u8,
    random: Vec<u8>,
    extensions: Vec<(u16, Vec<u8>)>,
}

fn list(items: &[u16]) -> Vec<u8> {
    let bytes: Vec<u8> = items.iter().flat_map(|item| item.to_be_bytes()).collect();
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()
}

fn protocols(names: &[&str]) -> Vec<u8> {
    let name = |name: &&str| [&[name.len() as u8][..], name.as_bytes()].concat();
    let bytes: Vec<u8> = names.iter().flat_map(name).collect();
    [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()
}

impl Hello {
    /// What a client of TLS 1.2 offers, with `suites`.
    fn new(suites: &[u16]) -> Self {
        let signatures = list(&[0x0403, 0x0503, 0x0807, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501]);
        let extensions = vec![
            // The host a.test (RFC 6066).
            (0, [&[0, 9, 0, 0, 6][..], b"a.test"].concat()),
            (GROUPS, list(&[0x001d, 0x0017, 0x0018])),
            (11, vec![1, 0]),
            (SIGNATURES, signatures),
            (EXTENDED_MASTER_SECRET, vec![]),
            (RENEGOTIATION, vec![0]),
        ];
        Self { version: TLS_1_2, suites: suites.to_vec(), compressions: vec![0], extensions }
    }

    /// What a client of TLS 1.3 offers. It has no key to share yet, so the listener asks for one.
    fn new_1_3(suites: &[u16]) -> Self {
        let versions = [&[4][..], &TLS_1_3.to_be_bytes(), &TLS_1_2.to_be_bytes()].concat();
        Self::new(suites).with(VERSIONS, versions).with(KEY_SHARE, vec![0, 0])
    }

    /// The same with this in an extension.
    fn with(mut self, number: u16, bytes: Vec<u8>) -> Self {
        self.extensions.retain(|(other, _)| *other != number);
        self.extensions.push((number, bytes));
        self
    }

    /// The handshake message.
    fn message(&self) -> Vec<u8> {
        let mut body = self.version.to_be_bytes().to_vec();
        body.extend_from_slice(&[7; 32]);
        body.push(0);
        body.extend(list(&self.suites));
        body.push(self.compressions.len() as u8);
        body.extend_from_slice(&self.compressions);
        let extension = |(number, bytes): &(u16, Vec<u8>)| {
            [&number.to_be_bytes()[..], &(bytes.len() as u16).to_be_bytes(), bytes].concat()
        };
        let extensions: Vec<u8> = self.extensions.iter().flat_map(extension).collect();
        body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat()
    }

    fn ask(&self, address: SocketAddr) -> Said {
        self.ask_in_records(address, 16_000)
    }

    /// Sends the message in records of `size` bytes, and reads the first answer.
    fn ask_in_records(&self, address: SocketAddr, size: usize) -> Said {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = Vec::new();
        for piece in self.message().chunks(size) {
            bytes.extend_from_slice(&[22, 3, 1]);
            bytes.extend_from_slice(&(piece.len() as u16).to_be_bytes());
            bytes.extend_from_slice(piece);
        }
        // The listener may have refused the beginning.
        let _ = stream.write_all(&bytes);
        let mut header = [0; 5];
        if stream.read_exact(&mut header).is_err() {
            return Said::default();
        }
        let mut body = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut body).unwrap();
        if header[0] == 21 {
            return Said { alert: Some(body[1]), ..Said::default() };
        }
        assert_eq!((header[0], body[0]), (22, 2), "no ServerHello");
        Said::parse(&body[4..])
    }
}

impl Said {
    /// Reads the body of a ServerHello.
    fn parse(body: &[u8]) -> Self {
        let number = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        let session = usize::from(body[34]);
        let mut at = 35 + session;
        let mut said = Self {
            version: number(0),
            random: body[2..34].to_vec(),
            suite: number(at),
            compression: body[at + 2],
            ..Self::default()
        };
        at += 5;
        while at + 4 <= body.len() {
            let length = usize::from(number(at + 2));
            said.extensions.push((number(at), body[at + 4..][..length].to_vec()));
            at += 4 + length;
        }
        if let Some(version) = said.extension(VERSIONS) {
            said.version = u16::from_be_bytes([version[0], version[1]]);
        }
        said
    }

    fn extension(&self, number: u16) -> Option<&[u8]> {
        self.extensions.iter().find(|(other, _)| *other == number).map(|(_, bytes)| &**bytes)
    }
}

/// A gateway with a listener without TLS and three with it: with a certificate of each kind, with TLS 1.3 alone, and
/// without HTTP/2.
struct World {
    gateway: Gateway,
    both: SocketAddr,
    newest: SocketAddr,
    http1: SocketAddr,
    _origin: Origin,
    _dir: TempDir,
}

fn world() -> World {
    let (origin, authority, dir) =
        (Origin::start(), Authority::new("tests"), TempDir::new().unwrap());
    let ecdsa = authority.issue(&["a.test"]).write(dir.path(), "ecdsa").yaml();
    let rsa = Files { certificate: dir.path().join("rsa.pem"), key: dir.path().join("rsa.key") };
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "9",
            "-subj",
            "/CN=a.test",
        ])
        .args(["-addext", "subjectAltName=DNS:a.test"])
        .args([&"-out".into(), &rsa.certificate, &"-keyout".into(), &rsa.key])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    let certificates = format!("certificates: [ {ecdsa}, {} ]", rsa.yaml());
    let gateway = Gateway::start(&format!(
        "listeners:
  - {{ address: \"127.0.0.1:0\" }}
  - {{ address: \"127.0.0.1:0\", tls: {{ {certificates} }} }}
  - {{ address: \"127.0.0.1:0\", tls: {{ {certificates}, minimum_version: \"1.3\" }} }}
  - {{ address: \"127.0.0.1:0\", tls: {{ {certificates} }}, http2: false }}
timeouts: {{ idle: 2s }}
{}",
        upstream_config(&[&origin.url()], "")
    ));
    let [_, both, newest, http1] =
        wait_for("four listeners", || listeners(&gateway).try_into().ok());
    World { gateway, both, newest, http1, _origin: origin, _dir: dir }
}

/// The suites among `offered` that the listener agrees to.
fn agreed(address: SocketAddr, offered: &[u16], hello: impl Fn(&[u16]) -> Hello) -> Vec<u16> {
    let (mut left, mut agreed) = (offered.to_vec(), Vec::new());
    loop {
        let said = hello(&left).ask(address);
        if said.suite == 0 {
            let expected = Said { alert: Some(HANDSHAKE_FAILURE), ..Said::default() };
            assert_eq!(said, expected, "{left:x?}");
            agreed.sort_unstable();
            return agreed;
        }
        assert!(left.contains(&said.suite), "{:x} was not offered", said.suite);
        left.retain(|suite| *suite != said.suite);
        agreed.push(said.suite);
    }
}

#[test]
fn only_suites_of_today_are_agreed_to() {
    let world = world();
    // Every number there is, but for those that are no suites (RFC 5746, RFC 7507).
    let all: Vec<u16> = (0..=u16::MAX).filter(|suite| ![0x00ff, 0x5600].contains(suite)).collect();
    let of_both = |hello: &dyn Fn(&[u16]) -> Hello| {
        let found: Vec<u16> =
            all.chunks(512).flat_map(|offered| agreed(world.both, offered, hello)).collect();
        found
    };
    let mut expected = [ECDSA_SUITES, RSA_SUITES].concat();
    expected.sort_unstable();
    assert_eq!(of_both(&Hello::new), expected, "of TLS 1.2");
    // A client that knows TLS 1.3 gets it, and never an older one.
    assert_eq!(of_both(&Hello::new_1_3), SUITES_1_3);
    // With the newest alone, nothing of the older one is left.
    for suite in [ECDSA_SUITES, RSA_SUITES].concat() {
        assert_eq!(Hello::new_1_3(&[suite]).ask(world.newest).suite, 0, "{suite:x}");
    }
}

#[test]
fn old_versions_and_weak_keys_are_refused() {
    let world = world();
    let suites = [ECDSA_SUITES, RSA_SUITES].concat();
    let refused = |alert: u8| Said { alert: Some(alert), ..Said::default() };
    // SSL 3.0, TLS 1.0 and 1.1.
    for version in [0x0300, 0x0301, 0x0302] {
        let mut hello = Hello::new(&suites);
        hello.version = version;
        assert_eq!(hello.ask(world.both), refused(PROTOCOL_VERSION), "{version:x}");
    }
    assert_eq!(Hello::new(&suites).ask(world.newest), refused(PROTOCOL_VERSION));
    let hello = |number, bytes| Hello::new(&suites).with(number, bytes).ask(world.both);
    for (what, said) in [
        ("ffdhe2048 and secp521r1", hello(GROUPS, list(&[0x0100, 0x0019]))),
        ("SHA-1", hello(SIGNATURES, list(&[0x0203, 0x0201]))),
        ("no suite", Hello::new(&[]).ask(world.both)),
        ("only a number that is no suite", Hello::new(&[0x00ff]).ask(world.both)),
    ] {
        assert!(said.suite == 0 && said.alert.is_some(), "{what}: {said:?}");
    }
    // The gateway still serves those who agree with it.
    assert_eq!(Hello::new(&suites).ask(world.both).version, TLS_1_2);
    let plain = world.gateway.get("/");
    assert_eq!(plain.status(), 200);
}

#[test]
fn what_protects_older_clients_is_there() {
    let world = world();
    let suites = [ECDSA_SUITES, RSA_SUITES].concat();
    let hello = Hello::new(&suites).with(HEARTBEAT, vec![1]);
    let said = hello.ask(world.both);
    assert_eq!((said.version, said.compression), (TLS_1_2, 0));
    assert_eq!(said.extension(EXTENDED_MASTER_SECRET), Some(&[][..]), "RFC 7627");
    assert_eq!(said.extension(RENEGOTIATION), Some(&[0][..]), "RFC 5746");
    assert_eq!(said.extension(HEARTBEAT), None);
    // A client of TLS 1.3 that was led to 1.2 sees it here (RFC 8446 section 4.1.3).
    assert_eq!(&said.random[24..], b"DOWNGRD\x01");
    // Compression is not agreed to, also where nothing else is offered.
    let mut hello = Hello::new(&suites);
    hello.compressions = vec![1, 0];
    assert_eq!(hello.ask(world.both).compression, 0);
    hello.compressions = vec![1];
    assert!(hello.ask(world.both).alert.is_some());
}

#[test]
fn a_protocol_that_is_not_spoken_is_refused() {
    let world = world();
    let suites = [&SUITES_1_3[..], &ECDSA_SUITES, &RSA_SUITES].concat();
    let refused = Some(NO_APPLICATION_PROTOCOL);
    for (address, names, chosen) in [
        (world.both, &["h2", "http/1.1"][..], Ok("h2")),
        (world.both, &["http/1.1", "h2"], Ok("h2")),
        (world.both, &["http/1.1"], Ok("http/1.1")),
        (world.both, &["\u{a}\u{a}", "spdy/3", "h2"], Ok("h2")),
        (world.http1, &["h2", "http/1.1"], Ok("http/1.1")),
        (world.http1, &["h2"], Err(refused)),
        // A server of mail or of files would be the victim (ALPACA).
        (world.both, &["smtp"], Err(refused)),
        (world.both, &["ftp", "imap", "h3"], Err(refused)),
    ] {
        // TLS 1.3 tells the protocol in what is encrypted, TLS 1.2 in the hello.
        let said = Hello::new(&suites).with(ALPN, protocols(names)).ask(address);
        match chosen {
            Ok(name) => {
                assert_eq!(said.extension(ALPN), Some(&*protocols(&[name])), "{names:?}: {said:?}");
            }
            Err(alert) => assert_eq!(said.alert, alert, "{names:?}"),
        }
    }
    let said = Hello::new(&suites).ask(world.both);
    assert_eq!((said.alert, said.extension(ALPN)), (None, None), "without ALPN");
}

#[test]
fn unknown_numbers_and_odd_records_do_no_harm() {
    let world = world();
    let suites = [&[0x0a0a][..], &SUITES_1_3, &ECDSA_SUITES, &[0xfafa, 0x5600]].concat();
    let versions = [&[8][..], &list(&[0x7a7a, 0x0305, TLS_1_3, TLS_1_2])[2..]].concat();
    let hello = Hello::new_1_3(&suites)
        .with(VERSIONS, versions)
        .with(GROUPS, list(&[0x2a2a, 0x6399, 0x0017]))
        .with(0x1a1a, vec![0])
        .with(0xeaea, vec![]);
    let said = hello.ask(world.both);
    assert_eq!((said.alert, said.version), (None, TLS_1_3), "GREASE");
    assert!(SUITES_1_3.contains(&said.suite));
    assert_eq!(said.extension(KEY_SHARE), Some(&[0, 0x17][..]), "it asks for a key of P-256");
    for size in [1, 5, 100] {
        assert_eq!(hello.ask_in_records(world.both, size).version, TLS_1_3, "records of {size}");
    }
    let long = Hello::new(&suites).with(PADDING, vec![0; 12_000]);
    assert_eq!(long.ask(world.both).version, TLS_1_2);
    let endless = Hello::new(&suites).with(PADDING, vec![0; 65_000]);
    let _ = endless.ask(world.both);
    assert_eq!(Hello::new(&suites).ask(world.both).version, TLS_1_2, "the next client is served");
}

#[test]
fn a_client_cannot_ask_for_a_second_handshake() {
    let world = world();
    let mut openssl = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &world.both.to_string(), "-servername", "a.test"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A line that begins with R asks for it. The input stays open until the connection ends.
    let mut input = openssl.stdin.take().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    input.write_all(b"R\n").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    input.write_all(b"Q\n").unwrap();
    let output = openssl.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("RENEGOTIATING"), "it was not asked: {said}");
    assert!(said.contains("no renegotiation"), "{said}");
    assert!(said.contains("Secure Renegotiation IS supported"), "{said}");
    assert!(said.contains("Compression: NONE"), "{said}");
}
