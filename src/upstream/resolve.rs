//! Looks up the addresses of names, in the background and with a deadline: no request waits for DNS.

use std::net::SocketAddr;
use std::time::Duration;

use log::{info, warn};
use tokio::time::timeout;

use super::pool::{Endpoint, Upstream};

/// The longest time that one look-up may take.
const LOOKUP: Duration = Duration::from_secs(3);

/// Looks up the endpoints of `upstreams` that are names. An endpoint whose look-up fails keeps its addresses.
pub async fn resolve(upstreams: impl IntoIterator<Item = &Upstream>) {
    for upstream in upstreams {
        for endpoint in upstream.endpoints().iter().filter(|endpoint| endpoint.literal().is_none())
        {
            resolve_endpoint(upstream, endpoint).await;
        }
    }
}

async fn resolve_endpoint(upstream: &Upstream, endpoint: &Endpoint) {
    let name = &upstream.rules().name;
    let authority = &endpoint.authority;
    let problem = match timeout(LOOKUP, tokio::net::lookup_host(authority)).await {
        Ok(Ok(addresses)) => {
            let mut addresses: Vec<SocketAddr> = addresses.collect();
            addresses.sort_unstable();
            addresses.dedup();
            if addresses.is_empty() {
                "it has no address".to_owned()
            } else {
                if !endpoint.is_resolved() {
                    info!("upstream {name}: {authority} resolved to {addresses:?}");
                }
                endpoint.set_addresses(&addresses, upstream.rules().timeouts);
                return;
            }
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {LOOKUP:?}"),
    };
    warn!("upstream {name}: {authority} cannot be resolved: {problem}");
}
