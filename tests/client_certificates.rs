//! Certificates of clients: who may connect, what the upstream learns, and tokens that are bound to a certificate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::SocketAddr;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{DistinguishedName, DnType, SanType};
use rustls::HandshakeKind;
use serde_json::{Value, json};
use support::http2::H2Client;
use support::tls::{Authority, Files, Issued, TlsClient, listeners};
use support::token::{claims, now};
use support::*;
use tempfile::TempDir;

struct Edge {
    gateway: Gateway,
    address: SocketAddr,
    origin: Origin,
    /// Issues the gateway's certificate.
    servers: Authority,
    /// Vouches for clients.
    clients: Authority,
    server: Files,
    dir: TempDir,
}

impl Edge {
    fn start(client_auth: &str) -> Self {
        let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
        let (dir, origin) = (TempDir::new().unwrap(), Origin::start());
        let server = servers.issue(&["a.test"]).write(dir.path(), "server");
        std::fs::write(dir.path().join("clients.pem"), &clients.pem).unwrap();
        let gateway = Gateway::start(&yaml(&dir, &server, client_auth, &origin));
        let address = listeners(&gateway)[1];
        Self { gateway, address, origin, servers, clients, server, dir }
    }

    fn reload(&self, client_auth: &str) {
        let generation = self.gateway.metric("tollgate_config_generation").unwrap();
        self.gateway.reload(&yaml(&self.dir, &self.server, client_auth, &self.origin));
        wait_for("the reload", || {
            (self.gateway.metric("tollgate_config_generation")? > generation).then_some(())
        });
    }

    /// A client with a certificate.
    fn client(&self, own: &Issued) -> TlsClient {
        self.servers.client_with(own)
    }

    /// The status of a request on a connection of its own; 0 where there is none.
    fn status(&self, client: &TlsClient, fields: &[(&str, &str)]) -> u16 {
        let connection = client.try_connect(self.address, "a.test");
        let answer = connection.and_then(|mut open| open.try_call("GET", "/open", fields, b""));
        answer.map_or(0, |answer| answer.status())
    }
}

