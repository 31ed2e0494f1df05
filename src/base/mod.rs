//! Time, secrets, networks, bytes, files, descriptors, text, weighted hashing: tools that every room may use. They know
//! nothing of the product.

pub mod class;
pub mod clock;
pub mod descriptor;
pub mod files;
pub mod hex;
pub mod net;
pub mod rendezvous;
pub mod secret;
pub mod task;
pub mod text;
