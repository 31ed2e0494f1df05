//! `tollgate token create`: a new record, and the JWT or key that is its credential.
//!
//! The record goes to the store; where a configuration has none, the entry to paste into it is printed.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::issued::Issued;
use super::session::{Session, StoreArguments, signer_failure};
use crate::base::clock::{Clock as _, SystemClock};
use crate::base::secret::Secret;
use crate::cli::{Failure, hidden};
use crate::quota::rate::MAX_QUOTA;
use crate::quota::rule::LimitRule;
use crate::route::written::{PATTERN, check_pattern};
use crate::tokens::life::check_life;
use crate::tokens::{CreateError, CredentialKind, TokenLimits, TokenSpec};

/// Arguments of `tollgate token create`.
#[derive(Args, Debug)]
pub struct CreateArguments {
    /// N/second, N/minute, N/hour or N/day, repeatable; or N alone, over the gateway's default window
    #[arg(long = "limit", value_name = "LIMIT", value_parser = limit)]
    limits: Vec<LimitArgument>,
    /// The plan that gives the limits, where the token has none of its own
    #[arg(long)]
    plan: Option<String>,
    /// The organization it belongs to
    #[arg(long, value_name = "ID")]
    organization: Option<String>,
    /// What people call it
    #[arg(long)]
    name: Option<String>,
    /// The only paths it may ask for, separated by commas; a trailing * matches the rest
    #[arg(long, value_name = "PATH", value_delimiter = ',', value_parser = route)]
    routes: Vec<String>,
    /// How long it lives: 30m, 24h, 90days
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = ttl)]
    ttl: Duration,
    /// What kind of credential it is
    #[arg(long, value_enum, default_value_t = KindArgument::Jwt)]
    kind: KindArgument,
    #[command(flatten)]
    store: StoreArguments,
    /// The HS256 secret to sign with, instead of the configuration's; better in TOLLGATE_JWT_SECRET
    #[arg(long, value_parser = hidden)]
    secret: Option<Secret>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Kinds of credentials that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindArgument {
    /// A signed JWT that names the record
    Jwt,
    /// A random key; Redis and configurations hold its SHA-256 only
    Key,
}

/// The value of `--limit`.
#[derive(Clone, Debug)]
enum LimitArgument {
    /// A number: over the window that the gateway is configured with.
    Bare(u64),
    /// A rate with its own window.
    Rate(LimitRule),
}

/// Makes the token and stores its record.
///
/// # Errors
/// [`Failure::Usage`] when the arguments do not go together, [`Failure::Unavailable`] when the store
/// does not take the record.
pub fn run(arguments: &CreateArguments) -> Result<String, Failure> {
    let session = match arguments.kind {
        KindArgument::Jwt => arguments.store.open(arguments.secret.as_ref())?,
        // A configuration without keys may not be valid, so the first key is made without it.
        KindArgument::Key => arguments.store.open_if_named()?,
    };
    let kind = match arguments.kind {
        KindArgument::Jwt => CredentialKind::Jwt,
        KindArgument::Key if arguments.secret.is_some() => {
            return Err(Failure::Usage("--secret signs JWTs: a key is not signed".into()));
        }
        KindArgument::Key => CredentialKind::Key,
    };
    let spec = spec(arguments)?;
    let now = SystemClock::default().now();
    let token = session
        .wait(session.tokens.create(kind, &spec, now))
        .map_err(|error| failure(&session, &error))?;
    let issued = Issued { token: &token, session: &session };
    if arguments.json { issued.to_json() } else { issued.to_text() }
}

/// The grants that the arguments ask for.
fn spec(arguments: &CreateArguments) -> Result<TokenSpec, Failure> {
    Ok(TokenSpec {
        limits: limits(&arguments.limits)?,
        plan: arguments.plan.clone(),
        organization: arguments.organization.clone(),
        name: arguments.name.clone(),
        routes: arguments.routes.clone(),
        life: arguments.ttl,
    })
}

