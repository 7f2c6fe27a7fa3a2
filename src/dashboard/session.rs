//! The sessions of the pages. A session has a random name, which only the browser has, in a cookie.
//!
//! The credential is encrypted with a key that is derived from the name, and stored, so that a session outlives a restart.
//! So neither the data folder nor a cookie alone gives the credential away, and signing out deletes it for good.
//!
//! Each look-up asks the store, so a session that is opened or closed on one node is open or closed on all.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::distr::{Alphanumeric, SampleString};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tracing::warn;

use crate::{
    clock::{Clock, Timestamp},
    digest::sha256,
    registry::{Registry, Unavailable},
};

/// A working day, and no night: who runs the service signs in again.
pub(super) const SESSION_HOURS: u64 = 12;

/// Most sessions: the oldest makes room, of an operator only where there are no others. More browsers than any team of
/// operators has.
const MAX_SESSIONS: usize = 1_000;

/// Characters of a session's name, and of the mark in its forms: 32 of 62 kinds are 190 bits.
const NAME_LENGTH: usize = 32;

/// What the settings begin with that keep a session; what is derived from the session's name follows.
const SETTING: &str = "session/";

/// What is derived from a session's name, each for a use of its own.
const FINDING: &str = "find";
const SEALING: &str = "seal";
const MARKING: &str = "mark";

/// The sessions.
pub struct Sessions {
    registry: Registry,
    clock: Clock,
}

#[derive(Clone, Serialize, Deserialize)]
struct Session {
    sealed_credential: String,
    ends_at: Timestamp,
    /// The credential is an operator's.
    is_admin: bool,
}

/// A session as pages see it.
#[derive(Clone, Debug)]
pub(super) struct SessionView {
    /// What its forms carry, so that no other site can make one up.
    pub(super) mark: String,
    /// It may run the queue; others ask, and read their own memos.
    pub(super) is_admin: bool,
}

impl Sessions {
    pub fn new(registry: Registry, clock: Clock) -> Sessions {
        Sessions { registry, clock }
    }

    /// Opens a session. Returns the name for the browser.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub(super) async fn open(&self, credential: &SecretString, is_admin: bool) -> Result<String, Unavailable> {
        let now = self.clock.now();
        let name = Alphanumeric.sample_string(&mut rand::rng(), NAME_LENGTH);
        let ends_at = now.plus(Duration::from_hours(SESSION_HOURS));
        let session = Session { sealed_credential: seal(&name, credential), ends_at, is_admin };
        let stored = self.registry.load::<Session>(SETTING).await?;
        self.registry.put(setting(&name), &session).await?;
        let (over, in_force): (Vec<_>, Vec<_>) = stored.into_iter().partition(|(_, session)| session.ends_at <= now);
        let is_full = in_force.len() >= MAX_SESSIONS;
        let oldest = in_force.into_iter().min_by_key(|(_, session)| (session.is_admin, session.ends_at));
        for (key, _) in over.into_iter().chain(oldest.filter(|_| is_full)) {
            self.delete(format!("{SETTING}{key}")).await;
        }
        Ok(name)
    }

    /// The session of this name, with its credential.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub(super) async fn find(&self, name: &str) -> Result<Option<(SessionView, SecretString)>, Unavailable> {
        if name.len() != NAME_LENGTH {
            return Ok(None);
        }
        // By what is derived from the name, so that the time it takes to find one tells nothing of a name.
        let Some(session) = self.registry.get::<Session>(&setting(name)).await? else { return Ok(None) };
        let credential = unseal(name, &session.sealed_credential).filter(|_| session.ends_at > self.clock.now());
        let mark = text_of(MARKING, name)[..NAME_LENGTH].to_owned();
        Ok(credential.map(|credential| (SessionView { mark, is_admin: session.is_admin }, credential)))
    }

    pub(super) async fn close(&self, name: &str) {
        self.delete(setting(name)).await;
    }

    async fn delete(&self, setting: String) {
        if let Err(error) = self.registry.delete(setting).await {
            warn!(%error, "failed to delete a stored session");
        }
    }
}

fn setting(name: &str) -> String {
    format!("{SETTING}{}", text_of(FINDING, name))
}

impl SessionView {
    /// True if a form carries this session's mark.
    pub(super) fn made(&self, mark: &str) -> bool {
        self.mark.as_bytes().ct_eq(mark.as_bytes()).into()
    }
}

/// What can be derived only from the session's name, and does not give the name away.
fn derived(usage: &str, name: &str) -> [u8; 32] {
    sha256(&[usage.as_bytes(), &[0], name.as_bytes()])
}

/// The same as text.
fn text_of(usage: &str, name: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(derived(usage, name))
}

fn sealing_key(name: &str) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, &derived(SEALING, name)).ok().map(LessSafeKey::new)
}

/// A key seals one credential and no more, so any nonce is unique.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn seal(name: &str, credential: &SecretString) -> String {
    let mut sealed = credential.expose_secret().as_bytes().to_vec();
    let done = sealing_key(name).map(|key| key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed));
    // Neither can fail with a key of 32 bytes and so little to seal; nothing is kept open in any case.
    if done.is_some_and(|done| done.is_ok()) { BASE64_URL_SAFE_NO_PAD.encode(sealed) } else { String::new() }
}

