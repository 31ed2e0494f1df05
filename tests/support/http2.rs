//! HTTP/2 clients: one that keeps to the protocol, and one that sends any bytes as frames.
//! They know neither the gateway nor what a test expects.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::PATIENCE;
use super::http::Message;
use super::tls::TlsClient;

/// The bytes with which a client begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection of a client that keeps to the protocol.
pub struct H2Client {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// An answer, or the error that took its place.
pub type Answer = Result<Message, h2::Error>;

impl H2Client {
    pub fn connect(to: SocketAddr) -> Self {
        Self::connect_with(to, |_| {})
    }

    /// The same with options.
    pub fn connect_with(to: SocketAddr, set: impl FnOnce(&mut h2::client::Builder)) -> Self {
        Self::connect_over(to, set, async |socket| socket)
    }

    /// A connection over TLS to the host `name`.
    pub fn connect_tls(to: SocketAddr, client: &TlsClient, name: &'static str) -> Self {
        let client = client.with(|config| config.alpn_protocols = vec![b"h2".to_vec()]);
        let connector = TlsConnector::from(client.0);
        let name = ServerName::try_from(name).unwrap();
        Self::connect_over(
            to,
            |_| {},
            async move |socket| connector.connect(name, socket).await.unwrap(),
        )
    }

    fn connect_over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        to: SocketAddr,
        set: impl FnOnce(&mut h2::client::Builder),
        over: impl AsyncFnOnce(tokio::net::TcpStream) -> S,
    ) -> Self {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(16 << 20);
        set(&mut builder);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (requests, connection) = runtime.block_on(async {
            let socket = tokio::net::TcpStream::connect(to).await.unwrap();
            socket.set_nodelay(true).unwrap();
            let (requests, connection) = builder.handshake(over(socket).await).await.unwrap();
            (requests, tokio::spawn(connection))
        });
        Self { runtime, requests, connection }
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { timeout(PATIENCE, future).await.expect("in time") })
    }

    /// Sends the head of a request, whose body follows unless `last`.
    pub fn begin(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        last: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request =
            Request::builder().method(method).uri(format!("http://gateway.test{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let mut requests = self.requests.clone();
        self.block_on(async {
            poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
            requests.send_request(request, last).unwrap()
        })
    }

    /// One request.
    pub fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let (answer, mut sender) = self.begin(method, path, headers, body.is_empty());
        let body = Bytes::copy_from_slice(body);
        self.block_on(async move {
            let sending = tokio::spawn(async move {
                if !body.is_empty() {
                    // The gateway may answer early and end the stream.
                    let _ = send_all(&mut sender, body, true).await;
                }
            });
            let message = receive(answer).await;
            sending.abort();
            message
        })
    }

    /// Sends `body`.
    pub fn send(
        &self,
        to: &mut SendStream<Bytes>,
        body: &[u8],
        last: bool,
    ) -> Result<(), h2::Error> {
        self.block_on(send_all(to, Bytes::copy_from_slice(body), last))
    }

    /// The whole answer.
    pub fn receive(&self, answer: ResponseFuture) -> Answer {
        self.block_on(receive(answer))
    }

    /// The header of an answer, and the body that follows.
    pub fn head(&self, answer: ResponseFuture) -> Result<(Message, RecvStream), h2::Error> {
        self.block_on(head(answer))
    }

    /// The next part of a body; `None` at its end.
    pub fn next(&self, body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
        self.block_on(async {
            let data = body.data().await?;
            if let Ok(data) = &data {
                let _ = body.flow_control().release_capacity(data.len());
            }
            Some(data)
        })
    }

    /// How the connection ends.
    pub fn end(self) -> Result<(), h2::Error> {
        drop(self.requests);
        self.runtime
            .block_on(async { timeout(PATIENCE, self.connection).await.expect("an end").unwrap() })
    }

    /// Whether the gateway takes no more requests on the connection.
    pub fn is_closing(&mut self) -> bool {
        let mut requests = self.requests.clone();
        self.block_on(async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            poll_fn(|cx| requests.poll_ready(cx)).await.is_err()
        })
    }
}

async fn send_all(
    to: &mut SendStream<Bytes>,
    mut body: Bytes,
    last: bool,
) -> Result<(), h2::Error> {
    if body.is_empty() {
        return to.send_data(body, last);
    }
    while !body.is_empty() {
        to.reserve_capacity(body.len());
        let room = match poll_fn(|cx| to.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Err(Reason::STREAM_CLOSED.into()),
        };
        let part = body.split_to(room.min(body.len()));
        to.send_data(part, last && body.is_empty())?;
    }
    Ok(())
}

