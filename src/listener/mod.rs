//! Client connections, from the listening socket to one request at a time.
//!
//! ```text
//! sockets     bound ahead, closed when the shutdown says so
//! accept      counts connections, and gives each to the reader of its protocol
//!   connection  its bytes, and what is known of it
//!   http1       bytes to requests, one after the other
//!     rules       what holds for a request's head, whatever the protocol
//! ```
//!
//! What comes before a request (a TLS handshake, a proxy's header) belongs into [`accept`], and changes the
//! facts in [`connection`]. What serves the requests is an argument: this room does not know the proxy.

pub mod accept;
mod bounds;
pub mod connection;
pub mod http1;
pub mod rules;
pub mod sockets;
mod timer;
