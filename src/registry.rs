//! Settings that are made while the service runs: API keys, sessions, the pause, limits, rotated secrets, the history. Each
//! is a JSON text under a name. Apart from jobs.
//!
//! A copy of settings in memory implements [`Live`]. [`Registry::follow`] keeps all copies up to date with what
//! any node changes.

use std::{collections::BTreeSet, fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::broadcast::{
        Receiver,
        error::{RecvError, TryRecvError},
    },
    task::JoinSet,
    time::timeout,
};
use tracing::{error, warn};

use crate::{
    metrics::Metrics,
    process,
    store::{self, StoreError},
};

/// First and longest pause after a read that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

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
    /// [`Unavailable`]; then the copy does not change.
    async fn reload(&self, changed: &str) -> Result<(), Unavailable>;

    /// Whether the copy has all changes that were announced. False until [`Registry::follow`] says otherwise.
    fn set_current(&self, _is_current: bool) {}
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
        Ok(stored
            .filter_map(|(name, text)| Some((name.strip_prefix(prefix)?.to_owned(), parse(&name, &text)?)))
            .collect())
    }

    /// The setting of this name.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Unavailable> {
        Ok(self.text(name).await?.and_then(|text| parse(name, &text)))
    }

    /// Saves a setting: it is durable when this returns.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn put(&self, name: String, value: &impl Serialize) -> Result<(), Unavailable> {
        Ok(self.0.put(name, to_text(value)?).await?)
    }

    /// Removes a setting, if there is one of this name.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn delete(&self, name: String) -> Result<(), Unavailable> {
        Ok(self.0.delete(name).await?)
    }

    /// Replaces the value of a setting by what `change` returns for it; `change` gets `None` for a setting without a value. It is
    /// called again if another node has changed the value meanwhile. The new value is durable when this returns it.
    ///
    /// # Errors
    /// [`Unavailable`], and those of `change`; then nothing changes.
    pub async fn update<T, E>(
        &self,
        name: &str,
        mut change: impl FnMut(Option<T>) -> Result<Option<T>, E> + Send,
    ) -> Result<Option<T>, E>
    where
        T: Serialize + DeserializeOwned + Send,
        E: From<Unavailable>,
    {
        loop {
            let before = self.text(name).await?;
            let value = change(before.as_deref().and_then(|text| parse(name, text)))?;
            let after = value.as_ref().map(to_text).transpose()?;
            if before == after || self.compare_and_set(name, before, after).await? {
                return Ok(value);
            }
        }
    }

    async fn compare_and_set(
        &self,
        name: &str,
        before: Option<String>,
        after: Option<String>,
    ) -> Result<bool, Unavailable> {
        Ok(self.0.compare_and_set(name.to_owned(), before, after).await?)
    }

    async fn text(&self, name: &str) -> Result<Option<String>, Unavailable> {
        let stored = self.0.prefix(name).await?.into_iter();
        Ok(stored.filter(|(stored, _)| stored == name).map(|(_, text)| text).next())
    }

    /// Whether the copies follow what other nodes change `within` this time. If not, a copy may be outdated.
    pub fn is_watch_live(&self, within: Duration) -> bool {
        self.0.is_watch_live(within)
    }

    /// Reads settings into the copies again whenever any node changes them. Ends with the store.
    ///
    /// Each copy has a task of its own: one that is slow or panics keeps no other from its changes.
    pub async fn follow(&self, copies: Vec<Arc<dyn Live>>, metrics: &Metrics) {
        let mut tasks = JoinSet::new();
        for copy in copies {
            tasks.spawn(process::task(follow(copy, self.0.watch(), metrics.clone())));
        }
        while tasks.join_next().await.is_some() {}
    }
}

fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Option<T> {
    let value = serde_json::from_str(text);
    value.inspect_err(|error| error!(name, %error, "failed to read a stored setting; it is left out")).ok()
}

fn to_text(value: &impl Serialize) -> Result<String, Unavailable> {
    serde_json::to_string(value).map_err(|error| Unavailable(error.to_string()))
}

/// Settings that a copy has to read again.
struct Changed {
    prefix: &'static str,
    names: BTreeSet<String>,
}

impl Changed {
    /// All settings of the copy.
    fn all(prefix: &'static str) -> Changed {
        Changed { prefix, names: BTreeSet::from([prefix.to_owned()]) }
    }

    /// Adds what was announced. False if nothing will be any more.
    fn add(&mut self, announced: Result<String, RecvError>) -> bool {
        match announced {
            Ok(name) if name.is_empty() => *self = Changed::all(self.prefix),
            Err(RecvError::Lagged(_)) => *self = Changed::all(self.prefix),
            Ok(name) if name.starts_with(self.prefix) && !self.names.contains(self.prefix) => {
                self.names.insert(name);
            }
            Ok(_) => {}
            Err(RecvError::Closed) => return false,
        }
        true
    }