fn yaml(dir: &TempDir, server: &Files, client_auth: &str, origin: &Origin) -> String {
    format!(
        "listeners:
  - {{ address: \"127.0.0.1:0\" }}
  - address: 127.0.0.1:0
    tls: {{ certificates: [ {} ], client_auth: {client_auth}, client_ca: {} }}
auth: {}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes:
  - {{ prefix: /, upstream: up }}
  - {{ prefix: /open, upstream: up, auth: none }}
  - prefix: /ruled
    upstream: up
    auth: none
    headers:
      request: {{ set: {{ X-SSL-Subject: \"%{{client_cert_subject}}\", X-Who: \"%{{client_cert_fingerprint}} %{{client_cert_san}}\" }} }}
      response: {{ set: {{ X-Seen: \"%{{client_cert_subject}}\" }} }}",
        server.yaml(),
        dir.path().join("clients.pem").display(),
        auth("[ { api_key: alice } ]"),
        origin.url(),
    )
}

fn thumbprint(issued: &Issued) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, &issued.der()))
}

#[test]
fn clients_need_certificates_where_they_are_required() {
    let (own, strange) = (&["own.test"], Authority::new("strangers"));
    for (client_auth, without) in [("required", 0), ("optional", 200), ("none", 200)] {
        let edge = Edge::start(client_auth);
        let known = edge.client(&edge.clients.issue(own));
        let stranger = edge.client(&strange.issue(own));
        let (day, now) = (std::time::Duration::from_secs(86_400), std::time::SystemTime::now());
        let old = edge.client(&edge.clients.issue_valid(own, now - 2 * day, now - day));
        let asked = client_auth != "none";
        assert_eq!(edge.status(&known, &[]), 200, "{client_auth}");
        assert_eq!(edge.status(&edge.servers.client(), &[]), without, "{client_auth}");
        for client in [&stranger, &old] {
            assert_eq!(edge.status(client, &[]), if asked { 0 } else { 200 }, "{client_auth}");
        }
        let failed = "tollgate_tls_handshakes_total{outcome=\"certificate\"}";
        let expected = [("required", 3.0), ("optional", 2.0), ("none", 0.0)];
        let expected = expected.iter().find(|(word, _)| *word == client_auth).unwrap().1;
        wait_for("the count", || (edge.gateway.metric(failed)? == expected).then_some(()));
    }
}

#[test]
fn the_upstream_learns_of_the_certificate_and_nobody_can_pretend_one() {
    let edge = Edge::start("optional");
    let own = edge.clients.issue_with(&["own.test", "10.0.0.1"], |params| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Acme, Inc");
        params.distinguished_name.push(DnType::CommonName, "billing");
        let uri = "spiffe://acme/x,DNS:root".try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
    });
    let forged = [
        ("X-Client-Cert-Subject", "CN=root"),
        ("X-Client-Cert-San", "DNS:root"),
        ("X-Client-Cert-Fingerprint", "00"),
        ("X_Client_Cert_Subject", "CN=root"),
        ("X-Client.Cert-Fingerprint", "00"),
    ];
    let with = |case: &'static str| [&forged[..], &[("X-Case", case)]].concat();
    assert_eq!(edge.status(&edge.client(&own), &with("shown")), 200);
    assert_eq!(edge.status(&edge.servers.client(), &with("none")), 200);
    edge.gateway.call("GET", "/open", &with("plain"), b"");
    let told = |case: &str| -> Vec<(String, String)> {
        let request = edge.origin.case(case).unwrap();
        let mut fields: Vec<_> = request
            .headers
            .into_iter()
            .map(|(name, value)| (name.to_lowercase(), value))
            .filter(|(name, _)| name.contains("cert"))
            .collect();
        fields.sort();
        fields
    };
    let fingerprint: String =
        digest(&SHA256, &own.der()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = [
        ("x-client-cert-fingerprint", fingerprint.as_str()),
        ("x-client-cert-san", "DNS:own.test,IP:10.0.0.1,URI:spiffe://acme/x%2CDNS:root"),
        ("x-client-cert-subject", "CN=billing,O=Acme\\, Inc"),
    ];
    let shown = told("shown");
    let shown: Vec<_> = shown.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(shown, expected);
    assert!(told("none").is_empty() && told("plain").is_empty());
}

#[test]
fn header_rules_tell_the_certificate_in_fields_of_their_own() {
    let edge = Edge::start("optional");
    let issue = |name: &str, alternatives: &[&str]| {
        edge.clients.issue_with(alternatives, |params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
        })
    };
    let hostile = issue("é,CN=root\r\nX-Evil: 1", &["own.test"]);
    let nameless = issue("plain", &[]);
    let call = |client: &TlsClient, case: &str| {
        // The rules' fields are not the client's to write.
        let fields = [("X-Case", case), ("X_SSL_Subject", "CN=root"), ("X-Who", "root")];
        let answer = client.connect(edge.address, "a.test").call("GET", "/ruled", &fields, b"");
        assert_eq!(answer.status(), 200);
        let seen = edge.origin.case(case).unwrap();
        assert!(seen.all("x-evil").is_empty() && seen.all("x_ssl_subject").is_empty());
        let own = |message: &Message, name: &str| -> Vec<String> {
            message.all(name).into_iter().map(str::to_owned).collect()
        };
        (own(&seen, "x-ssl-subject"), own(&seen, "x-who"), own(&answer, "x-seen"))
    };
    let fingerprint: String =
        digest(&SHA256, &hostile.der()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let escaped = "CN=\\C3\\A9\\,CN\\=root\\0D\\0AX-Evil: 1".to_owned();
    let who = format!("{fingerprint} DNS:own.test");
    assert_eq!(
        call(&edge.client(&hostile), "hostile"),
        (vec![escaped.clone()], vec![who], vec![escaped])
    );
    // A value that is missing removes the whole field.
    let plain = "CN=plain".to_owned();
    assert_eq!(
        call(&edge.client(&nameless), "nameless"),
        (vec![plain.clone()], vec![], vec![plain])
    );
    assert_eq!(call(&edge.servers.client(), "none"), (vec![], vec![], vec![]));
}

#[test]
fn a_token_that_is_bound_to_a_certificate_needs_it() {
    let edge = Edge::start("optional");
    let (own, other) = (edge.clients.issue(&["own.test"]), edge.clients.issue(&["other.test"]));
    let token = |cnf: Value| {
        let token = claims(json!({ "api_key": "alice", "exp": now() + 3600, "cnf": cnf }));
        format!("Bearer {token}")
    };
    let answer = |client: &TlsClient, token: &str, id: &str| {
        let fields = [("Authorization", token), ("X-Request-ID", id)];
        let answer = client.connect(edge.address, "a.test").call("GET", "/", &fields, b"");
        let line = edge.gateway.wait_log(id, |line| line["request_id"] == id);
        (answer.status(), line["reason"].as_str().unwrap_or_default().to_owned())
    };
    let (with_own, with_other) = (edge.client(&own), edge.client(&other));
    let without = edge.servers.client();
    let bound = token(json!({ "x5t#S256": thumbprint(&own) }));
    // In any order: a token that was verified on its own connection is remembered.
    for round in 0..2 {
        for (client, name, expected) in [
            (&without, "without", (401, "certificate".to_owned())),
            (&with_other, "other", (401, "certificate".to_owned())),
            (&with_own, "own", (200, String::new())),
        ] {
            assert_eq!(answer(client, &bound, &format!("{name}-{round}")), expected, "{name}");
        }
    }
    let plain = edge.gateway.call("GET", "/", &[("Authorization", &bound)], b"");
    assert_eq!((plain.status(), plain.code()), (401, "invalid_token".into()));
    // A token without a binding goes everywhere.
    assert_eq!(answer(&with_own, &bearer("alice"), "free").0, 200);
    assert_eq!(
        edge.gateway.call("GET", "/", &[("Authorization", &bearer("alice"))], b"").status(),
        200
    );
    for (nth, cnf) in [
        json!({}),
        json!(null),
        json!("text"),
        json!([]),
        json!({ "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" }),
        json!({ "jwk": {} }),
        json!({ "x5t#S256": thumbprint(&own), "jkt": "x" }),
        json!({ "x5t#S256": 7 }),
        json!({ "x5t#S256": "" }),
        json!({ "x5t#S256": &thumbprint(&own)[..42] }),
        json!({ "x5t#S256": thumbprint(&own) + "A" }),
        json!({ "x5t#S256": thumbprint(&own) + "=" }),
        json!({ "x5t#s256": thumbprint(&own) }),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = answer(&with_own, &token(cnf.clone()), &format!("cnf-{nth}"));
        assert_eq!(refused, (401, "wrong_claim".into()), "{cnf}");
    }
}

#[test]
fn an_authority_that_leaves_takes_its_connections_along() {
    let edge = Edge::start("optional");
    let second = Authority::new("second");
    let (own, new) = (edge.clients.issue(&["own.test"]), second.issue(&["new.test"]));
    let (old_client, new_client) = (edge.client(&own), edge.client(&new));
    let mut kept = old_client.connect(edge.address, "a.test");
    let mut bare = edge.servers.client().connect(edge.address, "a.test");
    assert_eq!((kept.get("/open").status(), bare.get("/open").status()), (200, 200));
    // No session is resumed, which would bring the certificate along.
    let kind = old_client.connect(edge.address, "a.test").session().handshake_kind();
    assert_eq!(kind, Some(HandshakeKind::Full));

    // One more authority harms no connection.
    let file = edge.dir.path().join("clients.pem");
    std::fs::write(&file, format!("{}{}", edge.clients.pem, second.pem)).unwrap();
    wait_for("the second authority", || (edge.status(&new_client, &[]) == 200).then_some(()));
    assert_eq!(kept.get("/open").status(), 200);
    let mut newer = new_client.connect(edge.address, "a.test");
    assert_eq!(newer.get("/open").status(), 200);

    // A request under way ends as it began. Then the first authority leaves.
    let gate = edge.origin.hold("/open/slow");
    let mut slow = old_client.connect(edge.address, "a.test");
    slow.send(request("GET", "/open/slow", &[], b""));
    edge.origin.one("/open/slow");
    std::fs::write(&file, &second.pem).unwrap();
    wait_for("the first authority to leave", || (edge.status(&old_client, &[]) == 0).then_some(()));
    gate.open();
    assert_eq!(slow.try_read().unwrap().text(), "held");
    for connection in [&mut kept, &mut slow] {
        let before = edge.origin.requests().len();
        let answer = connection.get("/open");
        assert_eq!((answer.status(), answer.code()), (421, "misdirected".into()));
        assert_eq!(answer.header("connection").unwrap(), "close");
        assert!(connection.read_to_end().unwrap().is_empty());
        assert_eq!(edge.origin.requests().len(), before);
    }
    assert_eq!((newer.get("/open").status(), bare.get("/open").status()), (200, 200));

    // A reload requires certificates: connections without one end, too.
    edge.reload("required");
    assert_eq!(bare.get("/ready").status(), 200);
    assert_eq!((newer.get("/open").status(), bare.get("/open").status()), (200, 421));

    // A broken file keeps the authorities.
    std::fs::write(&file, "nothing").unwrap();
    edge.gateway.wait_log("the refusal", |line| {
        line["message"].as_str().unwrap().contains("client authorities not replaced")
    });
    assert_eq!(edge.status(&new_client, &[]), 200);
    assert_eq!(newer.get("/open").status(), 200);
}

#[test]
fn a_certificate_counts_over_http2_as_over_http1() {
    let edge = Edge::start("optional");
    let own = edge.clients.issue(&["own.test"]);
    let connect = |client: &TlsClient| H2Client::connect_tls(client, edge.address, "a.test");
    let old_client = edge.client(&own);
    let (mut with, mut without) = (connect(&old_client), connect(&edge.servers.client()));

    // The upstream learns of it.
    let fields =
        |case| [("X-Case", case), ("X-Client-Cert-Subject", "CN=root"), ("X_Client_Cert_San", "x")];
    assert_eq!(with.call("GET", "/open", &fields("with"), b"").unwrap().status(), 200);
    assert_eq!(without.call("GET", "/open", &fields("without"), b"").unwrap().status(), 200);
    let fingerprint: String =
        digest(&SHA256, &own.der()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let seen = edge.origin.case("with").unwrap();
    assert_eq!(seen.all("x-client-cert-fingerprint"), [fingerprint.as_str()]);
    assert_eq!(seen.all("x-client-cert-san"), ["DNS:own.test"]);
    let seen = edge.origin.case("without").unwrap();
    assert!(!seen.headers.iter().any(|(name, _)| name.to_lowercase().contains("cert")));

    // A token that is bound to it.
    let bound = json!({ "x5t#S256": thumbprint(&own) });
    let bound = claims(json!({ "api_key": "alice", "exp": now() + 3600, "cnf": bound }));
    let authorization = format!("Bearer {bound}");
    let fields = [("Authorization", &*authorization)];
    for _ in 0..2 {
        let refused = without.call("GET", "/", &fields, b"").unwrap();
        assert_eq!((refused.status(), refused.code()), (401, "invalid_token".into()));
        assert_eq!(with.call("GET", "/", &fields, b"").unwrap().status(), 200);
    }

    // Its authority leaves.
    let gate = edge.origin.hold("/open/slow");
    let (slow, _) = with.begin("GET", "/open/slow", &[], true);
    edge.origin.one("/open/slow");
    std::fs::write(edge.dir.path().join("clients.pem"), Authority::new("second").pem).unwrap();
    wait_for("the authority to leave", || (edge.status(&old_client, &[]) == 0).then_some(()));
    let before = edge.origin.requests().len();
    let answer = with.call("GET", "/open", &[], b"").unwrap();
    assert_eq!((answer.status(), answer.code()), (421, "misdirected".into()));
    assert_eq!(edge.origin.requests().len(), before);
    gate.open();
    assert_eq!(with.receive(slow).unwrap().text(), "held", "a request that had begun");
    // The connection ends; the gateway may be gone before the client's goodbye.
    let _ = with.end();
    assert_eq!(without.call("GET", "/open", &[], b"").unwrap().status(), 200);

    // A certificate is required.
    edge.reload("required");
    assert_eq!(without.call("GET", "/ready", &[], b"").unwrap().status(), 200);
    let answer = without.call("GET", "/open", &[], b"").unwrap();
    assert_eq!((answer.status(), answer.code()), (421, "misdirected".into()));
    let _ = without.end();
}
