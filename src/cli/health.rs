//! `tollgate health`: asks a running gateway whether it is ready, for images without curl.
//!
//! It speaks plain HTTP/1.1 over one connection, and knows only the address of the gateway.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use clap::Args;
use url::{Position, Url};

use super::Failure;

/// The deadline of the whole question.
const DEADLINE: Duration = Duration::from_secs(2);

/// The longest status line that is read, in bytes.
const MAX_STATUS_LINE: usize = 256;

/// Arguments of `tollgate health`.
#[derive(Args, Debug)]
pub struct HealthArguments {
    /// The http URL to ask
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080/ready")]
    url: Url,
}

/// Succeeds without a text when the answer is 2xx and comes within two seconds.
///
/// # Errors
/// [`Failure::Unavailable`] on another answer or none, [`Failure::Usage`] when the URL is not http.
pub fn run(arguments: &HealthArguments) -> Result<String, Failure> {
    let url = &arguments.url;
    let host = match url.host_str() {
        Some(host) if url.scheme() == "http" => host,
        _ => {
            return Err(Failure::Usage(format!(
                "`{url}` cannot be asked: write http://host:port/path"
            )));
        }
    };
    let port = url.port_or_known_default().unwrap_or(80);
    let target = &url[Position::BeforePath..Position::AfterQuery];
    let line = status_line(host, port, target, Instant::now() + DEADLINE)
        .map_err(|error| Failure::Unavailable(format!("{url}: {error}")))?;
    match line.split(' ').nth(1) {
        Some(status)
            if line.starts_with("HTTP/1.") && status.len() == 3 && status.starts_with('2') =>
        {
            Ok(String::new())
        }
        _ => Err(Failure::Unavailable(format!("{url}: {}", line.escape_default()))),
    }
}

/// The first line of the answer to a GET.
fn status_line(host: &str, port: u16, target: &str, deadline: Instant) -> io::Result<String> {
    let mut stream = connect(host, port, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    let mut chunk = [0; MAX_STATUS_LINE];
    while line.len() < MAX_STATUS_LINE && !line.contains(&b'\n') {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => line.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(too_late()),
            Err(error) => return Err(error),
        }
    }
    let line = line.split(|&byte| byte == b'\r' || byte == b'\n').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).into_owned())
}

/// A connection to the first address of `host` that takes one.
#[expect(clippy::disallowed_methods, reason = "a command with one thing to do may block")]
fn connect(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<_> = format!("{host}:{port}").to_socket_addrs()?.collect();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (nth, address) in (0u32..).zip(&addresses) {
        // An address that does not answer leaves time for the addresses after it.
        let others = u32::try_from(addresses.len()).unwrap_or(u32::MAX) - nth;
        match TcpStream::connect_timeout(address, left(deadline)? / others.max(1)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The time until `deadline`; an error once it has passed.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(too_late()) } else { Ok(left) }
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {DEADLINE:?}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Asks a server that sends `answer` and closes.
    fn asked(answer: &'static str) -> Result<String, Failure> {
        asked_as("127.0.0.1", answer)
    }

    /// The same, where the URL calls the server `host`.
    fn asked_as(host: &str, answer: &'static str) -> Result<String, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("http://{host}:{port}/ready").parse().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        let result = run(&HealthArguments { url });
        let asked = format!("GET /ready HTTP/1.1\r\nHost: {host}:");
        assert!(server.join().unwrap().starts_with(&asked));
        result
    }

    #[test]
    fn a_name_with_several_addresses_is_tried_at_each() {
        // Where `localhost` is `::1` too, nothing listens there.
        assert!(asked_as("localhost", "HTTP/1.1 200 OK\r\n\r\n").is_ok());
    }

    #[test]
    fn only_a_2xx_is_healthy() {
        assert!(asked("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_ok());
        for answer in
            ["HTTP/1.1 503 Service Unavailable\r\n\r\n", "HTTP/1.1 2\r\n\r\n", "200 ok 200", ""]
        {
            assert!(matches!(asked(answer), Err(Failure::Unavailable(_))), "{answer:?}");
        }
    }

    #[test]
    fn nobody_there_is_unavailable_and_another_scheme_is_misuse() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let ask = |url: String| run(&HealthArguments { url: url.parse().unwrap() });
        assert!(matches!(ask(format!("http://{closed}/ready")), Err(Failure::Unavailable(_))));
        assert!(matches!(ask("https://127.0.0.1/ready".into()), Err(Failure::Usage(_))));
    }
}
