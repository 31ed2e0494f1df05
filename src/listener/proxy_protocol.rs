//! The header in which a proxy says whose connection it passes on (PROXY protocol, versions 1 and 2).
//!
//! Nothing after the header is read, and the header is believed from trusted proxies alone: whoever may write it chooses the
//! address that every check sees.

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest header of version 1, in bytes.
const MAX_V1: usize = 107;

/// The longest header of version 2 that is read, in bytes. Beside addresses it may hold what the proxy knows about its client,
/// such as a certificate, which is not used.
const MAX_V2: usize = 4096;

/// The bytes of version 2 up to its length.
const FIXED_V2: usize = 16;

/// The first bytes of each version. Version 1 is told from version 2 by the first byte.
const V1: &[u8] = b"PROXY ";

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The connection broke.
    #[error("the connection ended: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no header.
    #[error("the header of the PROXY protocol is malformed")]
    Malformed,
    /// The header is too long.
    #[error("the header of the PROXY protocol is too long")]
    TooLong,
}

/// Reads the header at the beginning of `stream`. `None`: the connection is the proxy's own, such as for a health check,
/// or the proxy does not know its client.
///
/// # Errors
/// [`HeaderError`].
pub async fn read(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, HeaderError> {
    let mut buffer = [0; MAX_V1];
    let start = &mut buffer[..V1.len()];
    stream.read_exact(start).await?;
    match &*start {
        V1 => read_v1(stream, &mut buffer).await,
        start if v2::PROTOCOL_PREFIX.starts_with(start) => {
            stream.read_exact(&mut buffer[V1.len()..FIXED_V2]).await?;
            read_v2(stream, &buffer[..FIXED_V2]).await
        }
        _ => Err(HeaderError::Malformed),
    }
}

/// Version 1 has no length, so that its line is read byte by byte: what follows is not the header's.
async fn read_v1(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8; MAX_V1],
) -> Result<Option<SocketAddr>, HeaderError> {
    let mut length = V1.len();
    while !buffer[..length].ends_with(b"\r\n") {
        let next = buffer.get_mut(length).ok_or(HeaderError::TooLong)?;
        *next = stream.read_u8().await?;
        // A line break alone would be read differently by a proxy that ends the line there.
        if *next == b'\n' && buffer[length - 1] != b'\r' {
            return Err(HeaderError::Malformed);
        }
        length += 1;
    }
    let line = &buffer[..length];
    // Signs that numbers may have in Rust are no part of a port.
    if line.contains(&b'+') {
        return Err(HeaderError::Malformed);
    }
    let header = v1::Header::try_from(line).map_err(|_| HeaderError::Malformed)?;
    if header.header.len() != length {
        return Err(HeaderError::Malformed);
    }
    Ok(match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
    })
}

async fn read_v2(
    stream: &mut (impl AsyncRead + Unpin),
    fixed: &[u8],
) -> Result<Option<SocketAddr>, HeaderError> {
    let [.., high, low] = *fixed else { return Err(HeaderError::Malformed) };
    let length = FIXED_V2 + usize::from(u16::from_be_bytes([high, low]));
    if !fixed.starts_with(v2::PROTOCOL_PREFIX) {
        return Err(HeaderError::Malformed);
    }
    if length > MAX_V2 {
        return Err(HeaderError::TooLong);
    }
    let mut bytes = fixed.to_vec();
    bytes.resize(length, 0);
    stream.read_exact(&mut bytes[FIXED_V2..]).await?;
    let header = v2::Header::try_from(&bytes[..]).map_err(|_| HeaderError::Malformed)?;
    if header.command == v2::Command::Local {
        return Ok(None);
    }
    match (header.protocol, header.addresses) {
        (v2::Protocol::Stream, v2::Addresses::IPv4(ip)) => {
            Ok(Some((ip.source_address, ip.source_port).into()))
        }
        (v2::Protocol::Stream, v2::Addresses::IPv6(ip)) => {
            Ok(Some((ip.source_address, ip.source_port).into()))
        }
        (_, v2::Addresses::Unspecified) => Ok(None),
        // A datagram or a Unix socket is no connection of a client of this gateway.
        _ => Err(HeaderError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// What is read of `bytes`, which are followed by others, when they arrive in pieces of `piece` bytes; and what is left.
    async fn read_in_pieces(
        bytes: &[u8],
        piece: usize,
    ) -> (Result<Option<SocketAddr>, HeaderError>, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(1 << 16);
        let sent = bytes.to_vec();
        let sending = tokio::spawn(async move {
            for piece in sent.chunks(piece) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let read = super::read(&mut server).await;
        sending.await.unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        (read, rest)
    }

    fn version_2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[0x20 | command, family], &length, payload].concat()
    }

    const IPV4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 0, 80];

    fn ipv6() -> Vec<u8> {
        let mut payload = vec![0; 36];
        (payload[..2]).copy_from_slice(&[0x20, 0x01]);
        (payload[15], payload[33]) = (7, 9);
        payload
    }

    #[tokio::test]
    async fn a_header_gives_the_address_and_nothing_after_it_is_read() {
        let with_values = [&IPV4[..], &[1, 0, 2, b'h', b'2'], &[4, 0, 1, 0], &[0xee; 900]].concat();
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 80\r\n".to_vec(), Some("192.0.2.1:4660")),
            (b"PROXY TCP6 2001::7 ::1 9 80\r\n".to_vec(), Some("[2001::7]:9")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (version_2(1, 0x11, &IPV4), Some("192.0.2.1:4660")),
            (version_2(1, 0x11, &with_values), Some("192.0.2.1:4660")),
            (version_2(1, 0x21, &ipv6()), Some("[2001::7]:9")),
            (version_2(0, 0x11, &IPV4), None),
            (version_2(0, 0x00, &[]), None),
            (version_2(1, 0x00, &[]), None),
        ] {
            let bytes = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            for piece in [1, 7, bytes.len()] {
                let (read, rest) = read_in_pieces(&bytes, piece).await;
                let expected = expected.map(|text| text.parse::<SocketAddr>().unwrap());
                assert_eq!(read.unwrap(), expected, "{header:?}");
                assert_eq!(rest, b"GET / HTTP/1.1\r\n", "{header:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = |length: usize| [b"PROXY UNKNOWN ", &vec![b'x'; length][..], b"\r\n"].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"proxy TCP4 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2 3\r\n".to_vec(),
            b"PROXY TCP4  192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 65536\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 +1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 01 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.256 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4\r192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\r\r\n".to_vec(),
            b"PROXY \xff\xff\r\n".to_vec(),
            long(100),
            long(10_000),
            // Version 2.
            b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\x0c".to_vec(),
            version_2(2, 0x11, &IPV4),
            version_2(1, 0x41, &IPV4),
            version_2(1, 0x12, &IPV4),
            version_2(1, 0x13, &IPV4),
            version_2(1, 0x11, &IPV4[..11]),
            version_2(1, 0x21, &IPV4),
            version_2(1, 0x31, &[0; 216]),
            version_2(1, 0x11, &[0; 5_000]),
            [v2::PROTOCOL_PREFIX, &[0x11, 0x11, 0, 12], &IPV4[..]].concat(),
            // Headers that end early.
            b"".to_vec(),
            b"PRO".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0".to_vec(),
            v2::PROTOCOL_PREFIX.to_vec(),
            version_2(1, 0x11, &IPV4)[..20].to_vec(),
        ] {
            for piece in [1, 9, bytes.len().max(1)] {
                let (read, _) = read_in_pieces(&bytes, piece).await;
                assert!(read.is_err(), "{bytes:?}: {read:?}");
            }
        }
    }
}
