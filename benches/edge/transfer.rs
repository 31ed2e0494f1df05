//! A large body through a proxy, up and down, and the memory that the proxy needs for it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::origin::LARGE;

/// Which way the body goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the origin.
    Up,
    /// From the origin to the client.
    Down,
}

/// Sends or receives the body, and returns its rate in megabytes a second.
///
/// # Errors
/// When the answer is not 200, or the connection breaks.
pub fn run(address: SocketAddr, token: &str, way: Way) -> Result<f64, Failure> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let (method, path, length) = match way {
        Way::Up => ("POST", "/api/items/7", LARGE),
        Way::Down => ("GET", "/api/large", 0),
    };
    let started = Instant::now();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    let mut buffer = vec![b'x'; 256 * 1024];
    for _ in 0..length / buffer.len() as u64 {
        stream.write_all(&buffer)?;
    }
    let mut received = 0;
    let mut start = Vec::new();
    loop {
        let read = stream.read(&mut buffer)?;
        if start.len() < 12 {
            start.extend_from_slice(&buffer[..read]);
        }
        received += read as u64;
        if read == 0 {
            break;
        }
    }
    if !start.starts_with(b"HTTP/1.1 200") || (way == Way::Down && received < LARGE) {
        let start = String::from_utf8_lossy(&start[..start.len().min(200)]).into_owned();
        return Err(format!("{received} bytes: {start}").into());
    }
    Ok(LARGE as f64 / 1e6 / started.elapsed().as_secs_f64())
}
