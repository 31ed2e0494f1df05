//! The text about a token that was just made. Only here a credential is printed, once.

use serde_json::{Map, Value};

use super::fields::plain;
use super::session::Session;
use super::{example, pretty};
use crate::cli::{Failure, limits_text};
use crate::config::Config;
use crate::config::entry::list_entry;
use crate::record::field::API_KEY;
use crate::record::key::{is_hash, public_id};
use crate::tokens::{CredentialKind, IssuedToken, KeptIn, storage_key};

/// A token that was made, and the session that made it.
pub struct Issued<'a> {
    /// The token.
    pub token: &'a IssuedToken,
    /// The configuration and the store.
    pub session: &'a Session,
}

impl Issued<'_> {
    /// The token for programs, as an object.
    pub fn object(&self) -> Map<String, Value> {
        let token = self.token;
        let mut object = token.record.clone();
        object.insert("kind".into(), CredentialKind::of(&token.id).name().into());
        object.insert("storage_key".into(), storage_key(&token.id).into());
        object.insert("stored".into(), (token.kept_in == KeptIn::Store).into());
        object.insert("credential".into(), token.credential.expose().into());
        object.insert("curl".into(), self.curl().into());
        // Programs want the same keys every time: an empty list says "no list" (contract section 3).
        object.entry("allowed_routes").or_insert_with(|| Value::Array(Vec::new()));
        object
    }

    /// The token for programs.
    pub fn to_json(&self) -> Result<String, Failure> {
        pretty(&Value::Object(self.object()))
    }

    /// The token for people.
    pub fn to_text(&self) -> Result<String, Failure> {
        let storage_key = storage_key(&self.token.id);
        let stored = match self.token.kept_in {
            KeptIn::Store => format!("{storage_key} in {}", self.session.address()),
            KeptIn::Claims => "none, the claims stand for the record".to_owned(),
            KeptIn::Configuration | KeptIn::Nowhere if self.config().is_none() => {
                format!("{storage_key}, not stored: no redis was named")
            }
            KeptIn::Configuration | KeptIn::Nowhere => {
                format!("{storage_key}, not stored: this configuration has no redis")
            }
        };
        let routes = self.routes();
        let routes = if routes.is_empty() { "all".to_owned() } else { routes.join(", ") };
        let mut text = format!(
            "api_key      {}\nstorage key  {stored}\ncredential   {}\n             (shown only now)\nexpires      {}\nlimits       {}\nroutes       {routes}\n",
            public_id(&self.token.id),
            self.token.credential.expose(),
            self.token.record.get("expires_at").map_or_else(|| "never".into(), plain),
            self.limits(),
        );
        if self.token.kept_in == KeptIn::Nowhere {
            text += "\nThe token works once this is in the configuration and the gateway has reloaded it (SIGHUP):\n\n";
            text += "auth:\n  tokens:\n";
            text += &self.entry()?;
        }
        Ok(format!("{text}\n{}\n", self.curl()))
    }

    /// The entry of `auth.tokens`, as it stands in a file.
    fn entry(&self) -> Result<String, Failure> {
        let named_by = if is_hash(&self.token.id) { "key_sha256" } else { "api_key" };
        let id = Value::from(self.token.id.as_str());
        let fields = self.token.record.iter().map(|(name, value)| (name.as_str(), value));
        let fields = fields.filter(|(name, _)| *name != API_KEY);
        list_entry([(named_by, &id)].into_iter().chain(fields)).map_err(Failure::Internal)
    }

    fn curl(&self) -> String {
        example::curl(&self.token.credential, self.config(), &self.routes())
    }

    fn config(&self) -> Option<&Config> {
        self.session.config.as_ref()
    }

    /// The only paths that the token may use; empty for all.
    fn routes(&self) -> Vec<String> {
        let routes = self.token.record.get("allowed_routes").and_then(Value::as_array);
        routes.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// The limits of the token: its own, else those of its plan, else the default.
    fn limits(&self) -> String {
        let [limits, rate, plan] =
            ["limits", "rate_limit", "plan"].map(|field| self.token.record.get(field));
        match (limits, rate, plan, self.config()) {
            (Some(Value::Array(limits)), ..) => {
                limits.iter().map(plain).collect::<Vec<_>>().join(", ")
            }
            (_, Some(rate), _, _) if plain(rate).contains('/') => plain(rate),
            (_, Some(quota), _, Some(config)) => {
                let window = humantime::format_duration(config.live.limits.window);
                format!("{} every {window}", plain(quota))
            }
            (_, Some(quota), _, None) => format!("{} every limits.window", plain(quota)),
            (_, None, Some(plan), config) => {
                let of_plan = config.and_then(|config| config.live.plans.get(plan.as_str()?));
                let limits =
                    of_plan.map(|limits| format!(": {}", limits_text(limits))).unwrap_or_default();
                format!("plan {}{limits}", plain(plan))
            }
            (_, None, None, Some(config)) => {
                format!("default: {}", limits_text(&config.live.limits.default))
            }
            (_, None, None, None) => "limits.default".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::secret::Secret;

    #[test]
    fn without_redis_the_entry_to_paste_is_printed() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for (id, named_by) in [("k1", "api_key"), (hash, "key_sha256")] {
            let record = json!({
                "api_key": public_id(id), "limits": ["5/minute"],
                "expires_at": "2023-11-15T22:13:20Z", "allowed_routes": ["/a/*"],
            });
            let token = IssuedToken {
                id: id.into(),
                record: record.as_object().unwrap().clone(),
                credential: Secret::new("a.b.c"),
                kept_in: KeptIn::Nowhere,
            };
            let session = Session::without_anything();
            let text = Issued { token: &token, session: &session }.to_text().unwrap();
            assert!(text.contains(&format!("storage key  token:{id}, not stored")), "{text}");
            let (_, entry) = text.split_once("\n\nauth:\n").unwrap();
            let (entry, _) = entry.split_once("\n\ncurl").unwrap();
            let entry: Value = serde_yaml::from_str(entry).unwrap();
            let mut expected = record;
            expected.as_object_mut().unwrap().remove("api_key");
            expected[named_by] = id.into();
            assert_eq!(entry["tokens"], json!([expected]));
        }
    }
}
