//! The one helper of the integration tests: the real executable, a real Redis, an origin, a raw client.
//! The kernel chooses every port, every wait has a deadline, and every process ends on drop.
// Each test file uses its own part of this.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;

pub mod http;
pub mod http2;
pub mod issuer;
pub mod origin;
pub mod process;
pub mod redis;
pub mod server;
pub mod tls;
pub mod token;
pub mod topology;

pub use http::{Client, Message, chunked, request};
pub use issuer::{ALGORITHMS, KeyServer, Signer};
pub use origin::Origin;
pub use redis::Redis;
pub use server::ServerProcess;
pub use token::{SECRET, bearer, token};
pub use topology::{RedisCluster, Sentinels};

/// How long anything may take before the test fails; far more than it should.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An address where nothing listens.
pub const NOBODY: &str = "127.0.0.1:1";

/// Asks `probe` until it gives something.
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_longer_for(PATIENCE, what, probe)
}

/// The same with more patience, for conditions that wait for deadlines of other programs.
pub fn wait_longer_for<T>(
    patience: Duration,
    what: &str,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal by name to a process of this test's own.
pub fn signal(name: &str, pid: u32) {
    let sent = Command::new("sh").args(["-c", &format!("kill -s {name} {pid}")]).status().unwrap();
    assert!(sent.success(), "cannot send {name} to {pid}");
}

/// A value that tests share while they run at the same time; the last test drops it.
pub struct Shared<T>(Mutex<Weak<T>>);

impl<T> Shared<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    pub fn get(&self, start: impl FnOnce() -> T) -> Arc<T> {
        let mut shared = self.0.lock();
        shared.upgrade().unwrap_or_else(|| {
            let started = Arc::new(start());
            *shared = Arc::downgrade(&started);
            started
        })
    }
}

/// The executable, without the variables of the tests' environment that it would read.
pub fn tollgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TOLLGATE_"))
    {
        command.env_remove(name);
    }
    let prefix = redis::prefix();
    if !prefix.is_empty() {
        command.env("TOLLGATE_REDIS_PREFIX", prefix);
    }
    command
}

