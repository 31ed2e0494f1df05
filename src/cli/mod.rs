//! The command line: one file for each command, and a directory for the token commands.
//!
//! A command returns the text to print, or its failure. Only this file prints and knows exit codes. It does not know
//! how a command does its work.

use std::convert::Infallible;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::base::secret::Secret;
use crate::config::{self, Config, Environment, Faults};
use crate::quota::rule::{LimitRule, LimitSet};

mod check;
mod demo;
mod health;
mod run;
mod secret;
mod token;

/// Parses the arguments, runs the command, and returns its exit code (sysexits).
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = usage_code(&error);
            // A message that the terminal does not take is lost.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let result = arguments.command.run().and_then(|text| say(&text));
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = match &failure {
                Failure::Configuration(_) => writeln!(io::stderr(), "{failure}"),
                _ => writeln!(io::stderr(), "tollgate: {failure}"),
            };
            ExitCode::from(failure.code())
        }
    }
}

/// Why a command failed; each kind is an exit code of sysexits(3).
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments do not make sense together: 64.
    #[error("{0}")]
    Usage(String),
    /// A token that was named does not exist, or lines of a file are bad: 65.
    #[error("{0}")]
    Data(String),
    /// A service that the command needs does not answer: 69.
    #[error("{0}")]
    Unavailable(String),
    /// The program or its machine is at fault: 70.
    #[error("{0}")]
    Internal(String),
    /// The configuration is wrong, one line per fault: 78.
    #[error("{0}")]
    Configuration(String),
    /// The user pressed Ctrl-C: 130, as shells have it.
    #[error("{0}")]
    Interrupted(String),
}

impl Failure {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => EX_USAGE,
            Self::Data(_) => 65,
            Self::Unavailable(_) => 69,
            Self::Internal(_) => 70,
            Self::Configuration(_) => 78,
            Self::Interrupted(_) => 130,
        }
    }
}

/// sysexits(3): the command was used incorrectly.
const EX_USAGE: u8 = 64;

/// The message when neither a file nor the environment holds a configuration.
const NO_CONFIGURATION: &str = "no configuration: name a file with -c or TOLLGATE_CONFIG, or set TOLLGATE_ROUTES, TOLLGATE_UPSTREAMS and so on";

/// Version and commit, as `--version` prints them.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("TOLLGATE_COMMIT"), ")");

/// An API gateway that checks every token and counts every request exactly.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version = VERSION, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a gateway to try: embedded store, built-in upstream, a token and curl lines to paste
    Demo(DemoArguments),
    /// Start the gateway
    Run(RunArguments),
    /// Check a configuration and print what it amounts to
    Check(ConfigArguments),
    /// Make, list, show, revoke, rotate and import tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Print a fresh 384-bit secret, in base64
    Secret,
    /// Ask a running gateway whether it is ready
    Health(health::HealthArguments),
}

/// Arguments of `tollgate demo`.
#[derive(Args, Debug)]
pub struct DemoArguments {
    /// Keep tokens and counters in this Redis instead of in the process
    #[arg(long, value_name = "URL", value_parser = hidden)]
    pub redis: Option<Secret>,
    /// The port on 127.0.0.1; 0 lets the kernel choose
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
}

/// Arguments of `tollgate run`.
#[derive(Args, Debug)]
pub struct RunArguments {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Take the listening sockets over from the running gateway
    #[arg(long)]
    pub upgrade: bool,
}

/// Where the configuration is; flattened into every command that reads it.
#[derive(Args, Clone, Debug)]
pub struct ConfigArguments {
    /// The configuration file; without it, the environment alone says everything
    #[arg(short = 'c', long = "config", value_name = "FILE", env = "TOLLGATE_CONFIG")]
    pub file: Option<PathBuf>,
}

impl ConfigArguments {
    /// The configuration that file and environment make.
    ///
    /// # Errors
    /// [`Failure::Configuration`] with every fault that was found, one a line; [`Failure::Usage`]
    /// when nothing was configured at all.
    pub fn load(&self) -> Result<Config, Failure> {
        let environment = Environment::from_process();
        let Some(file) = &self.file else {
            let config = config::parse("", &self.source(), &environment).map_err(faulty)?;
            // Defaults alone serve nothing: whoever sees this forgot to name a file.
            if config.live.routes.is_empty() && config.startup.redis.is_none() {
                return Err(Failure::Usage(NO_CONFIGURATION.into()));
            }
            return Ok(config);
        };
        config::load(file, &environment).map_err(faulty)
    }

