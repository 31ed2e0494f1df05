//! The cases that are compared, and their proxies. A new case is a line in `CASES`. It must not know how figures are printed.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;

use crate::load::{self, Load};
use crate::processes::{Placement, Process, Side, free_address};
use crate::transfer::{self, Way};
use crate::{Failure, Identity};

const SECRET: &str = "signs the tokens of the edge bench and nothing else, 64 bytes ok";

/// A case that is measured.
pub struct Case {
    /// The name on the command line and in the report.
    pub name: &'static str,
    /// A description of a few words.
    pub what: &'static str,
    work: Work,
}

/// The work of the clients.
#[derive(Clone, Copy)]
enum Work {
    Requests(Load),
    Large(Way),
}

/// All of them, in the order they are measured.
pub const CASES: [Case; 7] = [
    Case {
        name: "tls",
        what: "HTTP/1.1 over TLS 1.3, kept connections, requests/s",
        work: Work::Requests(Load::Tls),
    },
    Case {
        name: "handshakes",
        what: "TLS 1.3 handshakes, one request each, handshakes/s",
        work: Work::Requests(Load::Handshakes),
    },
    Case {
        name: "http2",
        what: "HTTP/2 over TLS, 100 streams a connection, requests/s",
        work: Work::Requests(Load::Http2 { tls: true }),
    },
    Case {
        name: "h2c",
        what: "HTTP/2 without TLS, 100 streams a connection, requests/s",
        work: Work::Requests(Load::Http2 { tls: false }),
    },
    Case {
        name: "grpc",
        what: "gRPC unary, 100 streams a connection, calls/s",
        work: Work::Requests(Load::Grpc),
    },
    Case {
        name: "upload",
        what: "a body of 1 GiB to the origin, MB/s",
        work: Work::Large(Way::Up),
    },
    Case {
        name: "download",
        what: "a body of 1 GiB from the origin, MB/s",
        work: Work::Large(Way::Down),
    },
];

/// The parts that all cases share.
pub struct Bench {
    placement: Placement,
    origin: SocketAddr,
    origin_http2: SocketAddr,
    token: String,
    identity: Identity,
    gateway: PathBuf,
    _origins: [Process; 2],
    // Last, because fields are dropped in order: the processes write into it.
    directory: TempDir,
}

/// One measurement of a proxy.
struct Measured {
    rate: f64,
    /// Growth of the memory that the proxy needed at most, in MB.
    grown: f64,
}

/// The medians of a case.
pub struct Compared {
    bare: f64,
    gateway: f64,
    ratios: Vec<f64>,
    grown: [f64; 2],
}

impl fmt::Display for Compared {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most) = (self.ratios.first(), self.ratios.last());
        let (least, most) = (least.unwrap_or(&f64::NAN), most.unwrap_or(&f64::NAN));
        let ratio = format!("{:.2} ({least:.2}-{most:.2})", middle(&self.ratios));
        write!(out, "{:>12.0} {:>12.0} {ratio:>20}", self.bare, self.gateway)?;
        let [bare, gateway] = self.grown;
        write!(out, "  memory +{gateway:.1} MB (bare +{bare:.1})")
    }
}

