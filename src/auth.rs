//! Callers and their scopes: the admin token, API keys from the settings and the store, and JWTs.
//!
//! Keys are random, so only their SHA-256 is stored, without salt or slow hash. REQUIRE_API_KEY decides whether the public
//! routes need a key. If they need none, the service is open: a key names its caller, and any other credential is ignored.
//! The admin routes always need the admin token or a key of scope admin.

mod identity;
pub mod jwt;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use hex::FromHex;
use parking_lot::RwLock;
use rand::distr::{Alphanumeric, SampleString};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::{sync::Mutex, time::Instant};
use tracing::{error, info};

pub use self::identity::{Identity, Scope};
use self::jwt::Tokens;
use crate::{
    clock::{Clock, Timestamp},
    config::placeholder::is_guessable,
    digest::sha256,
    job::caller::ADMIN_TOKEN,
    registry::{Live, Registry, Unavailable},
};

/// Prefix of keys, so that secret scanners can recognise them.
const KEY_PREFIX: &str = "ceoagent_";

/// Characters of a key after the prefix: 40 letters and digits hold 238 bits.
const KEY_LENGTH: usize = 40;

const MIN_KEY: usize = 16;

/// Most keys in force: every request is compared with all of them.
const MAX_KEYS: usize = 1_000;

/// Most revoked keys that are stored; the oldest are deleted.
const MAX_REVOKED: usize = 1_000;

const MAX_NAME: usize = 64;

const SETTING: &str = "key/";

/// A revoked key is refused on all nodes within this time.
const HEARS_WITHIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no key or token; send Authorization: Bearer <key>")]
    Missing,
    #[error("the key or token in the Authorization header is not valid; send Authorization: Bearer <key>")]
    Wrong,
    #[error("the API keys can't be read at the moment; try again")]
    Unavailable,
}

/// Keys that can't be used. No message holds a key.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error(
        "API_KEYS: entry {0} is not valid. Entries are separated by commas and have the form name:key, name:scope:key or \
         name:sha256:hash. A name has up to 64 letters, digits or . _ - @ and may be caller/key. A key has at least 16 \
         visible characters. The scopes are read, analyze and admin. Example: ci:analyze:<key>"
    )]
    Entry(usize),
    #[error(
        "API_KEYS: the key of entry {0} is a placeholder or easy to guess. Put a random one there, for example of \
        `openssl rand -hex 20`"
    )]
    Placeholder(usize),
    #[error("API_KEYS: {0} and {1} have the same key; each caller needs its own")]
    Shared(String, String),
    #[error("the API key of {0} is the admin token too. Choose another ADMIN_TOKEN, or another key")]
    IsAdminToken(String),
    #[error("API_KEYS: the name {0} is used twice; each key needs its own name")]
    Twice(String),
    #[error("the stored API keys can't be read: {0}")]
    Unavailable(#[from] Unavailable),
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("a key named {0} exists already; revoke it first, or choose another name")]
    Exists(String),
    #[error("no valid key is named {0}")]
    NotFound(String),
    #[error("the key {0} comes from the setting API_KEYS; remove it there and restart")]
    OfSettings(String),
    #[error(
        "must have 1 to 64 letters, digits or . _ - @, not only dots, and not be admin_token; several keys of a caller are \
         named caller/key"
    )]
    BadName,
    #[error("the limit of {MAX_KEYS} keys is reached; revoke one that is no longer used")]
    TooMany,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The caller is the part before a `/`, else the whole name. All keys of a caller see the same jobs.
    pub name: String,
    pub scope: Scope,
    #[serde(with = "hex::serde")]
    hash: [u8; 32],
    /// Absent for a key of the settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// The operator; absent for a key of the settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

impl Key {
    fn is_valid(&self) -> bool {
        self.revoked_at.is_none()
    }

    /// It comes from the settings, not from the store.
    fn is_of_settings(&self) -> bool {
        self.created_at.is_none()
    }
}

