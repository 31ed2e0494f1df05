//! JSON Web Tokens (RFC 7519), verified by the practice of RFC 8725: a token's `iss` and `kid` choose among
//! the configured keys, the key fixes the algorithm, and `exp` is required.

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::AuthError;
use super::claims::{ClaimError, Claims, MAX_NAME, VerifiedClaims};
use super::guard::GuardedClient;
use super::jwks::{Jwks, KeySet};
use super::turns::Turns;
use super::verification::{Algorithm, VerificationKey};
use super::verified::VerifiedToken;
use crate::base::clock::{Clock, UnixTime};

/// Memory for verified tokens, in bytes: each counts with its text, its grant and a fixed share.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
const CACHE_ENTRY_BYTES: u64 = 300;
const CACHE_ENTRIES: usize = 100_000;

/// Memory for forged tokens, in bytes of token text and a fixed share for each entry.
const FORGED_BYTES: u64 = 4 * 1024 * 1024;
const FORGED_ENTRY_BYTES: u64 = 100;
const FORGED_ENTRIES: usize = 4_000;

/// Most keys that are tried for a token that names none of them.
const MAX_TRIED: usize = 8;

/// Longest signature, in bytes: that of an RSA key of 8192 bits.
const MAX_SIGNATURE: usize = 1024;

/// Why a token is refused: for the operator. The client is told less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// A part is missing, is not base64url, or is not the JSON or signature that it should be.
    #[error("the token is not three parts of base64url, two of them JSON objects")]
    Malformed,
    /// The header has `crit`: no extension is understood here (RFC 7515 section 4.1.11).
    #[error("the token's header has crit")]
    Critical,
    /// The header's `typ` is not that of an access token.
    #[error("the token's typ is not one of an access token")]
    Type,
    /// The header's `alg` is unknown, or no key of the issuer is for it.
    #[error("no key is for the token's alg")]
    Algorithm,
    /// No issuer is configured for the token's `iss`.
    #[error("no issuer is configured for the token's iss")]
    Issuer,
    /// No key of the issuer has the token's `kid`.
    #[error("no key has the token's kid")]
    UnknownKid,
    /// More keys of the issuer fit than are tried, and the token has no `kid` that chooses among them.
    #[error("the token has no kid and too many keys fit")]
    MissingKid,
    /// No key that was tried made the signature.
    #[error("the token's signature is wrong")]
    Signature,
    /// The token's `aud` does not name the gateway's audience.
    #[error("the token's aud does not name the audience")]
    Audience,
    /// The token is bound to another certificate than the connection's (RFC 8705 section 3).
    #[error("the token's cnf is not the certificate of the connection")]
    Certificate,
    /// A claim is missing or wrong.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The signature is right and `nbf` has not come.
    #[error("the token's nbf has not come")]
    NotYetValid,
    /// The signature is right and `exp` has passed.
    #[error("the token's exp has passed")]
    Expired,
    /// The token names a key that is not known, and the issuer's keys cannot be fetched.
    #[error("the issuer's keys cannot be fetched")]
    KeysUnavailable,
}

/// An issuer of tokens, and the keys it signs them with.
#[derive(Debug, Default)]
pub struct Issuer {
    /// The `iss` of the issuer's tokens. An issuer without a name is for every token that no other issuer is for.
    pub name: Option<String>,
    /// The `aud` that the issuer's tokens must name.
    pub audience: Option<String>,
    /// The keys that the configuration holds.
    pub keys: Vec<VerificationKey>,
    /// The keys that the issuer publishes.
    pub jwks: Option<Arc<Jwks>>,
}

/// The rules for the tokens of every issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JwtRules {
    /// Clock difference that is forgiven on `exp` and `nbf`.
    pub leeway: Duration,
    /// Whether a token needs a record besides its claims.
    pub require_record: bool,
}

#[derive(Clone)]
struct ByteWeight;

