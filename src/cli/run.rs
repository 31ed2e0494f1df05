//! `tollgate run`: the gateway.

use std::sync::Arc;

use super::{Failure, RunArguments};
use crate::config::Config;
use crate::gateway::reload::PendingReload;
use crate::gateway::{Gateway, StartError};
use crate::telemetry::log_output::{self, LogGuard};

/// Runs the gateway until a signal ends it.
///
/// # Errors
/// [`Failure::Configuration`] when the configuration is wrong, [`Failure::Unavailable`] when an address
/// cannot be listened on.
pub fn run(arguments: &RunArguments) -> Result<(), Failure> {
    // First of all: an early SIGHUP must not end the process.
    let pending = catch_hangup()?;
    let config = arguments.config.load_with_routes()?;
    let _log = start_log(&config)?;
    let source = arguments.config.clone();
    let load = Arc::new(move || source.load_with_routes().map_err(|failure| failure.to_string()));
    let gateway = Gateway::prepare(config, arguments.upgrade);
    gateway.and_then(|gateway| gateway.run(load, pending)).map_err(failure)
}

/// Catches SIGHUP until the gateway acts on it.
pub(super) fn catch_hangup() -> Result<PendingReload, Failure> {
    PendingReload::catch().map_err(|error| Failure::Internal(format!("catching SIGHUP: {error}")))
}

/// Installs the log.
pub(super) fn start_log(config: &Config) -> Result<LogGuard, Failure> {
    let Config { startup, live } = config;
    log_output::install(startup.log_format, startup.log_color, live.log_level)
        .map_err(|error| Failure::Internal(format!("starting the log: {error}")))
}

/// The failure, and so the exit code, of a failed start.
pub(super) fn failure(error: StartError) -> Failure {
    match error {
        StartError::Bind(_) | StartError::HandOver(_) => Failure::Unavailable(error.to_string()),
        StartError::System(_) => Failure::Internal(error.to_string()),
    }
}
