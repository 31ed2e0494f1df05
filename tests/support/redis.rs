//! A real redis-server that a test may kill, freeze and bring back. It knows nothing of the gateway.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::{signal, wait_for};

/// Set to anything, it makes every server that is not part of a topology be used as a user with the documented
/// permissions alone.
const ACL: &str = "TOLLGATE_TEST_REDIS_ACL";

/// The prefix that the keys of every gateway have, and that tests need not know.
const PREFIX: &str = "TOLLGATE_TEST_REDIS_PREFIX";

/// What starts the names of keys.
const KEYS: [&str; 4] = ["token:", "revoked:", "quota:", "tollgate:gateways"];

/// The prefix of this run of the tests.
pub fn prefix() -> String {
    std::env::var(PREFIX).unwrap_or_default()
}

/// The documented permissions of the users whose names end so, for keys with `prefix`.
pub fn documented_rules(names: &[&str], prefix: &str) -> String {
    let page = include_str!("../../docs/redis.md");
    let rules = |name: &&str| {
        let start = format!("user tollgate-{name} on >PASSWORD ");
        let rules = page.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
        rules.replace('~', &format!("~{prefix}")).replace("-@all", "")
    };
    format!("-@all {}", names.iter().map(rules).collect::<Vec<_>>().join(" "))
}

/// The password of servers whose configuration asks for one.
pub const PASSWORD: &str = "tests:only@/%";

/// A redis-server that is killed when dropped. It keeps nothing on disk.
pub struct Redis {
    port: u16,
    child: Child,
    config: String,
    mode: &'static [&'static str],
    frozen: AtomicBool,
    dir: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a server with these lines in its configuration.
    pub fn start_with(lines: &str) -> Self {
        let user = match uses_acl(lines) {
            true => {
                let rules = documented_rules(&["gateway", "cli"], &prefix());
                format!("user tollgate on >tests-only {rules}\n")
            }
            false => String::new(),
        };
        let config = format!("save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n{user}{lines}");
        Self::launch(config, &[])
    }

    /// Starts a Sentinel that watches the primary at `port` under the name `main`.
    pub fn start_sentinel(port: u16, lines: &str) -> Self {
        let config = format!(
            "{lines}
sentinel monitor main 127.0.0.1 {port} 2
sentinel auth-pass main {PASSWORD}
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 3000
sentinel parallel-syncs main 2"
        );
        Self::launch(config, &["--sentinel"])
    }

    fn launch(config: String, mode: &'static [&'static str]) -> Self {
        let dir = TempDir::new().unwrap();
        let port = free_port();
        let child = serve(port, &config, mode, &dir);
        let mut redis = Self { port, child, config, mode, frozen: AtomicBool::new(false), dir };
        redis.wait();
        redis
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn locked(&self) -> bool {
        self.config.contains("requirepass")
    }

    pub fn url(&self) -> String {
        let user = if uses_acl(&self.config) { "tollgate:tests-only@" } else { "" };
        format!("redis://{user}127.0.0.1:{}", self.port)
    }

    /// Runs one command and gives what `redis-cli` prints.
    pub fn command(&self, arguments: &[&str]) -> String {
        self.try_command(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// The same where the command may fail. A frozen server is not asked, because nothing would end the wait.
    pub fn try_command(&self, arguments: &[&str]) -> Result<String, String> {
        if self.frozen.load(Ordering::Relaxed) {
            return Err("it is frozen".into());
        }
        let prefix = prefix();
        let named = |text: &&str| match KEYS.iter().any(|start| text.starts_with(start)) {
            true => format!("{prefix}{text}"),
            false => (*text).to_owned(),
        };
        let arguments: Vec<String> = arguments.iter().map(named).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let out = self.cli(&arguments).output().unwrap();
        match out.status.success() {
            true => {
                let said = String::from_utf8(out.stdout).unwrap().trim_end().to_owned();
                Ok(if prefix.is_empty() { said } else { said.replace(&prefix, "") })
            }
            false => Err(format!("{out:?}")),
        }
    }

    /// Stores a token's record as a hash.
    pub fn record(&self, id: &str, fields: &[(&str, &str)]) {
        let key = format!("token:{id}");
        let fields = fields.iter().flat_map(|(name, value)| [*name, *value]);
        self.command(&["DEL", &key]);
        self.command(&["HSET", &key].into_iter().chain(fields).collect::<Vec<_>>());
    }

    /// Takes the server's directory away, so that nothing can be saved.
    pub fn spoil_directory(&self) {
        std::fs::remove_dir_all(self.dir.path()).unwrap();
    }

    /// Kills the server as a crash would: connections are reset, and the memory is lost.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Freezes the server: connections stay open, and nothing answers.
    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
        signal("STOP", self.child.id());
    }

    pub fn thaw(&self) {
        signal("CONT", self.child.id());
        self.frozen.store(false, Ordering::Relaxed);
    }

    /// Starts the server again on the same port, empty.
    pub fn restart(&mut self) {
        self.child = serve(self.port, &self.config, self.mode, &self.dir);
        self.wait();
    }

    /// Waits until the server answers. Where another process took the port in between, the server is started again.
    fn wait(&mut self) {
        wait_for("redis-server to answer", || {
            if self.child.try_wait().unwrap().is_some() {
                self.child = serve(self.port, &self.config, self.mode, &self.dir);
            }
            self.cli(&["PING"]).output().unwrap().stdout.starts_with(b"PONG").then_some(())
        });
    }

    fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("redis-cli");
        command.env_remove("REDISCLI_AUTH");
        if self.locked() {
            command.env("REDISCLI_AUTH", PASSWORD);
        }
        command.args(["-e", "-p", &self.port.to_string()]).args(arguments);
        command
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a server with this configuration is used as the user with the documented permissions alone.
fn uses_acl(config: &str) -> bool {
    std::env::var_os(ACL).is_some() && !config.contains("requirepass")
}

/// A port where nothing listens now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn serve(port: u16, config: &str, mode: &[&str], dir: &TempDir) -> Child {
    let path = dir.path().join("redis.conf");
    let home = dir.path().display();
    std::fs::write(&path, format!("port {port}\nbind 127.0.0.1\ndir {home}\n{config}\n")).unwrap();
    Command::new("redis-server")
        .arg(path)
        .args(mode)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is needed: apt-get install redis-server")
}