impl Weighter<VerifiedToken, VerifiedToken> for ByteWeight {
    fn weight(&self, token: &VerifiedToken, _: &VerifiedToken) -> u64 {
        let grant = token.grant.as_ref().map_or(0, |grant| grant.bytes() as u64);
        token.text().len() as u64 + CACHE_ENTRY_BYTES + grant
    }
}

#[derive(Clone)]
struct ForgedWeight;

impl Weighter<Box<str>, KeysId> for ForgedWeight {
    fn weight(&self, token: &Box<str>, _: &KeysId) -> u64 {
        token.len() as u64 + FORGED_ENTRY_BYTES
    }
}

/// The number of an issuer, and the generation of its keys.
type KeysId = (u32, u32);

/// Verifies tokens. Remembers by their whole text the tokens that it has verified, and some that were forged.
pub struct JwtVerifier {
    issuers: Vec<Issuer>,
    rules: JwtRules,
    /// Each token is stored under itself, because the cache finds by the key and hands out the value.
    verified: Cache<VerifiedToken, VerifiedToken, ByteWeight>,
    /// Tokens whose signature is wrong, by the keys that were tried: a client that repeats one costs no verification.
    forged: Cache<Box<str>, KeysId, ForgedWeight>,
    turns: Turns,
}

impl std::fmt::Debug for JwtVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtVerifier").field("issuers", &self.issuers).finish_non_exhaustive()
    }
}

impl JwtVerifier {
    /// A verifier of the tokens of these issuers, whose names differ.
    pub fn new(issuers: Vec<Issuer>, rules: JwtRules) -> Self {
        let verified = Cache::with_weighter(CACHE_ENTRIES, CACHE_BYTES, ByteWeight);
        let forged = Cache::with_weighter(FORGED_ENTRIES, FORGED_BYTES, ForgedWeight);
        Self { issuers, rules, verified, forged, turns: Turns::default() }
    }

    /// The sets of keys that the background keeps fresh.
    pub fn key_sets(&self) -> impl Iterator<Item = &Arc<Jwks>> {
        self.issuers.iter().filter_map(|issuer| issuer.jwks.as_ref())
    }

    /// `token` of `client` with its claims, if it is valid. A valid token is remembered.
    ///
    /// # Errors
    /// [`JwtError`]; expiry is only reported of a token whose signature is right. [`AuthError::Unchecked`] when the
    /// client has sent too many invalid credentials.
    pub async fn verify(
        &self,
        token: &str,
        client: GuardedClient<'_>,
        clock: &dyn Clock,
    ) -> Result<VerifiedToken, AuthError> {
        // A token that was verified by earlier keys of its issuer is no guess.
        let client = match self.verified.peek(token.as_bytes()) {
            Some(_) => GuardedClient::ANY,
            None => client,
        };
        client.may_try()?;
        let claims = match self.verify_signature(token, client).await {
            Ok(claims) => claims,
            Err(error) => {
                if !matches!(error, AuthError::Jwt(JwtError::KeysUnavailable)) {
                    self.verified.remove(token.as_bytes());
                }
                return Err(error);
            }
        };
        let verified = VerifiedToken::new(claims, token);
        // The time is checked last, because a fetch of keys may have taken long.
        self.check_time(&verified, clock.now())?;
        self.verified.insert(verified.clone(), verified.clone());
        Ok(verified)
    }

    /// A token that was verified before, by keys that are still the issuer's, or the error when the token does not
    /// hold at `now`. `None` when the token has to be verified. `token` may be any bytes.
    pub fn remembered(
        &self,
        token: &[u8],
        now: UnixTime,
    ) -> Option<Result<VerifiedToken, JwtError>> {
        let verified = self.verified.get(token)?;
        let (issuer, generation) = verified.verified_by;
        let known = self.issuers.get(issuer as usize)?.generation() == generation;
        known.then(|| self.check_time(&verified, now).map(|()| verified))
    }

    /// How much later than its `exp` a token ends.
    pub fn leeway(&self) -> Duration {
        self.rules.leeway
    }

