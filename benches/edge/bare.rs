//! A Pingora proxy that decides nothing, with TLS and HTTP/2 where a case asks for them. It must not know tokens or limits.

use std::net::SocketAddr;
use std::path::PathBuf;

use pingora_core::apps::HttpServerOptions;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_proxy::ProxyServiceBuilder;

use crate::{Failure, floor};

/// How the bare proxy listens and where it sends requests.
#[derive(clap::Args)]
pub struct Bare {
    /// Where to listen.
    listen: SocketAddr,
    /// Where requests go.
    origin: SocketAddr,
    /// The certificate to listen with TLS.
    #[arg(long, requires = "private_key")]
    certificate: Option<PathBuf>,
    /// The key of the certificate.
    #[arg(long)]
    private_key: Option<PathBuf>,
    /// Whether clients speak HTTP/2: with TLS by ALPN, without TLS by prior knowledge.
    #[arg(long)]
    http2: bool,
    /// Whether the origin speaks HTTP/2 without TLS.
    #[arg(long)]
    origin_http2: bool,
}

impl Bare {
    /// Proxies with one worker thread until the process is killed.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub fn run(self) -> Result<(), Failure> {
        let mut server = Server::new_with_opt_and_conf(None, floor::conf(1));
        server.bootstrap();
        let mut peer = floor::peer(self.origin);
        if self.origin_http2 {
            peer.options.set_http_version(2, 2);
            peer.options.max_h2_streams = 100;
        }
        let mut options = HttpServerOptions::default();
        options.h2c = self.http2 && self.certificate.is_none();
        let mut service = ProxyServiceBuilder::new(&server.configuration, floor::Bare { peer })
            .server_options(options)
            .build();
        let listen = self.listen.to_string();
        match (self.certificate, self.private_key) {
            (Some(certificate), Some(key)) => {
                let text = |path: PathBuf| path.to_string_lossy().into_owned();
                let mut tls = TlsSettings::intermediate(&text(certificate), &text(key))?;
                if self.http2 {
                    tls.enable_h2();
                }
                service.add_tls_with_settings(&listen, None, tls);
            }
            _ => service.add_tcp(&listen),
        }
        server.add_service(service);
        server.run_forever()
    }
}
