//! The verifier of JWTs against tokens of every algorithm, right and wrong, and against the advice of
//! RFC 8725, section by section. In this process; `keys.rs` asks the real gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use support::token::unsigned;
use support::{ALGORITHMS, Signer};
use tollgate::auth::AuthError;
use tollgate::auth::claims::ClaimError;
use tollgate::auth::guard::GuardedClient;
use tollgate::auth::jwt::{Issuer, JwtError, JwtRules, JwtVerifier};
use tollgate::auth::verification::{Algorithm, VerificationKey};
use tollgate::base::clock::{ManualClock, UnixTime};

const NOW: UnixTime = UnixTime::from_secs(1_000_000);
const RULES: JwtRules = JwtRules { leeway: Duration::ZERO, require_record: true };

fn claims() -> Value {
    json!({ "api_key": "k", "exp": 1_000_060 })
}

/// A verifier of the signer's tokens.
fn key(signer: &Signer, kid: Option<&str>) -> VerificationKey {
    let algorithm = Algorithm::named(signer.algorithm).unwrap();
    let kid = kid.map(str::to_owned);
    match signer.secret() {
        Some(secret) => VerificationKey::from_secret(algorithm, kid, secret),
        None => VerificationKey::from_public(algorithm, kid, &signer.pem()),
    }
    .unwrap()
}

fn verifier(keys: Vec<VerificationKey>) -> JwtVerifier {
    JwtVerifier::new(vec![Issuer { keys, ..Issuer::default() }], RULES)
}

