//! How people name a token that exists: by its id, or by the credential itself on standard input.
//!
//! A credential among the arguments could be read in the list of processes, so it is refused there.

use std::io::{self, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use serde_json::Value;

use crate::auth::credential::{Credential, MAX_CREDENTIAL};
use crate::base::secret::Secret;
use crate::cli::Failure;
use crate::record::key;

/// Which token; flattened into every subcommand about one.
#[derive(Args, Debug)]
pub struct NameArgument {
    /// A JWT's api_key, or of a key the 16 digits of its public id or all 64 of its SHA-256; - reads
    /// the credential itself from standard input
    #[arg(value_name = "ID", value_parser = crate::cli::hidden)]
    id: Secret,
}

/// Which token is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// The one whose record is stored under this.
    Id(String),
    /// The one whose id is exactly this or, if it is a key, starts so in lower case.
    PublicId(String),
}

impl NameArgument {
    /// The token that is meant.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a credential among the arguments, [`Failure::Data`] when standard input
    /// holds none. Neither shows it.
    pub fn read(&self) -> Result<Name, Failure> {
        self.read_with_jwt().map(|(name, _)| name)
    }

    /// The same, and the JWT that standard input holds, if it is one. Nobody has verified it.
    ///
    /// # Errors
    /// As of [`NameArgument::read`].
    pub fn read_with_jwt(&self) -> Result<(Name, Option<Secret>), Failure> {
        match self.id.expose() {
            "-" => read_credential(io::stdin().lock()).map(|(id, jwt)| (Name::Id(id), jwt)),
            id if key::is_credential(id) => Err(Failure::Usage(
                "that is a credential, which others can read in the list of processes: give its id, or - and the credential on standard input".into(),
            )),
            id => Ok((named(id), None)),
        }
    }
}

fn named(id: &str) -> Name {
    let hexadecimal = id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let of_key = id.len() == key::PUBLIC_DIGITS || key::is_hash(&id.to_ascii_lowercase());
    match hexadecimal && of_key && !key::is_hash(id) {
        // A JWT's api_key may look so too, and is told apart by how it is written.
        true => Name::PublicId(id.to_owned()),
        false => Name::Id(id.to_owned()),
    }
}

/// The id of the credential that is the only line of `input`, and the credential if it is a JWT.
fn read_credential(input: impl io::Read) -> Result<(String, Option<Secret>), Failure> {
    let mut bytes = Vec::new();
    input
        .take(MAX_CREDENTIAL as u64 + 2)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::Data(format!("standard input: {error}")))?;
    let fault =
        |problem: &str| Failure::Data(format!("the credential on standard input {problem}"));
    match Credential::parse(bytes.trim_ascii_end()) {
        Err(_) => Err(fault("is not 1 to 8192 visible ASCII characters")),
        Ok(Credential::Opaque(key)) => key::hash(key)
            .map(|hash| (hash.as_ref().to_owned(), None))
            .map_err(|error| fault(&error.to_string())),
        Ok(Credential::Jwt(jwt)) => api_key(jwt)
            .map(|id| (id, Some(Secret::new(jwt))))
            .ok_or_else(|| fault("is a JWT without api_key")),
    }
}

/// What a JWT says its `api_key` is. Whether it is genuine does not matter to who only wants to know which
/// record it means.
fn api_key(jwt: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims["api_key"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn an_id_is_taken_for_what_it_is() {
        for (text, name) in [
            ("bob", Name::Id("bob".into())),
            ("tg_prod", Name::Id("tg_prod".into())),
            ("com.acme.key", Name::Id("com.acme.key".into())),
            (ABC, Name::Id(ABC.into())),
            (&ABC.to_uppercase(), Name::PublicId(ABC.to_uppercase())),
            (&ABC[..16], Name::PublicId(ABC[..16].into())),
            ("BA7816BF8F01CFEA", Name::PublicId("BA7816BF8F01CFEA".into())),
            (&ABC[..15], Name::Id(ABC[..15].into())),
            ("BOB", Name::Id("BOB".into())),
        ] {
            let argument = NameArgument { id: Secret::new(text) };
            assert_eq!(argument.read().unwrap(), name, "{text}");
        }
    }

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
        let read = |text: &str| read_credential(text.as_bytes()).map(|(id, _)| id);
        assert_eq!(read("abc\n").unwrap(), ABC);
        assert_eq!(read("abc\r\n").unwrap(), ABC);
        let claims = URL_SAFE_NO_PAD.encode(r#"{"api_key":"bob"}"#);
        assert_eq!(read(&format!("x.{claims}.y")).unwrap(), "bob");
        for text in ["", "\n", "a b", "a\nb", "tg_abc", "a.b.c", &"x".repeat(9_000)] {
            assert!(matches!(read(text), Err(Failure::Data(_))), "{text:?}");
        }
    }
}
