//! The life of a token: making, finding, listing, importing, rotating and revoking it.
//!
//! Everything here takes values and gives back values: the command line is one caller, and another may answer
//! requests. This room neither prints nor reads arguments, and does not know the kind of store.

use std::sync::Arc;

use crate::store::RecordStore;

pub mod create;
pub mod find;
pub mod import;
pub mod life;
pub mod list;
pub mod name;
pub mod revoke;
pub mod rotate;
pub mod rules;
pub mod sign;
pub mod spec;

pub use create::{CreateError, CredentialKind, IssuedToken};
pub use find::{FindError, FoundRecord};
pub use list::RecordPage;
pub use name::{NameError, TokenName};
pub use rotate::{EndError, OldTokenEnd, RotateError, Rotation, RotationRequest};
pub use rules::TokenRules;
pub use sign::{Signer, SignerError};
pub use spec::{TokenLimits, TokenSpec};

/// The tokens that a gateway would accept: by the records of its configuration, then by those of its store.
pub struct Tokens {
    rules: TokenRules,
    store: Option<Arc<dyn RecordStore>>,
    signer: Result<Signer, SignerError>,
}

/// Where the record of a token is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptIn {
    /// In the configuration, under `auth.tokens`.
    Configuration,
    /// In the store.
    Store,
    /// In the token itself: its claims stand for the record.
    Claims,
    /// Not at all, because there is no store.
    Nowhere,
}

impl Tokens {
    /// The tokens that `rules` and `store` know. `signer` signs new JWTs; where it is an error, the error is returned
    /// once a JWT is to be signed.
    pub fn new(
        rules: TokenRules,
        store: Option<Arc<dyn RecordStore>>,
        signer: Result<Signer, SignerError>,
    ) -> Self {
        Self { rules, store, signer }
    }

    /// Whether the claims of JWTs stand for their records.
    pub fn claims_stand(&self) -> bool {
        self.rules.claims_stand
    }

    /// The store, where there is one.
    pub fn store(&self) -> Option<&dyn RecordStore> {
        self.store.as_deref()
    }

    fn signer(&self) -> Result<&Signer, SignerError> {
        self.signer.as_ref().map_err(Clone::clone)
    }
}

