//! The client's address, as far as trusted proxies vouch for it, and the list of addresses that is forwarded.

use std::fmt::Write;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::base::net;
use crate::route::fields;

pub(super) static X_FORWARDED_FOR: HeaderName = HeaderName::from_static(fields::FORWARDED_FOR);

/// The client's address: the peer, or what trusted proxies say, read from the right. `false` when a trusted proxy names a hop
/// that cannot be read: the address is then that of the proxy, and the client is somebody else.
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> (Option<IpAddr>, bool) {
    let mut client = peer;
    for value in headers.get_all(&X_FORWARDED_FOR).iter().rev() {
        for hop in value.as_bytes().rsplit(|&byte| byte == b',') {
            if !net::contain(trusted, client) {
                return (Some(client), true);
            }
            // Each hop is judged by its own bytes: the hops to the left may come from the client.
            match std::str::from_utf8(hop).ok().and_then(|hop| parse_hop(hop.trim())) {
                Some(address) => client = address,
                None => return (Some(client), false),
            }
        }
    }
    (Some(client), true)
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
    let earlier = earlier.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    // A hop that is no text is left out, and not the whole list.
    let is_text = |hop: &&[u8]| hop.iter().all(|byte| (b' '..=b'~').contains(byte));
    for hop in earlier.map(<[u8]>::trim_ascii).filter(is_text) {
        if let Ok(hop) = std::str::from_utf8(hop)
            && !hop.is_empty()
        {
            hops.push_str(hop);
            hops.push_str(", ");
        }
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
        for (peer, fields, client, certain) in [
            ("203.0.113.9", &[("x-forwarded-for", "1.1.1.1")][..], "203.0.113.9", true),
            ("10.0.0.1", &[], "10.0.0.1", true),
            ("10.0.0.1", &[("x-forwarded-for", "1.1.1.1")], "1.1.1.1", true),
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, 1.1.1.1, 10.0.0.2")], "1.1.1.1", true),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")],
                "1.1.1.1",
                true,
            ),
            ("10.0.0.1", &[("x-forwarded-for", "1.1.1.1, rubbish")], "10.0.0.1", false),
            ("10.0.0.1", &[("x-forwarded-for", "unknown")], "10.0.0.1", false),
            ("10.0.0.1", &[("x-forwarded-for", "unknown, 10.0.0.2")], "10.0.0.2", false),
            ("10.0.0.1", &[("x-forwarded-for", "")], "10.0.0.1", false),
            ("10.0.0.1", &[("x-forwarded-for", "unknown, 1.1.1.1")], "1.1.1.1", true),
            ("fd00::1", &[("x-forwarded-for", "[2001:db8::1]:44")], "2001:db8::1", true),
            ("10.0.0.1", &[("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3", true),
            ("::ffff:10.0.0.1", &[("x-forwarded-for", "1.1.1.1")], "1.1.1.1", true),
        ] {
            let found = client_ip(peer.parse().unwrap(), &headers(fields), &trusted);
            assert_eq!(found, (client.parse().ok(), certain), "{peer} {fields:?}");
        }
    }

    #[test]
    fn one_bad_hop_spoils_no_list() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let peer = "10.0.0.1".parse().unwrap();
        for (list, client, forwarded) in [
            (&b"\xff, 1.1.1.1"[..], "1.1.1.1", "1.1.1.1, 10.0.0.1"),
            (b"\xff\xfe,,1.1.1.1 , 10.0.0.2", "1.1.1.1", "1.1.1.1, 10.0.0.2, 10.0.0.1"),
            (b"1.1.1.1, \xff", "10.0.0.1", "1.1.1.1, 10.0.0.1"),
            (b"1.1.1.1, \xff, 10.0.0.2", "10.0.0.2", "1.1.1.1, 10.0.0.2, 10.0.0.1"),
            (b"a\tb, 2.2.2.2", "2.2.2.2", "2.2.2.2, 10.0.0.1"),
            (b"unknown, 2.2.2.2", "2.2.2.2", "unknown, 2.2.2.2, 10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(&X_FORWARDED_FOR, HeaderValue::from_bytes(list).unwrap());
            assert_eq!(client_ip(peer, &headers, &trusted).0, client.parse().ok(), "{list:?}");
            assert_eq!(forwarded_for(headers.values(), peer), forwarded, "{list:?}");
        }
    }
}
