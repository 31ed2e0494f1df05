//! The argument that names a token: its id, or `-` for the credential itself on standard input.
//!
//! Other users can read arguments in the list of processes, so a credential is refused there.

use std::io::{self, Read as _};

use clap::Args;

use super::fields::printable;
use crate::auth::credential::MAX_CREDENTIAL;
use crate::base::secret::Secret;
use crate::cli::Failure;
use crate::record::key::is_credential;
use crate::tokens::TokenName;

/// The longest unknown id that a message repeats, in bytes: a SHA-256 has as many.
const MAX_SHOWN: usize = 64;

/// The name of a token; flattened into every subcommand about a token.
#[derive(Args, Debug)]
pub struct NameArgument {
    /// A JWT's api_key, or of a key the 16 digits of its public id or all 64 of its SHA-256; - reads
    /// the credential itself from standard input
    #[arg(value_name = "ID", value_parser = crate::cli::hidden)]
    id: Secret,
}

impl NameArgument {
    /// The token that the argument names.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a credential among the arguments, [`Failure::Data`] when standard input
    /// holds none. Neither shows it.
    pub fn read(&self) -> Result<TokenName, Failure> {
        self.read_with_jwt().map(|(name, _)| name)
    }

    /// The same, and the JWT that standard input holds, if it is one. The JWT has not been verified.
    ///
    /// # Errors
    /// As of [`NameArgument::read`].
    pub fn read_with_jwt(&self) -> Result<(TokenName, Option<Secret>), Failure> {
        match self.id.expose() {
            "-" => read_credential(io::stdin().lock()),
            id => TokenName::parse(id).map(|name| (name, None)).map_err(|_| {
                Failure::Usage("that is a credential, which others can read in the list of processes: give its id, or - and the credential on standard input".into())
            }),
        }
    }
}

/// The token whose credential is the only line of `input`, and the credential if it is a JWT.
fn read_credential(input: impl io::Read) -> Result<(TokenName, Option<Secret>), Failure> {
    let mut bytes = Vec::new();
    input
        .take(MAX_CREDENTIAL as u64 + 2)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::Data(format!("standard input: {error}")))?;
    TokenName::of_credential(bytes.trim_ascii_end())
        .map_err(|error| Failure::Data(format!("the credential on standard input {error}")))
}

/// The failure of a command whose `id` is unknown.
pub fn unknown(id: &str) -> Failure {
    // The text may be a credential that was taken for an id.
    if id.len() > MAX_SHOWN || is_credential(id) {
        return Failure::Data("there is no such token: see tollgate token list".into());
    }
    Failure::Data(format!("there is no token `{}`: see tollgate token list", printable(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::key;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_credential_among_the_arguments_is_refused_and_not_shown() {
        let key = key::generate().unwrap();
        let mistyped = &key.expose()[..40];
        for text in [key.expose(), mistyped, "eyJhbGciOiJIUzI1NiJ9.e30.c2ln"] {
            let argument = NameArgument { id: Secret::new(text) };
            let Err(Failure::Usage(message)) = argument.read() else { panic!("it was taken") };
            assert!(!message.contains(text) && !format!("{argument:?}").contains(text));
        }
    }

    #[test]
    fn standard_input_holds_one_credential() {
        let read = |text: &str| read_credential(text.as_bytes()).map(|(name, _)| name);
        for text in ["abc\n", "abc\r\n"] {
            assert_eq!(read(text).unwrap(), TokenName::Id(ABC.into()), "{text:?}");
        }
        for text in ["", "\n", "a b", "a\nb", "tg_abc", "a.b.c", &"x".repeat(9_000)] {
            assert!(matches!(read(text), Err(Failure::Data(_))), "{text:?}");
        }
    }
}
