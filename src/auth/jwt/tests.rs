use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = b"a shared secret of more than 32 bytes";

/// Of no use but here.
const RSA_PRIVATE: &[u8] = include_bytes!("for-tests/rsa-private.der");
const RSA_PUBLIC: &[u8] = include_bytes!("for-tests/rsa-public.pem");

/// Signs a message.
type Sign<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

fn token(header: &Value, claims: &Value, sign: Sign<'_>) -> Vec<u8> {
    let part = |json: &Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}").into_bytes()
}

fn now() -> i64 {
    i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap()
}

fn claims() -> Value {
    json!({"iss": "https://id.example", "aud": "ceoagent", "sub": "alice", "exp": now() + 60, "scope": "openid analyze"})
}

/// Those of a file that holds `keys`.
fn tokens(keys: &[u8]) -> Result<Tokens, JwtError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), keys).unwrap();
    Tokens::load(file.path(), "https://id.example", "ceoagent")
}

fn hs256(message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), message).as_ref().to_vec()
}

fn rs256(message: &[u8]) -> Vec<u8> {
    let pair = RsaKeyPair::from_der(RSA_PRIVATE).unwrap();
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

fn alice(scope: Scope) -> Option<Identity> {
    Some(Identity { name: Some("jwt:alice".to_owned()), scope })
}

#[test]
fn a_token_of_each_algorithm_is_believed_by_its_own_key_alone() {
    let random = SystemRandom::new();
    let curve = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let point =
        EcdsaKeyPair::from_pkcs8(curve, EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap().as_ref(), &random);
    let point = point.unwrap();
    let edwards = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
    let es256 = |message: &[u8]| point.sign(&random, message).unwrap().as_ref().to_vec();
    let eddsa = |message: &[u8]| edwards.sign(message).as_ref().to_vec();
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let (x, y) = point.public_key().as_ref()[1..].split_at(32);
    let set = json!({"keys": [
        {"kty": "EC", "crv": "P-256", "kid": "e", "x": encode(x), "y": encode(y)},
        {"kty": "OKP", "crv": "Ed25519", "kid": "d", "x": encode(edwards.public_key().as_ref())},
    ]});
    let cases: [(&str, &str, Sign<'_>, Vec<u8>); 4] = [
        ("HS256", "h", &hs256, SECRET.to_vec()),
        ("RS256", "r", &rs256, RSA_PUBLIC.to_vec()),
        ("ES256", "e", &es256, set.to_string().into_bytes()),
        ("EdDSA", "d", &eddsa, set.to_string().into_bytes()),
    ];
    for (place, (algorithm, id, sign, _)) in cases.iter().enumerate() {
        let signed = token(&json!({"alg": algorithm, "kid": id}), &claims(), *sign);
        for (other, (_, _, _, keys)) in cases.iter().enumerate() {
            let believed = tokens(keys).unwrap().identify(&signed);
            // The two of the set are in one file.
            let is_its_own = place == other || (place >= 2 && other >= 2);
            assert_eq!(believed, if is_its_own { alice(Scope::Analyze) } else { None }, "{algorithm} by key {other}");
        }
        let mut tampered = signed.clone();
        let middle = tampered.iter().position(|byte| *byte == b'.').unwrap() + 9;
        tampered[middle] ^= 1;
        assert_eq!(tokens(&cases[place].3).unwrap().identify(&tampered), None, "{algorithm}, tampered with");
    }
}

#[test]
fn a_public_key_is_never_a_shared_secret_and_no_signature_is_none() {
    let tokens = tokens(RSA_PUBLIC).unwrap();
    let by_public_key =
        |message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, RSA_PUBLIC), message).as_ref().to_vec();
    assert_eq!(tokens.identify(&token(&json!({"alg": "HS256"}), &claims(), &by_public_key)), None);
    for algorithm in ["none", "None", "RS256"] {
        assert_eq!(tokens.identify(&token(&json!({"alg": algorithm}), &claims(), &|_| Vec::new())), None);
    }
    assert!(tokens.identify(&token(&json!({"alg": "RS256"}), &claims(), &rs256)).is_some());
}

