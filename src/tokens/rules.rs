//! What a configuration says about tokens, as values. Only this file and `sign` know the configuration.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::config::Config;

/// What a configuration says about tokens. The default is that nothing is known of it.
#[derive(Clone, Debug, Default)]
pub struct TokenRules {
    /// The fields of the records that the configuration holds, by id.
    pub configured: Vec<(String, Map<String, Value>)>,
    /// The plans there are; `None` where there is no configuration to say.
    pub plans: Option<BTreeSet<String>>,
    /// Whether the claims of JWTs stand for their records, which nobody reads then.
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