/// `command` behind a `wrapper` that executes its last arguments.
fn wrapped(wrapper: &[&str], command: Command) -> Command {
    let [program, arguments @ ..] = wrapper else { return command };
    let mut outer = Command::new(program);
    outer.args(arguments).arg(command.get_program());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// A running gateway; killed when dropped.
pub struct Gateway {
    pub address: SocketAddr,
    pub metrics: SocketAddr,
    pub config: PathBuf,
    threads: usize,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    dir: Arc<TempDir>,
}

impl Gateway {
    /// Starts a gateway with two worker threads and waits until it is ready.
    pub fn start(yaml: &str) -> Self {
        Self::start_with_threads(2, yaml)
    }

    /// The same with one worker thread, whose runtime is of another kind.
    pub fn start_with_one_thread(yaml: &str) -> Self {
        Self::start_with_threads(1, yaml)
    }

    fn start_with_threads(threads: usize, yaml: &str) -> Self {
        let gateway = Self::spawn_with_threads(threads, yaml, &[]);
        gateway.wait_ready();
        gateway
    }

    /// The same in a namespace where the file `hosts` is /etc/hosts. It needs the right to make namespaces of users.
    pub fn start_with_hosts(hosts: &Path, yaml: &str) -> Self {
        let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        let wrapper = ["unshare", "-rm", "sh", "-c", script, hosts.to_str().unwrap()];
        let gateway = Self::spawn_wrapped(&wrapper, 2, yaml, &[]);
        gateway.wait_ready();
        gateway
    }

    /// Starts a gateway and waits until it listens.
    pub fn spawn(yaml: &str) -> Self {
        Self::spawn_with(yaml, &[])
    }

    /// The same with these environment variables.
    pub fn spawn_with(yaml: &str, environment: &[(&str, &str)]) -> Self {
        Self::spawn_with_threads(2, yaml, environment)
    }

    fn spawn_with_threads(threads: usize, yaml: &str, environment: &[(&str, &str)]) -> Self {
        Self::spawn_wrapped(&[], threads, yaml, environment)
    }

    fn spawn_wrapped(
        wrapper: &[&str],
        threads: usize,
        yaml: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let config = dir.path().join("tollgate.yaml");
        std::fs::write(&config, complete(yaml, threads, dir.path())).unwrap();
        let mut gateway =
            Self::launch_with(wrapper, &["run", "-c", config.to_str().unwrap()], dir, environment);
        gateway.threads = threads;
        gateway.find_addresses();
        gateway
    }

    /// Starts the executable with its home in `dir`, at a time when no hour's or day's window is about to end.
    pub fn launch(arguments: &[&str], dir: impl Into<Arc<TempDir>>) -> Self {
        Self::launch_with(&[], arguments, dir, &[])
    }

    fn launch_with(
        wrapper: &[&str],
        arguments: &[&str],
        dir: impl Into<Arc<TempDir>>,
        environment: &[(&str, &str)],
    ) -> Self {
        let dir = dir.into();
        let left = 3_600 - token::now() % 3_600;
        if left < 15 {
            thread::sleep(Duration::from_secs(left));
        }
        let mut command = wrapped(wrapper, tollgate());
        command.args(arguments).envs(environment.iter().copied()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, written) =
            (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&log));
        thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| written.lock().push(line))
        });
        let nowhere = NOBODY.parse().unwrap();
        Self {
            address: nowhere,
            metrics: nowhere,
            config: dir.path().join("tollgate.yaml"),
            threads: 2,
            child,
            log,
            dir,
        }
    }

    /// A second process that takes over from this one, which goes on running.
    pub fn successor(&self) -> Self {
        let arguments = ["run", "--upgrade", "-c", self.config.to_str().unwrap()];
        let mut successor = Self::launch(&arguments, Arc::clone(&self.dir));
        (successor.address, successor.metrics) = (self.address, self.metrics);
        successor
    }

    /// Learns from the log where the gateway listens.
    pub fn find_addresses(&mut self) {
        let address = |gateway: &mut Self, prefix: &str| {
            wait_for(prefix, || {
                assert!(
                    gateway.child.try_wait().unwrap().is_none(),
                    "it exited: {:#?}",
                    gateway.lines()
                );
                let message = |line: Value| line["message"].as_str().map(str::to_owned);
                gateway
                    .log()
                    .into_iter()
                    .filter_map(message)
                    .find_map(|m| m.strip_prefix(prefix)?.parse().ok())
            })
        };
        self.address = address(self, "listening on ");
        self.metrics = address(self, "metrics on ");
    }

    pub fn wait_ready(&self) {
        wait_for("/ready to give 200", || {
            let mut client = Client::try_connect(self.address).ok()?;
            client.send(request("GET", "/ready", &[], b""));
            (client.try_read(false).ok()?.status() == 200).then_some(())
        });
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// One request on a connection of its own.
    pub fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Message {
        self.connect().call(method, target, headers, body)
    }

    /// A GET without a credential.
    pub fn get(&self, target: &str) -> Message {
        self.call("GET", target, &[], b"")
    }

    /// A GET with a valid token of `api_key`.
    pub fn get_as(&self, api_key: &str, target: &str) -> Message {
        self.call("GET", target, &[("Authorization", &bearer(api_key))], b"")
    }

    /// Everything written to standard output so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    /// The log so far.
    pub fn log(&self) -> Vec<Value> {
        self.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The first log line that `fits`, once it is there.
    pub fn wait_log(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || self.log().into_iter().find(&fits))
    }

    /// The page that Prometheus scrapes.
    pub fn scrape(&self) -> String {
        Client::connect(self.metrics).call("GET", "/metrics", &[], b"").text()
    }

    /// The value of a series, written as in the page: `name` or `name{label="value"}`.
    pub fn metric(&self, series: &str) -> Option<f64> {
        self.scrape()
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// Replaces the configuration file and sends SIGHUP.
    pub fn reload(&self, yaml: &str) {
        std::fs::write(&self.config, complete(yaml, self.threads, self.dir.path())).unwrap();
        self.signal("HUP");
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        wait_for("the gateway to exit", || self.child.try_wait().unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let lines = self.lines();
            eprintln!(
                "the gateway's last lines:\n{}",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
    }
}

/// Adds the top-level keys that `yaml` leaves to the helper. Every gateway needs its own upgrade socket.
fn complete(yaml: &str, threads: usize, dir: &Path) -> String {
    let socket = dir.join("upgrade.sock").display().to_string();
    let defaults = [
        (
            "server",
            format!(
                "{{ threads: {threads}, grace_period_seconds: 1, graceful_shutdown_timeout_seconds: 5, upgrade_sock: {socket} }}"
            ),
        ),
        ("listeners", "[ { address: \"127.0.0.1:0\" } ]".into()),
        ("metrics", "{ address: \"127.0.0.1:0\" }".into()),
        ("log", "{ level: debug, format: json }".into()),
        ("auth", auth("[]")),
        ("limits", "{ default: [] }".into()),
    ];
    let missing = defaults
        .iter()
        .filter(|(key, _)| !yaml.lines().any(|line| line.starts_with(&format!("{key}:"))));
    let yaml = with_prefix(yaml);
    missing.fold(yaml, |yaml, (key, value)| format!("{yaml}\n{key}: {value}\n"))
}

/// `yaml` with the prefix of this run of the tests, unless it has one.
pub fn with_prefix(yaml: &str) -> String {
    let prefix = redis::prefix();
    match prefix.is_empty() || yaml.contains("prefix: \"") {
        true => yaml.to_owned(),
        false => yaml.replace("redis: { ", &format!("redis: {{ prefix: \"{prefix}\", ")),
    }
}

/// A configuration without tokens whose upstream has these endpoints and further keys.
pub fn upstream_config(endpoints: &[&str], more: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|url| format!("\"{url}\"")).collect();
    format!(
        "upstreams: {{ up: {{ endpoints: [ {} ], {more} }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]",
        endpoints.join(", ")
    )
}

/// The value of `auth` with the tests' key and these `tokens`, in YAML's flow style.
pub fn auth(tokens: &str) -> String {
    format!(
        "{{ jwt: {{ keys: [ {{ algorithm: HS256, secret: \"{SECRET}\" }} ] }}, tokens: {tokens}, max_failures: none }}"
    )
}