#[test]
fn a_token_is_for_us_from_whom_we_believe_in_force_and_says_what_may_be_done() {
    let tokens = tokens(SECRET).unwrap();
    let with = |change: Value| {
        let mut claims = claims();
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        tokens.identify(&token(&json!({"alg": "HS256"}), &claims, &hs256))
    };
    assert_eq!(with(json!({})), alice(Scope::Analyze));
    assert_eq!(with(json!({"scope": "read"})), alice(Scope::Read));
    assert_eq!(with(json!({"scope": ["admin", "read"], "aud": ["x", "ceoagent"]})), alice(Scope::Admin));
    for refused in [
        json!({"exp": now() - 31}),
        json!({"exp": null}),
        json!({"exp": "tomorrow"}),
        json!({"nbf": now() + 31}),
        json!({"nbf": "soon"}),
        json!({"iss": "https://other.example"}),
        json!({"iss": null}),
        json!({"aud": "another service"}),
        json!({"aud": null}),
        json!({"sub": null}),
        json!({"sub": ""}),
        json!({"sub": "x".repeat(201)}),
        json!({"sub": "a\nb"}),
        json!({"scope": "openid profile"}),
        json!({"scope": null}),
        json!({"padding": "x".repeat(9_000)}),
    ] {
        assert_eq!(with(refused.clone()), None, "{refused}");
    }
    for garbage in ["", ".", "..", "a.b.c", "eyJhbGciOiJIUzI1NiJ9.e30."] {
        assert_eq!(tokens.identify(garbage.as_bytes()), None, "{garbage}");
    }
}

#[test]
fn a_file_without_a_usable_key_is_refused_with_the_reason() {
    let reason = |bytes: &[u8]| tokens(bytes).err().unwrap().to_string();
    assert!(reason(b"too short").contains("32 bytes"));
    assert!(reason(b"{\"keys\": []}").contains("no key of the JWKS"));
    assert!(reason(b"{").contains("not a JWKS"));
    assert!(reason(b"-----BEGIN NONSENSE-----").contains("no usable public key"));
    let missing = Tokens::load(Path::new("/nowhere/keys"), "i", "a").err().unwrap();
    assert!(missing.to_string().contains("/nowhere/keys"));
}

#[test]
fn a_token_with_a_critical_extension_or_too_long_a_life_is_refused() {
    let tokens = tokens(SECRET).unwrap();
    let header = json!({"alg": "HS256"});
    assert_eq!(tokens.identify(&token(&header, &claims(), &hs256)), alice(Scope::Analyze));
    for crit in [json!(["exp2"]), json!([])] {
        let header = json!({"alg": "HS256", "crit": crit, "exp2": 1});
        assert_eq!(tokens.identify(&token(&header, &claims(), &hs256)), None, "{header}");
    }
    let living = |days: i64| {
        let mut claims = claims();
        claims["exp"] = json!(now() + days * 24 * 3_600);
        tokens.identify(&token(&header, &claims, &hs256))
    };
    assert_eq!((living(31), living(32)), (alice(Scope::Analyze), None));
}

#[test]
fn the_keys_are_read_again_and_stay_if_the_file_can_not_be_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), SECRET).unwrap();
    let tokens = Tokens::load(file.path(), "https://id.example", "ceoagent").unwrap();
    let signed = token(&json!({"alg": "HS256"}), &claims(), &hs256);
    fs::write(file.path(), "short").unwrap();
    assert!(tokens.reload().is_err() && tokens.identify(&signed).is_some());
    fs::write(file.path(), RSA_PUBLIC).unwrap();
    assert_eq!((tokens.reload().unwrap(), tokens.identify(&signed)), (1, None));
}
