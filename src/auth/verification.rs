//! Keys that verify signatures, each for one algorithm (RFC 7518, RFC 8037), read from secrets, PEM and JWK.
//!
//! Keys are parsed and checked once, when they are read: a key that is too weak, of another kind or private never
//! verifies a token.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicEncryptingKey;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Signature algorithms of JWTs (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// Every algorithm, by the name it has in a JWT. Ed25519 names the curve of EdDSA too (RFC 9864 section 2.2).
    pub const NAMES: [(&str, Self); 14] = [
        ("HS256", Self::Hs256),
        ("HS384", Self::Hs384),
        ("HS512", Self::Hs512),
        ("RS256", Self::Rs256),
        ("RS384", Self::Rs384),
        ("RS512", Self::Rs512),
        ("PS256", Self::Ps256),
        ("PS384", Self::Ps384),
        ("PS512", Self::Ps512),
        ("ES256", Self::Es256),
        ("ES384", Self::Es384),
        ("ES512", Self::Es512),
        ("EdDSA", Self::EdDsa),
        ("Ed25519", Self::EdDsa),
    ];

    /// The algorithm of this name; names are case-sensitive.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, algorithm)| algorithm)
    }

    /// The algorithm's name in a JWT.
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.into_iter().find(|(_, algorithm)| *algorithm == self);
        found.map_or("", |(name, _)| name)
    }

    /// How a signature is checked.
    fn scheme(self) -> Scheme {
        match self {
            Self::Hs256 => Scheme::Hmac { hash: hmac::HMAC_SHA256, least: 32 },
            Self::Hs384 => Scheme::Hmac { hash: hmac::HMAC_SHA384, least: 48 },
            Self::Hs512 => Scheme::Hmac { hash: hmac::HMAC_SHA512, least: 64 },
            Self::Rs256 => Scheme::Public(&RSA_PKCS1_2048_8192_SHA256, Kind::Rsa),
            Self::Rs384 => Scheme::Public(&RSA_PKCS1_2048_8192_SHA384, Kind::Rsa),
            Self::Rs512 => Scheme::Public(&RSA_PKCS1_2048_8192_SHA512, Kind::Rsa),
            Self::Ps256 => Scheme::Public(&RSA_PSS_2048_8192_SHA256, Kind::Rsa),
            Self::Ps384 => Scheme::Public(&RSA_PSS_2048_8192_SHA384, Kind::Rsa),
            Self::Ps512 => Scheme::Public(&RSA_PSS_2048_8192_SHA512, Kind::Rsa),
            Self::Es256 => Scheme::Public(&ECDSA_P256_SHA256_FIXED, Kind::Curve("P-256", 32)),
            Self::Es384 => Scheme::Public(&ECDSA_P384_SHA384_FIXED, Kind::Curve("P-384", 48)),
            Self::Es512 => Scheme::Public(&ECDSA_P521_SHA512_FIXED, Kind::Curve("P-521", 66)),
            Self::EdDsa => Scheme::Public(&ED25519, Kind::Ed25519),
        }
    }

    /// Whether the algorithm's keys are secrets that the issuer and the gateway share.
    pub fn is_symmetric(self) -> bool {
        matches!(self.scheme(), Scheme::Hmac { .. })
    }
}

enum Scheme {
    /// A secret at least as long as the hash (RFC 7518 section 3.2).
    Hmac {
        hash: hmac::Algorithm,
        least: usize,
    },
    Public(&'static dyn VerificationAlgorithm, Kind),
}

#[derive(Clone, Copy)]
enum Kind {
    Rsa,
    /// The curve, and the bytes of a coordinate.
    Curve(&'static str, usize),
    Ed25519,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa => f.write_str("an RSA key of 2048 to 8192 bits"),
            Self::Curve(name, _) => write!(f, "a key on {name}"),
            Self::Ed25519 => f.write_str("an Ed25519 key"),
        }
    }
}

