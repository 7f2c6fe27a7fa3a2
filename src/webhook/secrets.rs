//! The secrets that sign webhooks. Each caller has its own, derived from one root, so that no caller can sign a message to
//! a receiver of another. Only a rotation is stored: the generation in use, and until when the ones before it sign too.
//!
//! With the setting WEBHOOK_SECRET, all callers share what it lists, and nothing is rotated here.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::{
    clock::{Clock, Timestamp},
    registry::{Registry, Unavailable},
};

const PREFIX: &str = "whsec_";

/// Replaced secrets of a caller that can be valid at a time: each makes a message's header longer by a signature.
const MAX_PREVIOUS: usize = 4;

const NAMELESS: &str = "webhook-secret";

const NAMED: &str = "caller-webhook-secret/";

#[derive(Clone)]
pub struct Secrets(Arc<Inner>);

struct Inner {
    source: Source,
    registry: Registry,
    clock: Clock,
}

enum Source {
    /// The setting: the current secret of every caller, and those that sign too.
    Setting(SecretString, Vec<SecretString>),
    /// Each caller's secrets are derived from this key.
    Root(hmac::Key),
}

pub struct CallerSecrets {
    pub current: SecretString,
    /// Those that it replaced and that sign too for now, newest first; of the setting, they have no end.
    pub previous: Vec<(SecretString, Option<Timestamp>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("WEBHOOK_SECRET is not valid")]
    Setting,
    #[error("the file webhook-root in DATA_DIR is not valid. Delete it to get new webhook secrets at the next start")]
    Root,
}

#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error(
        "the setting WEBHOOK_SECRET signs all webhooks, so it is rotated there: set WEBHOOK_SECRET=<new>,<old>, restart \
         the service, and remove <old> when all receivers have the new one"
    )]
    OfSetting,
    #[error(
        "{MAX_PREVIOUS} replaced secrets are still valid, the first of them until {until}. Wait until then, or set \
         overlap_hours to 0 to end them all now"
    )]
    TooMany { until: Timestamp },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

#[derive(Default, Serialize, Deserialize)]
struct Rotation {
    generation: u32,
    previous: Vec<Replaced>,
}

#[derive(Serialize, Deserialize)]
struct Replaced {
    generation: u32,
    expires_at: Timestamp,
}

impl Secrets {
    /// These sign the messages of every caller: one or several with commas, the first is the current one.
    pub fn from_setting(listed: &SecretString, registry: Registry, clock: Clock) -> Result<Secrets, SecretsError> {
        let mut secrets: Vec<SecretString> = listed.expose_secret().split(',').map(|text| text.trim().into()).collect();
        if secrets.iter().any(|secret| decoded(secret).is_none()) {
            return Err(SecretsError::Setting);
        }
        let current = secrets.remove(0);
        Ok(Secrets::from_source(Source::Setting(current, secrets), registry, clock))
    }

    pub fn derived(root: &SecretString, registry: Registry, clock: Clock) -> Result<Secrets, SecretsError> {
        let root = decoded(root).ok_or(SecretsError::Root)?;
        Ok(Secrets::from_source(Source::Root(hmac::Key::new(hmac::HMAC_SHA256, &root)), registry, clock))
    }

    fn from_source(source: Source, registry: Registry, clock: Clock) -> Secrets {
        Secrets(Arc::new(Inner { source, registry, clock }))
    }

    pub fn is_shared(&self) -> bool {
        matches!(self.0.source, Source::Setting(..))
    }

    /// What signs the messages of `caller`; of `None`, of all callers without a name.
    pub async fn of(&self, caller: Option<&str>) -> Result<CallerSecrets, Unavailable> {
        Ok(match &self.0.source {
            Source::Setting(current, others) => CallerSecrets {
                current: current.clone(),
                previous: others.iter().map(|secret| (secret.clone(), None)).collect(),
            },
            Source::Root(root) => self.of_rotation(root, caller, &self.rotation(caller).await?),
        })
    }

