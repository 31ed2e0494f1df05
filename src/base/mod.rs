//! Time, secrets, networks, bytes, files, text: what every room may use, and what knows nothing of the product.

pub mod class;
pub mod clock;
pub mod files;
pub mod net;
pub mod secret;
pub mod text;
