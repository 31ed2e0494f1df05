//! How scripts of other origins may use a route (CORS, the Fetch standard section 3.2): the fields of answers, and of the
//! answer to a preflight. This file must not know tokens: a preflight has none.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::fields;
use super::host_pattern::HostPattern;

/// The fields of an answer that only the gateway sets on a route with these rules.
static OWN: [HeaderName; 7] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
    HeaderName::from_static("access-control-allow-private-network"),
];

/// The fields of a preflight that decide about its answer.
const PREFLIGHT_VARIES: &str =
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

/// Which origins' scripts may use a route, and for what.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The origins whose scripts may.
    pub origins: Origins,
    /// With which methods, besides those that need no preflight.
    pub methods: Vec<String>,
    /// With which fields, besides those that need no preflight.
    pub headers: Vec<HeaderName>,
    /// Which fields of answers they see, besides those that every script sees.
    pub expose: Vec<HeaderName>,
    /// Whether the browser sends cookies along.
    pub credentials: bool,
    /// How many seconds a browser may keep the answer to a preflight.
    pub max_age: u64,
}

/// Origins (RFC 6454).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Every origin.
    Any,
    /// These.
    These(Vec<OriginPattern>),
}

/// An origin, or the origins of all hosts beneath a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// One origin, as browsers write it.
    Exact(String),
    /// Origins that begin with `before`, a scheme, and end with `after`, which is `.`, a name, and a port if it is not
    /// the scheme's own.
    Beneath {
        /// The scheme and `://`.
        before: String,
        /// The end.
        after: String,
    },
}

impl OriginPattern {
    /// Reads `SCHEME://HOST[:PORT]`; the host may begin with `*.`. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let sign = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(sign) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse::<u16>().ok()?)),
            _ => (authority, None),
        };
        // Browsers leave the scheme's own port out.
        let own = match scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        let port = port.filter(|port| Some(*port) != own);
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        Some(match HostPattern::parse(host)? {
            HostPattern::Exact(host) => Self::Exact(format!("{scheme}://{host}{port}")),
            HostPattern::Beneath(name) => {
                Self::Beneath { before: format!("{scheme}://"), after: format!(".{name}{port}") }
            }
        })
    }

    fn is(&self, origin: &[u8]) -> bool {
        match self {
            Self::Exact(own) => origin == own.as_bytes(),
            Self::Beneath { before, after } => {
                let labels = origin.strip_prefix(before.as_bytes());
                let labels = labels.and_then(|rest| rest.strip_suffix(after.as_bytes()));
                // Nothing but labels: another authority or a path could end in the same way.
                labels.is_some_and(|labels| {
                    let label = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
                    !labels.is_empty() && labels.iter().all(label)
                })
            }
        }
    }
}

/// The rules of a route, ready to be written into answers.
#[derive(Clone, Debug)]
pub struct Cors {
    origins: Origins,
    methods: HeaderValue,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

impl Cors {
    /// The rules in the form of fields. `None` when a field cannot hold them, which no valid name causes.
    pub fn new(rules: Rules) -> Option<Self> {
        let Rules { origins, methods, headers, expose, credentials, max_age } = rules;
        let list = |names: Vec<HeaderName>| match names.is_empty() {
            true => Some(None),
            false => {
                let names: Vec<_> = names.iter().map(HeaderName::as_str).collect();
                HeaderValue::try_from(names.join(", ")).ok().map(Some)
            }
        };
        Some(Self {
            origins,
            methods: HeaderValue::try_from(methods.join(", ")).ok()?,
            headers: list(headers)?,
            expose: list(expose)?,
            credentials,
            max_age: max_age.into(),
        })
    }

