//! The client's address, as far as trusted proxies vouch for it, and the list of addresses that is forwarded.

use std::fmt::Write;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::route::fields;

pub(super) static X_FORWARDED_FOR: HeaderName = HeaderName::from_static(fields::FORWARDED_FOR);

/// The client's address: the peer, or what trusted proxies say, read from the right.
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer;
    for value in headers.get_all(&X_FORWARDED_FOR).iter().rev() {
        for hop in value.to_str().unwrap_or_default().rsplit(',') {
            if !is_trusted(client, trusted) {
                return client;
            }
            match parse_hop(hop.trim()) {
                Some(address) => client = address,
                None => return client,
            }
        }
    }
    client
}

/// Whether `address` is one of the trusted proxies.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address.to_canonical()))
}

fn parse_hop(hop: &str) -> Option<IpAddr> {
    let address = hop.parse::<std::net::SocketAddr>().map(|with_port| with_port.ip());
    address.or_else(|_| hop.trim_matches(['[', ']']).parse()).ok()
}

/// The value of `X-Forwarded-For`: the hops that `earlier` fields list, then the peer.
pub(super) fn forwarded_for<'a>(
    earlier: impl Iterator<Item = &'a HeaderValue>,
    peer: IpAddr,
) -> String {
    let mut hops = String::with_capacity(15);
    for text in earlier.filter_map(|value| value.to_str().ok()) {
        hops.push_str(text.trim());
        hops.push_str(", ");
    }
    match peer.to_canonical() {
        IpAddr::V4(peer) => {
            let mut separator = "";
            for octet in peer.octets() {
                hops.push_str(separator);
                hops.push_str(itoa::Buffer::new().format(octet));
                separator = ".";
            }
        }
        peer @ IpAddr::V6(_) => {
            let _ = write!(hops, "{peer}");
        }
    }
    hops
}

#[cfg(test)]
mod tests {
    use super::super::tests::headers;
    use super::*;

    #[test]
    fn the_client_is_the_first_hop_that_is_not_trusted() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for (peer, fields, client) in [
            ("203.0.113.9", &[("x-forwarded-for", "1.1.1.1")][..], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[("x-forwarded-for", "1.1.1.1")], "1.1.1.1"),
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, 1.1.1.1, 10.0.0.2")], "1.1.1.1"),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")],
                "1.1.1.1",
            ),
            ("10.0.0.1", &[("x-forwarded-for", "1.1.1.1, rubbish")], "10.0.0.1"),
            ("fd00::1", &[("x-forwarded-for", "[2001:db8::1]:44")], "2001:db8::1"),
            ("10.0.0.1", &[("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            ("::ffff:10.0.0.1", &[("x-forwarded-for", "1.1.1.1")], "1.1.1.1"),
        ] {
            let found = client_ip(peer.parse().unwrap(), &headers(fields), &trusted);
            assert_eq!(found.to_string(), client, "{peer} {fields:?}");
        }
    }
}
