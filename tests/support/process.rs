//! Programs of others, with configurations of `tests/fixtures/foreign`: each runs in a directory of the test's and ends with
//! it. They know nothing of the gateway.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{signal, wait_for};

/// A running program; killed when dropped.
pub struct Process(Child);

impl Process {
    /// Starts `program` with its output in a file of `dir`, and waits until it listens on all `ports`.
    pub fn start(program: &str, arguments: &[&str], dir: &Path, ports: &[u16]) -> Self {
        let log = std::fs::File::create(dir.join(format!("{program}.out"))).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .env("PATH", search_path())
            // Caddy keeps files at home.
            .env("HOME", dir)
            .env("LARGE", LARGE.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {program}: {e}; see scripts/dependencies"));
        let mut process = Self(child);
        for port in ports {
            wait_for(&format!("{program} to listen"), || {
                if let Some(status) = process.0.try_wait().unwrap() {
                    let said = std::fs::read_to_string(dir.join(format!("{program}.out")));
                    panic!("{program} ended with {status}: {}", said.unwrap_or_default());
                }
                TcpStream::connect(local(*port)).ok()
            });
        }
        process
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        signal(name, self.0.id());
    }

    /// Waits until the program has ended.
    pub fn wait_exit(&mut self) {
        wait_for("the program to end", || self.0.try_wait().unwrap());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The master of nginx ends its workers on this signal, and not when it is killed.
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            signal("TERM", self.0.id());
        }
        let since = Instant::now();
        while self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            if since.elapsed() > Duration::from_secs(2) {
                let _ = self.0.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The bytes of a large body, for scripts too.
pub const LARGE: usize = 3 << 19;

/// Where programs are; daemons are in /usr/sbin, which may not be in PATH.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Ports that were free a moment ago.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// Writes the fixture `name` into `dir`, with each of `values` in the place of its name, and `DIR`.
pub fn fixture(dir: &Path, name: &str, values: &[(&str, String)]) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/foreign").join(name);
    let mut text = std::fs::read_to_string(from).unwrap();
    for (name, value) in values {
        text = text.replace(name, value);
    }
    let to = dir.join(name);
    std::fs::write(&to, text.replace("DIR", dir.to_str().unwrap())).unwrap();
    to
}