    /// Replaces the fields of an answer to `request` that are about other origins. An origin that may not use the route
    /// gets none. Whether it may.
    pub fn set(&self, answer: &mut HeaderMap, request: &HeaderMap) -> bool {
        for name in &OWN {
            answer.remove(name);
        }
        let may = self.allow(answer, request);
        if may && let Some(expose) = &self.expose {
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
        if self.origins != Origins::Any {
            vary(answer, "Origin");
        }
        may
    }

    /// The fields of the answer to a preflight.
    pub fn set_preflight(&self, answer: &mut HeaderMap, request: &HeaderMap) {
        answer.insert(header::VARY, HeaderValue::from_static(PREFLIGHT_VARIES));
        if !self.allow(answer, request) {
            return;
        }
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
        if let Some(headers) = &self.headers {
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
        }
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
    }

    /// Says that the origin of `request` may use the route, if it may.
    fn allow(&self, answer: &mut HeaderMap, request: &HeaderMap) -> bool {
        let origin = match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::These(patterns) => {
                let mut sent = request.get_all(header::ORIGIN).iter();
                let one = sent.next().filter(|_| sent.next().is_none());
                one.filter(|origin| patterns.iter().any(|own| own.is(origin.as_bytes()))).cloned()
            }
        };
        let Some(origin) = origin else { return false };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        true
    }
}

/// The method that a preflight asks for; `None` where `headers` are not those of a preflight.
pub fn asked_method(headers: &HeaderMap) -> Option<&str> {
    if !headers.contains_key(header::ORIGIN) {
        return None;
    }
    headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.to_str().ok()
}

/// Adds the name of a field to `Vary`, if it is not there (RFC 9110 section 12.5.5).
pub fn vary(answer: &mut HeaderMap, name: &'static str) {
    let is_there = answer.get_all(header::VARY).iter().any(|value| {
        let value = value.as_bytes();
        fields::list_names(value, name.as_bytes()) || fields::list_names(value, b"*")
    });
    if !is_there {
        answer.append(header::VARY, HeaderValue::from_static(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_as_browsers_write_them() {
        for (pattern, origin, is) in [
            ("https://app.example.com", "https://app.example.com", true),
            ("HTTPS://App.Example.com:443", "https://app.example.com", true),
            ("http://localhost:3000", "http://localhost:3000", true),
            ("http://[::1]:3000", "http://[::1]:3000", true),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("https://app.example.com", "http://app.example.com", false),
            ("https://app.example.com", "https://app.example.com:8443", false),
            ("https://app.example.com", "https://app.example.com.evil.test", false),
            ("https://app.example.com", "null", false),
            ("https://*.example.com", "https://a.example.com", true),
            ("https://*.example.com", "https://a.b.example.com", true),
            ("https://*.example.com:8443", "https://a.example.com:8443", true),
            ("https://*.example.com", "https://example.com", false),
            ("https://*.example.com", "https://.example.com", false),
            ("https://*.example.com", "https://badexample.com", false),
            ("https://*.example.com", "http://a.example.com", false),
            ("https://*.example.com", "https://a.example.com:8443", false),
            ("https://*.example.com", "https://evil.test/.example.com", false),
            ("https://*.example.com", "https://evil.test#.example.com", false),
            ("https://*.example.com", "https://evil.test:1.example.com", false),
            ("https://*.example.com", "https://u@a.example.com", false),
        ] {
            let parsed = OriginPattern::parse(pattern).unwrap();
            assert_eq!(parsed.is(origin.as_bytes()), is, "{pattern} {origin}");
        }
        for wrong in [
            "",
            "null",
            "app.example.com",
            "https://",
            "https://a/",
            "https://a/b",
            "https://a:x",
            "https://a:70000",
            "https://*",
            "https://a.*.com",
            "//a",
            "h ttp://a",
            "https://a,https://b",
        ] {
            assert_eq!(OriginPattern::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_name_is_added_to_vary_once() {
        for (before, after) in [
            (&[][..], &["Origin"][..]),
            (&["Accept"], &["Accept", "Origin"]),
            (&["Accept, origin"], &["Accept, origin"]),
            (&["Accept", "Origin"], &["Accept", "Origin"]),
            (&["*"], &["*"]),
        ] {
            let mut headers = HeaderMap::new();
            for value in before {
                headers.append(header::VARY, HeaderValue::from_static(value));
            }
            vary(&mut headers, "Origin");
            let all: Vec<_> = headers.get_all(header::VARY).iter().collect();
            assert_eq!(all, after);
        }
    }
}
