//! Settings that are made while the service runs: API keys, sessions, the pause, limits, rotated secrets, the history. Each
//! is a JSON text under a name. Apart from jobs.
//!
//! Who holds a copy of settings in memory implements [`Live`]. [`Registry::follow`] keeps all copies up to date with what
//! any node changes.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::broadcast::error::{RecvError, TryRecvError},
    time::sleep,
};
use tracing::{error, warn};

use crate::store::{self, StoreError};

/// Pause after a read that failed.
const RETRY: Duration = Duration::from_millis(250);

/// The settings. Clones are handles to the same ones.
#[derive(Clone)]
pub struct Registry(Arc<dyn store::Registry>);

/// The store can't be used at the moment. The text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

impl From<StoreError> for Unavailable {
    fn from(error: StoreError) -> Unavailable {
        Unavailable(error.to_string())
    }
}

/// A copy of settings in memory.
#[async_trait]
pub trait Live: Send + Sync {
    /// What the names of the settings begin with.
    fn prefix(&self) -> &'static str;

    /// Reads the settings again whose names begin with `changed`: the name of a setting, or the prefix. Settings that are gone
    /// leave the copy.
    ///
    /// # Errors
    /// [`Unavailable`]; then the copy stays as it is.
    async fn reload(&self, changed: &str) -> Result<(), Unavailable>;
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    pub fn new(store: Arc<dyn store::Registry>) -> Registry {
        Registry(store)
    }

    /// The settings whose names begin with `prefix`, by the rest of their names. One that can't be read is logged and left
    /// out.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn load<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, Unavailable> {
        let stored = self.0.prefix(prefix).await?.into_iter();
        let read = |(name, text): (String, String)| {
            let value = serde_json::from_str(&text);
            let value =
                value.inspect_err(|error| error!(name, %error, "failed to read a stored setting; it is left out"));
            Some((name.strip_prefix(prefix)?.to_owned(), value.ok()?))
        };
        Ok(stored.filter_map(read).collect())
    }

    /// The setting of this name.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Unavailable> {
        let stored = self.load(name).await?.into_iter();
        Ok(stored.filter(|(rest, _)| rest.is_empty()).map(|(_, value)| value).next())
    }

    /// Saves a setting: it is durable when this returns.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn put(&self, name: String, value: &impl Serialize) -> Result<(), Unavailable> {
        let text = serde_json::to_string(value).map_err(|error| Unavailable(error.to_string()))?;
        Ok(self.0.put(name, text).await?)
    }

    /// Removes a setting, if there is one of this name.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn delete(&self, name: String) -> Result<(), Unavailable> {
        Ok(self.0.delete(name).await?)
    }

    /// Whether the copies follow what other nodes change. If not, a copy may be outdated.
    pub fn is_watch_live(&self) -> bool {
        self.0.is_watch_live()
    }

    /// Reads settings into the copies again whenever any node changes them. Ends with the store.
    pub async fn follow(&self, copies: Vec<Arc<dyn Live>>) {
        let mut watch = self.0.watch();
        let all = || copies.iter().map(|copy| copy.prefix().to_owned());
        // What changed between the load of a copy and this moment was not announced to it.
        let mut stale: BTreeSet<String> = all().collect();
        loop {
            stale = reload(&copies, stale).await;
            let announced = tokio::select! {
                announced = watch.recv() => Some(announced),
                () = sleep(RETRY), if !stale.is_empty() => None,
            };
            let mut next = announced;
            while let Some(announced) = next.take() {
                match announced {
                    Ok(name) if name.is_empty() => stale.extend(all()),
                    Err(RecvError::Lagged(_)) => stale.extend(all()),
                    Ok(name) => drop(stale.insert(name)),
                    Err(RecvError::Closed) => return,
                }
                next = match watch.try_recv() {
                    Ok(name) => Some(Ok(name)),
                    Err(TryRecvError::Lagged(missed)) => Some(Err(RecvError::Lagged(missed))),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => None,
                };
            }
        }
    }
}

/// Reads the `changed` settings again. Returns those that could not be read.
async fn reload(copies: &[Arc<dyn Live>], changed: BTreeSet<String>) -> BTreeSet<String> {
    let mut failed = BTreeSet::new();
    for name in changed {
        for copy in copies.iter().filter(|copy| name.starts_with(copy.prefix())) {
            if let Err(error) = copy.reload(&name).await {
                warn!(name, %error, "failed to read changed settings; trying again");
                failed.insert(name.clone());
            }
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::store::{
        Registry as _,
        fault::{FaultStore, Outage},
        memory::MemoryStore,
    };

    /// A copy that notes what it was asked to read again.
    struct Copy(Registry, mpsc::UnboundedSender<String>);

    #[async_trait]
    impl Live for Copy {
        fn prefix(&self) -> &'static str {
            "a/"
        }

        async fn reload(&self, changed: &str) -> Result<(), Unavailable> {
            let stored = self.0.load::<u32>(changed).await?;
            let _ = self.1.send(format!("{changed}: {:?}", stored.iter().map(|(_, value)| *value).collect::<Vec<_>>()));
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_copy_reads_what_is_changed_all_of_it_after_a_gap_and_later_what_could_not_be_read() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let registry = Registry::new(Arc::clone(&store) as _);
        registry.put("a/0".to_owned(), &7).await.unwrap();
        let (sender, mut read) = mpsc::unbounded_channel();
        let copy: Arc<dyn Live> = Arc::new(Copy(registry.clone(), sender));
        let following = tokio::spawn({
            let registry = registry.clone();
            async move { registry.follow(vec![copy]).await }
        });
        assert_eq!(read.recv().await.unwrap(), "a/: [7]", "what changed before it followed");
        for name in ["b", "a/1", "a"] {
            registry.put(name.to_owned(), &1).await.unwrap();
        }
        assert_eq!(read.recv().await.unwrap(), "a/1: [1]");
        registry.delete("a/1".to_owned()).await.unwrap();
        assert_eq!(read.recv().await.unwrap(), "a/1: []");

        store.break_down(Outage::Fails);
        store.inner().put("a/2".to_owned(), "2".to_owned()).await.unwrap();
        tokio::task::yield_now().await;
        assert!(read.try_recv().is_err());
        store.repair();
        assert_eq!(read.recv().await.unwrap(), "a/2: [2]");

        // More than a slow receiver is told one by one.
        for n in 0..1_000 {
            store.inner().put(format!("a/0{n}"), "3".to_owned()).await.unwrap();
        }
        let all = read.recv().await.unwrap();
        assert!(all.starts_with("a/: ") && all.len() > 3_000, "{all}");
        following.abort();
    }
}