    fn of_rotation(&self, root: &hmac::Key, caller: Option<&str>, rotation: &Rotation) -> CallerSecrets {
        let now = self.0.clock.now();
        let previous = rotation.previous.iter().filter(|replaced| replaced.expires_at > now);
        let secret = |replaced: &Replaced| (derive(root, caller, replaced.generation), Some(replaced.expires_at));
        CallerSecrets { current: derive(root, caller, rotation.generation), previous: previous.map(secret).collect() }
    }

    /// Replaces the secret of `caller`. The old ones sign too for `overlap`, unless they end before.
    pub async fn rotate(&self, caller: Option<&str>, overlap: Duration) -> Result<CallerSecrets, RotationError> {
        let Source::Root(root) = &self.0.source else { return Err(RotationError::OfSetting) };
        let now = self.0.clock.now();
        let until = now.plus(overlap);
        let rotate = |stored: Option<Rotation>| {
            let Rotation { generation, mut previous } = stored.unwrap_or_default();
            previous.insert(0, Replaced { generation, expires_at: until });
            previous.iter_mut().for_each(|replaced| replaced.expires_at = replaced.expires_at.min(until));
            previous.retain(|replaced| replaced.expires_at > now);
            if previous.len() > MAX_PREVIOUS {
                let until = previous.iter().map(|replaced| replaced.expires_at).min().unwrap_or(until);
                return Err(RotationError::TooMany { until });
            }
            Ok(Some(Rotation { generation: generation.wrapping_add(1), previous }))
        };
        let rotation = self.0.registry.update(&setting(caller), rotate).await?.unwrap_or_default();
        Ok(self.of_rotation(root, caller, &rotation))
    }

    async fn rotation(&self, caller: Option<&str>) -> Result<Rotation, Unavailable> {
        Ok(self.0.registry.get(&setting(caller)).await?.unwrap_or_default())
    }
}

impl CallerSecrets {
    /// The signatures of a message, as its header has them: one of each valid secret.
    pub(super) fn sign(&self, id: &str, seconds: i64, body: &str) -> String {
        let signed = format!("{id}.{seconds}.{body}");
        let signature = |secret: &SecretString| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &decoded(secret).unwrap_or_default());
            format!("v1,{}", BASE64_STANDARD.encode(hmac::sign(&key, signed.as_bytes())))
        };
        let all = std::iter::once(&self.current).chain(self.previous.iter().map(|(secret, _)| secret));
        all.map(signature).collect::<Vec<_>>().join(" ")
    }
}

fn setting(caller: Option<&str>) -> String {
    caller.map_or_else(|| NAMELESS.to_owned(), |name| format!("{NAMED}{name}"))
}

/// No two callers and generations have the same text here: a number has no slash.
fn derive(root: &hmac::Key, caller: Option<&str>, generation: u32) -> SecretString {
    let of = caller.map_or_else(|| generation.to_string(), |name| format!("{generation}/{name}"));
    format!("{PREFIX}{}", BASE64_STANDARD.encode(hmac::sign(root, of.as_bytes()))).into()
}