    fn check_time(&self, claims: &VerifiedClaims, now: UnixTime) -> Result<(), JwtError> {
        if claims.exp + self.rules.leeway <= now {
            return Err(JwtError::Expired);
        }
        if claims.nbf > now + self.rules.leeway {
            return Err(JwtError::NotYetValid);
        }
        Ok(())
    }

    async fn verify_signature(
        &self,
        text: &str,
        client: GuardedClient<'_>,
    ) -> Result<VerifiedClaims, AuthError> {
        let token = Token::read(text)?;
        let (nth, issuer) = self.issuer(token.claims.text("iss")).ok_or(JwtError::Issuer)?;
        if self.forged.get(text).is_some_and(|keys| keys == (nth, issuer.generation())) {
            return Err(JwtError::Signature.into());
        }
        let generation = match (self.check(issuer, &token, client).await?, &issuer.jwks) {
            (Checked::Right(generation), _) => generation,
            (Checked::Wrong(why, generation), _) | (Checked::NoKey(why, generation), None) => {
                if why == JwtError::Signature {
                    self.forged.insert(text.into(), (nth, generation));
                }
                return Err(why.into());
            }
            (Checked::NoKey(why, before), Some(jwks)) => {
                let fetched = jwks.refetch().await;
                let again = match issuer.generation() == before {
                    true => Checked::NoKey(why, before),
                    false => self.check(issuer, &token, client).await?,
                };
                match again {
                    Checked::Right(generation) => generation,
                    Checked::NoKey(..) if !fetched || jwks.is_in_doubt() => {
                        return Err(JwtError::KeysUnavailable.into());
                    }
                    Checked::NoKey(why, _) | Checked::Wrong(why, _) => return Err(why.into()),
                }
            }
        };
        if let Some(audience) = &issuer.audience
            && !token.claims.names_audience(audience)
        {
            return Err(JwtError::Audience.into());
        }
        let claims = token.claims.verified(self.rules.require_record, (nth, generation));
        Ok(claims.map_err(JwtError::from)?)
    }

    /// Tries the keys of `issuer` that `token` may be signed with, each in a turn of its own.
    async fn check(
        &self,
        issuer: &Issuer,
        token: &Token<'_>,
        client: GuardedClient<'_>,
    ) -> Result<Checked, AuthError> {
        let set = issuer.jwks.as_ref().map(|jwks| Arc::clone(&jwks.current()));
        let generation = set.as_ref().map_or(0, |set| set.generation);
        let Candidates { keys, is_named, otherwise } = issuer.candidates(set.as_deref(), token);
        for key in keys {
            let is_right = match token.algorithm.is_symmetric() {
                // Quick enough for no turn.
                true => key.verify(token.message, &token.signature),
                false => {
                    let verify = || {
                        // The client may have failed too often while its token waited.
                        client.may_try()?;
                        Ok::<_, AuthError>(key.verify(token.message, &token.signature))
                    };
                    self.turns.take(verify).await?
                }
            };
            if is_right {
                return Ok(Checked::Right(generation));
            }
        }
        Ok(match is_named {
            true => Checked::Wrong(otherwise, generation),
            false => Checked::NoKey(otherwise, generation),
        })
    }

    /// The issuer whose keys a token must be verified with. A key of another issuer does not do (RFC 8725
    /// section 3.8).
    fn issuer(&self, iss: Option<&str>) -> Option<(u32, &Issuer)> {
        let find = |name: Option<&str>| {
            (0..).zip(&self.issuers).find(|(_, issuer)| issuer.name.as_deref() == name)
        };
        find(iss).or_else(|| find(None))
    }
}

/// The verdict of an issuer's keys about a token, with the generation of the keys.
enum Checked {
    /// The signature is right.
    Right(u32),
    /// The token names a known key, and does not verify with that key.
    Wrong(JwtError, u32),
    /// The token verifies with no known key. The issuer may have another one by now.
    NoKey(JwtError, u32),
}

