//! Runs the shell blocks of all pages as a reader would: in order, in one shell, in one directory.
//!
//! Only this file has what differs from a reader's machine.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::markdown::{Block, at};
use super::support::wait_longer_for;

/// How long the whole session may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Shell functions that replace programs of a reader's machine.
///
/// - `make` only shows that the target exists: the program is built, and CI runs `make test`.
/// - Redis is on a port of the test's own.
/// - A reader is slower than a script: each command first waits for what was started before it.
const PROLOGUE: &str = r#"
set -euo pipefail
trap 'status=$?; trap - EXIT; kill $(jobs -p) 2>/dev/null || true; exit $status' EXIT
make() { command make -C "$source" --dry-run "$@" > /dev/null; }
redis-server() { exec redis-server --bind 127.0.0.1 --port "$redis" "$@"; }
redis-cli() { await_redis; command redis-cli -e -p "$redis" "$@"; }
await_redis() { until command redis-cli -p "$redis" PING > /dev/null 2>&1; do sleep 0.02; done; }
await_files() { until (exec 3<> "/dev/tcp/127.0.0.1/$files") 2> /dev/null; do sleep 0.02; done; }
await_gateway() { until command tollgate health --url "http://127.0.0.1:$gateway/ready" 2> /dev/null; do sleep 0.02; done; }
tollgate() {
    await_redis
    if [ "$1" = run ]; then exec tollgate "$@"; fi
    command tollgate "$@"
}
curl() { await_files; await_gateway; command curl -sS "$@"; }
"#;

/// Commands that run after blocks with a certain text: they wait for another process to act on the block.
const AFTERWARDS: [(&str, &str); 2] = [
    ("kill -HUP", "until grep -q 'configuration reloaded' gateway.log; do sleep 0.02; done"),
    ("kill -QUIT", "wait \"$OLD_PID\"; grep -q 'taken over' gateway.log; await_gateway"),
];

/// The session's ports, and the texts of the pages in whose place they stand.
struct Ports {
    gateway: u16,
    metrics: u16,
    redis: u16,
    files: u16,
}

impl Ports {
    fn choose() -> Self {
        // All are held until all are known, so that they differ.
        let held = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [gateway, metrics, redis, files] =
            held.map(|listener| listener.local_addr().unwrap().port());
        Self { gateway, metrics, redis, files }
    }

    fn substitute(&self, text: &str) -> String {
        [
            ("127.0.0.1:8080", self.gateway),
            ("127.0.0.1:9090", self.metrics),
            ("127.0.0.1:6379", self.redis),
            ("127.0.0.1:3000", self.files),
            ("127.0.0.1 3000", self.files),
        ]
        .into_iter()
        .fold(text.to_owned(), |text, (written, port)| {
            text.replace(written, &format!("{}{port}", written.trim_end_matches(char::is_numeric)))
        })
    }
}

/// Runs `blocks`: files are written, shell is run. Gives back what each block printed.
pub fn run(blocks: &[Block]) -> Vec<String> {
    let dir = TempDir::new().unwrap();
    let ports = Ports::choose();
    fs::copy(at("README.md"), dir.path().join("README.md")).unwrap();
    let script = script(blocks, &ports);
    fs::write(dir.path().join("session.sh"), script).unwrap();
    let output = dir.path().join("session.log");
    let printed = File::create(&output).unwrap();

    let program = std::path::Path::new(env!("CARGO_BIN_EXE_tollgate"));
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new("bash");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("TOLLGATE_") || name.starts_with("MAKE") || name == "MFLAGS" {
            command.env_remove(name);
        }
    }
    command
        .arg("session.sh")
        .current_dir(dir.path())
        .env("PATH", format!("{}:{path}", program.parent().unwrap().display()))
        .env("TOLLGATE_LISTENERS__0__ADDRESS", format!("127.0.0.1:{}", ports.gateway))
        .env("TOLLGATE_METRICS__ADDRESS", format!("127.0.0.1:{}", ports.metrics))
        .env("TOLLGATE_SERVER__UPGRADE_SOCK", dir.path().join("upgrade.sock"))
        .env("TOLLGATE_SERVER__THREADS", "1")
        .env("TOLLGATE_SERVER__GRACE_PERIOD_SECONDS", "0")
        .env("TOLLGATE_SERVER__GRACEFUL_SHUTDOWN_TIMEOUT_SECONDS", "1")
        .stdin(Stdio::null())
        .stdout(printed.try_clone().unwrap())
        .stderr(printed)
        // No process of the session may outlive the session.
        .process_group(0);
    let mut shell = command.spawn().unwrap();
    let group = Group(shell.id());
    let text = || String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
    let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_longer_for(PATIENCE, "the session to end", || shell.try_wait().unwrap())
    }));
    drop(group);
    let log = fs::read_to_string(dir.path().join("gateway.log")).unwrap_or_default();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the session ended with {status}:\n{}\nthe gateway:\n{log}", text()),
        Err(_) => panic!("the session did not end:\n{}\nthe gateway:\n{log}", text()),
    }
    let outputs: Vec<_> = text().split("\n@@ block\n").skip(1).map(str::to_owned).collect();
    assert_eq!(outputs.len(), blocks.len(), "{}", text());
    outputs
}

/// The processes of the session; killed when dropped.
struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        // No process is left where the session ended by itself.
        let _ = Command::new("kill")
            .args(["-KILL", "--", &format!("-{}", self.0)])
            .stderr(Stdio::null())
            .status();
    }
}

fn script(blocks: &[Block], ports: &Ports) -> String {
    let mut script = format!(
        "source={}\nredis={}\nfiles={}\ngateway={}\n{PROLOGUE}",
        env!("CARGO_MANIFEST_DIR"),
        ports.redis,
        ports.files,
        ports.gateway
    );
    for block in blocks {
        let text = ports.substitute(&block.text);
        script.push_str("printf '\\n@@ block\\n'\n");
        if let Some(file) = block.value("file") {
            script.push_str(&format!("cat > {file} <<'END OF FILE'\n{text}END OF FILE\n"));
            continue;
        }
        match block.value("exits") {
            Some(code) => script.push_str(&format!(
                "set +e\n{text}status=$?\nset -e\n[ $status -eq {code} ] || {{ echo \"{}: exit code $status\"; exit 1; }}\n",
                block.place
            )),
            None => script.push_str(&text),
        }
        for (_, command) in AFTERWARDS.iter().filter(|(needle, _)| block.text.contains(needle)) {
            script.push_str(&format!("{command}\n"));
        }
    }
    script
}
