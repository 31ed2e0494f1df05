//! Client connections, from the listening socket to one request at a time.
//!
//! ```text
//! sockets     bound before the gateway starts
//! listening   accepts connections, until the shutdown says so
//! worker      the other threads, each with its share of the connections
//! accept      counts connections, and gives each to the reader of its protocol
//!   proxy_protocol  whose connection a proxy passes on
//!   handshake   TLS before the first request
//!   connection  its bytes, and facts about it
//!   http1       bytes to requests, one after the other
//!   http2       bytes to requests, many at the same time
//!     rules       checks of a request's head that hold for every protocol
//!   request     what the server of a request may tell its connection, whatever the protocol
//!     control     the state of a request that both know
//!     watch       ends a request that takes long and must not go on
//! ```
//!
//! A step before the first request (a TLS handshake, the header of a proxy) belongs into [`accept`], and sets
//! facts of the [`connection`]. The server of the requests is an argument: this room does not know the proxy.

pub mod accept;
pub mod bounds;
pub mod connection;
mod control;
pub mod end;
mod handshake;
pub mod http1;
pub mod http2;
pub mod listening;
pub mod pace;
mod proxy_protocol;
pub mod request;
pub mod rules;
pub mod server;
pub mod sockets;
mod timer;
mod tls_stream;
mod watch;
pub mod worker;
