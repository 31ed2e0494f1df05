//! The meanings of errors of Redis and of the client library. No other file looks at codes.

use fred::error::{Error, ErrorKind};

/// The meaning of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// There was no answer within the deadline.
    TimedOut,
    /// There was no answer within the deadline, in which this process was too busy to read one.
    HeldUp,
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
    /// The server answers, and refuses writes: it is full, or cannot save.
    WritesRefused,
    /// The server answers, and refuses writes because it is a replica: the primary must be found again.
    ReadOnly,
    /// The server answers, and refuses writes because it has too few replicas: they may follow another primary.
    TooFewReplicas,
    /// The server is a replica without its primary, and refuses reads too.
    Replica,
    /// Any other error.
    Other,
}

/// The codes that errors of Redis and of the store's scripts begin with.
const CODES: [(&str, Cause); 12] = [
    ("WRONGTYPE", Cause::WrongType),
    ("BADCOUNTER", Cause::BadCounter),
    ("MOVED ", Cause::Moved),
    ("ASK ", Cause::Migrating),
    ("TRYAGAIN", Cause::Migrating),
    ("CROSSSLOT", Cause::CrossSlot),
    ("NOSCRIPT", Cause::NoScript),
    ("OOM ", Cause::WritesRefused),
    ("MISCONF ", Cause::WritesRefused),
    ("NOREPLICAS ", Cause::TooFewReplicas),
    ("READONLY", Cause::ReadOnly),
    ("MASTERDOWN", Cause::Replica),
];

impl Cause {
    /// The meaning of `error`.
    pub(super) fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Timeout if error.details() == HELD_UP => return Self::HeldUp,
            ErrorKind::Timeout => return Self::TimedOut,
            ErrorKind::Parse => return Self::Unreadable,
            _ => {}
        }
        let details = error.details();
        let starts = |text: &str| CODES.iter().find(|(code, _)| text.starts_with(code));
        // Redis before version 7 puts the error of a command into the error of its script, after the line of the script.
        let inner = || {
            let (_, inner) =
                details.strip_prefix("ERR Error running script")?.rsplit_once(": -")?;
            starts(inner)
        };
        starts(details).or_else(inner).map_or(Self::Other, |(_, cause)| *cause)
    }

    /// Whether the server refuses writes, and answers reads.
    pub(super) fn refuses_writes(self) -> bool {
        matches!(self, Self::WritesRefused | Self::ReadOnly | Self::TooFewReplicas)
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

/// The text of the error of a call that this process was too busy to wait for.
const HELD_UP: &str = "held up";

/// The error of a call whose deadline has passed.
pub(super) fn timed_out() -> Error {
    Error::new(ErrorKind::Timeout, "no answer")
}

/// The error of a call whose deadline has passed while this process was too busy to read an answer.
pub(super) fn held_up() -> Error {
    Error::new(ErrorKind::Timeout, HELD_UP)
}

/// The error of a call whose connection ended before the answer.
pub(super) fn connection_lost() -> Error {
    Error::new(ErrorKind::IO, "the connection was lost")
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
            ("READONLY You can't write", Cause::ReadOnly),
            (
                "OOM command not allowed when used memory > 'maxmemory'. script: x",
                Cause::WritesRefused,
            ),
            (
                "ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -OOM command not allowed",
                Cause::WritesRefused,
            ),
            ("ERR Error running script (call to f_1): @user_script:1: nil", Cause::Other),
            ("MISCONF Redis is configured to save", Cause::WritesRefused),
            ("NOREPLICAS Not enough good replicas to write.", Cause::TooFewReplicas),
            ("MASTERDOWN Link with MASTER is down", Cause::Replica),
            ("ERR WRONGTYPE", Cause::Other),
            ("", Cause::Other),
        ] {
            assert_eq!(Cause::of(&error(text)), cause, "{text}");
        }
        assert_eq!(Cause::of(&timed_out()), Cause::TimedOut);
        assert_eq!(Cause::of(&held_up()), Cause::HeldUp);
        assert_eq!(moved_to(&error("MOVED 3999 127.0.0.1:6381")), Some("127.0.0.1:6381"));
        assert_eq!(moved_to(&error("ASK 3999 127.0.0.1:6381")), None);
    }
}
