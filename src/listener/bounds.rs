//! How many client connections may be open at the same time, altogether and for one client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use log::warn;
use parking_lot::Mutex;
use pingora_limits::inflight::{Guard, Inflight};

use crate::base::net::Network;
use crate::telemetry::metrics::METRICS;

/// The bounds of the moment.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most open connections.
    pub all: usize,
    /// Most open connections of one client; `None` for any number.
    pub per_client: Option<isize>,
}

/// Counts the open connections of one service.
pub struct OpenConnections {
    all: Arc<AtomicUsize>,
    clients: Inflight,
    refusals: Arc<Refusals>,
}

impl Default for OpenConnections {
    fn default() -> Self {
        Self { all: Arc::default(), clients: Inflight::new(), refusals: Arc::default() }
    }
}

impl OpenConnections {
    /// Counts one more connection of `client`; `None` when a bound is reached already. Connections without
    /// `client` have no bound of their own.
    pub fn admit(&self, client: Option<Network>, bounds: Bounds) -> Option<OpenConnection> {
        METRICS.connections.inc();
        let before = self.all.fetch_add(1, Ordering::Relaxed);
        let mut connection =
            OpenConnection { all: Arc::clone(&self.all), _client: None, nth_of_client: 1 };
        if before >= bounds.all {
            self.refusals.count_all();
            return None;
        }
        self.admit_client(&mut connection, client, bounds.per_client).then_some(connection)
    }

    /// Counts the open `connection` among those of `client`; `false` when the client has `most` already.
    pub fn admit_client(
        &self,
        connection: &mut OpenConnection,
        client: Option<Network>,
        most: Option<isize>,
    ) -> bool {
        let (Some(client), Some(most)) = (client, most) else { return true };
        let (guard, open) = self.clients.incr(client, 1);
        connection._client = Some(guard);
        connection.nth_of_client = usize::try_from(open).unwrap_or(1);
        if open > most {
            self.refusals.count_client(client);
        }
        open <= most
    }

    /// Counts the connections that are refused.
    pub fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.refusals)
    }
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    all: Arc<AtomicUsize>,
    _client: Option<Guard>,
    nth_of_client: usize,
}

impl OpenConnection {
    /// How many connections its client had open when this one began, with this one; 1 where the client has no bound.
    pub fn nth_of_client(&self) -> usize {
        self.nth_of_client
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        METRICS.connections.dec();
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connections that were refused and are not in the log yet. A flood of connections must not become a flood
/// of lines, so each refusal is only counted.
#[derive(Debug, Default)]
pub struct Refusals {
    all: AtomicU64,
    of_clients: AtomicU64,
    last_client: Mutex<Option<Network>>,
    untrusted: AtomicU64,
}

impl Refusals {
    fn count_all(&self) {
        METRICS.connections_refused.all.inc();
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    fn count_client(&self, client: Network) {
        METRICS.connections_refused.per_client.inc();
        self.of_clients.fetch_add(1, Ordering::Relaxed);
        *self.last_client.lock() = Some(client);
    }

    /// Counts a connection to a listener for proxies whose peer is no trusted proxy.
    pub fn count_untrusted(&self) {
        METRICS.proxy_headers.untrusted.inc();
        self.untrusted.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the refusals since the last call to the log: a line for each bound that was reached.
    pub fn report(&self) {
        match self.all.swap(0, Ordering::Relaxed) {
            0 => {}
            refused => warn!("{refused} connections refused: max_connections are open"),
        }
        match self.untrusted.swap(0, Ordering::Relaxed) {
            0 => {}
            refused => warn!(
                "{refused} connections refused: the listener has proxy_protocol, and their peer is not in trusted_proxies"
            ),
        }
        match self.of_clients.swap(0, Ordering::Relaxed) {
            0 => {}
            refused => {
                let client = self.last_client.lock().map(|client| client.to_string());
                warn!(
                    client_ip = client;
                    "{refused} connections refused: their client has max_connections_per_client open"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn client(address: &str) -> Option<Network> {
        Some(Network::of(address.parse::<IpAddr>().unwrap()))
    }

    #[test]
    fn a_connection_counts_until_it_ends_or_is_refused() {
        let open = OpenConnections::default();
        let bounds = Bounds { all: 2, per_client: None };
        let first = open.admit(client("10.0.0.1"), bounds);
        let second = open.admit(None, bounds);
        assert!(first.is_some() && second.is_some());
        assert!(open.admit(None, bounds).is_none());
        assert!(open.admit(None, bounds).is_none());
        drop(first);
        assert!(open.admit(None, bounds).is_some());
        assert_eq!(open.refusals.all.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_client_at_its_bound_leaves_room_for_the_others() {
        let open = OpenConnections::default();
        let bounds = Bounds { all: 100, per_client: Some(2) };
        let admit = |address| open.admit(client(address), bounds);
        let held =
            [admit("10.0.0.1"), admit("10.0.0.1"), admit("2001:db8::1"), admit("2001:db8::2")];
        assert!(held.iter().all(Option::is_some));
        for full in ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::3"] {
            for _ in 0..3 {
                assert!(admit(full).is_none(), "{full}");
            }
        }
        assert_eq!(held[1].as_ref().map(OpenConnection::nth_of_client), Some(2));
        assert_eq!(admit("10.0.0.2").map(|open| open.nth_of_client()), Some(1));
        assert!(admit("2001:db8:0:1::1").is_some());
        assert!(open.admit(None, bounds).is_some(), "a proxy has no bound");
        assert_eq!(open.refusals.of_clients.load(Ordering::Relaxed), 9);
        drop(held);
        assert!(admit("10.0.0.1").is_some());
    }
}