fn unseal(name: &str, sealed: &str) -> Option<SecretString> {
    let mut sealed = BASE64_URL_SAFE_NO_PAD.decode(sealed).ok()?;
    let opened = sealing_key(name)?.open_in_place(nonce(), Aad::empty(), &mut sealed).ok()?;
    std::str::from_utf8(opened).ok().map(SecretString::from)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{
        self, Registry as _,
        fault::{FaultStore, Outage},
        memory::MemoryStore,
    };

    fn sessions(store: &Arc<impl store::Registry>, clock: &Clock) -> Sessions {
        Sessions::new(Registry::new(Arc::clone(store) as Arc<dyn store::Registry>), clock.clone())
    }

    fn clock() -> Clock {
        Clock::manual(Timestamp::from_millis(1_800_000_000_000))
    }

    async fn is_open(sessions: &Sessions, name: &str) -> bool {
        sessions.find(name).await.unwrap().is_some()
    }

    #[tokio::test]
    async fn a_session_is_found_by_its_name_on_every_node_until_it_ends() {
        let (store, clock) = (Arc::<MemoryStore>::default(), clock());
        let [first, other] = [sessions(&store, &clock), sessions(&store, &clock)];
        let name = first.open(&"secret".into(), true).await.unwrap();
        let mark = first.find(&name).await.unwrap().unwrap().0.mark;
        let (view, credential) = other.find(&name).await.unwrap().unwrap();
        assert_eq!(credential.expose_secret(), "secret");
        assert!(view.made(&mark) && !view.made("") && !view.made(&name) && mark.len() == NAME_LENGTH);
        assert!(!is_open(&other, "another").await && !is_open(&other, &"x".repeat(NAME_LENGTH)).await);
        clock.advance(Duration::from_hours(SESSION_HOURS));
        assert!(!is_open(&other, &name).await);
        other.open(&"secret".into(), true).await.unwrap();
        assert_eq!(store.prefix(SETTING).await.unwrap().len(), 1, "expired sessions are deleted");
    }

    #[tokio::test]
    async fn a_session_that_can_not_be_stored_is_not_opened() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let sessions = sessions(&store, &clock());
        let name = sessions.open(&"secret".into(), true).await.unwrap();
        store.break_down(Outage::Fails);
        assert!(sessions.open(&"secret".into(), true).await.is_err() && sessions.find(&name).await.is_err());
    }

    #[tokio::test]
    async fn a_jump_of_the_clock_neither_ends_a_session_nor_makes_it_longer() {
        let (store, clock) = (Arc::<MemoryStore>::default(), clock());
        let sessions = sessions(&store, &clock);
        let name = sessions.open(&"secret".into(), true).await.unwrap();
        let month = Duration::from_hours(24 * 31);
        clock.set_forward(month);
        assert!(is_open(&sessions, &name).await);
        clock.set_back(2 * month);
        assert!(is_open(&sessions, &name).await);
        // The service time runs a tenth slower until the clock has caught up.
        clock.advance(Duration::from_hours(SESSION_HOURS) * 10 / 9 + Duration::from_secs(1));
        assert!(!is_open(&sessions, &name).await);
    }

    #[tokio::test]
    async fn what_is_stored_has_neither_the_credential_nor_the_name() {
        let (store, clock) = (Arc::<MemoryStore>::default(), clock());
        let sessions = sessions(&store, &clock);
        let name = sessions.open(&"the-secret-itself".into(), true).await.unwrap();
        let stored = store.prefix(SETTING).await.unwrap();
        let text = format!("{stored:?}");
        let encoded = BASE64_URL_SAFE_NO_PAD.encode("the-secret-itself");
        assert!([&name, "the-secret-itself", &encoded].iter().all(|secret| !text.contains(*secret)), "{text}");
        let session: Session = serde_json::from_str(&stored[0].1).unwrap();
        assert!(unseal("another", &session.sealed_credential).is_none());
    }

    #[tokio::test]
    async fn a_closed_session_is_closed_on_every_node_and_the_oldest_makes_room() {
        let (store, clock) = (Arc::<MemoryStore>::default(), clock());
        let [one, other] = [sessions(&store, &clock), sessions(&store, &clock)];
        let first = one.open(&"s".into(), true).await.unwrap();
        clock.advance(Duration::from_secs(1));
        let second = one.open(&"s".into(), true).await.unwrap();
        let session = store.prefix(&setting(&second)).await.unwrap().remove(0).1;
        for n in 2..MAX_SESSIONS {
            store.put(format!("{SETTING}{n}"), session.clone()).await.unwrap();
        }
        assert!(is_open(&other, &first).await);
        other.open(&"s".into(), true).await.unwrap();
        assert!(!is_open(&one, &first).await && is_open(&one, &second).await);
        one.close(&second).await;
        assert!(!is_open(&other, &second).await);
    }
}
