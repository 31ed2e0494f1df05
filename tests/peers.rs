//! Random spellings of hosts and paths, against models of how other servers read them: what passes an open route is for none
//! of them the protected host or path. It must not know how the gateway reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;

use percent_encoding::percent_decode_str;
use support::*;

/// Requests of each kind; TOLLGATE_FUZZ_RUNS asks for another number.
const RUNS: usize = 2_000;

fn runs() -> usize {
    std::env::var("TOLLGATE_FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().unwrap())
}

/// A gateway whose open route lies over the protected `/admin` and beside the protected host `admin.example`.
fn start(origin: &Origin, fold: bool) -> Gateway {
    Gateway::start_with_one_thread(&format!(
        "fold_paths: {fold}
auth: {}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes:
  - {{ prefix: /, upstream: up, auth: none }}
  - {{ prefix: /, host: admin.example, upstream: up }}
  - {{ prefix: /admin, upstream: up }}",
        auth("[]"),
        origin.url()
    ))
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// A path without empty segments, `.` and `..`.
fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    format!("/{}", segments.join("/"))
}

fn without_parameters(path: &str) -> String {
    let names = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
    names.collect::<Vec<_>>().join("/")
}

/// Decodes, merges slashes and removes dot segments; Go's ServeMux ends with the same path.
fn nginx(path: &str) -> String {
    clean(&decode(path))
}

/// Removes parameters, then does the same.
fn tomcat(path: &str) -> String {
    clean(&decode(&without_parameters(path)))
}

/// Decodes before it looks for parameters, and takes `\` for `/`, as some frameworks on Java and Windows do.
fn careless(path: &str) -> String {
    clean(&without_parameters(&decode(path).replace('\\', "/")))
}

/// Ignores case, and a slash at the end.
fn express(path: &str) -> String {
    clean(path).to_ascii_lowercase()
}

/// Ignores case, and dots and spaces at the end of a name.
fn windows(path: &str) -> String {
    let path = careless(path).to_ascii_lowercase();
    let names = path.split('/').map(|segment| segment.trim_end_matches(['.', ' ']));
    clean(&names.collect::<Vec<_>>().join("/"))
}

type Model = (&'static str, fn(&str) -> String);

const MODELS: [Model; 5] = [
    ("nginx", nginx),
    ("Tomcat", tomcat),
    ("a careless server", careless),
    ("Express", express),
    ("Windows", windows),
];

fn is_admin(path: &str) -> bool {
    path == "/admin" || path.starts_with("/admin/")
}

#[test]
fn no_server_behind_an_open_route_reads_the_protected_path() {
    let origin = Origin::start();
    let parts = [
        "/",
        "//",
        "admin",
        "Admin",
        "ADMIN",
        "%61dmin",
        "adm%69n",
        ".",
        "..",
        "%2e",
        "%2E%2e",
        ";",
        ";x=1",
        "%3b",
        "%3B",
        "%20",
        "%09",
        "%2f",
        "%5c",
        "\\",
        "x",
        "x/..",
        "%00",
        "?",
        "#",
        ":",
        "%C0%AF",
        "%E0%80%AF",
        "%0d%0a",
        "%25",
        "%2561",
        "[",
        "|",
        "~",
        "%7e",
        "+",
        "@",
        ",",
    ];
    for (fold, models) in [(false, &MODELS[..3]), (true, &MODELS[..])] {
        let gateway = start(&origin, fold);
        let (mut random, mut client) = (fastrand::Rng::with_seed(23), gateway.connect());
        let (mut open, mut protected) = (0, 0);
        for _ in 0..runs() {
            let mut target = String::from("/");
            // Half begin as the protected path, so that what follows it matters.
            target.push_str(if random.bool() { "" } else { "admin" });
            (0..random.usize(..5))
                .for_each(|_| target.push_str(parts[random.usize(..parts.len())]));
            let answer = client.call("GET", &target, &[], b"");
            match answer.status() {
                200 => open += 1,
                401 => protected += 1,
                status => {
                    assert_eq!(status, 400, "{target}");
                    client = gateway.connect();
                }
            }
            if answer.status() == 200 {
                let line = answer.text();
                let forwarded =
                    line.split(' ').nth(1).unwrap().split('?').next().unwrap().to_owned();
                for (name, model) in models {
                    let read = model(&forwarded);
                    assert!(
                        !is_admin(&read),
                        "{name} reads {forwarded}, sent as {target}, as {read}"
                    );
                }
            }
        }
        assert!(
            open > runs() / 20 && protected > runs() / 20,
            "{open} open, {protected} protected"
        );
    }
}

/// What the most generous server takes for the host.
fn generous(host: &str) -> String {
    let host = decode(host).to_ascii_lowercase();
    let host = host.trim().trim_start_matches("http://");
    let host = host.rsplit('@').next().unwrap_or_default();
    let end = host.find([':', ',', ';', '/', '?', '#', ' ', '\\']).unwrap_or(host.len());
    host[..end].trim().trim_matches('.').to_owned()
}

#[test]
fn no_server_behind_an_open_route_reads_the_protected_host() {
    let origin = Origin::start();
    origin.on("/host", |request, stream| {
        let host = request.all("host").join(" and ");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", host.len());
        stream.write_all((head + &host).as_bytes()).map(|()| true)
    });
    let gateway = start(&origin, false);
    let mut random = fastrand::Rng::with_seed(29);
    let edges = [
        "",
        "",
        ".",
        "..",
        ":80",
        ":080",
        ".:80",
        ":",
        " ",
        "\t",
        ",",
        ";",
        "%2e",
        "@",
        "/",
        "#",
        "?",
        "\\",
        ":80:80",
        "x",
        ",other.example",
        "other.example,",
        "u@",
        "%20",
        "\u{3002}",
    ];
    let (mut open, mut protected) = (0, 0);
    for _ in 0..runs() {
        let letters = "admin.example".chars().map(|letter| match random.usize(..40) {
            0..10 => letter.to_ascii_uppercase().to_string(),
            10 => format!("%{:02x}", letter as u32),
            11 => format!("{letter}{letter}"),
            12 => "_".into(),
            _ => letter.to_string(),
        });
        let letters: String = letters.collect();
        let (before, after) =
            (edges[random.usize(..edges.len())], edges[random.usize(..edges.len())]);
        let before = if random.usize(..4) == 0 { before } else { "" };
        let host = format!("{before}{letters}{after}");
        let answer = match random.usize(..3) {
            0 => gateway
                .connect()
                .send(format!("GET http://{host}/host HTTP/1.0\r\nConnection: close\r\n\r\n"))
                .read(),
            _ => gateway
                .connect()
                .send(format!("GET /host HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
                .read(),
        };
        match answer.status() {
            200 => {
                open += 1;
                let seen = answer.text();
                assert_ne!(generous(&seen), "admin.example", "{seen}, sent as {host:?}");
            }
            401 => protected += 1,
            404 => {}
            status => assert_eq!(status, 400, "{host:?}"),
        }
    }
    assert!(open > runs() / 50 && protected > runs() / 50, "{open} open, {protected} protected");
}
