//! The sessions of the pages. A session has a random name, which only the browser has, in a cookie.
//!
//! The credential is encrypted with a key that is derived from the name, and stored, so that a session outlives a restart.
//! So neither the data folder nor a cookie alone gives the credential away, and signing out deletes it for good.

use std::{collections::HashMap, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use parking_lot::Mutex;
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
    /// By what is derived from their names, so that the time it takes to find one tells nothing of a name.
    open: Mutex<HashMap<String, Session>>,
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
    /// The stored sessions.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn load(registry: Registry, clock: Clock) -> Result<Sessions, Unavailable> {
        let open = registry.load(SETTING).await?.into_iter().collect();
        Ok(Sessions { registry, clock, open: Mutex::new(open) })
    }

    /// Opens a session. Returns the name that the browser is to keep.
    pub(super) async fn open(&self, credential: &SecretString, is_admin: bool) -> String {
        let now = self.clock.now();
        let name = Alphanumeric.sample_string(&mut rand::rng(), NAME_LENGTH);
        let ends_at = now.plus(Duration::from_hours(SESSION_HOURS));
        let key = text_of(FINDING, &name);
        let session = Session { sealed_credential: seal(&name, credential), ends_at, is_admin };
        let gone = {
            let mut open = self.open.lock();
            let over = open.iter().filter(|(_, session)| session.ends_at <= now);
            let mut gone: Vec<String> = over.map(|(key, _)| key.clone()).collect();
            if open.len() - gone.len() >= MAX_SESSIONS {
                let in_force = open.iter().filter(|(_, session)| session.ends_at > now);
                let oldest = in_force.min_by_key(|(_, session)| (session.is_admin, session.ends_at));
                gone.extend(oldest.map(|(key, _)| key.clone()));
            }
            gone.iter().for_each(|key| drop(open.remove(key)));
            open.insert(key.clone(), session.clone());
            gone
        };
        self.save(&key, &session).await;
        for key in gone {
            self.delete(&key).await;
        }
        name
    }

    /// The session of this name, with its credential.
    pub(super) fn find(&self, name: &str) -> Option<(SessionView, SecretString)> {
        let session = self.open.lock().get(&text_of(FINDING, name)).cloned()?;
        if session.ends_at <= self.clock.now() {
            return None;
        }
        let credential = unseal(name, &session.sealed_credential)?;
        let mark = text_of(MARKING, name)[..NAME_LENGTH].to_owned();
        Some((SessionView { mark, is_admin: session.is_admin }, credential))
    }

    pub(super) async fn close(&self, name: &str) {
        let key = text_of(FINDING, name);
        if self.open.lock().remove(&key).is_some() {
            self.delete(&key).await;
        }
    }

    /// A session that can't be stored holds until the next start.
    async fn save(&self, key: &str, session: &Session) {
        if let Err(error) = self.registry.put(format!("{SETTING}{key}"), session).await {
            warn!(%error, "failed to store a session");
        }
    }

    async fn delete(&self, key: &str) {
        if let Err(error) = self.registry.delete(format!("{SETTING}{key}")).await {
            warn!(%error, "failed to delete a stored session");
        }
    }
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
    use crate::store::{self, Registry as _, memory::MemoryStore};

    async fn sessions(store: &Arc<MemoryStore>, clock: &Clock) -> Sessions {
        let registry = Registry::new(Arc::clone(store) as Arc<dyn store::Registry>);
        Sessions::load(registry, clock.clone()).await.unwrap()
    }

    fn clock() -> Clock {
        Clock::manual(Timestamp::from_millis(1_800_000_000_000))
    }

    #[tokio::test]
    async fn a_session_is_found_by_its_name_until_it_ends_also_after_a_restart() {
        let (store, clock) = (Arc::<MemoryStore>::default(), clock());
        let first = sessions(&store, &clock).await;
        let name = first.open(&"secret".into(), true).await;
        let mark = first.find(&name).unwrap().0.mark;
        drop(first);
        let sessions = sessions(&store, &clock).await;
        let (view, credential) = sessions.find(&name).unwrap();
        assert_eq!(credential.expose_secret(), "secret");
        assert!(view.made(&mark) && !view.made("") && !view.made(&name) && mark.len() == NAME_LENGTH);
        assert!(sessions.find("another").is_none());
        clock.advance(Duration::from_hours(SESSION_HOURS));
        assert!(sessions.find(&name).is_none());
        sessions.open(&"secret".into(), true).await;
        assert_eq!(store.prefix(SETTING).await.unwrap().len(), 1, "what is over is forgotten");
    }

    #[tokio::test]
    async fn a_jump_of_the_clock_neither_ends_a_session_nor_makes_it_longer() {
        let (store, clock) = (Arc::<MemoryStore>::default(), clock());
        let sessions = sessions(&store, &clock).await;
        let name = sessions.open(&"secret".into(), true).await;
        let month = Duration::from_hours(24 * 31);
        clock.set_forward(month);
        assert!(sessions.find(&name).is_some());
        clock.set_back(2 * month);
        assert!(sessions.find(&name).is_some());
        // The service time runs a tenth slower until the clock has caught up.
        clock.advance(Duration::from_hours(SESSION_HOURS) * 10 / 9 + Duration::from_secs(1));
        assert!(sessions.find(&name).is_none());
    }

    #[tokio::test]
    async fn what_is_kept_tells_neither_the_credential_nor_the_name() {
        let (store, clock) = (Arc::<MemoryStore>::default(), clock());
        let sessions = sessions(&store, &clock).await;
        let name = sessions.open(&"the-secret-itself".into(), true).await;
        let kept = format!("{:?}", store.prefix(SETTING).await.unwrap());
        let encoded = BASE64_URL_SAFE_NO_PAD.encode("the-secret-itself");
        assert!([&name, "the-secret-itself", &encoded].iter().all(|secret| !kept.contains(*secret)), "{kept}");
        let sealed = sessions.open.lock().values().next().unwrap().sealed_credential.clone();
        assert!(unseal("another", &sealed).is_none());
    }

    #[tokio::test]
    async fn a_closed_session_is_gone_for_good_and_the_oldest_makes_room() {
        let (store, clock) = (Arc::<MemoryStore>::default(), clock());
        let open = sessions(&store, &clock).await;
        let first = open.open(&"s".into(), true).await;
        clock.advance(Duration::from_secs(1));
        let second = open.open(&"s".into(), true).await;
        let filler = open.open.lock().values().next().unwrap().clone();
        let ends_at = clock.now().plus(Duration::from_hours(SESSION_HOURS));
        let filler = Session { ends_at, ..filler };
        (2..MAX_SESSIONS).for_each(|n| drop(open.open.lock().insert(n.to_string(), filler.clone())));
        assert!(open.find(&first).is_some());
        open.open(&"s".into(), true).await;
        assert!(open.find(&first).is_none() && open.find(&second).is_some());
        open.close(&second).await;
        assert!(open.find(&second).is_none());
        drop(open);
        let reopened = sessions(&store, &clock).await;
        assert!(reopened.find(&first).is_none() && reopened.find(&second).is_none());
    }
}