    /// Adds what is announced already. False if nothing will be any more.
    fn add_all(&mut self, watch: &mut Receiver<String>) -> bool {
        loop {
            let announced = match watch.try_recv() {
                Ok(name) => Ok(name),
                Err(TryRecvError::Lagged(missed)) => Err(RecvError::Lagged(missed)),
                Err(TryRecvError::Closed) => Err(RecvError::Closed),
                Err(TryRecvError::Empty) => return true,
            };
            if !self.add(announced) {
                return false;
            }
        }
    }

    /// Reads them. Those that can't be read stay.
    async fn read(&mut self, copy: &dyn Live, metrics: &Metrics) {
        for name in std::mem::take(&mut self.names) {
            let failure = match AssertUnwindSafe(copy.reload(&name)).catch_unwind().await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("panicked: {}", process::panic_text(&*panic)),
            };
            warn!(name, error = failure, "failed to read changed settings; trying again");
            metrics.settings_failures.inc();
            self.names.insert(name);
        }
    }
}

/// A copy while it is kept up to date.
struct Followed(Arc<dyn Live>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.set_current(false);
    }
}

/// Keeps a copy up to date.
async fn follow(copy: Arc<dyn Live>, mut watch: Receiver<String>, metrics: Metrics) {
    let copy = Followed(copy);
    // What changed between the load of the copy and this moment was not announced to it.
    let (mut changed, mut pause) = (Changed::all(copy.0.prefix()), RETRY.0);
    loop {
        if !changed.names.is_empty() {
            copy.0.set_current(false);
            changed.read(&*copy.0, &metrics).await;
        }
        if !changed.add_all(&mut watch) {
            return;
        }
        let announced = if changed.names.is_empty() {
            pause = RETRY.0;
            copy.0.set_current(true);
            Some(watch.recv().await)
        } else {
            let announced = timeout(pause, watch.recv()).await.ok();
            pause = (pause * 2).min(RETRY.1);
            announced
        };
        if announced.is_some_and(|announced| !changed.add(announced)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use parking_lot::Mutex;
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
            async move { registry.follow(vec![copy], &Metrics::new()).await }
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
        join_all((0..1_000).map(|n| store.inner().put(format!("a/0{n}"), "3".to_owned()))).await;
        let all = read.recv().await.unwrap();
        assert!(all.starts_with("a/: ") && all.len() > 3_000, "{all}");
        following.abort();
    }

    /// A copy that never ends a read, or panics at the first.
    #[derive(Default)]
    struct Faulty {
        hangs: bool,
        reads: Mutex<usize>,
        is_current: Mutex<bool>,
    }

    #[async_trait]
    impl Live for Faulty {
        fn prefix(&self) -> &'static str {
            "a/"
        }

        async fn reload(&self, _: &str) -> Result<(), Unavailable> {
            let reads = {
                let mut reads = self.reads.lock();
                *reads += 1;
                *reads
            };
            match (self.hangs, reads) {
                (true, _) => std::future::pending().await,
                (false, 1) => panic!("on purpose"),
                (false, _) => Ok(()),
            }
        }

        fn set_current(&self, is_current: bool) {
            *self.is_current.lock() = is_current;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_hangs_or_panics_is_not_current_and_keeps_no_other_from_its_changes() {
        let registry = Registry::new(Arc::<MemoryStore>::default());
        let (sender, mut read) = mpsc::unbounded_channel();
        let hanging = Arc::new(Faulty { hangs: true, ..Faulty::default() });
        let (panicking, metrics) = (Arc::<Faulty>::default(), Metrics::new());
        let copies: Vec<Arc<dyn Live>> =
            vec![Arc::clone(&hanging) as _, Arc::clone(&panicking) as _, Arc::new(Copy(registry.clone(), sender))];
        let following = tokio::spawn({
            let (registry, metrics) = (registry.clone(), metrics.clone());
            async move { registry.follow(copies, &metrics).await }
        });
        assert_eq!(read.recv().await.unwrap(), "a/: []");
        registry.put("a/1".to_owned(), &1).await.unwrap();
        assert_eq!(read.recv().await.unwrap(), "a/1: [1]");
        while !*panicking.is_current.lock() {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!((metrics.settings_failures.get(), *hanging.is_current.lock()), (1, false));
        following.abort();
        while *panicking.is_current.lock() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn of_changes_at_once_each_builds_on_the_one_before() {
        let registry = Registry::new(Arc::<MemoryStore>::default());
        let add = |known: Option<u32>| Ok::<_, Unavailable>(Some(known.unwrap_or(0) + 1));
        let all = join_all((0..8).map(|_| registry.update("a", add))).await;
        let mut values: Vec<u32> = all.into_iter().map(|value| value.unwrap().unwrap()).collect();
        values.sort_unstable();
        assert_eq!((values, registry.get("a").await), ((1..=8).collect(), Ok(Some(8))));
        let gone = registry.update("a", |_| Ok::<Option<u32>, Unavailable>(None)).await;
        assert_eq!((gone, registry.get::<u32>("a").await), (Ok(None), Ok(None)));
    }
}
