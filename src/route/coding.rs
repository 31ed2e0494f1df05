//! The codings in which a route may send its answers, and the one that a client prefers (RFC 9110 section 12.5.3).
//! This file must not know how a body is coded.

use http::{HeaderMap, header};

use super::fields::elements;

/// A coding of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}

/// A weight of 1, in thousandths.
const WHOLE: u16 = 1_000;

impl Coding {
    /// All of them, by their names.
    pub const NAMES: [(&'static str, Self); 3] =
        [("zstd", Self::Zstd), ("br", Self::Brotli), ("gzip", Self::Gzip)];

    /// The name in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }

    fn is(self, name: &[u8]) -> bool {
        name.eq_ignore_ascii_case(self.name().as_bytes())
            || (self == Self::Gzip && name.eq_ignore_ascii_case(b"x-gzip"))
    }
}

/// The coding of `offered` that the client of `request` prefers; of several alike, the earliest. `None` where it accepts
/// none, or prefers a body without coding.
pub fn preferred(offered: &[Coding], request: &HeaderMap) -> Option<Coding> {
    let sent = || request.get_all(header::ACCEPT_ENCODING).iter();
    let codings = || sent().flat_map(|value| elements(value.as_bytes())).map(weighted);
    let named =
        |is: &dyn Fn(&[u8]) -> bool| codings().find(|(name, _)| is(name)).map(|(_, weight)| weight);
    let others = named(&|name| name == b"*");
    let plain = named(&|name| name.eq_ignore_ascii_case(b"identity")).unwrap_or(0);
    let weight = |coding: Coding| named(&|name| coding.is(name)).or(others).unwrap_or(0);
    let acceptable = offered.iter().map(|coding| (weight(*coding), *coding));
    let acceptable = acceptable.filter(|(weight, _)| *weight > 0 && *weight >= plain);
    // The first of several with the most weight.
    acceptable.rev().max_by_key(|(weight, _)| *weight).map(|(_, coding)| coding)
}

/// A coding's name, and its weight in thousandths.
fn weighted(element: &[u8]) -> (&[u8], u16) {
    let mut parts = element.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().unwrap_or_default();
    let weight = parts.find_map(|part| part.strip_prefix(b"q=").or(part.strip_prefix(b"Q=")));
    (name, weight.map_or(WHOLE, |digits| thousandths(digits).unwrap_or(0)))
}

/// A weight with at most three digits after the point (RFC 9110 section 12.4.2).
fn thousandths(weight: &[u8]) -> Option<u16> {
    let (whole, rest) = weight.split_first()?;
    let digits = match rest {
        [] => rest,
        [b'.', digits @ ..] if digits.len() <= 3 => digits,
        _ => return None,
    };
    let digit = |byte: Option<&u8>| match byte {
        None => Some(0),
        Some(byte) => byte.is_ascii_digit().then(|| u16::from(byte - b'0')),
    };
    let [a, b, c] = [digit(digits.first())?, digit(digits.get(1))?, digit(digits.get(2))?];
    let weight = digit(Some(whole))? * WHOLE + a * 100 + b * 10 + c;
    (weight <= WHOLE).then_some(weight)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_client_chooses_and_then_the_list() {
        use Coding::{Brotli, Gzip, Zstd};
        let all = [Zstd, Brotli, Gzip];
        for (accept, offered, coding) in [
            ("gzip, deflate, br, zstd", &all[..], Some(Zstd)),
            ("gzip, deflate, br", &all, Some(Brotli)),
            ("gzip, deflate, br, zstd", &[Gzip, Zstd], Some(Gzip)),
            ("GZip", &all, Some(Gzip)),
            ("x-gzip", &all, Some(Gzip)),
            ("deflate", &all, None),
            ("", &all, None),
            ("*", &all, Some(Zstd)),
            ("zstd;q=0, *", &all, Some(Brotli)),
            ("*;q=0", &all, None),
            ("gzip;q=0", &all, None),
            ("br;q=0.5, gzip;q=0.8", &all, Some(Gzip)),
            ("br;q=0.5,gzip ; q=0.501", &all, Some(Gzip)),
            ("br;q=0.5, gzip;q=0.5", &all, Some(Brotli)),
            ("identity, gzip;q=0.5", &all, None),
            ("identity;q=0.5, gzip", &all, Some(Gzip)),
            ("identity;q=0, gzip;q=0.1", &all, Some(Gzip)),
            ("gzip;q=1.001", &all, None),
            ("gzip;q=2", &all, None),
            ("gzip;q=0.0001", &all, None),
            ("gzip;q=x", &all, None),
            ("gzip;q=", &all, None),
            ("gzip;Q=1.", &all, Some(Gzip)),
            ("gzipx", &all, None),
        ] {
            let mut request = HeaderMap::new();
            request.append(header::ACCEPT_ENCODING, HeaderValue::from_static(accept));
            assert_eq!(preferred(offered, &request), coding, "{accept}");
        }
        assert_eq!(preferred(&all, &HeaderMap::new()), None, "nothing is said");
        let mut lines = HeaderMap::new();
        lines.append(header::ACCEPT_ENCODING, HeaderValue::from_static("deflate"));
        lines.append(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(preferred(&all, &lines), Some(Gzip));
    }
}
