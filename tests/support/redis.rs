//! A real redis-server that a test may kill, freeze and bring back. It knows nothing of the gateway.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{signal, wait_for};

/// A server of its own, gone when dropped. It keeps nothing on disk.
pub struct Redis {
    port: u16,
    child: Child,
    dir: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = serve(port, &dir);
        let mut redis = Self { port, child, dir };
        redis.wait();
        redis
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs one command and gives what `redis-cli` prints.
    pub fn command(&self, arguments: &[&str]) -> String {
        let out = self.cli(arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    }

    /// Stores a token's record as a hash.
    pub fn record(&self, id: &str, fields: &[(&str, &str)]) {
        let key = format!("token:{id}");
        let fields = fields.iter().flat_map(|(name, value)| [*name, *value]);
        self.command(&["DEL", &key]);
        self.command(&["HSET", &key].into_iter().chain(fields).collect::<Vec<_>>());
    }

    /// As a crash: no farewell, and the memory is lost.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Connections stay open and nothing answers.
    pub fn freeze(&self) {
        signal("STOP", self.child.id());
    }

    pub fn thaw(&self) {
        signal("CONT", self.child.id());
    }

    /// Back on the same port, empty.
    pub fn restart(&mut self) {
        self.child = serve(self.port, &self.dir);
        self.wait();
    }

    /// Until it answers. Where another process took the port in between, it is tried again.
    fn wait(&mut self) {
        wait_for("redis-server to answer", || {
            if self.child.try_wait().unwrap().is_some() {
                self.child = serve(self.port, &self.dir);
            }
            self.cli(&["PING"]).output().unwrap().stdout.starts_with(b"PONG").then_some(())
        });
    }

    fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("redis-cli");
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

fn serve(port: u16, dir: &TempDir) -> Child {
    Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
        ])
        .arg(dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is needed: apt-get install redis-server")
}