    /// The same for a gateway, which cannot do without routes.
    ///
    /// # Errors
    /// As [`ConfigArguments::load`].
    pub fn load_with_routes(&self) -> Result<Config, Failure> {
        let config = self.load()?;
        config.must_have_routes(&self.source()).map_err(faulty)?;
        Ok(config)
    }

    /// The name of the configuration in messages.
    pub fn source(&self) -> String {
        self.file.as_ref().map_or("the environment".into(), |file| file.display().to_string())
    }
}

fn faulty(faults: Faults) -> Failure {
    Failure::Configuration(faults.to_string())
}

impl Command {
    /// Does the work. Returns the rest of the text to print.
    fn run(&self) -> Result<String, Failure> {
        match self {
            Self::Demo(arguments) => demo::run(arguments).map(|()| String::new()),
            Self::Run(arguments) => run::run(arguments).map(|()| String::new()),
            Self::Check(arguments) => check::run(arguments),
            Self::Token(command) => token::run(command),
            Self::Secret => secret::run(),
            Self::Health(arguments) => health::run(arguments),
        }
    }
}

/// Prints `text`. Returns whether standard output is still read: a reader that has gone away is no failure.
fn say(text: &str) -> Result<bool, Failure> {
    // Without text there is nothing to wait for: the log may hold standard output up.
    if text.is_empty() {
        return Ok(true);
    }
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Internal(format!("standard output: {error}"))),
    }
}

/// Prints `text` on standard error, beside the output that was asked for.
fn tell(text: &str) {
    // A message that the terminal does not take is lost.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Reads an argument that must not be printed.
fn hidden(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// The exit code of a message of clap: help and version that were asked for are success, all else is misuse.
fn usage_code(error: &clap::Error) -> u8 {
    if error.use_stderr() { EX_USAGE } else { 0 }
}

/// Limits as people write them.
fn limits_text(limits: &LimitSet) -> String {
    match limits.rules() {
        [] => "none".to_owned(),
        rules => rules.iter().map(LimitRule::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn misuse_is_64_and_asking_for_help_is_0() {
        for (line, code) in [
            ("--help", 0),
            ("--version", 0),
            ("token create --help", 0),
            ("", 64),
            ("nonsense", 64),
            ("demo --port 65536", 64),
            ("check extra", 64),
            ("token", 64),
            ("token show", 64),
            ("token create --kind password", 64),
            ("token list --start \u{fc}", 64),
            ("token list --page-size 0", 64),
            ("token rotate", 64),
            ("token rotate ID --grace soon", 64),
            ("token import", 64),
            ("token import FILE --format xml", 64),
            ("token create --ttl soon", 64),
            ("token create --limit 1/fortnight", 64),
            ("token create --routes api", 64),
            ("health --url nonsense", 64),
        ] {
            let words = ["tollgate"].into_iter().chain(line.split_whitespace());
            let error = Arguments::try_parse_from(words).unwrap_err();
            assert_eq!(usage_code(&error), code, "tollgate {line}");
        }
    }

    #[test]
    fn the_contract_s_lines_are_understood() {
        for line in [
            "demo",
            "demo --redis redis://localhost --port 0",
            "run -c conf/tollgate.yaml",
            "run --upgrade --config conf/tollgate.yaml",
            "check -c FILE",
            "token create --limit 100/minute --limit 9/day --plan p --organization o --routes /a,/b/* --ttl 24h --kind jwt -c FILE --json",
            "token create --limit 5 --name n --redis redis://localhost --secret s",
            "token create --kind key --redis redis://localhost",
            "token list --json -c FILE",
            "token list --page-size 100 --start 0.17",
            "token show ID --redis redis://localhost",
            "token revoke ID",
            "token revoke -",
            "token rotate ID --grace 1h --ttl 90days -c FILE",
            "token import tokens.csv --dry-run",
            "token import - --format jsonl --replace --redis redis://localhost",
            "secret",
            "health --url http://localhost/ready",
        ] {
            let words = ["tollgate"].into_iter().chain(line.split_whitespace());
            assert!(Arguments::try_parse_from(words).is_ok(), "tollgate {line}");
        }
    }

    #[test]
    fn a_redis_password_in_the_arguments_is_not_printed() {
        let words = ["tollgate", "demo", "--redis", "redis://:hunter2@localhost"];
        assert!(!format!("{:?}", Arguments::try_parse_from(words).unwrap()).contains("hunter2"));
    }

    #[test]
    fn the_version_names_a_commit() {
        let (version, commit) = VERSION.split_once(" (").unwrap();
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        assert!(commit.len() > 1 && commit.ends_with(')'));
    }
}