/// The keys that a token may be signed with.
struct Candidates<'k> {
    keys: ArrayVec<&'k VerificationKey, MAX_TRIED>,
    /// Whether the token names a known key.
    is_named: bool,
    /// Why the token is refused if none of the keys made its signature.
    otherwise: JwtError,
}

impl Issuer {
    fn generation(&self) -> u32 {
        self.jwks.as_ref().map_or(0, |jwks| jwks.current().generation)
    }

    /// A token that names a known key is signed with that key. With an unknown name it is signed with a key without a
    /// name, and without a name with any key of its algorithm.
    fn candidates<'k>(&'k self, set: Option<&'k KeySet>, token: &Token<'_>) -> Candidates<'k> {
        let published = set.map_or(&[][..], |set| &set.keys);
        let kid = token.kid.as_deref();
        let all = || self.keys.iter().chain(published);
        let is_named = kid.is_some() && all().any(|key| key.kid() == kid);
        let of_algorithm = || all().filter(|key| key.algorithm() == token.algorithm);
        let first = of_algorithm().filter(|key| key.kid() == kid.filter(|_| is_named));
        let named = of_algorithm().filter(|key| kid.is_none() && key.kid().is_some());
        let mut fitting = first.chain(named);
        let keys: ArrayVec<_, MAX_TRIED> = fitting.by_ref().take(MAX_TRIED).collect();
        let otherwise = match keys.is_empty() {
            false if fitting.next().is_some() => JwtError::MissingKid,
            false => JwtError::Signature,
            true if kid.is_some() && !is_named => JwtError::UnknownKid,
            true => JwtError::Algorithm,
        };
        Candidates { keys, is_named, otherwise }
    }
}

/// A JWT in its compact form (RFC 7515 section 3.1), taken apart and not yet verified.
struct Token<'a> {
    message: &'a [u8],
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Claims,
    signature: Vec<u8>,
}

/// The members of the JOSE header (RFC 7515 section 4) that are read. Keys in a token, and addresses of keys, are
/// never used.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<IgnoredAny>,
}

impl<'a> Token<'a> {
    fn read(token: &'a str) -> Result<Self, JwtError> {
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Malformed);
        let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(JwtError::Malformed)?;
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| JwtError::Malformed)?;
        if header.crit.is_some() {
            return Err(JwtError::Critical);
        }
        if header.kid.as_ref().is_some_and(|kid| kid.len() > MAX_NAME) {
            return Err(JwtError::UnknownKid);
        }
        if !header.typ.as_deref().is_none_or(is_access_token) {
            return Err(JwtError::Type);
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(JwtError::Algorithm)?;
        let claims = Claims::read(&decode(claims)?)?;
        let signature = decode(signature)?;
        if !(1..=MAX_SIGNATURE).contains(&signature.len()) {
            return Err(JwtError::Malformed);
        }
        Ok(Self { message: message.as_bytes(), algorithm, kid: header.kid, claims, signature })
    }
}

/// Whether `typ` is one that access tokens have (RFC 9068 section 2.1): an issuer may sign other things
/// with the same key (RFC 8725 section 3.11).
fn is_access_token(typ: &str) -> bool {
    let prefix = "application/";
    let (start, rest) = typ.split_at_checked(prefix.len()).unwrap_or(("", typ));
    let typ = if start.eq_ignore_ascii_case(prefix) { rest } else { typ };
    typ.eq_ignore_ascii_case("JWT") || typ.eq_ignore_ascii_case("at+jwt")
}

#[cfg(test)]
mod tests {
    use crate::base::clock::{ManualClock, UnixTime};
    use futures_util::FutureExt as _;
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &[u8] = b"a secret that is long enough for every algorithm, all of its 64 bytes";
    const NOW: UnixTime = UnixTime::from_secs(1_000_000);

    const RULES: JwtRules = JwtRules { leeway: Duration::ZERO, require_record: true };