pub struct Auth {
    admin_token: SecretString,
    keys: RwLock<Vec<Key>>,
    /// Held from the check of [`MAX_KEYS`] until the key is stored.
    creating: Mutex<()>,
    /// Whether `keys` has all changes that were announced.
    is_current: AtomicBool,
    /// When the newest read of all keys began. Held during a read, so that no older read replaces a newer one.
    read_at: Mutex<Option<Instant>>,
    revocations: AtomicU64,
    tokens: Option<Tokens>,
    is_key_required: bool,
    registry: Registry,
    clock: Clock,
}

impl Auth {
    pub async fn load(
        admin_token: SecretString,
        api_keys: Option<&SecretString>,
        tokens: Option<Tokens>,
        is_key_required: bool,
        registry: Registry,
        clock: Clock,
    ) -> Result<Auth, AuthError> {
        let auth = Auth {
            admin_token,
            keys: RwLock::new(of_settings(api_keys)?),
            creating: Mutex::default(),
            is_current: AtomicBool::new(false),
            read_at: Mutex::default(),
            revocations: AtomicU64::new(0),
            tokens,
            is_key_required,
            registry,
            clock,
        };
        auth.reload(SETTING).await?;
        let admin = hash(auth.admin_token.expose_secret().as_bytes());
        if let Some(key) = auth.keys().iter().find(|key| key.hash == admin && key.is_valid()) {
            return Err(AuthError::IsAdminToken(key.name.clone()));
        }
        Ok(auth)
    }

    pub fn is_open(&self) -> bool {
        !self.is_key_required
    }

    /// Reads the keys of JWTs again; after an error the old ones stay in use. May block.
    pub fn reload_tokens(&self) {
        match self.tokens.as_ref().map(Tokens::reload) {
            Some(Ok(keys)) => {
                // A key that is gone revokes the tokens that it signed.
                self.revocations.fetch_add(1, Ordering::Relaxed);
                info!(keys, "the keys of JWT_AUTH are reloaded");
            }
            Some(Err(error)) => error!(%error, "failed to reload the keys of JWT_AUTH; the old ones stay in use"),
            None => {}
        }
    }

    /// Who sent this header. While this node may not know of a revoked key, it asks the store.
    pub async fn identify(&self, header: Option<&[u8]>) -> Result<Identity, Refused> {
        let identity = match header {
            None => Err(Refused::Missing),
            Some(header) => match bearer(header) {
                Some(given) => self.identity(given).await?.ok_or(Refused::Wrong),
                None => Err(Refused::Wrong),
            },
        };
        // An open service may stand behind a gateway with credentials of its own.
        let anonymous = Identity { name: None, scope: Scope::Analyze };
        if self.is_open() { Ok(identity.unwrap_or(anonymous)) } else { identity }
    }

    async fn identity(&self, given: &[u8]) -> Result<Option<Identity>, Refused> {
        let named = |name: &str, scope| Some(Identity { name: Some(name.to_owned()), scope });
        if matches(self.admin_token.expose_secret().as_bytes(), given) {
            return Ok(named(ADMIN_TOKEN, Scope::Admin));
        }
        let (mut found, token) = (self.find(given), || self.tokens.as_ref().and_then(|tokens| tokens.identify(given)));
        let may_have_changed = match &found {
            Some(key) => !key.is_of_settings(),
            // An open service accepts unknown credentials, so they must not cost a read.
            None => !self.is_open() && token().is_none(),
        };
        if may_have_changed && !self.hears() {
            self.reload_since(Instant::now()).await.map_err(|_| Refused::Unavailable)?;
            found = self.find(given);
        }
        Ok(match found {
            Some(key) => named(caller(&key.name), key.scope),
            None => token(),
        })
    }

    /// Whether this node knows all keys as they are now.
    pub fn hears(&self) -> bool {
        self.is_current.load(Ordering::Acquire) && self.registry.is_watch_live(HEARS_WITHIN)
    }

    fn find(&self, given: &[u8]) -> Option<Key> {
        let hash = hash(given);
        // In constant time: compares with every key.
        let matching = |found, key: &Key| if bool::from(key.hash.ct_eq(&hash)) { Some(key.clone()) } else { found };
        self.keys.read().iter().filter(|key| key.is_valid()).fold(None, matching)
    }

