//! The subject of a limit: the parts of a request that the limit counts by become the name of a counter.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;

use memchr::memchr2;

use crate::base::net::Network;
use crate::quota::rule::By;

/// The parts of a request that limits may count by.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The token's own subject, `token:<id>`.
    pub token: Option<&'a str>,
    /// The token's organization.
    pub organization: Option<&'a str>,
    /// The client's address, as far as it can be believed.
    pub client: Option<IpAddr>,
    /// The route's key.
    pub route: &'a str,
}

impl<'a> Subject<'a> {
    /// The subject of limits that count by `by`. The limits of a route (`of_route`) are counted apart from those of
    /// other routes.
    pub fn of(&self, by: By, of_route: bool) -> Cow<'a, str> {
        if let (By::TOKEN, false, Some(token)) = (by, of_route, self.token)
            && is_plain(token)
        {
            return Cow::Borrowed(token);
        }
        let mut name = String::with_capacity(64);
        if by.route || of_route {
            self.part(&mut name, format_args!("route:{}", Part(self.route)));
        }
        if by.organization {
            match (self.organization, self.token) {
                (Some(organization), _) => {
                    self.part(&mut name, format_args!("organization:{}", Part(organization)));
                }
                (None, token) => {
                    self.part(&mut name, format_args!("{}", Part(token.unwrap_or("token:"))));
                }
            }
        }
        if by.token {
            self.part(&mut name, format_args!("{}", Part(self.token.unwrap_or("token:"))));
        }
        if by.ip {
            match self.client {
                Some(client) => self.part(&mut name, format_args!("ip:{}", Network::of(client))),
                None => self.part(&mut name, format_args!("ip:unknown")),
            }
        }
        Cow::Owned(name)
    }

    fn part(&self, name: &mut String, part: fmt::Arguments<'_>) {
        if !name.is_empty() {
            name.push('|');
        }
        // Writing to a String never fails.
        let _ = name.write_fmt(part);
    }
}

/// A part of a name, with `|`, which separates parts, and `%` written as escapes: two subjects never share a name.
struct Part<'a>(&'a str);

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(SEPARATORS) {
            f.write_str(&rest[..at])?;
            f.write_str(if rest[at..].starts_with('|') { "%7C" } else { "%25" })?;
            rest = &rest[at + 1..];
        }
        f.write_str(rest)
    }
}

/// The characters that a [`Part`] writes as escapes.
const SEPARATORS: [char; 2] = ['|', '%'];

/// Whether a [`Part`] writes `text` as it is.
fn is_plain(text: &str) -> bool {
    memchr2(b'|', b'%', text.as_bytes()).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_named_after_what_is_counted_by() {
        let subject = Subject {
            token: Some("token:t"),
            organization: Some("acme"),
            client: Some("2001:db8::7".parse().unwrap()),
            route: "/api",
        };
        let none = By::default();
        let of = |by, of_route| subject.of(by, of_route).into_owned();
        assert_eq!(of(By::TOKEN, false), "token:t");
        assert_eq!(of(By::TOKEN, true), "route:/api|token:t");
        assert_eq!(of(By { ip: true, ..none }, false), "ip:2001:db8::/64");
        assert_eq!(of(By { route: true, ..none }, true), "route:/api");
        assert_eq!(
            of(By { organization: true, ip: true, ..none }, false),
            "organization:acme|ip:2001:db8::/64"
        );
        let alone = Subject { organization: None, ..subject };
        assert_eq!(alone.of(By { organization: true, ..none }, false), "token:t");
    }

    #[test]
    fn no_name_imitates_another_subject() {
        use std::collections::HashMap;
        let texts =
            ["a", "b", "a|b", "a|ip:192.0.2.1", "token:a", "a%7Cb", "%", "|", "a|token:a", ""];
        let tokens = texts.map(|text| format!("token:{text}"));
        let client = Some("192.0.2.1".parse().unwrap());
        let mut owners: HashMap<String, String> = HashMap::new();
        for organization in texts {
            for token in &tokens {
                for route in ["/a", "/a|token:a", "/a%7Ctoken:a"] {
                    let subject = Subject {
                        token: Some(token),
                        organization: Some(organization),
                        client,
                        route,
                    };
                    for bits in 1..16 {
                        let [token_, organization_, ip, route_] =
                            [1, 2, 4, 8].map(|bit| bits & bit > 0);
                        let by =
                            By { token: token_, organization: organization_, ip, route: route_ };
                        let name = subject.of(by, false).into_owned();
                        let owner = format!(
                            "{:?}",
                            (
                                token_.then_some(token),
                                organization_.then_some(organization),
                                ip,
                                route_.then_some(route)
                            )
                        );
                        let earlier = owners.entry(name.clone()).or_insert_with(|| owner.clone());
                        assert_eq!(*earlier, owner, "{name}");
                    }
                }
            }
        }
    }
}
