//! A session of a subcommand: the configuration, the store and the signer, as the arguments name them.
//!
//! The command runs once and ends, so each call waits for its answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::runtime::{Builder, Runtime};

use super::fields::printable;
use super::name::unknown;
use crate::base::clock::SystemClock;
use crate::base::secret::Secret;
use crate::cli::{ConfigArguments, Failure, hidden};
use crate::config::Config;
use crate::store::open::is_prefix;
use crate::store::{self, RecordStore, Remote, StoreError, StoreUrl};
use crate::tokens::sign::MIN_SECRET_BYTES;
use crate::tokens::{FindError, Signer, SignerError, TokenRules, Tokens};

/// The deadline of one call. It is longer than that of requests, because a person can wait.
const DEADLINE: Duration = Duration::from_secs(3);

/// The variable that holds the signing secret where no configuration does.
const SECRET_VARIABLE: &str = "TOLLGATE_JWT_SECRET";

/// Where records are kept; flattened into every subcommand.
#[derive(Args, Debug)]
pub struct StoreArguments {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// The Redis that holds the records, instead of the configuration's
    #[arg(long, value_name = "URL", value_parser = hidden)]
    pub redis: Option<Secret>,
    /// What the names of the keys in the Redis of `--redis` start with
    #[arg(
        long,
        value_name = "PREFIX",
        env = "TOLLGATE_REDIS_PREFIX",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true
    )]
    pub redis_prefix: String,
}

impl StoreArguments {
    /// Reads the configuration, unless `--redis` alone says enough, and connects to the store if there is one. JWTs
    /// are signed with `secret`, or else with the configuration's or the environment's.
    ///
    /// # Errors
    /// [`Failure::Configuration`] and [`Failure::Usage`] as their names say.
    pub fn open(&self, secret: Option<&Secret>) -> Result<Session, Failure> {
        let config = match (&self.config.file, &self.redis) {
            (None, Some(_)) => None,
            _ => Some(self.config.load()?),
        };
        let configured = config
            .as_ref()
            .and_then(|config| config.startup.redis.as_ref())
            .map(|redis| (&redis.url, redis.prefix.as_str()));
        let named = self.redis.as_ref().map(StoreUrl::parse).transpose();
        let named = named.map_err(|error| Failure::Usage(format!("the URL of Redis {error}")))?;
        let named = named.as_ref().map(|url| (url, self.redis_prefix.as_str()));
        let remote = named.or(configured);
        let connection = remote.map(|(url, prefix)| Connection::open(url, prefix)).transpose()?;
        Session::new(config, connection, secret)
    }

    /// As [`open`](Self::open), for a subcommand that can do without a configuration and a store.
    ///
    /// # Errors
    /// The fault of the configuration or the store that was named.
    pub fn open_if_named(&self) -> Result<Session, Failure> {
        match self.open(None) {
            Err(Failure::Usage(_)) if self.config.file.is_none() && self.redis.is_none() => {
                Session::new(None, None, None)
            }
            session => session,
        }
    }
}

/// A connection to a store, and the runtime it lives on.
pub struct Connection {
    runtime: Runtime,
    store: Arc<dyn RecordStore>,
    /// Where the store is, without the password.
    address: String,
}

impl Connection {
    /// Starts connecting to the store at `url`, whose keys start with `prefix`; the first call waits for it.
    ///
    /// # Errors
    /// [`Failure::Usage`] when `prefix` is none, [`Failure::Internal`] when the system gives no event loop.
    pub fn open(url: &StoreUrl, prefix: &str) -> Result<Self, Failure> {
        if !is_prefix(prefix) {
            let message = "--redis-prefix takes up to 64 letters, digits and characters of :_-./";
            return Err(Failure::Usage(message.into()));
        }
        let runtime = runtime()?;
        let remote = Remote { url: url.clone(), timeout: DEADLINE, prefix: prefix.to_owned() };
        let clock = Arc::new(SystemClock::default());
        let opened = store::open(Some(&remote), clock, Arc::new(|_, _, _| {}));
        runtime.block_on(async { opened.membership.start() });
        Ok(Self { runtime, store: opened.records, address: url.shown() })
    }

