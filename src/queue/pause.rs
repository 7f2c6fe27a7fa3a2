//! The pause: an operator stops the claiming of jobs, and nothing else. Questions are accepted, attempts under way end,
//! and it holds across restarts until an operator ends it.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify};
use tracing::{info, warn};
use utoipa::ToSchema;

use crate::{
    clock::Timestamp,
    registry::{Live, Registry, Unavailable},
};

/// The setting that holds it.
const SETTING: &str = "paused";

/// Who paused the queue and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pause {
    /// The operator, as in the audit log.
    pub by: String,
    pub at: Timestamp,
}

/// Whether the queue is paused.
pub(super) struct Switch {
    registry: Registry,
    state: RwLock<Option<Pause>>,
    /// Held from reading or changing the stored pause until `state` has it, so that no older one replaces a newer one.
    changing: Mutex<()>,
    /// Signalled when jobs can be claimed again.
    ready: Arc<Notify>,
}

impl Switch {
    pub(super) async fn load(registry: Registry, ready: Arc<Notify>) -> Result<Switch, Unavailable> {
        let switch = Switch { registry, state: RwLock::default(), changing: Mutex::default(), ready };
        switch.reload(SETTING).await?;
        Ok(switch)
    }

    pub(super) fn get(&self) -> Option<Pause> {
        self.state.read().clone()
    }

    pub(super) fn is_on(&self) -> bool {
        self.state.read().is_some()
    }

    /// Stores the change, then makes it. A queue that is paused keeps its pause. Returns the one that holds.
    pub(super) async fn set(&self, wanted: Option<Pause>) -> Result<Option<Pause>, Unavailable> {
        let _changing = self.changing.lock().await;
        let change =
            |stored: Option<Pause>| Ok::<_, Unavailable>(wanted.clone().map(|wanted| stored.unwrap_or(wanted)));
        let paused = self.registry.update(SETTING, change).await?;
        self.apply(paused.clone());
        Ok(paused)
    }

    fn apply(&self, paused: Option<Pause>) {
        let before = std::mem::replace(&mut *self.state.write(), paused.clone());
        match (before, paused) {
            (None, Some(Pause { by, at })) => warn!(by, %at, "the queue is paused: jobs are accepted but not run"),
            (Some(_), None) => {
                info!("the queue is resumed");
                self.ready.notify_one();
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

#[async_trait]
impl Live for Switch {
    fn prefix(&self) -> &'static str {
        SETTING
    }

    async fn reload(&self, _: &str) -> Result<(), Unavailable> {
        let _changing = self.changing.lock().await;
        self.apply(self.registry.get(SETTING).await?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;
    use crate::store::{
        contract::at,
        fault::{FaultStore, Outage},
        memory::MemoryStore,
    };

    #[tokio::test]
    async fn a_queue_that_another_node_has_paused_or_resumed_is_what_the_store_says() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let node = async || Switch::load(Registry::new(Arc::clone(&store) as _), Arc::default()).await.unwrap();
        let (one, other) = (node().await, node().await);
        let by = |name: &str| Some(Pause { by: name.to_owned(), at: at(0) });
        one.set(by("ann")).await.unwrap();
        assert_eq!((other.set(by("bob")).await, other.get()), (Ok(by("ann")), by("ann")));
        one.set(None).await.unwrap();

        // Another node resumes the queue while this one pauses it, and then the store fails.
        let reading = one.changing.lock().await;
        let mut pausing = Box::pin(one.set(by("ann")));
        assert!(poll!(&mut pausing).is_pending());
        other.set(None).await.unwrap();
        store.break_down(Outage::Fails);
        drop(reading);
        assert!(pausing.await.is_err() && !one.is_on());
    }
}