/// Why a text is no verification key. Never holds the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A secret that could be guessed.
    #[error(
        "is {length} bytes long; {} needs at least {least}, and `tollgate secret` makes one that fits",
        algorithm.name()
    )]
    Short {
        /// The length of the secret, in bytes.
        length: usize,
        /// The algorithm that the key is for.
        algorithm: Algorithm,
        /// The shortest length, in bytes.
        least: usize,
    },
    /// A secret for a public-key algorithm.
    #[error("is a secret; {} verifies with a public key", .0.name())]
    Secret(Algorithm),
    /// A public key for a shared-secret algorithm.
    #[error("is a public key; {} verifies with a secret", .0.name())]
    Public(Algorithm),
    /// A private key: it has no place in a gateway.
    #[error("holds a private key; write the public one")]
    Private,
    /// The text has neither of the forms.
    #[error("is neither a PEM public key (BEGIN PUBLIC KEY) nor a JWK")]
    Form,
    /// The key is of another kind.
    #[error("does not fit {}, which needs {kind}", algorithm.name())]
    Kind {
        /// The algorithm that the key is for.
        algorithm: Algorithm,
        /// The kind of key that the algorithm needs.
        kind: String,
    },
    /// The JWK is for another algorithm.
    #[error("is a JWK for {0}")]
    Algorithm(String),
    /// The JWK is not for signatures.
    #[error("is a JWK that is not for verifying signatures (use or key_ops)")]
    Use,
}

/// A key, the one algorithm it is used with, and its id.
#[derive(Clone)]
pub struct VerificationKey {
    algorithm: Algorithm,
    kid: Option<String>,
    material: Material,
}

#[derive(Clone)]
enum Material {
    Hmac(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerificationKey")
            .field("algorithm", &self.algorithm)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl VerificationKey {
    /// A shared secret.
    ///
    /// # Errors
    /// [`KeyError`] when it is too short, or the algorithm has no secrets.
    pub fn from_secret(
        algorithm: Algorithm,
        kid: Option<String>,
        secret: &[u8],
    ) -> Result<Self, KeyError> {
        match algorithm.scheme() {
            Scheme::Hmac { least, .. } if secret.len() < least => {
                Err(KeyError::Short { length: secret.len(), algorithm, least })
            }
            Scheme::Hmac { hash, .. } => {
                let material = Material::Hmac(Box::new(hmac::Key::new(hash, secret)));
                Ok(Self { algorithm, kid, material })
            }
            Scheme::Public(..) => Err(KeyError::Secret(algorithm)),
        }
    }

    /// A public key in PEM (RFC 7468 section 13) or as a JWK (RFC 7517), whose own `kid` counts where
    /// none is given.
    ///
    /// # Errors
    /// [`KeyError`] when it is neither, or does not fit the algorithm.
    pub fn from_public(
        algorithm: Algorithm,
        kid: Option<String>,
        text: &str,
    ) -> Result<Self, KeyError> {
        if algorithm.is_symmetric() {
            return Err(KeyError::Public(algorithm));
        }
        if text.trim_start().starts_with('{') {
            let jwk: Jwk = serde_json::from_str(text).map_err(|_| KeyError::Form)?;
            let mut key = jwk.key(Some(algorithm))?;
            key.kid = kid.or(key.kid);
            return Ok(key);
        }
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private);
        }
        let info = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes());
        Self::from_info(algorithm, kid, &info.map_err(|_| KeyError::Form)?)
    }

    /// A SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).
    fn from_info(algorithm: Algorithm, kid: Option<String>, der: &[u8]) -> Result<Self, KeyError> {
        let Scheme::Public(scheme, kind) = algorithm.scheme() else {
            return Err(KeyError::Public(algorithm));
        };
        // The library would check the length of an RSA key only when the key verifies.
        let fits = match kind {
            Kind::Rsa => PublicEncryptingKey::from_der(der)
                .is_ok_and(|key| (2048..=8192).contains(&key.key_size_bits())),
            Kind::Curve(..) | Kind::Ed25519 => true,
        };
        let parsed = ParsedPublicKey::new(scheme, der).ok().filter(|_| fits);
        let parsed = parsed.ok_or_else(|| algorithm.needs(kind))?;
        Ok(Self { algorithm, kid, material: Material::Public(parsed) })
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key's id.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Whether `signature` is this key's for `message`. Comparisons take constant time.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
            Material::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}