    fn key(algorithm: Algorithm, kid: Option<&str>, secret: &[u8]) -> VerificationKey {
        let algorithm = super::Algorithm::named(&format!("{algorithm:?}")).unwrap();
        VerificationKey::from_secret(algorithm, kid.map(Into::into), secret).unwrap()
    }

    fn of(keys: Vec<VerificationKey>) -> JwtVerifier {
        JwtVerifier::new(vec![Issuer { keys, ..Issuer::default() }], RULES)
    }

    fn verifier() -> JwtVerifier {
        of(vec![key(Algorithm::HS256, None, SECRET)])
    }

    impl JwtVerifier {
        /// Without key sets nothing is waited for.
        fn verify_now(&self, token: &str, now: UnixTime) -> Result<VerifiedToken, JwtError> {
            self.remembered(token.as_bytes(), now).unwrap_or_else(|| {
                let clock = ManualClock::new(now);
                let verified = self.verify(token, GuardedClient::ANY, &clock);
                verified.now_or_never().unwrap().map_err(|error| match error {
                    AuthError::Jwt(error) => error,
                    other => panic!("{other}"),
                })
            })
        }
    }

    fn sign(header: &Header, claims: &Value, secret: &[u8]) -> String {
        encode(header, claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    fn hs256(claims: Value) -> String {
        sign(&Header::new(Algorithm::HS256), &claims, SECRET)
    }

    fn unsigned(header: Value, claims: Value, signature: &str) -> String {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.{signature}", part(header), part(claims))
    }

    #[test]
    fn a_valid_token_gives_its_claims_first_and_from_memory() {
        let verifier = verifier();
        let token = hs256(json!({"api_key": "k", "exp": 1_000_060, "rate_limit": 5,
            "allowed_routes": ["/a"], "expires_at": "2030-01-01T00:00:00Z"}));
        let first = verifier.verify_now(&token, NOW).unwrap();
        assert_eq!(&*first.api_key, "k");
        assert_eq!(first.grant.as_ref().unwrap().rate, Some(crate::record::RateRule::Bare(5)));
        assert!(std::ptr::eq(&*first, &*verifier.verify_now(&token, NOW).unwrap()));
        let later = UnixTime::from_secs(1_000_060);
        assert_eq!(verifier.verify_now(&token, later).err(), Some(JwtError::Expired));
    }

    #[test]
    fn claims_are_checked_strictly() {
        use ClaimError::{Missing, Wrong};
        use JwtError::{Claim, Expired, NotYetValid};
        let missing = |name| Err(Claim(Missing(name)));
        let wrong = |name| Err(Claim(Wrong(name)));
        for (claims, expected) in [
            (json!({"api_key": "k", "exp": 1_000_001}), Ok(())),
            (json!({"api_key": "k", "exp": 1_000_000.5}), Ok(())),
            (json!({"api_key": "k", "exp": 1_000_000}), Err(Expired)),
            (json!({"api_key": "k", "exp": 1}), Err(Expired)),
            (json!({"api_key": "k"}), missing("exp")),
            (json!({"api_key": "k", "exp": "1000060"}), wrong("exp")),
            (json!({"api_key": "k", "exp": -1}), wrong("exp")),
            (json!({"api_key": "k", "exp": 1e300}), wrong("exp")),
            (json!({"api_key": "k", "exp": null}), wrong("exp")),
            (json!({"exp": 1_000_060}), missing("api_key")),
            (json!({"api_key": "", "exp": 1_000_060}), wrong("api_key")),
            (json!({"api_key": "k".repeat(257), "exp": 1_000_060}), wrong("api_key")),
            (json!({"api_key": 7, "exp": 1_000_060}), wrong("api_key")),
            (json!({"api_key": "k", "exp": 1_000_060, "nbf": 1_000_000}), Ok(())),
            (json!({"api_key": "k", "exp": 1_000_060, "nbf": 1_000_001}), Err(NotYetValid)),
            (json!({"api_key": "k", "exp": 1_000_060, "nbf": "1"}), wrong("nbf")),
            (json!({"api_key": "k", "exp": 1_000_060, "rate_limit": 0}), wrong("rate_limit")),
            (
                json!({"api_key": "k", "exp": 1_000_060, "allowed_routes": "*"}),
                wrong("allowed_routes"),
            ),
            (json!({"api_key": "k", "exp": 1_000_060, "expires_at": "soon"}), wrong("expires_at")),
        ] {
            let result = verifier().verify_now(&hs256(claims.clone()), NOW).map(|_| ());
            assert_eq!(result, expected, "{claims}");
        }
    }

    #[test]
    fn the_key_fixes_the_algorithm() {
        let claims = json!({"api_key": "k", "exp": 1_000_060});
        let refused = [
            (sign(&Header::new(Algorithm::HS512), &claims, SECRET), JwtError::Algorithm),
            (sign(&Header::new(Algorithm::HS256), &claims, b"another secret"), JwtError::Signature),
            (unsigned(json!({"alg": "none"}), claims.clone(), ""), JwtError::Algorithm),
            (unsigned(json!({"alg": "HS256"}), claims.clone(), ""), JwtError::Malformed),
            (unsigned(json!({"alg": "RS256"}), claims.clone(), "AAAA"), JwtError::Algorithm),
            (unsigned(json!({"typ": "JWT"}), claims.clone(), "AAAA"), JwtError::Malformed),
            ("a.b.c".to_owned(), JwtError::Malformed),
            ("..".to_owned(), JwtError::Malformed),
        ];
        for (token, why) in refused {
            assert_eq!(verifier().verify_now(&token, NOW).err(), Some(why), "{token}");
        }
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let keys = vec![key(algorithm, None, SECRET)];
            let token = sign(&Header::new(algorithm), &claims, SECRET);
            of(keys).verify_now(&token, NOW).unwrap();
        }
    }

    #[test]
    fn a_critical_extension_is_refused() {
        let header = Header { crit: Some(vec!["b64".into()]), ..Header::new(Algorithm::HS256) };
        let token = sign(&header, &json!({"api_key": "k", "exp": 1_000_060}), SECRET);
        assert_eq!(verifier().verify_now(&token, NOW).err(), Some(JwtError::Critical));
    }

    #[test]
    fn kid_selects_the_key() {
        let other = b"the secret of another key, which is long enough";
        let claims = json!({"api_key": "k", "exp": 1_000_060});
        let token = |kid: Option<&str>, secret| {
            let header = Header { kid: kid.map(Into::into), ..Header::new(Algorithm::HS256) };
            sign(&header, &claims, secret)
        };
        let two = of(vec![
            key(Algorithm::HS256, Some("a"), SECRET),
            key(Algorithm::HS256, Some("b"), other),
        ]);
        assert!(two.verify_now(&token(Some("a"), SECRET), NOW).is_ok());
        assert!(two.verify_now(&token(Some("b"), other), NOW).is_ok());
        for (kid, why) in [(Some("b"), JwtError::Signature), (Some("c"), JwtError::UnknownKid)] {
            assert_eq!(two.verify_now(&token(kid, SECRET), NOW).err(), Some(why), "{kid:?}");
        }
        for secret in [SECRET, other] {
            assert!(two.verify_now(&token(None, secret), NOW).is_ok(), "every key is tried");
        }
        let one = of(vec![key(Algorithm::HS256, Some("a"), SECRET)]);
        assert!(one.verify_now(&token(None, SECRET), NOW).is_ok());
        assert!(one.verify_now(&token(Some("c"), SECRET), NOW).is_err());
    }

    #[test]
    fn keys_without_names_are_all_tried_up_to_a_bound() {
        let secret = |nth: usize| format!("{nth:064}").into_bytes();
        let keys = |count: usize| {
            of((0..count).map(|n| key(Algorithm::HS256, None, &secret(n))).collect())
        };
        let claims = json!({"api_key": "k", "exp": 1_000_060});
        let by = |nth, kid: Option<&str>| {
            let header = Header { kid: kid.map(Into::into), ..Header::new(Algorithm::HS256) };
            sign(&header, &claims, &secret(nth))
        };
        for count in 1..=MAX_TRIED {
            for nth in 0..count {
                for kid in [None, Some("x")] {
                    assert!(keys(count).verify_now(&by(nth, kid), NOW).is_ok(), "{nth} of {count}");
                }
            }
            let refused = keys(count).verify_now(&by(count, None), NOW).err();
            assert_eq!(refused, Some(JwtError::Signature));
        }
        let many = keys(MAX_TRIED + 1);
        assert!(many.verify_now(&by(MAX_TRIED - 1, None), NOW).is_ok());
        let refused = many.verify_now(&by(MAX_TRIED, None), NOW).err();
        assert_eq!(refused, Some(JwtError::MissingKid));
    }

    #[test]
    fn forged_tokens_are_remembered_up_to_a_bound() {
        let verifier = verifier();
        let forged = |nth: usize| {
            let claims = json!({"api_key": format!("{nth:0900}"), "exp": 1_000_060});
            sign(&Header::new(Algorithm::HS256), &claims, b"x")
        };
        let refused = |nth| verifier.verify_now(&forged(nth), NOW).err();
        assert_eq!(
            (refused(0), refused(0)),
            (Some(JwtError::Signature), Some(JwtError::Signature))
        );
        assert_eq!(verifier.forged.get(forged(0).as_str()), Some((0, 0)));
        for nth in 1..5_000 {
            assert_eq!(refused(nth), Some(JwtError::Signature));
        }
        assert!(verifier.forged.weight() <= FORGED_BYTES, "{}", verifier.forged.weight());
    }

    #[test]
    fn issuer_audience_and_leeway_are_honoured() {
        let strict = || {
            let issuer = Issuer {
                name: Some("us".into()),
                audience: Some("api".into()),
                keys: vec![key(Algorithm::HS256, None, SECRET)],
                jwks: None,
            };
            let rules = JwtRules { leeway: Duration::from_secs(5), ..RULES };
            JwtVerifier::new(vec![issuer], rules)
        };
        for (iss, aud, exp, good) in [
            (json!("us"), json!("api"), 1_000_060, true),
            (json!("us"), json!(["x", "api"]), 1_000_060, true),
            (json!("us"), json!("api"), 999_996, true),
            (json!("us"), json!("api"), 999_995, false),
            (json!("them"), json!("api"), 1_000_060, false),
            (json!(null), json!("api"), 1_000_060, false),
            (json!(["us"]), json!("api"), 1_000_060, false),
            (json!("us"), json!("other"), 1_000_060, false),
            (json!("us"), json!(null), 1_000_060, false),
        ] {
            let claims = json!({"api_key": "k", "exp": exp, "iss": iss, "aud": aud});
            assert_eq!(strict().verify_now(&hs256(claims.clone()), NOW).is_ok(), good, "{claims}");
        }
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let token = hs256(json!({"api_key": "k", "exp": 1_000_060}));
        let verifier = verifier();
        for at in 0..token.len() * 8 {
            let mut bytes = token.clone().into_bytes();
            bytes[at / 8] ^= 1 << (at % 8);
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(verifier.verify_now(&text, NOW).is_err(), "bit {at}");
            }
        }
    }

    #[test]
    fn a_claim_that_comes_twice_is_refused() {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
        let claims = URL_SAFE_NO_PAD.encode(r#"{"api_key":"a","api_key":"b","exp":1000060}"#);
        let message = format!("{header}.{claims}");
        let signature = jsonwebtoken::crypto::sign(
            message.as_bytes(),
            &EncodingKey::from_secret(SECRET),
            Algorithm::HS256,
        )
        .unwrap();
        let token = format!("{message}.{signature}");
        let twice = JwtError::Claim(ClaimError::Form);
        assert_eq!(verifier().verify_now(&token, NOW).err(), Some(twice));
    }
}
