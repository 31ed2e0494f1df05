//! A Pingora proxy that decides nothing: the floor under any gateway built on Pingora. Its peer has the options the
//! gateway's peers have, so that the difference is the gateway's own work. It must not know tokens, limits or stores.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

use crate::Failure;

/// Proxies from `listen` to `origin` with so many worker threads until the process is killed.
///
/// # Errors
/// None that are returned: Pingora ends the process by itself.
pub fn run(listen: SocketAddr, origin: SocketAddr, threads: usize) -> Result<(), Failure> {
    let mut server = Server::new_with_opt_and_conf(None, conf(threads));
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare { peer: peer(origin) });
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run_forever()
}

/// Worker threads that do not steal work from each other, which makes Pingora faster, and as many idle connections to the
/// origin as the gateway keeps.
pub fn conf(threads: usize) -> ServerConf {
    ServerConf {
        threads,
        work_stealing: false,
        upstream_keepalive_pool_size: 1024,
        ..ServerConf::default()
    }
}

/// A peer at `origin` with the deadlines of the gateway's peers.
pub fn peer(origin: SocketAddr) -> HttpPeer {
    let mut peer = HttpPeer::new(origin, false, String::new());
    peer.options.connection_timeout = Some(Duration::from_secs(1));
    peer.options.read_timeout = Some(Duration::from_secs(30));
    peer.options.write_timeout = Some(Duration::from_secs(30));
    peer.options.idle_timeout = Some(Duration::from_secs(60));
    peer
}

/// Sends every request to one peer.
pub struct Bare {
    /// The peer.
    pub peer: HttpPeer,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(
        &self,
        _: &mut Session,
        _: &mut (),
    ) -> pingora_core::Result<Box<HttpPeer>> {
        Ok(Box::new(self.peer.clone()))
    }
}