async fn head(answer: ResponseFuture) -> Result<(Message, RecvStream), h2::Error> {
    let (head, body) = answer.await?.into_parts();
    let mut message =
        Message { line: format!("HTTP/2 {}", head.status.as_u16()), ..Message::default() };
    message.headers = fields(&head.headers);
    Ok((message, body))
}

async fn receive(answer: ResponseFuture) -> Answer {
    let (mut message, mut body) = head(answer).await?;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.body.extend_from_slice(&data);
    }
    if let Some(trailers) = body.trailers().await? {
        message.headers.extend(fields(&trailers));
    }
    message.complete = true;
    Ok(message)
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

/// The types of frames (RFC 9113 section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags of frames.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame as it came over the wire.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY frame.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status of a HEADERS frame, which is the first field of its block.
    pub fn status(&self) -> u16 {
        let block = &self.payload;
        match block[0] {
            0x88 => 200,
            0x89 => 204,
            0x8a => 206,
            0x8b => 304,
            0x8c => 400,
            0x8d => 404,
            0x8e => 500,
            // A literal: Huffman codes of digits have 5 or 6 bits (RFC 7541 appendix B).
            _ => {
                let (mut bits, mut number) = (Vec::new(), 0);
                let length = usize::from(block[1] & 0x7f);
                let text = &block[2..2 + length];
                if block[1] & 0x80 == 0 {
                    return String::from_utf8_lossy(text).parse().unwrap();
                }
                for byte in text {
                    bits.extend((0..8).rev().map(|bit| byte >> bit & 1));
                }
                let mut bits = &bits[..];
                for _ in 0..3 {
                    let take = |n: usize| {
                        bits[..n].iter().fold(0u16, |sum, bit| sum << 1 | u16::from(*bit))
                    };
                    let (digit, used) = match take(5) {
                        low @ 0..=2 => (low, 5),
                        _ => (take(6) - 0b011001 + 3, 6),
                    };
                    number = number * 10 + digit;
                    bits = &bits[used..];
                }
                number
            }
        }
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A block of header fields: literals that no table keeps, without Huffman codes.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        let mut length = text.len();
        if length < 127 {
            bytes.push(u8::try_from(length).unwrap());
        } else {
            bytes.push(127);
            length -= 127;
            while length >= 128 {
                bytes.push(u8::try_from(length % 128 + 128).unwrap());
                length /= 128;
            }
            bytes.push(u8::try_from(length).unwrap());
        }
        bytes.extend_from_slice(text.as_bytes());
    };
    for (name, value) in fields {
        bytes.push(0);
        text(&mut bytes, name);
        text(&mut bytes, value);
    }
    bytes
}

/// The pseudo-fields of a GET for `path`, and more `fields`.
pub fn get(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo =
        [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "gateway.test")];
    block(&[&pseudo[..], fields].concat())
}

/// A connection on which any bytes are sent as frames.
pub struct RawH2 {
    pub stream: TcpStream,
}

impl RawH2 {
    /// A connection that has sent the preface and empty settings.
    pub fn connect(to: SocketAddr) -> Self {
        let mut raw = Self::silent(to);
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat());
        raw
    }

    /// A connection that has sent nothing.
    pub fn silent(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    /// Sends bytes. The gateway may have closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame; `None` when the gateway has closed the connection.
    pub fn next(&mut self) -> Option<Frame> {
        let mut header = [0; 9];
        self.exact(&mut header)?;
        let length =
            usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let mut payload = vec![0; length];
        self.exact(&mut payload)?;
        let stream = u32::from_be_bytes(header[5..].try_into().unwrap());
        Some(Frame { kind: header[3], flags: header[4], stream, payload })
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("no frame in time"),
            Err(_) => None,
        }
    }

    /// The first frame that `fits`; `None` when the gateway closes the connection before.
    pub fn find(&mut self, mut fits: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if fits(&frame) {
                return Some(frame);
            }
        }
    }

    /// How the gateway ends the stream: the status of its answer, or the code of its reset. `None` when it ends the
    /// connection without an answer.
    pub fn outcome(&mut self, stream: u32) -> Option<Result<u16, u32>> {
        let frame = self
            .find(|frame| frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM))?;
        Some(if frame.kind == HEADERS { Ok(frame.status()) } else { Err(frame.code()) })
    }

    /// The code with which the gateway ends the connection; `None` when it closes it without a word.
    pub fn goaway(&mut self) -> Option<u32> {
        Some(self.find(|frame| frame.kind == GOAWAY)?.code())
    }
}