    pub fn keys(&self) -> Vec<Key> {
        let mut keys = self.keys.read().clone();
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        keys
    }

    pub async fn create(&self, name: &str, scope: Scope, by: &str) -> Result<(Key, SecretString), KeyError> {
        if !is_name(name) {
            return Err(KeyError::BadName);
        }
        let secret = format!("{KEY_PREFIX}{}", Alphanumeric.sample_string(&mut rand::rng(), KEY_LENGTH));
        let key = Key {
            name: name.to_owned(),
            scope,
            hash: hash(secret.as_bytes()),
            created_at: Some(self.clock.now()),
            created_by: Some(by.to_owned()),
            revoked_at: None,
        };
        let _creating = self.creating.lock().await;
        let exists = || KeyError::Exists(name.to_owned());
        if self.keys.read().iter().any(|known| known.name == name && known.is_of_settings()) {
            return Err(exists());
        }
        self.change(name, |known| match known {
            Some(known) if known.is_valid() => Err(exists()),
            _ if self.keys.read().iter().filter(|key| key.is_valid()).count() >= MAX_KEYS => Err(KeyError::TooMany),
            _ => Ok(Some(key.clone())),
        })
        .await?;
        Ok((key, secret.into()))
    }

    pub async fn revoke(&self, name: &str) -> Result<Key, KeyError> {
        self.reload(&setting(name)).await?;
        let found = self.keys().into_iter().find(|key| key.name == name && key.is_valid());
        let not_found = || KeyError::NotFound(name.to_owned());
        let valid = found.ok_or_else(not_found)?;
        if valid.is_of_settings() {
            return Err(KeyError::OfSettings(name.to_owned()));
        }
        let revoked_at = Some(self.clock.now());
        // Before the store has it: the client may disconnect while the store writes.
        self.remember(Key { revoked_at, ..valid });
        self.revocations.fetch_add(1, Ordering::Release);
        let revoked = self.change(name, |known| match known {
            Some(known) if known.is_valid() => Ok(Some(Key { revoked_at, ..known })),
            _ => Err(not_found()),
        });
        let revoked = match revoked.await {
            Err(error @ KeyError::Unavailable(_)) => {
                // It may be revoked or not. It is refused here until the store says.
                let _ = self.reload(&setting(name)).await;
                return Err(error);
            }
            done => done?,
        };
        self.forget_old().await?;
        revoked.ok_or_else(not_found)
    }

    /// Revocations that this node knows of. Open connections identify their caller again when this changes.
    pub fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::Acquire)
    }

    async fn forget_old(&self) -> Result<(), KeyError> {
        let mut revoked: Vec<Key> = self.keys().into_iter().filter(|key| !key.is_valid()).collect();
        revoked.sort_by_key(|key| key.revoked_at);
        for key in &revoked[..revoked.len().saturating_sub(MAX_REVOKED)] {
            // Another node may have made a new key of this name.
            self.change(&key.name, |known| Ok(known.filter(Key::is_valid))).await?;
        }
        Ok(())
    }

    /// Changes the stored key of this name, then reads it again.
    async fn change(
        &self,
        name: &str,
        change: impl FnMut(Option<Key>) -> Result<Option<Key>, KeyError> + Send,
    ) -> Result<Option<Key>, KeyError> {
        let name = setting(name);
        let key = self.registry.update(&name, change).await?;
        // As it is stored: another node may have changed it since. The change is durable in any case.
        let _ = self.reload(&name).await;
        Ok(key)
    }

    /// Reads all keys again, unless a read has done so that began after `since`: many requests share one.
    async fn reload_since(&self, since: Instant) -> Result<(), Unavailable> {
        let mut read_at = self.read_at.lock().await;
        if read_at.is_some_and(|at| at >= since) { Ok(()) } else { self.reload_with(&mut read_at, SETTING).await }
    }

    async fn reload_with(&self, read_at: &mut Option<Instant>, changed: &str) -> Result<(), Unavailable> {
        let begun = Instant::now();
        let stored = self.registry.load::<Key>(changed).await?;
        let mut keys = self.keys.write();
        let before = keys.clone();
        keys.retain(|key| key.is_of_settings() || !setting(&key.name).starts_with(changed));
        for (_, key) in stored {
            // The settings outrank the store, as they do everywhere.
            if !keys.iter().any(|known| known.name == key.name) {
                keys.push(key);
            }
        }
        let is_revoked = |key: &&Key| key.is_valid() && !keys.contains(key);
        if before.iter().any(|key| is_revoked(&key)) {
            self.revocations.fetch_add(1, Ordering::Release);
        }
        if changed == SETTING {
            *read_at = Some(begun);
        }
        Ok(())
    }

    fn remember(&self, key: Key) {
        let mut keys = self.keys.write();
        keys.retain(|known| known.name != key.name);
        keys.push(key);
    }
}

