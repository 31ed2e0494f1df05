//! The file descriptors that the process may open: as many as the configured connections need.

use log::{info, warn};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors besides those of connections: listeners, the store, log, metrics, key fetches.
const OTHERS: u64 = 128;

/// Raises the limit of the process as far as `max_connections` need it and the system allows it.
pub fn provide(max_connections: usize) {
    // A client connection whose request is under way needs a connection to an upstream, too.
    let needed = u64::try_from(max_connections).unwrap_or(u64::MAX).saturating_mul(2);
    let needed = needed.saturating_add(OTHERS);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let before = current.unwrap_or(u64::MAX);
    let wanted = needed.min(maximum.unwrap_or(u64::MAX));
    let mut now = before;
    if before < wanted {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
            Ok(()) => {
                info!("limit of open files raised from {before} to {wanted}");
                now = wanted;
            }
            Err(error) => warn!("limit of open files cannot be raised from {before}: {error}"),
        }
    }
    if now < needed {
        warn!(
            "max_connections is {max_connections}, which may need {needed} open files, but the process may \
             open {now}: raise the limit (ulimit -Hn, LimitNOFILE=) or lower max_connections"
        );
    }
}
