//! JWTs as bearer tokens, checked by `jsonwebtoken` with ring's cryptography, which TLS brings along.
//!
//! The operator's file decides which algorithm a key is for, never the token. So a public key can't be used as a shared secret.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    decode, decode_header,
    errors::{Error, ErrorKind},
    jwk::JwkSet,
    signature,
};
use parking_lot::RwLock;
use ring::{
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
    },
};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Deserialize;

use super::identity::{Identity, Scope};

/// Shortest shared secret: as long as the hash it is used with (RFC 7518, 3.2).
const MIN_SECRET: usize = 32;

/// In seconds.
const LEEWAY: u64 = 30;

/// A token that leaked must not open the service for years.
const MAX_LIFE_DAYS: u64 = 31;

/// Longest token that is looked at: each costs a signature's check.
const MAX_TOKEN: usize = 8 << 10;

/// Longest subject: it is stored with every job.
const MAX_SUBJECT: usize = 200;

/// JWTs that can't be checked. No message holds a key.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    #[error("JWT_AUTH: can't read the keys file {path}: {source}")]
    Unreadable { path: String, source: io::Error },
    #[error(
        "JWT_AUTH: the keys file {path} has no usable key: {reason}. It must be a JWKS, one public key as PEM (RSA with at \
         least 2048 bits, P-256 or Ed25519), or a shared secret of at least 32 bytes"
    )]
    NoKey { path: String, reason: String },
}

/// Accepts the tokens of `issuer` for `audience` that one of `keys` signed.
pub struct Tokens {
    path: PathBuf,
    /// Replaced as a whole when the file is read again.
    keys: RwLock<Arc<[KnownKey]>>,
    issuer: String,
    audience: String,
}

struct KnownKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since 1970.
    exp: u64,
    scope: Option<Scopes>,
}

/// Scopes as RFC 8693 has them, or as a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scopes {
    Text(String),
    List(Vec<String>),
}

impl Tokens {
    pub fn load(path: &Path, issuer: &str, audience: &str) -> Result<Tokens, JwtError> {
        let keys = RwLock::new(read_file(path)?);
        // Fails if this one was installed before.
        let _ = RING.install_default();
        Ok(Tokens { path: path.to_owned(), keys, issuer: issuer.to_owned(), audience: audience.to_owned() })
    }

    /// Reads the keys again. Returns how many there are; after an error the old ones stay in use. May block.
    pub fn reload(&self) -> Result<usize, JwtError> {
        let keys = read_file(&self.path)?;
        let count = keys.len();
        *self.keys.write() = keys;
        Ok(count)
    }

    /// `None` if the token is not valid or has no scope of this service.
    pub fn identify(&self, token: &[u8]) -> Option<Identity> {
        let header = (token.len() <= MAX_TOKEN).then(|| decode_header(token).ok())??;
        // No extension that a token could call critical is known here (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return None;
        }
        let (id, keys) = (header.kid, Arc::clone(&self.keys.read()));
        let may_fit = |key: &&KnownKey| id.is_none() || key.id.is_none() || key.id == id;
        let claims = keys.iter().filter(may_fit).find_map(|key| self.claims(token, key))?;
        let latest = jsonwebtoken::get_current_timestamp() + MAX_LIFE_DAYS * 24 * 3_600 + LEEWAY;
        let is_fit = claims.exp <= latest
            && (1..=MAX_SUBJECT).contains(&claims.sub.len())
            && !claims.sub.contains(char::is_control);
        let scope = match claims.scope? {
            Scopes::Text(text) => text.split(' ').filter_map(|scope| scope.parse().ok()).max(),
            Scopes::List(list) => list.iter().filter_map(|scope| scope.parse::<Scope>().ok()).max(),
        };
        is_fit.then_some(Identity { name: Some(format!("jwt:{}", claims.sub)), scope: scope? })
    }

    fn claims(&self, token: &[u8], known: &KnownKey) -> Option<Claims> {
        let mut validation = Validation::new(known.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        decode(token, &known.key, &validation).ok().map(|token| token.claims)
    }
}

fn read_file(path: &Path) -> Result<Arc<[KnownKey]>, JwtError> {
    let name = path.display().to_string();
    let bytes = fs::read(path).map_err(|source| JwtError::Unreadable { path: name.clone(), source })?;
    read_keys(&bytes).map(Into::into).map_err(|reason| JwtError::NoKey { path: name, reason })
}