impl Algorithm {
    fn needs(self, kind: Kind) -> KeyError {
        KeyError::Kind { algorithm: self, kind: kind.to_string() }
    }
}

/// The members of a JSON Web Key that are read (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
#[derive(Deserialize)]
pub struct Jwk {
    kty: String,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
    d: Option<IgnoredAny>,
    alg: Option<String>,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
}

impl Jwk {
    /// The key, for `algorithm` where that is fixed, else for its own `alg`, else for the usual algorithm of its
    /// kind (RS256 for RSA).
    ///
    /// # Errors
    /// [`KeyError`] when it is private, not for signatures, or does not fit.
    pub fn key(&self, algorithm: Option<Algorithm>) -> Result<VerificationKey, KeyError> {
        if self.d.is_some() {
            return Err(KeyError::Private);
        }
        let for_signatures = self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !for_signatures {
            return Err(KeyError::Use);
        }
        let own = match &self.alg {
            Some(name) => {
                Some(Algorithm::named(name).ok_or_else(|| KeyError::Algorithm(name.clone()))?)
            }
            None => None,
        };
        if let (Some(own), Some(fixed)) = (own, algorithm)
            && own != fixed
        {
            return Err(KeyError::Algorithm(own.name().into()));
        }
        let algorithm = algorithm.or(own).or_else(|| self.usual()).ok_or(KeyError::Form)?;
        let bytes = |text: &Option<String>| {
            URL_SAFE_NO_PAD.decode(text.as_deref().unwrap_or_default()).map_err(|_| KeyError::Form)
        };
        let kid = self.kid.clone();
        let (scheme, kind) = match algorithm.scheme() {
            Scheme::Hmac { .. } if self.kty == "oct" => {
                return VerificationKey::from_secret(algorithm, kid, &bytes(&self.k)?);
            }
            Scheme::Hmac { .. } => return Err(KeyError::Public(algorithm)),
            Scheme::Public(scheme, kind) => (scheme, kind),
        };
        let on = |curve: &str| self.crv.as_deref() == Some(curve);
        let parsed = match kind {
            Kind::Rsa if self.kty == "RSA" => {
                // Some libraries write zeros in front (RFC 7518 section 6.3.1.1).
                let number = |text: &Option<String>| {
                    bytes(text).map(|digits| {
                        let zeros = digits.iter().take_while(|digit| **digit == 0).count();
                        digits[zeros..].to_vec()
                    })
                };
                let components =
                    RsaPublicKeyComponents { n: number(&self.n)?, e: number(&self.e)? };
                use aws_lc_rs::encoding::AsDer as _;
                let info = components.as_der().map_err(|_| algorithm.needs(kind))?;
                return VerificationKey::from_info(algorithm, kid, info.as_ref());
            }
            Kind::Curve(curve, width) if self.kty == "EC" && on(curve) => {
                let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
                if (x.len(), y.len()) != (width, width) {
                    return Err(algorithm.needs(kind));
                }
                // An uncompressed point (SEC 1 section 2.3.3).
                ParsedPublicKey::new(scheme, [&[4], x.as_slice(), y.as_slice()].concat())
            }
            Kind::Ed25519 if self.kty == "OKP" && on("Ed25519") => {
                ParsedPublicKey::new(scheme, bytes(&self.x)?)
            }
            Kind::Rsa | Kind::Curve(..) | Kind::Ed25519 => return Err(algorithm.needs(kind)),
        };
        let material = Material::Public(parsed.map_err(|_| algorithm.needs(kind))?);
        Ok(VerificationKey { algorithm, kid, material })
    }

    /// Whether the key is a secret.
    pub fn is_symmetric(&self) -> bool {
        self.kty == "oct"
    }

    fn usual(&self) -> Option<Algorithm> {
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Some(Algorithm::Rs256),
            ("EC", Some("P-256")) => Some(Algorithm::Es256),
            ("EC", Some("P-384")) => Some(Algorithm::Es384),
            ("EC", Some("P-521")) => Some(Algorithm::Es512),
            ("OKP", Some("Ed25519")) => Some(Algorithm::EdDsa),
            _ => None,
        }
    }
}