/// The key under which a store keeps the record of `id`.
pub fn storage_key(id: &str) -> String {
    format!("token:{id}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use serde_json::{Map, Value, json};

    use super::*;
    use crate::base::clock::{ManualClock, UnixTime};
    use crate::base::secret::Secret;
    use crate::record::key::{hash, is_hash};
    use crate::store::memory::MemoryRecords;
    use crate::store::{NewRecord, RecordReader as _, RecordWriter as _};

    const NOW: UnixTime = UnixTime::from_secs(1_700_000_000);

    fn spec() -> TokenSpec {
        TokenSpec {
            limits: TokenLimits::PerWindow(7),
            organization: Some("acme".into()),
            routes: vec!["/a/*".into()],
            ..TokenSpec::living(Duration::from_secs(3_600))
        }
    }

    fn tokens(rules: TokenRules) -> (Tokens, Arc<MemoryRecords<ManualClock>>) {
        let store = Arc::new(MemoryRecords::new(ManualClock::new(NOW), 1_000));
        let signer = Signer::hs256(Secret::new("0123456789abcdef0123456789abcdef"));
        (Tokens::new(rules, Some(Arc::clone(&store) as _), signer), store)
    }

    #[tokio::test]
    async fn a_key_is_made_found_and_revoked() {
        let (tokens, store) = tokens(TokenRules::default());
        let made = tokens.create(CredentialKind::Key, &spec(), NOW).await.unwrap();
        assert!(is_hash(&made.id) && made.kept_in == KeptIn::Store);
        assert_eq!(hash(made.credential.expose()).unwrap().as_ref(), made.id);
        assert_eq!(store.kept_for(&made.id).await.unwrap(), Some(Duration::from_secs(3_600)));

        for name in [&made.id[..16], &made.id, &made.id[..16].to_uppercase()] {
            let name = TokenName::parse(name).unwrap();
            assert_eq!(tokens.find(&name).await.unwrap(), made.id, "{name:?}");
        }
        let found = tokens.record(&made.id).await.unwrap().unwrap();
        assert_eq!((found.kept_in, &found.fields), (KeptIn::Store, &made.record));
        assert_eq!(found.fields["organization_id"], "acme");

        let twin = format!("{}{}", &made.id[..16], "0".repeat(48));
        let fields = vec![("plan".to_owned(), "basic".to_owned())];
        let record = NewRecord { id: twin.clone(), fields, expires_at: None };
        store.put(&record).await.unwrap();
        let name = TokenName::parse(&made.id[..16]).unwrap();
        let Err(FindError::Ambiguous { ids }) = tokens.find(&name).await else { panic!("one") };
        assert!(ids.len() == 2 && ids.contains(&twin));

        tokens.revoke(&made.id).await.unwrap();
        assert!(matches!(tokens.revoke(&made.id).await, Err(FindError::Unknown { .. })));
        assert_eq!(tokens.find(&name).await.unwrap(), twin);
    }

    #[tokio::test]
    async fn a_record_of_the_configuration_comes_first_and_stays() {
        let configured = vec![("a".to_owned(), Map::from_iter([("plan".to_owned(), json!("p"))]))];
        let (tokens, store) = tokens(TokenRules { configured, ..TokenRules::default() });
        let fields = vec![("plan".to_owned(), "other".to_owned())];
        store.put(&NewRecord { id: "a".into(), fields, expires_at: None }).await.unwrap();
        let found = tokens.record("a").await.unwrap().unwrap();
        assert_eq!((found.kept_in, &found.fields["plan"]), (KeptIn::Configuration, &json!("p")));
        assert!(matches!(tokens.revoke("a").await, Err(FindError::Configured { .. })));
        let request = RotationRequest { id: "a", jwt: None, grace: Duration::ZERO, life: None };
        let refused = tokens.rotate(&request, NOW).await;
        assert!(matches!(refused, Err(RotateError::Find(FindError::Configured { .. }))));
        assert!(store.record("a").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn where_claims_stand_a_token_is_made_and_revoked_without_a_record() {
        let (tokens, store) = tokens(TokenRules { claims_stand: true, ..TokenRules::default() });
        let made = tokens.create(CredentialKind::Jwt, &spec(), NOW).await.unwrap();
        assert_eq!(made.kept_in, KeptIn::Claims);
        assert_eq!(store.record(&made.id).await.unwrap(), None);
        let signer = tokens.signer().unwrap();
        let granted = signer.granted(&made.credential).unwrap();
        assert_eq!(granted["rate_limit"], 7);
        assert_eq!(granted["allowed_routes"], json!(["/a/*"]));
        tokens.revoke(&made.id).await.unwrap();
        assert!(store.is_revoked(&made.id).await.unwrap());
    }

    #[tokio::test]
    async fn what_no_gateway_would_take_is_not_written() {
        let plans = Some(BTreeSet::from(["basic".to_owned()]));
        let (tokens, store) = tokens(TokenRules { plans, ..TokenRules::default() });
        let create = async |spec: TokenSpec| tokens.create(CredentialKind::Key, &spec, NOW).await;
        let unknown = create(TokenSpec { plan: Some("gold".into()), ..spec() }).await.unwrap_err();
        assert!(matches!(unknown, CreateError::UnknownPlan { .. }), "{unknown}");
        let organization = Some("caf\u{e9}".to_owned());
        let unreadable = create(TokenSpec { organization, ..spec() }).await.unwrap_err();
        assert!(matches!(unreadable, CreateError::Record(_)), "{unreadable}");
        let page = tokens.page(&tokens.first_page().unwrap(), 100).await.unwrap();
        assert!(page.records.is_empty());
        assert!(create(TokenSpec { plan: Some("basic".into()), ..spec() }).await.is_ok());
        let page = tokens.page(&tokens.first_page().unwrap(), 100).await.unwrap();
        assert_eq!((page.records.len(), page.next), (1, None));
        assert!(store.record(&page.records[0].id).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_rotation_makes_a_new_token_before_it_ends_the_old_one() {
        let (tokens, store) = tokens(TokenRules::default());
        for kind in [CredentialKind::Key, CredentialKind::Jwt] {
            let old = tokens.create(kind, &spec(), NOW).await.unwrap();
            let before = store.record(&old.id).await.unwrap();
            let grace = Duration::from_secs(60);
            let request = RotationRequest { id: &old.id, jwt: None, grace, life: None };
            let rotation = tokens.rotate(&request, NOW).await.unwrap();
            assert_eq!(store.record(&old.id).await.unwrap(), before, "the caller has to show it");
            let without_id = |record: &Map<String, Value>| {
                let mut record = record.clone();
                record.remove("api_key");
                record
            };
            let mut expected = without_id(&old.record);
            expected.insert("counts_as".into(), old.id.as_str().into());
            assert_eq!(without_id(&rotation.issued.record), expected);
            assert_eq!(CredentialKind::of(&rotation.issued.id), kind);
            assert_eq!(rotation.end, OldTokenEnd::At(NOW + grace));
            tokens.end_old(&rotation).await.unwrap();
            assert_eq!(store.kept_for(&old.id).await.unwrap(), Some(grace));
            let again = tokens.end_old(&rotation).await;
            assert!(matches!(again, Err(EndError::Changed)), "{again:?}");

            let id = &rotation.issued.id;
            let request = RotationRequest { id, jwt: None, grace: Duration::ZERO, life: None };
            let rotation = tokens.rotate(&request, NOW).await.unwrap();
            tokens.end_old(&rotation).await.unwrap();
            assert_eq!(store.record(id).await.unwrap(), None);
            assert!(store.record(&rotation.issued.id).await.unwrap().is_some());
            let counts_as = &rotation.issued.record["counts_as"];
            assert_eq!(*counts_as, old.id.as_str(), "of the first token, not of the second");
        }
    }
}