fn verify(verifier: &JwtVerifier, token: &str) -> Result<(), JwtError> {
    let clock = ManualClock::new(NOW);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    match runtime.block_on(verifier.verify(token, GuardedClient::ANY, &clock)) {
        Ok(_) => Ok(()),
        Err(AuthError::Jwt(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

fn encoded(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

#[test]
fn every_algorithm_verifies_its_own_tokens_from_pem_and_jwk_and_no_others() {
    let signers: Vec<Signer> = ALGORITHMS.iter().map(|name| Signer::new(name)).collect();
    for signer in &signers {
        let token = signer.token(None, &claims());
        assert_eq!(
            verify(&verifier(vec![key(signer, None)]), &token),
            Ok(()),
            "{}",
            signer.algorithm
        );
        if signer.secret().is_none() {
            let algorithm = Algorithm::named(signer.algorithm).unwrap();
            let jwk = signer.jwk(Some("named")).to_string();
            let jwk = VerificationKey::from_public(algorithm, None, &jwk).unwrap();
            assert_eq!(jwk.kid(), Some("named"));
            assert_eq!(verify(&verifier(vec![jwk]), &token), Ok(()), "{} by JWK", signer.algorithm);
        }
        for other in &signers {
            let fits = std::ptr::eq(signer, other);
            let verifier = verifier(vec![key(other, None)]);
            let result = verify(&verifier, &token);
            assert_eq!(result.is_ok(), fits, "{} by {}", signer.algorithm, other.algorithm);
            // The header lies about the algorithm.
            let lying = signer.token_with(&json!({ "alg": other.algorithm }), &claims());
            assert_eq!(verify(&verifier, &lying).is_ok(), fits);
        }
        // Another key of the same kind.
        let stranger = verifier(vec![key(&Signer::new(signer.algorithm), None)]);
        assert_eq!(verify(&stranger, &token), Err(JwtError::Signature));
    }
}

#[test]
fn any_single_flipped_bit_is_refused() {
    for name in ALGORITHMS {
        let signer = Signer::new(name);
        let verifier = verifier(vec![key(&signer, None)]);
        let token = signer.token(None, &claims());
        assert_eq!(verify(&verifier, &token), Ok(()));
        for at in 0..token.len() * 8 {
            let mut bytes = token.clone().into_bytes();
            bytes[at / 8] ^= 1 << (at % 8);
            if let Ok(flipped) = String::from_utf8(bytes) {
                assert!(verify(&verifier, &flipped).is_err(), "{name}: bit {at}");
            }
        }
        // Each bit of the signature itself counts.
        let (message, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        for at in 0..signature.len() * 8 {
            let mut flipped = signature.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            let flipped = format!("{message}.{}", URL_SAFE_NO_PAD.encode(flipped));
            assert!(verify(&verifier, &flipped).is_err(), "{name}: bit {at} of the signature");
        }
    }
}

#[test]
fn signatures_have_one_form_and_one_length() {
    for name in ALGORITHMS {
        let signer = Signer::new(name);
        let verifier = verifier(vec![key(&signer, None)]);
        let token = signer.token(None, &claims());
        let (message, signature) = token.rsplit_once('.').unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let with = |bytes: &[u8]| format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes));
        use JwtError::{Malformed, Signature};
        let foreign = format!("{message}.{}/+", &signature[..signature.len() - 2]);
        for (what, forged, why) in [
            ("none", format!("{message}."), Malformed),
            ("half", with(&bytes[..bytes.len() / 2]), Signature),
            ("one byte less", with(&bytes[..bytes.len() - 1]), Signature),
            ("one byte more", with(&[&bytes[..], &[0]].concat()), Signature),
            ("a zero before", with(&[&[0], &bytes[..]].concat()), Signature),
            ("twice", with(&[&bytes[..], &bytes].concat()), Signature),
            ("zeros", with(&vec![0; bytes.len()]), Signature),
            ("too long", with(&vec![1; 2_000]), Malformed),
            ("padded", format!("{token}="), Malformed),
            ("in the other alphabet", foreign, Malformed),
            ("a space behind", format!("{token} "), Malformed),
        ] {
            assert_eq!(verify(&verifier, &forged), Err(why), "{name}: {what}");
        }
    }
}

/// RFC 8725 sections 3.1 and 3.2: the key says how a token is verified, the token does not.
#[test]
fn rfc_8725_3_1_algorithms_are_the_keys() {
    let rsa = Signer::new("RS256");
    let verifier = verifier(vec![key(&rsa, None)]);
    // The public key as an HMAC secret.
    for secret in [rsa.pem(), rsa.pem().trim().to_owned()] {
        let message = unsigned(&json!({ "alg": "HS256" }), &claims());
        let hmac = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        let tag = aws_lc_rs::hmac::sign(&hmac, message.as_bytes());
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert_eq!(verify(&verifier, &token), Err(JwtError::Algorithm));
    }
    for alg in
        ["none", "None", "NONE", "nOnE", "", "rs256", "RS256 ", "HS1", "RS1", "ES256K", "dir"]
    {
        let header = json!({ "alg": alg });
        for token in
            [rsa.token_with(&header, &claims()), format!("{}.", unsigned(&header, &claims()))]
        {
            assert_eq!(verify(&verifier, &token), Err(JwtError::Algorithm), "{alg:?}");
        }
    }
    for header in [json!({}), json!({ "alg": null }), json!({ "alg": ["RS256"] }), json!([])] {
        let token = rsa.token_with(&header, &claims());
        assert_eq!(verify(&verifier, &token), Err(JwtError::Malformed));
    }
}

/// Section 3.3: everything that is signed is validated; nested and encrypted tokens are not taken.
#[test]
fn rfc_8725_3_3_every_part_is_validated() {
    let signer = Signer::new("HS256");
    let verifier = verifier(vec![key(&signer, None)]);
    let inner = signer.token(None, &claims());
    let header = json!({ "alg": "HS256", "cty": "JWT" });
    let nested = {
        let message = format!("{}.{}", encoded(&header.to_string()), encoded(&inner));
        let signature = URL_SAFE_NO_PAD.encode(signer.sign(message.as_bytes()));
        format!("{message}.{signature}")
    };
    let raw = |claims: &str| {
        let message = format!("{}.{}", encoded(r#"{"alg":"HS256"}"#), encoded(claims));
        let signature = URL_SAFE_NO_PAD.encode(signer.sign(message.as_bytes()));
        format!("{message}.{signature}")
    };
    assert_eq!(verify(&verifier, &raw(r#"{"api_key":"k","exp":1000060}"#)), Ok(()));
    let deep = |claim: &str| {
        let (open, close) = ("[".repeat(500), "]".repeat(500));
        raw(&format!(r#"{{"api_key":"k","exp":1000060,"{claim}":{open}1{close}}}"#))
    };
    assert_eq!(verify(&verifier, &deep("passed over")), Ok(()));
    for (what, token) in [
        ("nested", nested),
        ("five parts", format!("{inner}.a.b")),
        ("twice the same claim", raw(r#"{"api_key":"k","api_key":"k","exp":1000060}"#)),
        ("twice the same time", raw(r#"{"api_key":"k","exp":1,"exp":1000060}"#)),
        ("twice, once escaped", raw(r#"{"api_key":"k","api\u005fkey":"l","exp":1000060}"#)),
        ("more behind", raw(r#"{"api_key":"k","exp":1000060} {}"#)),
        ("a list", raw(r#"["k"]"#)),
        ("deep", deep("limits")),
        ("no JSON", raw("api_key=k")),
        ("a comma too many", raw(r#"{"api_key":"k","exp":1000060,}"#)),
        ("a byte order mark", raw("\u{feff}{\"api_key\":\"k\",\"exp\":1000060}")),
        ("a number without end", raw(r#"{"api_key":"k","exp":1e999}"#)),
        ("NaN", raw(r#"{"api_key":"k","exp":NaN}"#)),
    ] {
        let why = match what {
            "five parts" => JwtError::Malformed,
            _ => JwtError::Claim(ClaimError::Form),
        };
        assert_eq!(verify(&verifier, &token), Err(why), "{what}");
    }
    let message = [
        encoded(r#"{"alg":"HS256"}"#),
        URL_SAFE_NO_PAD.encode(b"{\"api_key\":\"\xff\",\"exp\":1000060}"),
    ]
    .join(".");
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signer.sign(message.as_bytes())));
    assert_eq!(verify(&verifier, &token), Err(JwtError::Claim(ClaimError::Form)), "not UTF-8");
}

/// Section 3.4 (inputs of curve operations): points off the curve and of other curves are no keys.
#[test]
fn rfc_8725_3_4_keys_are_validated() {
    let p256 = Signer::new("ES256").jwk(None);
    let with = |member: &str, value: Value| {
        let mut jwk = p256.clone();
        jwk[member] = value;
        VerificationKey::from_public(Algorithm::Es256, None, &jwk.to_string())
    };
    assert!(with("kid", json!("a")).is_ok());
    let zero = URL_SAFE_NO_PAD.encode([0; 32]);
    for (member, value) in [
        ("x", json!(zero)),
        ("y", json!(zero)),
        ("x", json!("AAAA")),
        ("x", json!("not base64!")),
        ("x", json!(7)),
        ("crv", json!("P-384")),
        ("crv", json!("secp256k1")),
        ("kty", json!("RSA")),
        ("kty", json!("oct")),
        ("alg", json!("ES384")),
        ("alg", json!("none")),
        ("use", json!("enc")),
        ("key_ops", json!(["sign"])),
        ("d", json!("AAAA")),
    ] {
        assert!(with(member, value.clone()).is_err(), "{member}: {value}");
    }
    let weak = include_str!("fixtures/keys/rsa1024.pem");
    assert!(VerificationKey::from_public(Algorithm::Rs256, None, weak).is_err());
}

/// Section 3.5: secrets that could be guessed are no keys.
#[test]
fn rfc_8725_3_5_short_secrets_are_refused() {
    for (algorithm, least) in
        [(Algorithm::Hs256, 32), (Algorithm::Hs384, 48), (Algorithm::Hs512, 64)]
    {
        let secret = |length| VerificationKey::from_secret(algorithm, None, &vec![7; length]);
        assert!(secret(least - 1).is_err() && secret(least).is_ok());
    }
}

/// Section 3.6 (compression before encryption) and RFC 7515 section 4.1.11: extensions are refused.
#[test]
fn rfc_8725_3_6_extensions_are_refused() {
    let signer = Signer::new("HS256");
    let verifier = verifier(vec![key(&signer, None)]);
    for (header, good) in [
        (json!({ "alg": "HS256", "crit": ["b64"], "b64": false }), false),
        (json!({ "alg": "HS256", "crit": [] }), false),
        (json!({ "alg": "HS256", "crit": "exp" }), false),
        (json!({ "alg": "HS256", "unknown": 1 }), true),
    ] {
        let result = verify(&verifier, &signer.token_with(&header, &claims()));
        assert_eq!(result.is_ok(), good, "{header}");
    }
}

/// Sections 3.8 and 3.9: a token is verified with the keys of the issuer it names, for its audience.
#[test]
fn rfc_8725_3_8_issuers_have_their_own_keys_and_audience() {
    let (ours, theirs, any) = (Signer::new("ES256"), Signer::new("ES256"), Signer::new("ES256"));
    let issuer = |name: Option<&str>, audience: Option<&str>, signer: &Signer| Issuer {
        name: name.map(str::to_owned),
        audience: audience.map(str::to_owned),
        keys: vec![key(signer, None)],
        jwks: None,
    };
    let issuers = vec![
        issuer(Some("us"), Some("api"), &ours),
        issuer(Some("them"), Some("other"), &theirs),
        issuer(None, None, &any),
    ];
    let verifier = JwtVerifier::new(issuers, RULES);
    for (signer, iss, aud, good) in [
        (&ours, json!("us"), json!("api"), true),
        (&ours, json!("us"), json!(["x", "api"]), true),
        (&ours, json!("us"), json!("other"), false),
        (&ours, json!("us"), json!(["other", 1]), false),
        (&ours, json!("us"), Value::Null, false),
        (&ours, json!("them"), json!("other"), false),
        (&ours, json!("them"), json!("api"), false),
        (&ours, json!("nobody"), json!("api"), false),
        (&ours, json!(["us"]), json!("api"), false),
        (&ours, json!("US"), json!("api"), false),
        (&ours, json!("us "), json!("api"), false),
        (&theirs, json!("them"), json!("other"), true),
        (&theirs, json!("us"), json!("api"), false),
        (&any, json!("us"), json!("api"), false),
        (&any, json!("nobody"), Value::Null, true),
        (&any, Value::Null, Value::Null, true),
    ] {
        let mut body = claims();
        body["iss"] = iss;
        body["aud"] = aud;
        assert_eq!(verify(&verifier, &signer.token(None, &body)).is_ok(), good, "{body}");
    }
}

/// Section 3.10: the gateway trusts no key in a token, no address that a token names, and no odd `kid`.
#[test]
fn rfc_8725_3_10_received_claims_are_not_trusted() {
    let (signer, stranger) = (Signer::new("ES256"), Signer::new("ES256"));
    let verifier = verifier(vec![key(&signer, Some("a"))]);
    let own = stranger.jwk(Some("a"));
    use JwtError::{Malformed, Signature, UnknownKid};
    let address = "https://127.0.0.1:1/";
    for (header, why) in [
        (json!({ "alg": "ES256", "kid": "a", "jwk": own }), Signature),
        (json!({ "alg": "ES256", "kid": "a", "jku": address, "x5u": address }), Signature),
        (json!({ "alg": "ES256", "jwk": own }), Signature),
        (json!({ "alg": "ES256", "kid": "../../dev/null" }), UnknownKid),
        (json!({ "alg": "ES256", "kid": "a' OR '1'='1" }), UnknownKid),
        (json!({ "alg": "ES256", "kid": "a".repeat(10_000) }), UnknownKid),
        (json!({ "alg": "ES256", "kid": ["a"] }), Malformed),
    ] {
        let token = stranger.token_with(&header, &claims());
        assert_eq!(verify(&verifier, &token), Err(why), "{header}");
    }
    let known = signer.token(Some("a"), &claims());
    assert_eq!(verify(&verifier, &known), Ok(()));
    for kid in ["A", "a ", "b", ""] {
        assert_eq!(verify(&verifier, &signer.token(Some(kid), &claims())), Err(UnknownKid));
    }
}

/// Sections 3.11 and 3.12: tokens that the issuer made for something else are not taken.
#[test]
fn rfc_8725_3_11_other_kinds_of_tokens_are_refused() {
    let signer = Signer::new("HS256");
    let verifier = verifier(vec![key(&signer, None)]);
    for (typ, good) in [
        ("JWT", true),
        ("jwt", true),
        ("at+jwt", true),
        ("application/at+jwt", true),
        ("Application/AT+JWT", true),
        ("logout+jwt", false),
        ("secevent+jwt", false),
        ("dpop+jwt", false),
        ("JOSE", false),
        ("", false),
        ("application/", false),
        ("appli\u{e9}ation/at+jwt", false),
    ] {
        let token = signer.token_with(&json!({ "alg": "HS256", "typ": typ }), &claims());
        assert_eq!(verify(&verifier, &token).is_ok(), good, "{typ:?}");
    }
}

#[test]
fn times_are_numbers_in_range() {
    let signer = Signer::new("HS256");
    let verifier = verifier(vec![key(&signer, None)]);
    use JwtError::{Claim, Expired, NotYetValid};
    let wrong = |name| Err(Claim(ClaimError::Wrong(name)));
    for (name, value, expected) in [
        ("exp", json!(1_000_060), Ok(())),
        ("exp", json!(1_000_000.5), Ok(())),
        ("exp", json!(1e6 + 1.0), Ok(())),
        ("exp", json!(1_000_000), Err(Expired)),
        ("exp", json!(0), Err(Expired)),
        ("exp", json!(-1), wrong("exp")),
        ("exp", json!(-0.5), wrong("exp")),
        ("exp", json!("1000060"), wrong("exp")),
        ("exp", json!(true), wrong("exp")),
        ("exp", json!([1_000_060]), wrong("exp")),
        ("exp", json!({ "$numberLong": 1_000_060 }), wrong("exp")),
        ("exp", Value::Null, wrong("exp")),
        ("exp", json!(u64::MAX), wrong("exp")),
        ("exp", json!(1e300), wrong("exp")),
        ("nbf", json!(1_000_000), Ok(())),
        ("nbf", json!(1_000_001), Err(NotYetValid)),
        ("nbf", json!("0"), wrong("nbf")),
        ("nbf", json!(-1), wrong("nbf")),
        ("nbf", Value::Null, wrong("nbf")),
        ("jti", json!(7), Ok(())),
        ("api_key", json!(""), wrong("api_key")),
        ("api_key", json!("k".repeat(257)), wrong("api_key")),
        ("api_key", json!("a".repeat(64)), wrong("api_key")),
        ("api_key", json!("A".repeat(64)), Ok(())),
        ("rate_limit", json!(0), wrong("rate_limit")),
        ("limits", json!(["1/fortnight"]), wrong("limits")),
        ("plan", json!("a\nb"), wrong("plan")),
        ("organization_id", json!(7), wrong("organization_id")),
    ] {
        let mut body = claims();
        body[name] = value;
        assert_eq!(verify(&verifier, &signer.token(None, &body)), expected, "{body}");
    }
    let mut body = claims();
    body.as_object_mut().unwrap().remove("exp");
    let missing = Err(Claim(ClaimError::Missing("exp")));
    assert_eq!(verify(&verifier, &signer.token(None, &body)), missing);
}
