//! The server behind every proxy, as cheap as possible: 32 bytes for each request, a large body for `/api/large`, and the
//! answer of a unary gRPC call over HTTP/2. It must not know what is measured.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The size of a large body, in bytes.
pub const LARGE: u64 = 1 << 30;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 32\r\n\
    \r\n\
    0123456789abcdef0123456789abcde\n";

/// A gRPC message of 32 bytes with its prefix of 5 bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x200123456789abcdef0123456789abcde\n";

/// The longest head, in bytes; a longer one ends the connection.
const MAX_HEAD: usize = 64 * 1024;

/// Answers on `listen` until the process is killed.
///
/// # Errors
/// When the address cannot be listened on.
pub fn run(listen: SocketAddr, http2: bool) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            // A proxy that closes or resets a connection ends that connection's task, nothing else.
            tokio::spawn(async move {
                match http2 {
                    true => serve_http2(client).await.ok(),
                    false => serve(client).await.ok(),
                }
            });
        }
    })
}

/// One connection, one request at a time.
async fn serve(mut client: TcpStream) -> io::Result<()> {
    let mut unanswered = Vec::with_capacity(64 * 1024);
    let large = vec![b'x'; 64 * 1024];
    while client.read_buf(&mut unanswered).await? > 0 {
        while let Some(end) = memchr::memmem::find(&unanswered, b"\r\n\r\n") {
            let head = unanswered[..end].to_ascii_lowercase();
            let mut body = content_length(&head);
            let here = (unanswered.len() - end - 4) as u64;
            unanswered.drain(..end + 4 + body.min(here) as usize);
            body -= body.min(here);
            while body > 0 {
                unanswered.clear();
                client.read_buf(&mut unanswered).await?;
                let read = body.min(unanswered.len() as u64);
                unanswered.drain(..read as usize);
                body -= read;
            }
            if head.starts_with(b"get /api/large") {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
                client.write_all(head.as_bytes()).await?;
                for _ in 0..LARGE / large.len() as u64 {
                    client.write_all(&large).await?;
                }
            } else {
                client.write_all(ANSWER).await?;
            }
        }
        if unanswered.len() > MAX_HEAD {
            break;
        }
    }
    Ok(())
}

fn content_length(head: &[u8]) -> u64 {
    const NAME: &[u8] = b"content-length:";
    let Some(at) = memchr::memmem::find(head, NAME) else { return 0 };
    let digits = head[at + NAME.len()..].iter().skip_while(|byte| **byte == b' ');
    digits
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// One HTTP/2 connection, each request in a task of its own.
async fn serve_http2(client: TcpStream) -> Result<(), h2::Error> {
    let mut builder = h2::server::Builder::new();
    builder.initial_connection_window_size(1 << 24).max_concurrent_streams(1_000);
    let mut connection = builder.handshake::<_, Bytes>(client).await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
            }
            let mut answer = Response::new(());
            answer
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("application/grpc"));
            let mut stream = respond.send_response(answer, false)?;
            stream.send_data(Bytes::from_static(MESSAGE), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers)
        });
    }
    Ok(())
}
