//! How many client connections may be open at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::telemetry::metrics::METRICS;

/// Counts the open connections of one service.
#[derive(Debug, Default)]
pub struct OpenConnections {
    count: Arc<AtomicUsize>,
}

impl OpenConnections {
    /// Counts one more connection; `None` when `bound` connections are open already.
    pub fn admit(&self, bound: usize) -> Option<OpenConnection> {
        METRICS.connections.inc();
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        let connection = OpenConnection { count: Arc::clone(&self.count) };
        (before < bound).then_some(connection)
    }
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    count: Arc<AtomicUsize>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        METRICS.connections.dec();
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_until_it_ends_or_is_refused() {
        let open = OpenConnections::default();
        let first = open.admit(2);
        let second = open.admit(2);
        assert!(first.is_some() && second.is_some());
        assert!(open.admit(2).is_none());
        assert!(open.admit(2).is_none());
        drop(first);
        assert!(open.admit(2).is_some());
    }
}
