//! Single values: how a text, number or boolean of the file becomes a valid value.
//!
//! A [`Leaf`] reads itself from the file and refuses a wrong value with a message that says which values are
//! allowed. The key of a value is not known here.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use crate::base::secret::Secret;
use crate::record::field::{PLAN_NAME, is_plan_name};

/// A value that is written as one scalar.
pub trait Scalar: Sized {
    /// Whether a number or boolean may stand for its text.
    const UNQUOTED: bool = false;

    /// The allowed values, in words that follow `write`.
    fn allowed() -> String;

    /// Reads the text of a scalar.
    ///
    /// # Errors
    /// The complete message, without the text itself; [`instead`] helps.
    fn read(text: &str) -> Result<Self, String>;
}

/// The message for a value that is wrong for `reason`.
pub fn instead<T: Scalar>(reason: &str) -> String {
    format!("{reason}; write {}", T::allowed())
}

/// A scalar in the file.
pub struct Leaf<T>(pub T);

impl<'de, T: Scalar> Deserialize<'de> for Leaf<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LeafVisitor<T>(std::marker::PhantomData<T>);

        impl<T: Scalar> LeafVisitor<T> {
            fn unquoted<E: Error>(text: &str, found: Unexpected<'_>) -> Result<Leaf<T>, E> {
                match T::UNQUOTED {
                    true => T::read(text).map(Leaf).map_err(E::custom),
                    false => Err(E::invalid_type(found, &T::allowed().as_str())),
                }
            }
        }

        impl<T: Scalar> Visitor<'_> for LeafVisitor<T> {
            type Value = Leaf<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&T::allowed())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                T::read(text).map(Leaf).map_err(E::custom)
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
                Self::unquoted(&value.to_string(), Unexpected::Bool(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
                Self::unquoted(&value.to_string(), Unexpected::Signed(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
                Self::unquoted(&value.to_string(), Unexpected::Unsigned(value))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
                Self::unquoted(&value.to_string(), Unexpected::Float(value))
            }
        }

        deserializer.deserialize_any(LeafVisitor(std::marker::PhantomData))
    }
}

/// Text that is not empty.
impl Scalar for String {
    fn allowed() -> String {
        "text (quote numbers)".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "" => Err(instead::<Self>("is empty")),
            text if text.chars().any(char::is_control) => {
                Err(instead::<Self>("holds a control character"))
            }
            text => Ok(text.to_owned()),
        }
    }
}

impl Scalar for Secret {
    fn allowed() -> String {
        "text (quote numbers)".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        Ok(Secret::new(text))
    }
}

impl Scalar for bool {
    const UNQUOTED: bool = true;

    fn allowed() -> String {
        "true or false".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| instead::<Self>("is not a boolean"))
    }
}

/// A whole number from `MIN` to `MAX`.
pub struct Whole<const MIN: u64, const MAX: u64>(pub u64);

impl<const MIN: u64, const MAX: u64> Scalar for Whole<MIN, MAX> {
    const UNQUOTED: bool = true;

    fn allowed() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }

    fn read(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            Ok(_) => Err(instead::<Self>("is out of range")),
            Err(_) => Err(instead::<Self>("is not a whole number in range")),
        }
    }
}

/// A whole day, in the milliseconds that [`Span`] counts.
pub const DAY: u64 = 86_400_000;

/// A duration from `MIN` to `MAX` milliseconds.
pub struct Span<const MIN: u64, const MAX: u64>(pub Duration);

impl<const MIN: u64, const MAX: u64> Scalar for Span<MIN, MAX> {
    fn allowed() -> String {
        let text = |millis: u64| match millis {
            0 => "0s".to_owned(),
            ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
            ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
            ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
            ms => format!("{ms}ms"),
        };
        format!(
            "a duration from {} to {} with its unit, such as 1s or 1m 30s",
            text(MIN),
            text(MAX)
        )
    }

    fn read(text: &str) -> Result<Self, String> {
        let duration =
            humantime::parse_duration(text).map_err(|_| instead::<Self>("is not a duration"))?;
        match (Duration::from_millis(MIN)..=Duration::from_millis(MAX)).contains(&duration) {
            true => Ok(Self(duration)),
            false => Err(instead::<Self>("is out of range")),
        }
    }
}

/// A duration from a millisecond to a day, or none.
pub struct SpanOrNone(pub Option<Duration>);

impl Scalar for SpanOrNone {
    fn allowed() -> String {
        format!("{}, or none", Span::<1, DAY>::allowed())
    }

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => match Span::<1, DAY>::read(text) {
                Ok(span) => Ok(Self(Some(span.0))),
                Err(_) => Err(instead::<Self>("is not a duration in range")),
            },
        }
    }
}

/// A window that limits may count over: whole seconds.
pub struct Window(pub Duration);

