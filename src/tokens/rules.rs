//! What a configuration says about tokens, as values. Only this file and `sign` know the configuration.

use std::collections::BTreeSet;

use crate::config::Config;
use crate::store::StoredRecord;

/// What a configuration says about tokens. The default is that nothing is known of it.
#[derive(Clone, Debug, Default)]
pub struct TokenRules {
    /// The records that the configuration holds, by id.
    pub configured: Vec<(String, StoredRecord)>,
    /// The plans there are; `None` where there is no configuration to say.
    pub plans: Option<BTreeSet<String>>,
    /// Whether the claims of JWTs stand for their records, which nobody reads then.
    pub claims_stand: bool,
}

impl From<&Config> for TokenRules {
    fn from(config: &Config) -> Self {
        let tokens = config.auth.tokens.iter();
        Self {
            configured: tokens
                .map(|token| (token.id.clone(), StoredRecord::Json(token.json.clone())))
                .collect(),
            plans: Some(config.plans.keys().cloned().collect()),
            claims_stand: !config.auth.jwt.require_record,
        }
    }
}