/// A JWKS begins with `{`, PEM with `-----BEGIN`; any other text is a shared secret.
fn read_keys(bytes: &[u8]) -> Result<Vec<KnownKey>, String> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    if text.starts_with('{') {
        let set: JwkSet = serde_json::from_str(text).map_err(|error| format!("it is not a JWKS: {error}"))?;
        let usable = |jwk| {
            let key = DecodingKey::from_jwk(jwk).ok()?;
            Some(KnownKey { id: jwk.common.key_id.clone(), algorithm: algorithm_of(&key)?, key })
        };
        let keys: Vec<KnownKey> = set.keys.iter().filter_map(usable).collect();
        let unusable = "no key of the JWKS is RSA, P-256, Ed25519 or a long enough secret";
        return if keys.is_empty() { Err(unusable.to_owned()) } else { Ok(keys) };
    }
    let key = if text.starts_with("-----BEGIN") {
        let public = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes());
        public.ok().and_then(|public| public_key(&public)).ok_or("the PEM has no usable public key")?
    } else if text.len() >= MIN_SECRET {
        DecodingKey::from_secret(text.as_bytes())
    } else {
        return Err(format!("a shared secret must have at least {MIN_SECRET} bytes"));
    };
    let algorithm = algorithm_of(&key).ok_or("keys of this type are not supported")?;
    Ok(vec![KnownKey { id: None, algorithm, key }])
}

/// The key in a SubjectPublicKeyInfo (RFC 5280), which names its kind in front of it. Each kind has one encoding.
fn public_key(info: &[u8]) -> Option<DecodingKey> {
    const P256: &[u8] =
        b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\0";
    const ED25519: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\0";
    const RSA: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\0";
    if let Some(point) = info.strip_prefix(P256) {
        return Some(DecodingKey::from_ec_der(point));
    }
    if let Some(point) = info.strip_prefix(ED25519) {
        return Some(DecodingKey::from_ed_der(point));
    }
    // Of 2,048 bits or more, whose lengths take two bytes: 4 bytes around the whole, 5 around the key.
    let key = info.get(4..)?.strip_prefix(RSA)?.get(5..)?;
    Some(DecodingKey::from_rsa_der(key))
}

fn algorithm_of(key: &DecodingKey) -> Option<Algorithm> {
    let length = key.try_get_as_bytes().ok().map(<[u8]>::len);
    match key.family() {
        AlgorithmFamily::Hmac => (length? >= MIN_SECRET).then_some(Algorithm::HS256),
        AlgorithmFamily::Rsa => Some(Algorithm::RS256),
        // Uncompressed points; one of another length is of another curve.
        AlgorithmFamily::Ec => (length? == 65).then_some(Algorithm::ES256),
        AlgorithmFamily::Ed => Some(Algorithm::EdDSA),
    }
}

/// ring's cryptography for jsonwebtoken, which only checks tokens here.
static RING: CryptoProvider =
    CryptoProvider { signer_factory: no_signer, verifier_factory: verifier, key_utils: KeyUtils::new_unimplemented() };

fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    Err(ErrorKind::InvalidAlgorithm.into())
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    if algorithm_of(key) == Some(*algorithm) {
        Ok(Box::new(RingVerifier { algorithm: *algorithm, key: key.clone() }))
    } else {
        Err(ErrorKind::InvalidKeyFormat.into())
    }
}

struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl signature::Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], given: &Vec<u8>) -> Result<(), signature::Error> {
        let refused = |_| signature::Error::new();
        let by = |algorithm: &'static dyn ring::signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, given).map_err(refused)
        };
        match (self.algorithm, self.key.kind()) {
            (Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => {
                hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), message, given).map_err(refused)
            }
            (Algorithm::RS256, DecodingKeyKind::SecretOrDer(key)) => by(&RSA_PKCS1_2048_8192_SHA256, key),
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, given).map_err(refused)
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(key)) => by(&ECDSA_P256_SHA256_FIXED, key),
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(key)) => by(&ED25519, key),
            _ => Err(signature::Error::new()),
        }
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests;