#[async_trait]
impl Live for Auth {
    fn prefix(&self) -> &'static str {
        SETTING
    }

    async fn reload(&self, changed: &str) -> Result<(), Unavailable> {
        let mut read_at = self.read_at.lock().await;
        self.reload_with(&mut read_at, changed).await
    }

    fn set_current(&self, is_current: bool) {
        self.is_current.store(is_current, Ordering::Release);
    }
}

fn setting(name: &str) -> String {
    format!("{SETTING}{name}")
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, given) = header.split_at_checked("Bearer ".len())?;
    let given = given.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !given.is_empty()).then_some(given)
}

fn matches(token: &[u8], given: &[u8]) -> bool {
    bool::from(given.ct_eq(token)) && !token.is_empty()
}

fn hash(key: &[u8]) -> [u8; 32] {
    sha256(&[key])
}

pub fn of_settings(api_keys: Option<&SecretString>) -> Result<Vec<Key>, AuthError> {
    api_keys.map_or(Ok(Vec::new()), |keys| parse(keys.expose_secret()))
}

fn parse(text: &str) -> Result<Vec<Key>, AuthError> {
    let mut keys: Vec<Key> = Vec::new();
    for (number, entry) in (1..).zip(text.split(',').map(str::trim)) {
        if entry.is_empty() {
            continue;
        }
        let key = parse_entry(entry).ok_or(AuthError::Entry(number))?;
        if is_guessable(entry.rsplit(':').next().unwrap_or_default()) {
            return Err(AuthError::Placeholder(number));
        }
        if keys.iter().any(|known| known.name == key.name) {
            return Err(AuthError::Twice(key.name));
        }
        if let Some(known) = keys.iter().find(|known| known.hash == key.hash) {
            return Err(AuthError::Shared(known.name.clone(), key.name));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn parse_entry(entry: &str) -> Option<Key> {
    let (name, rest) = entry.split_once(':')?;
    let (scope, secret) = match rest.split_once(':') {
        Some((scope, secret)) if scope != "sha256" => (scope.parse().ok()?, secret),
        _ => (Scope::Analyze, rest),
    };
    let hash = match secret.strip_prefix("sha256:") {
        Some(hex) => <[u8; 32]>::from_hex(hex).ok()?,
        None if is_key(secret) => hash(secret.as_bytes()),
        None => return None,
    };
    let name = is_name(name).then(|| name.to_owned())?;
    Some(Key { name, scope, hash, created_at: None, created_by: None, revoked_at: None })
}

fn is_key(text: &str) -> bool {
    text.len() >= MIN_KEY && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

fn caller(name: &str) -> &str {
    name.split_once('/').map_or(name, |(caller, _)| caller)
}

/// No colon: subjects of tokens have one, so no key speaks for a token.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    // A segment of dots in a path of the API would name another route.
    let is_part = |part: &str| part.bytes().all(fits) && !part.bytes().all(|byte| byte == b'.');
    name.len() <= MAX_NAME && name.splitn(2, '/').all(is_part) && caller(name) != ADMIN_TOKEN
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::{
        metrics::Metrics,
        store::{
            fault::{FaultStore, Moment, Outage},
            memory::MemoryStore,
            sled::{SledConfig, SledStore},
        },
    };

    const KEY: &str = "0123456789abcdef";

    #[test]
    fn the_setting_holds_names_scopes_keys_and_hashes() {
        let digest = "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f";
        let other = digest.replace('9', "0");
        let text = format!("alice:{KEY}x, bob:read:{KEY}y,ci:admin:sha256:{digest},dave:sha256:{other}");
        let keys = parse(&text).unwrap();
        let parsed: Vec<_> = keys.iter().map(|key| (key.name.as_str(), key.scope)).collect();
        assert_eq!(
            parsed,
            [("alice", Scope::Analyze), ("bob", Scope::Read), ("ci", Scope::Admin), ("dave", Scope::Analyze)]
        );
        assert_eq!(keys[0].hash, hash(format!("{KEY}x").as_bytes()));
        assert_eq!(keys[2].hash, hash(KEY.as_bytes()));
        assert_eq!(hex::encode(hash(KEY.as_bytes())), digest, "as sha256sum has it");
    }

    #[test]
    fn the_error_for_a_bad_entry_has_its_number_but_not_its_key() {
        for bad in [
            "alice",
            "alice:short",
            "al ice:0123456789abcdef",
            ":0123456789abcdef",
            "alice:write:0123456789abcdef",
            "alice:sha256:0123",
            "alice:0123456789 abcdef",
            "admin_token:0123456789abcdef",
            "admin_token/x:0123456789abcdef",
            "alice/:0123456789abcdef",
            "/x:0123456789abcdef",
            "alice/x/y:0123456789abcdef",
            "..:0123456789abcdef",
            "alice/.:0123456789abcdef",
        ] {
            let error = parse(&format!("ok:{KEY},{bad}")).unwrap_err().to_string();
            assert!(error.contains("entry 2") && !error.contains("0123456789"), "{error}");
        }
        assert!(matches!(parse(&format!("a:{KEY},a:{KEY}")), Err(AuthError::Twice(_))));
        let digest = "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f";
        for same in [format!("a:{KEY},b:read:{KEY}"), format!("a:{KEY},b:sha256:{digest}")] {
            assert!(matches!(parse(&same), Err(AuthError::Shared(a, b)) if a == "a" && b == "b"), "{same}");
        }
        for known in ["replace-me-replace-me", "aaaaaaaaaaaaaaaaaaaa"] {
            assert!(matches!(parse(&format!("a:{KEY},b:{known}")), Err(AuthError::Placeholder(2))), "{known}");
        }
        let of_one = parse(&format!("a:{KEY},a/old:{KEY}x,a/reads:read:{KEY}y")).unwrap();
        assert_eq!(of_one.iter().map(|key| caller(&key.name)).collect::<Vec<_>>(), ["a", "a", "a"]);
    }

    #[tokio::test]
    async fn a_key_is_revoked_even_if_the_client_disconnects() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let path = folder.path().to_owned();
        let config = SledConfig { path, cache_bytes: 16 << 20, keep_answers: false };
        let store = Arc::new(SledStore::open(config, clock.clone(), Metrics::new()).unwrap());
        let registry = Registry::new(store);
        let auth = Auth::load("s3cret".into(), None, None, true, registry.clone(), clock.clone()).await.unwrap();
        auth.set_current(true);
        let (_, key) = auth.create("ci", Scope::Analyze, ADMIN_TOKEN).await.unwrap();
        let header = format!("Bearer {}", key.expose_secret());
        assert!(auth.identify(Some(header.as_bytes())).await.is_ok());
        // The client is gone after the first poll. Mostly the store has yet to write it down.
        let _ = auth.revoke("ci").now_or_never();
        assert_eq!(auth.identify(Some(header.as_bytes())).await, Err(Refused::Wrong));
        // The store makes changes in order, so the revocation is done before this one.
        auth.create("other", Scope::Read, ADMIN_TOKEN).await.unwrap();
        let again = Auth::load("s3cret".into(), None, None, true, registry, clock).await.unwrap();
        assert_eq!(again.identify(Some(header.as_bytes())).await, Err(Refused::Wrong));
    }

    /// A node over `store`, and a task in which its keys follow the store.
    async fn node(store: &Arc<FaultStore<MemoryStore>>) -> (Arc<Auth>, AbortOnDropHandle<()>) {
        let registry = Registry::new(Arc::clone(store) as _);
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let auth = Auth::load("s3cret".into(), None, None, true, registry.clone(), clock).await.unwrap();
        let auth = Arc::new(auth);
        let copies: Vec<Arc<dyn Live>> = vec![Arc::clone(&auth) as _];
        (auth, AbortOnDropHandle::new(tokio::spawn(async move { registry.follow(copies, &Metrics::new()).await })))
    }

    async fn identify(auth: &Auth, key: &SecretString) -> Result<(), Refused> {
        auth.identify(Some(format!("Bearer {}", key.expose_secret()).as_bytes())).await.map(drop)
    }

    #[tokio::test]
    async fn a_key_is_valid_and_revoked_on_all_nodes() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let ((one, _one), (other, _other)) = (node(&store).await, node(&store).await);
        let (_, key) = one.create("ci", Scope::Analyze, "ops").await.unwrap();
        while identify(&other, &key).await != Ok(()) {
            tokio::task::yield_now().await;
        }
        assert!(matches!(other.create("ci", Scope::Read, "ops").await, Err(KeyError::Exists(_))));
        let revocations = other.revocations();
        one.revoke("ci").await.unwrap();
        while identify(&other, &key).await != Err(Refused::Wrong) {
            tokio::task::yield_now().await;
        }
        assert!(other.revocations() > revocations, "open connections look again");
        assert!(matches!(other.revoke("ci").await, Err(KeyError::NotFound(_))));
    }

    #[tokio::test]
    async fn a_node_that_does_not_hear_of_changes_asks_the_store_and_refuses_without_it() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let ((one, _one), (other, task)) = (node(&store).await, node(&store).await);
        let (_, key) = one.create("ci", Scope::Analyze, "ops").await.unwrap();
        drop(task);
        while other.is_current.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        let (_, another) = one.create("cd", Scope::Analyze, "ops").await.unwrap();
        assert_eq!(identify(&other, &another).await, Ok(()), "it does not follow the changes any more");
        one.revoke("cd").await.unwrap();
        other.set_current(true);
        assert_eq!(identify(&other, &another).await, Ok(()), "it has not heard of that");
        store.set_watch_lag(Duration::from_secs(1));
        assert_eq!(identify(&other, &another).await, Ok(()), "it will hear of that in time");
        store.set_watch_lag(Duration::from_millis(1_001));
        assert_eq!(identify(&other, &another).await, Err(Refused::Wrong));
        assert_eq!(identify(&other, &key).await, Ok(()));
        one.revoke("ci").await.unwrap();
        assert_eq!(identify(&other, &key).await, Err(Refused::Wrong));
        store.break_down(Outage::Fails);
        assert_eq!(identify(&other, &key).await, Err(Refused::Unavailable));
        assert_eq!(identify(&other, &"s3cret".into()).await, Ok(()), "the admin token is no setting of the store");
    }

    #[tokio::test]
    async fn a_key_whose_revocation_has_an_unknown_outcome_is_what_the_store_says() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let (auth, task) = node(&store).await;
        let (_, key) = auth.create("ci", Scope::Analyze, "ops").await.unwrap();
        drop(task);
        while auth.is_current.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        auth.set_current(true);
        for (moment, expected) in [(Moment::Before, Ok(())), (Moment::After, Err(Refused::Wrong))] {
            store.fail_after(0, moment);
            assert!(matches!(auth.revoke("ci").await, Err(KeyError::Unavailable(_))));
            assert_eq!(identify(&auth, &key).await, expected, "{moment:?}");
        }
    }

    #[tokio::test]
    async fn an_open_service_reads_the_store_for_no_credential_but_a_key_that_may_be_revoked() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let (one, _one) = node(&store).await;
        let (_, key) = one.create("ci", Scope::Analyze, "ops").await.unwrap();
        let (registry, clock) = (Registry::new(Arc::clone(&store) as _), Clock::manual(Timestamp::from_millis(0)));
        let open = Auth::load("s3cret".into(), None, None, false, registry, clock).await.unwrap();
        store.set_watch_lag(Duration::MAX);
        let anonymous = Ok(Identity { name: None, scope: Scope::Analyze });
        one.revoke("ci").await.unwrap();
        let header = format!("Bearer {}", key.expose_secret());
        assert_eq!(open.identify(Some(header.as_bytes())).await, anonymous);
        store.break_down(Outage::Fails);
        for header in [None, Some(&b"Bearer of-a-gateway"[..]), Some(b"Basic eDp5")] {
            assert_eq!(open.identify(header).await, anonymous);
        }
    }

    #[tokio::test]
    async fn of_nodes_that_create_a_key_of_one_name_at_once_one_succeeds() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let ((one, _one), (other, _other)) = (node(&store).await, node(&store).await);
        let create = |auth: Arc<Auth>| async move { auth.create("ci", Scope::Analyze, "ops").await };
        let keys = tokio::join!(create(Arc::clone(&one)), create(Arc::clone(&other)));
        let ((Ok((_, key)), Err(KeyError::Exists(_))) | (Err(KeyError::Exists(_)), Ok((_, key)))) = keys else {
            panic!("{:?}", (keys.0.is_ok(), keys.1.is_ok()))
        };
        for auth in [&one, &other] {
            while identify(auth, &key).await != Ok(()) {
                tokio::task::yield_now().await;
            }
        }
        let revoke = tokio::join!(one.revoke("ci"), other.revoke("ci"));
        assert!(revoke.0.is_ok() != revoke.1.is_ok(), "{revoke:?}");
        let stored = Registry::new(Arc::clone(&store) as _).get::<Key>("key/ci").await.unwrap();
        assert_eq!(stored, revoke.0.or(revoke.1).ok());
    }

    #[tokio::test]
    async fn a_name_that_was_revoked_long_ago_and_is_in_use_again_elsewhere_is_not_deleted() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let ((one, task), (other, _other)) = (node(&store).await, node(&store).await);
        drop(task);
        for n in 0..=MAX_REVOKED {
            one.create(&format!("key{n}"), Scope::Read, "ops").await.unwrap();
            if n == MAX_REVOKED {
                break;
            }
            one.revoke(&format!("key{n}")).await.unwrap();
            one.clock.advance(Duration::from_millis(1));
        }
        let (_, key) = other.create("key0", Scope::Analyze, "ops").await.unwrap();
        one.revoke(&format!("key{MAX_REVOKED}")).await.unwrap();
        let stored = Registry::new(Arc::clone(&store) as _).get::<Key>("key/key0").await.unwrap().unwrap();
        assert!(stored.is_valid() && identify(&other, &key).await == Ok(()));
    }

    #[tokio::test]
    async fn revoked_keys_do_not_count_against_the_limit_and_the_oldest_are_deleted() {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let registry = Registry::new(Arc::<MemoryStore>::default());
        let open =
            async || Auth::load("s3cret".into(), None, None, true, registry.clone(), clock.clone()).await.unwrap();
        let auth = open().await;
        for n in 0..MAX_REVOKED + 2 {
            auth.create(&format!("key{n}"), Scope::Read, "ops").await.unwrap();
            auth.revoke(&format!("key{n}")).await.unwrap();
            clock.advance(Duration::from_millis(1));
        }
        for auth in [auth, open().await] {
            let names: Vec<String> = auth.keys().into_iter().map(|key| key.name).collect();
            assert_eq!(names.len(), MAX_REVOKED);
            assert!(!names.contains(&"key1".to_owned()) && names.contains(&"key2".to_owned()));
        }
    }

    #[test]
    fn only_the_right_token_matches_and_an_empty_one_never() {
        assert_eq!(bearer(b"bearer  s3cret "), Some(&b"s3cret"[..]));
        for wrong in ["Bearer", "s3cret", "Basic s3cret", "Bearer ", ""] {
            assert_eq!(bearer(wrong.as_bytes()), None, "{wrong:?}");
        }
        assert!(matches(b"s3cret", b"s3cret"));
        assert!(!matches(b"s3cret", b"s3cre") && !matches(b"s3cret", b"s3cret1") && !matches(b"", b""));
    }
}
