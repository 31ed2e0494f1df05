//! Networks: the network that counts as one client, and lists of networks.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Whether one of `networks` contains `address`. An IPv4 address that is written as an IPv6 address is the same address.
pub fn contain(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// The networks whose clients are let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkRules {
    /// The only networks that are let in; empty for all.
    pub allow: Vec<IpNet>,
    /// Networks that are not let in, whatever `allow` says.
    pub deny: Vec<IpNet>,
}

impl NetworkRules {
    /// Whether a client with this address is let in. A client without a known address is not, where there is any rule.
    pub fn permit(&self, client: Option<IpAddr>) -> bool {
        let Self { allow, deny } = self;
        if allow.is_empty() && deny.is_empty() {
            return true;
        }
        client.is_some_and(|client| {
            !contain(deny, client) && (allow.is_empty() || contain(allow, client))
        })
    }
}

/// An IPv4 address, or the first 64 bits of an IPv6 address: a client with one address of an IPv6
/// network can use all 2^64 of them (RFC 4291 section 2.5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpAddr);

impl Network {
    /// The network that `address` belongs to.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        })
    }

    /// The first address of the network, as bytes of an IPv6 address.
    pub fn octets(self) -> [u8; 16] {
        match self.0 {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(address) => write!(f, "{address}/64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: &[&str], deny: &[&str]) -> NetworkRules {
        let [allow, deny] = [allow, deny]
            .map(|networks| networks.iter().map(|network| network.parse().unwrap()).collect());
        NetworkRules { allow, deny }
    }

    #[test]
    fn a_client_is_let_in_by_the_only_networks_and_not_by_those_denied() {
        for (allow, deny, client, permitted) in [
            (&[][..], &[][..], "192.0.2.1", true),
            (&["10.0.0.0/8"], &[], "10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "::ffff:10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "11.1.2.3", false),
            (&["10.0.0.0/8"], &[], "2001:db8::1", false),
            (&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.2.3", false),
            (&["10.0.0.0/8"], &["10.1.0.0/16"], "10.2.2.3", true),
            (&[], &["2001:db8::/32"], "2001:db8::1", false),
            (&[], &["2001:db8::/32"], "192.0.2.1", true),
        ] {
            let client = Some(client.parse().unwrap());
            assert_eq!(
                rules(allow, deny).permit(client),
                permitted,
                "{allow:?} {deny:?} {client:?}"
            );
        }
        assert!(NetworkRules::default().permit(None));
        assert!(
            !rules(&["0.0.0.0/0"], &[]).permit(None) && !rules(&[], &["10.0.0.0/8"]).permit(None)
        );
    }
}