fn decoded(secret: &SecretString) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(secret.expose_secret().strip_prefix(PREFIX)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{contract::at, memory::MemoryStore};

    const ROOT: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const HOUR: Duration = Duration::from_hours(1);

    fn registry() -> (Registry, Clock) {
        (Registry::new(Arc::<MemoryStore>::default()), Clock::manual(at(0)))
    }

    async fn all(secrets: &Secrets, caller: Option<&str>) -> Vec<String> {
        let CallerSecrets { current, previous } = secrets.of(caller).await.unwrap();
        let all = std::iter::once(current).chain(previous.into_iter().map(|(secret, _)| secret));
        all.map(|secret| secret.expose_secret().to_owned()).collect()
    }

    #[tokio::test]
    async fn each_caller_has_a_secret_of_its_own_that_stays_after_a_restart() {
        let (registry, clock) = registry();
        let secrets = Secrets::derived(&ROOT.into(), registry.clone(), clock.clone()).unwrap();
        let of = async |caller| all(&secrets, caller).await.remove(0);
        let known = [of(None).await, of(Some("alice")).await, of(Some("bob")).await, of(Some("0")).await];
        for (place, secret) in known.iter().enumerate() {
            assert!(secret.starts_with(PREFIX) && secret != ROOT && !known[..place].contains(secret), "{secret}");
        }
        let bob = of(Some("bob")).await;
        secrets.rotate(Some("alice"), HOUR).await.unwrap();
        assert_eq!(of(Some("bob")).await, bob, "only the secret of the caller changes");
        assert_eq!(all(&secrets, Some("alice")).await[1..], [known[1].clone()]);
        let again = Secrets::derived(&ROOT.into(), registry, clock).unwrap();
        assert_eq!(all(&again, Some("alice")).await, all(&secrets, Some("alice")).await);
    }

    #[tokio::test]
    async fn replaced_secrets_sign_until_their_overlap_is_over_and_only_so_many() {
        let (registry, clock) = registry();
        let secrets = Secrets::derived(&ROOT.into(), registry, clock.clone()).unwrap();
        let signatures = async || secrets.of(None).await.unwrap().sign("msg_1", 1, "{}").split(' ').count();
        assert_eq!(signatures().await, 1);
        for count in 1..=MAX_PREVIOUS {
            secrets.rotate(None, HOUR).await.unwrap();
            assert_eq!(signatures().await, 1 + count);
            clock.advance(Duration::from_mins(1));
        }
        let refused = secrets.rotate(None, HOUR).await.err().unwrap().to_string();
        assert!(refused.contains(&at(3_600).to_string()), "{refused}");
        clock.advance(HOUR - Duration::from_mins(4));
        assert_eq!(signatures().await, MAX_PREVIOUS, "the first is over");
        let newest = all(&secrets, None).await.remove(0);
        secrets.rotate(None, Duration::from_mins(1)).await.unwrap();
        let CallerSecrets { previous, .. } = secrets.of(None).await.unwrap();
        assert!(previous.iter().all(|(_, until)| until.unwrap() <= clock.now().plus(Duration::from_mins(1))));
        let now = secrets.rotate(None, Duration::ZERO).await.unwrap();
        assert!(now.previous.is_empty() && now.current.expose_secret() != newest);
    }

    #[tokio::test]
    async fn a_secret_that_is_rotated_on_one_node_signs_on_all() {
        let (registry, clock) = registry();
        let node = || Secrets::derived(&ROOT.into(), registry.clone(), clock.clone()).unwrap();
        let [one, other] = [node(), node()];
        let before = all(&other, Some("alice")).await;
        one.rotate(Some("alice"), HOUR).await.unwrap();
        let after = all(&other, Some("alice")).await;
        assert_eq!((after.len(), &after[1], after == all(&one, Some("alice")).await), (2, &before[0], true));
        let both = tokio::join!(one.rotate(Some("alice"), HOUR), other.rotate(Some("alice"), HOUR));
        assert!(both.0.is_ok() && both.1.is_ok());
        assert_eq!(all(&one, Some("alice")).await.len(), 4, "of rotations at once, both count");
    }

    #[tokio::test]
    async fn the_setting_lists_secrets_that_all_sign_for_everybody() {
        let (registry, clock) = registry();
        let both = format!("{ROOT}, whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
        let secrets = Secrets::from_setting(&both.as_str().into(), registry.clone(), clock.clone()).unwrap();
        assert_eq!(all(&secrets, Some("alice")).await, all(&secrets, None).await);
        assert_eq!(secrets.of(None).await.unwrap().sign("msg_1", 1, "{}").split(' ').count(), 2);
        assert!(matches!(secrets.rotate(None, HOUR).await, Err(RotationError::OfSetting)));
        assert!(Secrets::from_setting(&"whsec_?".into(), registry, clock).is_err());
    }
}
