//! The meanings of errors of Redis and of the client library. No other file looks at codes.

use fred::error::{Error, ErrorKind};

/// The meaning of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// There was no answer within the deadline.
    TimedOut,
    /// The key holds another type than the command is for.
    WrongType,
    /// The key holds a value that no script of this store wrote.
    BadCounter,
    /// The value of the key cannot be read as the record that it should be.
    Unreadable,
    /// Another node of a cluster holds the key.
    Moved,
    /// The key is on its way from one node of a cluster to another.
    Migrating,
    /// The keys of one call are not all on the same node.
    CrossSlot,
    /// The server has forgotten the script.
    NoScript,
    /// The server is a replica: the primary must be found again.
    Replica,
    /// Any other error.
    Other,
}

/// The codes that errors of Redis and of the store's scripts begin with.
const CODES: [(&str, Cause); 9] = [
    ("WRONGTYPE", Cause::WrongType),
    ("BADCOUNTER", Cause::BadCounter),
    ("MOVED ", Cause::Moved),
    ("ASK ", Cause::Migrating),
    ("TRYAGAIN", Cause::Migrating),
    ("CROSSSLOT", Cause::CrossSlot),
    ("NOSCRIPT", Cause::NoScript),
    ("READONLY", Cause::Replica),
    ("MASTERDOWN", Cause::Replica),
];

impl Cause {
    /// The meaning of `error`.
    pub(super) fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Timeout => return Self::TimedOut,
            // The kind comes before the code, which an unreadable record keeps when it has a wrong type.
            ErrorKind::Parse => return Self::Unreadable,
            _ => {}
        }
        let code = CODES.iter().find(|(code, _)| error.details().starts_with(code));
        code.map_or(Self::Other, |(_, cause)| *cause)
    }

    /// Whether the server answered about the key alone, and could answer about other keys.
    pub(super) fn concerns_key(self) -> bool {
        matches!(self, Self::WrongType | Self::BadCounter | Self::Unreadable | Self::Migrating)
    }
}

/// The address of the node that holds the key now, if `error` names one.
pub(super) fn moved_to(error: &Error) -> Option<&str> {
    error.details().strip_prefix("MOVED ")?.split(' ').nth(1)
}

/// The error of a read that found no record: of another type, or bytes that are no text.
pub(super) fn no_record(error: Error) -> Error {
    match Cause::of(&error) {
        Cause::WrongType => Error::new(ErrorKind::Parse, error.details().to_owned()),
        // The client library words it in its own way.
        Cause::Unreadable => Error::new(ErrorKind::Parse, "NOTTEXT the record is not UTF-8"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_means_what_its_code_says() {
        let error = |text: &str| Error::new(ErrorKind::Unknown, text.to_owned());
        for (text, cause) in [
            ("WRONGTYPE Operation against a key", Cause::WrongType),
            ("MOVED 3999 127.0.0.1:6381", Cause::Moved),
            ("ASK 3999 127.0.0.1:6381", Cause::Migrating),
            ("TRYAGAIN Multiple keys request", Cause::Migrating),
            ("READONLY You can't write", Cause::Replica),
            ("ERR WRONGTYPE", Cause::Other),
            ("", Cause::Other),
        ] {
            assert_eq!(Cause::of(&error(text)), cause, "{text}");
        }
        let unreadable = no_record(error("WRONGTYPE Operation against a key"));
        assert_eq!(Cause::of(&unreadable), Cause::Unreadable);
        assert_eq!(unreadable.details(), "WRONGTYPE Operation against a key");
        assert_eq!(moved_to(&error("MOVED 3999 127.0.0.1:6381")), Some("127.0.0.1:6381"));
        assert_eq!(moved_to(&error("ASK 3999 127.0.0.1:6381")), None);
    }
}
