//! TLS towards clients: certificates, which are chosen by name and read again when their files change, and the certificates
//! of clients.
//!
//! This room must not know sockets: `listener` shakes hands. The whole program has one provider of cryptography for TLS,
//! which [`provider`] names.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

pub mod certificate;
mod choice;
pub mod client;
pub mod server;

/// The cryptography of every TLS connection.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Makes [`provider`] the one of libraries that ask for none. Without it a library would look for the one that is compiled
/// in, and panic where there are two.
pub fn install_provider() {
    // An error means that it is installed already.
    let _ = ring::default_provider().install_default();
}
