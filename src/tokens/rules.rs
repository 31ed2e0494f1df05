//! The rules of a configuration for tokens, as values. Only this file and `sign` know the configuration.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::config::Config;

/// The rules of a configuration for tokens. The default stands for no configuration.
#[derive(Clone, Debug, Default)]
pub struct TokenRules {
    /// The fields of the records that the configuration holds, by id.
    pub configured: Vec<(String, Map<String, Value>)>,
    /// The names of the plans; `None` without a configuration.
    pub plans: Option<BTreeSet<String>>,
    /// Whether the claims of JWTs stand for their records. Records are not read then.
    pub claims_stand: bool,
}

impl From<&Config> for TokenRules {
    fn from(config: &Config) -> Self {
        let tokens = config.live.auth.tokens.iter();
        Self {
            configured: tokens
                .map(|token| (token.id.as_ref().to_owned(), token.fields.clone()))
                .collect(),
            plans: Some(config.live.plans.keys().cloned().collect()),
            claims_stand: !config.live.auth.jwt.rules.require_record,
        }
    }
}