impl Scalar for Window {
    fn allowed() -> String {
        "a duration of whole seconds from 1s to 24h, such as 1m".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let duration =
            humantime::parse_duration(text).map_err(|_| instead::<Self>("is not a duration"))?;
        if duration.subsec_nanos() != 0 {
            return Err(instead::<Self>("is not a number of whole seconds"));
        }
        match (1..=86_400).contains(&duration.as_secs()) {
            true => Ok(Self(duration)),
            false => Err(instead::<Self>("is out of range")),
        }
    }
}

/// A number of bytes.
pub struct Size(pub u64);

impl Scalar for Size {
    const UNQUOTED: bool = true;

    fn allowed() -> String {
        "a size from 1B to 1TiB, such as 512KiB or 10MiB".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let size: bytesize::ByteSize =
            text.parse().map_err(|_| instead::<Self>("is not a size"))?;
        match (1..=bytesize::TIB).contains(&size.as_u64()) {
            true => Ok(Self(size.as_u64())),
            false => Err(instead::<Self>("is out of range")),
        }
    }
}

/// A share in whole percent.
pub struct Percent(pub u32);

impl Scalar for Percent {
    fn allowed() -> String {
        "a whole share from 0% to 100%".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%').and_then(|number| number.parse().ok()) {
            Some(number) if number <= 100 => Ok(Self(number)),
            Some(_) => Err(instead::<Self>("is out of range")),
            None => Err(instead::<Self>("is not a share")),
        }
    }
}

/// A status of an answer, or a range of statuses (RFC 9110 section 15).
pub struct StatusRange(pub RangeInclusive<u16>);

impl Scalar for StatusRange {
    const UNQUOTED: bool = true;

    fn allowed() -> String {
        "a status from 100 to 599, or a range such as 500-599".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 100 <= first && first <= last && last <= 599 => {
                Ok(Self(first..=last))
            }
            _ => Err(instead::<Self>("is no status")),
        }
    }
}

/// The name of a plan or an upstream: it appears in metrics, logs and header fields.
pub struct Identifier(pub String);

impl Scalar for Identifier {
    fn allowed() -> String {
        PLAN_NAME.into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match is_plan_name(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(instead::<Self>("is not a name")),
        }
    }
}

/// The path of a file that is read.
pub struct FilePath(pub PathBuf);

impl Scalar for FilePath {
    fn allowed() -> String {
        "the path of a file".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match text.is_empty() || text.chars().any(char::is_control) {
            true => Err(instead::<Self>("is not a path")),
            false => Ok(Self(text.into())),
        }
    }
}

/// The path of a Unix socket.
pub struct SocketPath(pub String);

/// Most bytes that fit into `sockaddr_un.sun_path` with its final zero.
const MAX_SOCKET_PATH: usize = 107;

impl Scalar for SocketPath {
    fn allowed() -> String {
        format!("an absolute path of at most {MAX_SOCKET_PATH} bytes")
    }

    fn read(text: &str) -> Result<Self, String> {
        match text.starts_with('/') && text.len() <= MAX_SOCKET_PATH && !text.contains('\0') {
            true => Ok(Self(text.to_owned())),
            false => Err(instead::<Self>("is not the path of a socket")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_their_range() {
        type Timeout = Span<1, DAY>;
        for (text, millis) in [("1ms", 1), ("50ms", 50), ("1m 30s", 90_000), ("24h", DAY)] {
            assert_eq!(Timeout::read(text).unwrap().0, Duration::from_millis(millis), "{text}");
        }
        for text in ["0s", "999us", "24h 1ns", "-1s", "5", "", "soon"] {
            assert!(Timeout::read(text).is_err(), "{text}");
        }
        assert!(Span::<0, DAY>::read("0s").is_ok());
        assert!(Window::read("60s").is_ok());
        assert!(Window::read("1500ms").is_err());
        assert!(Window::read("25h").is_err());
    }

    #[test]
    fn sizes_and_names_keep_their_range() {
        for (text, bytes) in [("10MiB", 10 << 20), ("10MB", 10_000_000), ("1024", 1024)] {
            assert_eq!(Size::read(text).unwrap().0, bytes, "{text}");
        }
        for text in ["0", "2TiB", "-1", "ten", ""] {
            assert!(Size::read(text).is_err(), "{text}");
        }
        assert_eq!(Percent::read("20%").unwrap().0, 20);
        for text in ["", "20", "101%", "-1%", "1.5%", "%"] {
            assert!(Percent::read(text).is_err(), "{text}");
        }
        for (text, range) in [("503", 503..=503), ("500-599", 500..=599)] {
            assert_eq!(StatusRange::read(text).unwrap().0, range, "{text}");
        }
        for text in ["", "99", "600", "599-500", "5xx", "500-", "-500", "500-599-600"] {
            assert!(StatusRange::read(text).is_err(), "{text}");
        }
        assert!(Identifier::read("users-v1.2_x").is_ok());
        for text in ["", "a b", "é", "a/b", &"x".repeat(65)] {
            assert!(Identifier::read(text).is_err(), "{text}");
        }
    }
}
