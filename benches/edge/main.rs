//! The costs of the edge: TLS, HTTP/2, gRPC and large bodies through the gateway, next to a bare Pingora with the same
//! certificate and the same protocols in the same run.
//!
//! `cargo bench --bench edge [-- --quick]` measures each case in rounds, the bare proxy before and after the gateway. This
//! executable is also, started by itself, the `origin` and the `bare` proxy, so that all three share one profile and one
//! allocator. Each proxy has one worker thread and a core to itself. It must not know the gateway's code, only its command
//! line and file.

mod bare;
mod cases;
#[path = "../load/bare.rs"]
#[allow(dead_code, reason = "the load bench runs it as it is")]
mod floor;
mod load;
mod origin;
#[path = "../load/processes.rs"]
#[allow(dead_code, reason = "the load bench asks for more")]
mod processes;
mod transfer;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cases::{Bench, CASES};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Anything that went wrong, in words for the person who started the bench.
type Failure = Box<dyn Error>;

/// Exit code of sysexits(3).
const EX_SOFTWARE: u8 = 70;

/// Compare the gateway with a bare Pingora over TLS, HTTP/2 and gRPC.
#[derive(Parser)]
#[command(name = "edge", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    plan: Plan,
    /// The argument that cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How long and what to measure.
#[derive(clap::Args)]
struct Plan {
    /// Seconds each measurement lasts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How often the gateway is measured in each case; the medians count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Measure this case alone; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = CASES.map(|case| case.name))]
    only: Vec<String>,
    /// The gateway that is measured, instead of the one that was built for this bench.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_tollgate"))]
    gateway: PathBuf,
    /// A single round of one second, to see whether everything works.
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    quick: bool,
}

/// The role of this executable when the driver starts it.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    /// The server behind the proxies, HTTP/1.1 or HTTP/2.
    Origin {
        /// Where to listen.
        listen: SocketAddr,
        /// Whether to speak HTTP/2 without TLS.
        #[arg(long)]
        http2: bool,
    },
    /// The proxy that decides nothing.
    Bare(bare::Bare),
}

/// The files of a certificate and its key.
#[derive(Clone)]
struct Identity {
    certificate: PathBuf,
    private_key: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.role {
        Some(Role::Origin { listen, http2 }) => origin::run(listen, http2).map_err(Failure::from),
        Some(Role::Bare(bare)) => bare.run(),
        None => drive(arguments.plan),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("edge bench: {failure}");
            ExitCode::from(EX_SOFTWARE)
        }
    }
}

fn drive(plan: Plan) -> Result<(), Failure> {
    let missing: Vec<_> =
        ["wrk", "h2load"].into_iter().filter(|program| !processes::is_installed(program)).collect();
    if !missing.is_empty() {
        return Err("needs: sudo apt-get install -y wrk nghttp2-client".into());
    }
    let (rounds, seconds) = if plan.quick { (1, 1) } else { (plan.rounds, plan.seconds) };
    let bench = Bench::start(plan.gateway)?;
    println!("medians of {rounds} rounds of {seconds} s\n");
    println!("{:<12} {:>12} {:>12} {:>20}  what", "case", "bare", "gateway", "of bare");
    for case in &CASES {
        if plan.only.is_empty() || plan.only.iter().any(|name| name == case.name) {
            let compared = bench
                .compare(case, rounds, seconds)
                .map_err(|failure| format!("{}: {failure}", case.name))?;
            println!("{:<12} {compared}  {}", case.name, case.what);
        }
    }
    Ok(())
}
