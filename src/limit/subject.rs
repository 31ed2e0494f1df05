//! The subject of a limit: the parts of a request that the limit counts by become the name of a counter.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;

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
        if let (By::TOKEN, false, Some(token)) = (by, of_route, self.token) {
            return Cow::Borrowed(token);
        }
        let mut name = String::with_capacity(64);
        if by.route || of_route {
            self.part(&mut name, format_args!("route:{}", self.route));
        }
        if by.organization {
            match (self.organization, self.token) {
                (Some(organization), _) => {
                    self.part(&mut name, format_args!("organization:{organization}"));
                }
                (None, token) => {
                    self.part(&mut name, format_args!("{}", token.unwrap_or("token:")))
                }
            }
        }
        if by.token {
            self.part(&mut name, format_args!("{}", self.token.unwrap_or("token:")));
        }
        if by.ip {
            match self.client {
                Some(client) => self.part(&mut name, format_args!("ip:{}", Network::of(client))),
                None => self.part(&mut name, format_args!("ip:unknown")),
            }
        }
        Cow::Owned(name)
    }

    fn part(&self, name: &mut String, part: std::fmt::Arguments<'_>) {
        if !name.is_empty() {
            name.push('|');
        }
        // Writing to a String never fails.
        let _ = name.write_fmt(part);
    }
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
}
