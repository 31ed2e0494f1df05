//! Client connections: listening sockets, and the strict reading of a protocol's bytes.

pub mod http1;
pub mod sockets;
