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
    /// Held during a read, so that no older read replaces a newer one.
    reading: Mutex<()>,
    /// Signalled when jobs can be claimed again.
    ready: Arc<Notify>,
}

impl Switch {
    pub(super) async fn load(registry: Registry, ready: Arc<Notify>) -> Result<Switch, Unavailable> {
        let switch = Switch { registry, state: RwLock::default(), reading: Mutex::default(), ready };
        switch.reload(SETTING).await?;
        Ok(switch)
    }

    pub(super) fn get(&self) -> Option<Pause> {
        self.state.read().clone()
    }

    pub(super) fn is_on(&self) -> bool {
        self.state.read().is_some()
    }

    /// Reads what is stored.
    pub(super) async fn refresh(&self) -> Result<(), Unavailable> {
        self.reload(SETTING).await
    }

    /// Stores the change, then makes it.
    pub(super) async fn set(&self, paused: Option<Pause>) -> Result<(), Unavailable> {
        match &paused {
            Some(pause) => self.registry.put(SETTING.to_owned(), pause).await?,
            None => self.registry.delete(SETTING.to_owned()).await?,
        }
        // As it is stored: another node may have changed it since.
        if self.reload(SETTING).await.is_err() {
            self.apply(paused);
        }
        Ok(())
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
        let _reading = self.reading.lock().await;
        self.apply(self.registry.get(SETTING).await?);
        Ok(())
    }
}
