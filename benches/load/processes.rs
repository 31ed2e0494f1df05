//! Child processes: their cores and their CPU time. No child outlives the bench. This file must not know what they do.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Failure;

/// Programs the bench cannot do without, each with its Debian package.
const NEEDED: [(&str, &str); 4] = [
    ("wrk", "wrk"),
    ("redis-server", "redis-server"),
    ("taskset", "util-linux"),
    ("setpriv", "util-linux"),
];

/// The kernel's unit of process times towards user space, in hertz (`getconf CLK_TCK`).
const TICKS_PER_SECOND: u64 = 100;

/// How long a process may take to end when it is asked to.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// How long a process may take until it listens.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// How much of a log explains a failure.
const LAST_LINES: usize = 10;

/// The line to run when a needed program is missing.
pub fn missing_programs() -> Option<String> {
    let mut packages: Vec<_> = NEEDED
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|&(_, package)| package)
        .collect();
    packages.dedup();
    (!packages.is_empty())
        .then(|| format!("the load bench needs: sudo apt-get install -y {}", packages.join(" ")))
}

/// Whether `program` is in `PATH` or where Debian keeps daemons.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .any(|directory| directory.join(program).is_file())
}

/// An address on the loopback that nobody listened on a moment ago.
///
/// # Errors
/// When the kernel has no port left.
pub fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Which of two sides of the machine a process runs on.
#[derive(Clone, Copy)]
pub enum Side {
    /// The proxy under test, alone.
    Proxy,
    /// Everything that is not measured.
    Rest,
}

/// Which cores each side has, as `taskset` spells them.
pub struct Placement {
    proxy: String,
    rest: String,
}

impl Placement {
    /// The first `threads` cores this process may use for the proxy, the others for the rest; where there are no others, all
    /// are shared.
    ///
    /// # Errors
    /// When `/proc` does not say.
    pub fn of_this_machine(threads: usize) -> Result<Self, Failure> {
        let status = fs::read_to_string("/proc/self/status")?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .ok_or("/proc/self/status has no Cpus_allowed_list")?
            .trim();
        let mut cores = Vec::new();
        for range in list.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            cores.extend(first.parse::<usize>()?..=last.parse()?);
        }
        let names: Vec<_> = cores.iter().map(usize::to_string).collect();
        let (proxy, rest) = match names.split_at_checked(threads) {
            Some((proxy, rest)) if !rest.is_empty() => (proxy, rest),
            _ => (&names[..], &names[..]),
        };
        Ok(Self { proxy: proxy.join(","), rest: rest.join(",") })
    }

    /// The cores of both sides, as text for the report.
    pub fn describe(&self) -> String {
        format!("proxy on cores {}, wrk, origin and Redis on {}", self.proxy, self.rest)
    }

    /// A command that runs `program` on its side and dies with the thread that spawned it.
    pub fn command(&self, side: Side, program: impl AsRef<Path>) -> Command {
        let cores = match side {
            Side::Proxy => &self.proxy,
            Side::Rest => &self.rest,
        };
        let mut command = Command::new("taskset");
        command
            .args(["-c", cores, "setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program.as_ref())
            // As deploy/systemd/tollgate.service sets it; the bare proxy has the same allocator.
            .env("MIMALLOC_PURGE_DELAY", "60000")
            .stdin(Stdio::null());
        command
    }
}

/// A child that is killed when it goes out of scope.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output going to `log`.
    ///
    /// # Errors
    /// When the program or the file cannot be opened.
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self, Failure> {
        let output = File::create(&log)?;
        let child = command.stdout(output.try_clone()?).stderr(output).spawn()?;
        Ok(Self { child, log })
    }

    /// Waits until it listens on `address`.
    ///
    /// # Errors
    /// When it ends first, or takes more than ten seconds; with what it wrote.
    pub fn wait_until_listening(&mut self, address: SocketAddr) -> Result<(), Failure> {
        let started = Instant::now();
        while let Err(error) = TcpStream::connect(address) {
            if self.ended()?.is_some() || started.elapsed() > START_DEADLINE {
                return Err(format!("does not listen: {error}\n{}", self.last_lines()).into());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// How it ended, once it has.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.child.try_wait()?)
    }

    /// Asks it to end, and waits: an instrumented build writes its profile then.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(&mut self) -> Result<(), Failure> {
        let id = i32::try_from(self.child.id())?;
        let id = rustix::process::Pid::from_raw(id).ok_or("no process id")?;
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let asked = Instant::now();
        while self.ended()?.is_none() {
            if asked.elapsed() > END_DEADLINE {
                return Err("the process does not end".into());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Its log so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn output(&self) -> Result<String, Failure> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// The end of its log, to explain a failure.
    pub fn last_lines(&self) -> String {
        let output = self.output().unwrap_or_default();
        let lines: Vec<_> = output.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// User and system time of all its threads since it started (proc(5), fields 14 and 15 of `stat`).
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu_time(&self) -> Result<Duration, Failure> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field, the name, may hold anything; the third comes after its closing parenthesis.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<_> = after_name.split_whitespace().collect();
        let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) else {
            return Err("/proc/PID/stat is too short".into());
        };
        let ticks = user.parse::<u64>()? + system.parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }

    /// The most memory that it had resident since it started, in bytes (proc(5), `VmHWM`).
    ///
    /// # Errors
    /// When it is gone.
    pub fn peak_memory(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kilobytes.ok_or("/proc/PID/status has no VmHWM")?.trim().parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either fails only for a process that is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