    /// Writes one record.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when the store does not answer.
    pub fn put(&self, record: &store::NewRecord) -> Result<(), Failure> {
        let written = self.runtime.block_on(self.store.put(record));
        written.map_err(|error| Failure::Unavailable(format!("{}: {error}", self.address)))
    }
}

/// The session. See the file's comment.
pub struct Session {
    /// The configuration, unless a store was named without one.
    pub config: Option<Config>,
    /// The tokens that a gateway would accept.
    pub tokens: Tokens,
    runtime: Runtime,
    address: Option<String>,
}

impl Session {
    fn new(
        config: Option<Config>,
        connection: Option<Connection>,
        secret: Option<&Secret>,
    ) -> Result<Self, Failure> {
        let rules = config.as_ref().map(TokenRules::from).unwrap_or_default();
        let signer = signer(secret, config.as_ref());
        let (runtime, store, address) = match connection {
            Some(Connection { runtime, store, address }) => (runtime, Some(store), Some(address)),
            None => (runtime()?, None, None),
        };
        Ok(Self { config, tokens: Tokens::new(rules, store, signer), runtime, address })
    }

    /// A session with neither a configuration nor a store.
    #[cfg(test)]
    pub fn without_anything() -> Self {
        Self::new(None, None, None).unwrap()
    }

    /// Where the store is, without the password.
    pub fn address(&self) -> &str {
        self.address.as_deref().unwrap_or_default()
    }

    /// Waits for `work`.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The failure of a command whose store did not answer.
    pub fn store_failure(&self, error: &StoreError) -> Failure {
        match error {
            StoreError::PageMark(error) => Failure::Usage(format!("--start {error}")),
            error => Failure::Unavailable(format!("{}: {error}", self.address())),
        }
    }

    /// The failure of a command whose token was not found, or cannot be changed.
    pub fn find_failure(&self, error: &FindError) -> Failure {
        match error {
            FindError::Unknown { id } => unknown(id),
            FindError::Ambiguous { .. } => Failure::Data(error.to_string()),
            FindError::Configured { id } => Failure::Data(format!(
                "`{}` is in auth.tokens: take it out of the configuration and reload (SIGHUP)",
                printable(id)
            )),
            FindError::Store(error) => self.store_failure(error),
        }
    }
}

/// The failure of a command that has no key to sign with.
pub fn signer_failure(error: &SignerError) -> Failure {
    match error {
        SignerError::NoKey => Failure::Usage(format!(
            "no key to sign with: give -c FILE with auth.jwt.keys, --secret, or {SECRET_VARIABLE}"
        )),
        SignerError::ShortSecret => Failure::Usage(format!(
            "the secret is shorter than {MIN_SECRET_BYTES} bytes: make one with tollgate secret"
        )),
        SignerError::Failed(_) => Failure::Internal(error.to_string()),
    }
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Internal(format!("no runtime: {error}")))
}

/// The signer: `--secret`, else the configuration, else the environment.
fn signer(secret: Option<&Secret>, config: Option<&Config>) -> Result<Signer, SignerError> {
    let configured = config.and_then(|config| Signer::configured(&config.live.auth.jwt.issuers));
    let secret = match (secret, configured) {
        (None, Some(signer)) => return Ok(signer),
        (Some(secret), Some(configured)) => {
            return Ok(Signer::hs256(secret.clone())?.in_the_name_of(configured));
        }
        (Some(secret), None) => secret.clone(),
        (None, None) => {
            std::env::var(SECRET_VARIABLE).map(Secret::new).map_err(|_| SignerError::NoKey)?
        }
    };
    Signer::hs256(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_secret_is_refused() {
        let refused = signer(Some(&Secret::new("short")), None).unwrap_err();
        assert!(matches!(signer_failure(&refused), Failure::Usage(_)));
        assert!(signer(Some(&Secret::new("f".repeat(32))), None).is_ok());
    }
}