/// The limits that `--limit` asks for.
fn limits(arguments: &[LimitArgument]) -> Result<TokenLimits, Failure> {
    match arguments {
        [] => return Ok(TokenLimits::Inherited),
        [LimitArgument::Bare(quota)] => return Ok(TokenLimits::PerWindow(*quota)),
        _ => {}
    }
    let rules = arguments.iter().map(|argument| match argument {
        LimitArgument::Bare(_) => None,
        LimitArgument::Rate(limit) => Some(limit.clone()),
    });
    rules.collect::<Option<_>>().map(TokenLimits::Rules).ok_or_else(|| {
        Failure::Usage(
            "--limit with a bare number stands alone: write N/second, N/minute, N/hour or N/day"
                .into(),
        )
    })
}

/// The failure of a command that made no token.
fn failure(session: &Session, error: &CreateError) -> Failure {
    match error {
        CreateError::UnknownPlan { plan, known } => {
            let known = match known.is_empty() {
                true => "it has none".to_owned(),
                false => format!("it has {}", known.join(", ")),
            };
            Failure::Usage(format!("the configuration has no plan `{plan}`: {known}"))
        }
        CreateError::Limits(error) => Failure::Usage(format!("--limit: {error}")),
        CreateError::Record(error) => Failure::Usage(error.to_string()),
        CreateError::Signer(error) => signer_failure(error),
        CreateError::Key(error) => Failure::Internal(error.to_string()),
        CreateError::Store(error) => session.store_failure(error),
    }
}

fn limit(text: &str) -> Result<LimitArgument, String> {
    match text.parse() {
        Ok(quota) if (1..=MAX_QUOTA).contains(&quota) => Ok(LimitArgument::Bare(quota)),
        Ok(_) => Err(format!("write a whole number from 1 to {MAX_QUOTA}")),
        Err(_) => {
            LimitRule::parse(text).map(LimitArgument::Rate).map_err(|error| error.to_string())
        }
    }
}

fn route(text: &str) -> Result<String, String> {
    check_pattern(text).map(|()| text.to_owned()).map_err(|error| error.instead(PATTERN))
}

/// Reads the life of a token.
pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write 30m, 24h or 90days"))?;
    check_life(ttl).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: CreateArguments,
    }

    fn asked(words: &[&str]) -> Result<TokenSpec, Failure> {
        spec(&Line::try_parse_from([&["create"], words].concat()).unwrap().arguments)
    }

    #[test]
    fn the_arguments_say_what_the_token_shall_be_allowed() {
        let words = [
            "--limit",
            "5/second",
            "--limit",
            "100/day",
            "--routes",
            "/a,/b/*",
            "--plan",
            "basic",
            "--name",
            "ci",
            "--organization",
            "o",
            "--ttl",
            "1s",
        ];
        let spec = asked(&words).unwrap();
        let TokenLimits::Rules(rules) = spec.limits else { panic!("{:?}", spec.limits) };
        assert_eq!(
            rules.iter().map(LimitRule::to_string).collect::<Vec<_>>(),
            ["5/second", "100/day"]
        );
        assert_eq!(spec.routes, ["/a", "/b/*"]);
        let texts = [spec.plan, spec.name, spec.organization];
        assert_eq!(texts.map(Option::unwrap), ["basic", "ci", "o"]);
        assert_eq!(spec.life, Duration::from_secs(1));
        assert_eq!(asked(&["--limit", "100"]).unwrap().limits, TokenLimits::PerWindow(100));
        assert_eq!(asked(&[]).unwrap().limits, TokenLimits::Inherited);
    }

    #[test]
    fn a_bare_number_stands_alone() {
        for words in
            [["--limit", "100", "--limit", "5/second"], ["--limit", "100", "--limit", "200"]]
        {
            assert!(matches!(asked(&words), Err(Failure::Usage(_))), "{words:?}");
        }
    }

    #[test]
    fn arguments_are_checked_where_they_are_read() {
        for (text, ok) in [
            ("1s", true),
            ("90days", true),
            ("0s", false),
            ("500ms", false),
            ("100years", false),
            ("1", false),
        ] {
            assert_eq!(ttl(text).is_ok(), ok, "{text:?}");
        }
        for (text, ok) in
            [("1", true), ("0", false), ("-1", false), ("1/minute", true), ("1/week", false)]
        {
            assert_eq!(limit(text).is_ok(), ok, "{text:?}");
        }
        assert!(route("/a/*").is_ok() && route("/a//b").is_err());
    }
}