impl Bench {
    /// Starts the origins; `gateway` is the program that is measured.
    ///
    /// # Errors
    /// When a process does not start.
    pub fn start(gateway: PathBuf) -> Result<Self, Failure> {
        let placement = Placement::of_this_machine(1)?;
        let directory = tempfile::tempdir()?;
        let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()])?;
        let identity = Identity {
            certificate: directory.path().join("certificate.pem"),
            private_key: directory.path().join("key.pem"),
        };
        std::fs::write(&identity.certificate, made.cert.pem())?;
        std::fs::write(&identity.private_key, made.signing_key.serialize_pem())?;
        let start = |address: SocketAddr, http2: bool| {
            let mut command = placement.command(Side::Rest, std::env::current_exe()?);
            command.args(["origin", &address.to_string()]);
            if http2 {
                command.arg("--http2");
            }
            let log = directory.path().join(format!("origin-{}.log", address.port()));
            let mut process = Process::start(command, log)?;
            process.wait_until_listening(address)?;
            Ok::<_, Failure>(process)
        };
        let (origin, origin_http2) = (free_address()?, free_address()?);
        let origins = [start(origin, false)?, start(origin_http2, true)?];
        let token = sign()?;
        Ok(Self {
            placement,
            origin,
            origin_http2,
            token,
            identity,
            gateway,
            _origins: origins,
            directory,
        })
    }

    /// Measures `case` in `rounds`, the bare proxy before and after the gateway.
    ///
    /// # Errors
    /// When a proxy does not start, or gives other answers than the case measures.
    pub fn compare(&self, case: &Case, rounds: u64, seconds: u64) -> Result<Compared, Failure> {
        let mut bare = vec![self.measure(case, true, seconds)?];
        let mut gateway: Vec<Measured> = Vec::new();
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let measured = self.measure(case, false, seconds)?;
            let after = self.measure(case, true, seconds)?;
            let before = bare.last().map_or(f64::NAN, |before| before.rate);
            ratios.push(measured.rate * 2.0 / (before + after.rate));
            gateway.push(measured);
            bare.push(after);
        }
        ratios.sort_by(f64::total_cmp);
        let median = |of: &[Measured], figure: fn(&Measured) -> f64| {
            let mut figures: Vec<_> = of.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            middle(&figures)
        };
        Ok(Compared {
            bare: median(&bare, |round| round.rate),
            gateway: median(&gateway, |round| round.rate),
            ratios,
            grown: [median(&bare, |round| round.grown), median(&gateway, |round| round.grown)],
        })
    }

    fn measure(&self, case: &Case, is_bare: bool, seconds: u64) -> Result<Measured, Failure> {
        let address = free_address()?;
        let command = match is_bare {
            true => self.bare(case, address)?,
            false => self.gateway(case, address)?,
        };
        let mut proxy = Process::start(command, self.directory.path().join("proxy.log"))?;
        let measured = self.observe(case, &mut proxy, address, seconds);
        let measured = measured.map_err(|failure| format!("{failure}\n{}", proxy.last_lines()))?;
        if !is_bare {
            proxy.end()?;
        }
        Ok(measured)
    }

    fn observe(
        &self,
        case: &Case,
        proxy: &mut Process,
        address: SocketAddr,
        seconds: u64,
    ) -> Result<Measured, Failure> {
        proxy.wait_until_listening(address)?;
        let run = |seconds| match case.work {
            Work::Requests(load) => load::run(
                &self.placement,
                load,
                address,
                &self.token,
                self.directory.path(),
                seconds,
            ),
            Work::Large(way) => transfer::run(address, &self.token, way),
        };
        if let Work::Requests(_) = case.work {
            // The first requests open connections and verify the token.
            run(1)?;
        } else {
            drop(TcpStream::connect(address)?);
            std::thread::sleep(Duration::from_millis(300));
        }
        let before = proxy.peak_memory()?;
        let rate = run(seconds)?;
        Ok(Measured { rate, grown: (proxy.peak_memory()? - before) as f64 / 1e6 })
    }

    fn bare(&self, case: &Case, listen: SocketAddr) -> Result<Command, Failure> {
        let mut command = self.placement.command(Side::Proxy, std::env::current_exe()?);
        command.arg("bare").arg(listen.to_string()).arg(self.origin_of(case).to_string());
        if case.is_tls() {
            command.arg("--certificate").arg(&self.identity.certificate);
            command.arg("--private-key").arg(&self.identity.private_key);
        }
        if case.is_http2() {
            command.arg("--http2");
        }
        if case.is_grpc() {
            command.arg("--origin-http2");
        }
        Ok(command)
    }

    /// One worker thread, one token, access log off; JSON is YAML.
    fn gateway(&self, case: &Case, listen: SocketAddr) -> Result<Command, Failure> {
        let mut listener = json!({ "address": listen, "http2": case.is_http2() });
        if case.is_tls() {
            listener["tls"] = json!({ "certificates": [{
                "certificate": self.identity.certificate,
                "private_key": self.identity.private_key,
            }] });
        }
        let scheme = if case.is_grpc() { "h2c" } else { "http" };
        let config = json!({
            "server": { "threads": 1, "grace_period_seconds": 0 },
            "listeners": [listener],
            "metrics": { "address": free_address()? },
            "log": { "level": "info", "access": false },
            "max_body": "2GiB",
            "auth": {
                "jwt": { "keys": [{ "algorithm": "HS256", "secret": SECRET }] },
                "tokens": [{ "api_key": "bench" }],
            },
            "limits": { "default": ["1000000000/minute"] },
            "upstreams": { "origin": {
                "endpoints": [format!("{scheme}://{}", self.origin_of(case))],
                "timeouts": { "connect": "1s", "read": "30s", "write": "30s", "idle": "60s" },
            } },
            "routes": [{ "prefix": "/api", "upstream": "origin" }],
        });
        let file = self.directory.path().join("tollgate.yaml");
        std::fs::write(&file, serde_json::to_string_pretty(&config)?)?;
        let mut command = self.placement.command(Side::Proxy, &self.gateway);
        command.arg("run").arg("-c").arg(file);
        // Variables of the environment would override the configuration.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"TOLLGATE_") {
                command.env_remove(name);
            }
        }
        Ok(command)
    }

    fn origin_of(&self, case: &Case) -> SocketAddr {
        if case.is_grpc() { self.origin_http2 } else { self.origin }
    }
}

impl Case {
    fn is_tls(&self) -> bool {
        use Load::{Handshakes, Http2, Tls};
        matches!(self.work, Work::Requests(Tls | Handshakes | Http2 { tls: true }))
    }

    fn is_http2(&self) -> bool {
        matches!(self.work, Work::Requests(Load::Http2 { .. } | Load::Grpc))
    }

    fn is_grpc(&self) -> bool {
        matches!(self.work, Work::Requests(Load::Grpc))
    }
}

/// The middle of sorted figures.
fn middle(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn sign() -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Claims<'a> {
        api_key: &'a str,
        exp: u64,
    }
    let exp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 86_400;
    let claims = Claims { api_key: "bench", exp };
    Ok(jsonwebtoken::encode(
        &Header::default(),
        &claims,
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )?)
}
