//! The server behind every proxy: the same 32 bytes for each request, as cheaply as possible, so that it is never the
//! bottleneck. It must not know what is measured. Requests have no body here, so a head's end is a request's end.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 32\r\n\
    \r\n\
    0123456789abcdef0123456789abcde\n";

/// The longest head, in bytes; a longer one ends the connection.
const MAX_HEAD: usize = 64 * 1024;

/// Answers on `listen` until the process is killed.
///
/// # Errors
/// When the address cannot be listened on.
pub fn run(listen: SocketAddr) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (client, _) = listener.accept().await?;
            // A proxy that closes or resets a connection ends that connection's task, nothing else.
            tokio::spawn(async { serve(client).await.ok() });
        }
    })
}

/// One connection: as many answers as complete heads have arrived, in one write.
async fn serve(mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut unanswered = Vec::with_capacity(4096);
    let mut answers = Vec::with_capacity(4096);
    while client.read_buf(&mut unanswered).await? > 0 {
        let mut answered = 0;
        while let Some(end) = memchr::memmem::find(&unanswered[answered..], b"\r\n\r\n") {
            answered += end + 4;
            answers.extend_from_slice(ANSWER);
        }
        unanswered.drain(..answered);
        if unanswered.len() > MAX_HEAD {
            break;
        }
        client.write_all(&answers).await?;
        answers.clear();
    }
    Ok(())
}
