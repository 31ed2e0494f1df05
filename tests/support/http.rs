//! HTTP/1.1 as bytes: one message type for what the client reads and what the origin records.
//! It knows neither the gateway nor what a test expects, and normalises nothing.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// A request or an answer as it came over the wire.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The request line or the status line.
    pub line: String,
    /// Field names as written and values trimmed, in their order.
    pub headers: Vec<(String, String)>,
    /// The decoded body, as far as it arrived.
    pub body: Vec<u8>,
    /// Whether the body arrived to its end.
    pub complete: bool,
}

impl Message {
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or("")
    }

    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or("")
    }

    /// The values of every field called `name`, in their order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
            .collect()
    }

    /// The values of every field called `name`, as one list; `None` when there is no such field.
    pub fn header(&self, name: &str) -> Option<String> {
        Some(self.all(name)).filter(|all| !all.is_empty()).map(|all| all.join(", "))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {self:?} {}", self.text()))
    }

    /// The `code` of a problem document.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Reads a start line and its fields; `None` when the peer closed before the first byte.
pub fn read_head(from: &mut impl BufRead) -> io::Result<Option<Message>> {
    let mut message = Message::default();
    for nth in 0.. {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line)?;
        let ended = line.pop() == Some(b'\n');
        if !ended {
            return if nth == 0 && line.is_empty() {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        line.pop_if(|last| *last == b'\r');
        let line = String::from_utf8_lossy(&line).into_owned();
        match line.split_once(':') {
            _ if nth == 0 => message.line = line,
            _ if line.is_empty() => break,
            Some((name, value)) => message.headers.push((name.into(), value.trim().into())),
            None => message.headers.push((line, String::new())),
        }
    }
    Ok(Some(message))
}

/// Hands the body that follows `head` to `sink` as it arrives. Without framing there is none, or all there
/// is until the peer closes.
pub fn read_body(
    from: &mut impl BufRead,
    head: &Message,
    until_close: bool,
    sink: &mut dyn FnMut(&[u8]),
) -> io::Result<()> {
    let broken = |_| io::Error::from(io::ErrorKind::InvalidData);
    if head.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            let size = line.split(';').next().unwrap_or("").trim();
            let size = u64::from_str_radix(size, 16).map_err(broken)?;
            copy(from, Some(size), sink)?;
            if size == 0 {
                // An empty line ends the trailers, which nobody asks for.
                while {
                    line.clear();
                    from.read_line(&mut line)? > 2
                } {}
                return Ok(());
            }
            from.read_exact(&mut [0; 2])?;
        }
    }
    match head.all("content-length").first() {
        Some(length) => copy(from, Some(length.parse().map_err(broken)?), sink),
        None if until_close => copy(from, None, sink),
        None => Ok(()),
    }
}

fn copy(
    from: &mut impl BufRead,
    length: Option<u64>,
    sink: &mut dyn FnMut(&[u8]),
) -> io::Result<()> {
    let mut left = length.unwrap_or(u64::MAX);
    while left > 0 {
        let bytes = from.fill_buf()?;
        let n = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if n == 0 {
            return if length.is_none() {
                Ok(())
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        sink(&bytes[..n]);
        from.consume(n);
        left -= n as u64;
    }
    Ok(())
}

/// The bytes of a request: `Host` and `Content-Length` are added where `headers` lacks them.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    if !has("host") {
        text += "Host: gateway.test\r\n";
    }
    if !body.is_empty() && !has("content-length") && !has("transfer-encoding") {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

/// `body` as chunks of `size` bytes, with the last chunk.
pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// One connection to the gateway.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|e| panic!("cannot connect to {address}: {e}"))
    }

    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The connection itself, for what is not HTTP.
    pub fn stream(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.0
    }

    /// Sends bytes as they are. A peer that refuses the rest is no failure here: its answer tells.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.0.get_mut().write_all(bytes.as_ref());
        self
    }

    /// Sends a request and reads its answer.
    pub fn call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Message {
        self.send(request(method, target, headers, body));
        self.try_read(method == "HEAD")
            .unwrap_or_else(|e| panic!("no answer to {method} {target}: {e}"))
    }

    /// The next answer to a request that was not HEAD.
    pub fn read(&mut self) -> Message {
        self.try_read(false).unwrap_or_else(|e| panic!("no answer: {e}"))
    }

    /// The next answer; an error when the connection ends before it does.
    pub fn try_read(&mut self, to_head: bool) -> io::Result<Message> {
        let mut message = self.head()?.ok_or(io::ErrorKind::ConnectionAborted)?;
        if !to_head && message.status() >= 200 && ![204, 304].contains(&message.status()) {
            let mut body = Vec::new();
            read_body(&mut self.0, &message, true, &mut |bytes| body.extend_from_slice(bytes))?;
            message.body = body;
        }
        message.complete = true;
        Ok(message)
    }

    /// The next answer's status line and fields; `None` when the connection is closed.
    pub fn head(&mut self) -> io::Result<Option<Message>> {
        read_head(&mut self.0)
    }

    /// Whether the gateway ends the connection without another byte.
    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(e) => {
                matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
            }
        }
    }
}
