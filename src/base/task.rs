//! Tasks that end by themselves. A task that must run for ever belongs to `gateway::background`, which starts it again
//! when it dies.

use std::future::Future;

/// Runs `work` beside its caller, on the same runtime. No result is waited for: `work` must end by itself, and losing it
/// must do no harm.
#[expect(clippy::disallowed_methods, reason = "the one place for tasks that end by themselves")]
pub fn detach(work: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(work));
}
