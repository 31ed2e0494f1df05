//! What a request through the gateway costs, next to a proxy that decides nothing and to nginx with Lua doing the same job.
//!
//! `cargo bench --bench load [-- --quick]` runs every variant in interleaved rounds, the bare proxy before and after each of
//! them, and prints medians. This executable is also, started by itself, the `origin` and the `bare` proxy, so that all
//! three share one profile and one allocator.
//!
//! The proxy under test has one worker thread and a core to itself (`--threads`: more); the load generator, the origin and
//! Redis share the others. The column `busy` is the part of its core the proxy used: near 100 %, the proxy was the bottleneck and requests/s
//! mean something; below, only CPU per request does. It must not know the gateway's code, only its command line and file.

mod bare;
mod load;
mod origin;
#[allow(dead_code, reason = "the edge bench asks for more")]
mod processes;
mod redis;
mod report;
mod variants;

use std::error::Error;
use std::iter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::Report;
use crate::variants::{Bench, VARIANTS};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Anything that went wrong, in words for the person who started the bench.
type Failure = Box<dyn Error>;

/// Exit codes of sysexits(3).
const EX_UNAVAILABLE: u8 = 69;
const EX_SOFTWARE: u8 = 70;

/// Compare the gateway's cost a request with a bare proxy and with nginx + Lua.
#[derive(Parser)]
#[command(name = "load", args_conflicts_with_subcommands = true)]
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
    /// How often each variant is measured, with the bare proxy before and after it; the medians count. On a machine whose
    /// speed changes, more and shorter rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Measure this variant alone; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = VARIANTS.map(|variant| variant.name))]
    only: Vec<String>,
    /// Worker threads of each proxy. Where the machine has no more cores than this, everything shares them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// The gateway that is measured, instead of the one that was built for this bench.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_tollgate"))]
    gateway: PathBuf,
    /// A single round of two seconds, to see whether everything works.
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    quick: bool,
    /// Where the raw rounds and the medians go.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/load-bench.json"))]
    json: PathBuf,
}

/// The role of this executable when the driver starts it.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    /// The server behind the proxies.
    Origin {
        /// Where to listen.
        listen: SocketAddr,
    },
    /// The proxy that decides nothing.
    Bare {
        /// Where to listen.
        listen: SocketAddr,
        /// Where requests go.
        origin: SocketAddr,
        /// Worker threads.
        threads: usize,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.role {
        Some(Role::Origin { listen }) => origin::run(listen).map_err(Failure::from),
        Some(Role::Bare { listen, origin, threads }) => bare::run(listen, origin, threads),
        None => {
            if let Some(missing) = processes::missing_programs() {
                eprintln!("{missing}");
                return ExitCode::from(EX_UNAVAILABLE);
            }
            drive(arguments.plan)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("load bench: {failure}");
            ExitCode::from(EX_SOFTWARE)
        }
    }
}

fn drive(plan: Plan) -> Result<(), Failure> {
    let (rounds, seconds) = if plan.quick { (1, 2) } else { (plan.rounds, plan.seconds) };
    let mut variants: Vec<_> = VARIANTS
        .iter()
        .filter(|variant| plan.only.is_empty() || plan.only.iter().any(|name| name == variant.name))
        .collect();
    variants.retain(|variant| match variants::reason_to_skip(variant) {
        Some(reason) => {
            println!("skipped {}: {reason}", variant.name);
            false
        }
        None => true,
    });

    // The speed of a machine changes: the baseline is measured before and after each of the others.
    let (baseline, compared): (Vec<_>, Vec<_>) =
        variants.into_iter().partition(|variant| variant.name == report::BASELINE);
    let others = compared.iter().flat_map(|variant| iter::once(variant).chain(&baseline));
    let order: Vec<_> = baseline.iter().chain(others).collect();

    let mut bench = Bench::start(plan.threads.into(), plan.gateway)?;
    let mut report = Report::new(seconds, load::CONNECTIONS, bench.placement());
    for round in 1..=rounds {
        let measured = order.iter().map(|variant| {
            let measurement = bench
                .measure(variant, seconds)
                .map_err(|failure| format!("{}: {failure}", variant.name))?;
            eprintln!(
                "round {round}/{rounds} {:<14} {:>7.0} requests/s {:>6.1} µs/request",
                variant.name, measurement.requests_per_second, measurement.cpu_us_per_request
            );
            Ok::<_, Failure>((variant.name, variant.what, measurement))
        });
        report.add_round(measured.collect::<Result<_, _>>()?);
    }
    print!("{report}");
    report.write(&plan.json)?;
    println!("rounds and medians: {}", plan.json.display());
    Ok(())
}
