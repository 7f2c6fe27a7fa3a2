//! The pause: an operator stops the claiming of jobs, and nothing else. Questions are accepted, attempts under way end,
//! and it holds across restarts until an operator ends it.

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::ToSchema;

use super::{Inner, Operations, QueueError};
use crate::{
    clock::Timestamp,
    registry::{Registry, Unavailable},
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
#[derive(Debug, Default)]
pub(super) struct Switch(RwLock<Option<Pause>>);

impl Switch {
    /// As it was left.
    pub(super) async fn load(registry: &Registry) -> Result<Switch, Unavailable> {
        let paused: Option<Pause> = registry.get(SETTING).await?;
        if let Some(Pause { by, at }) = &paused {
            warn!(by, %at, "the queue is paused: jobs are accepted but not run");
        }
        Ok(Switch(RwLock::new(paused)))
    }

    fn get(&self) -> Option<Pause> {
        self.0.read().clone()
    }

    fn set(&self, paused: Option<Pause>) {
        *self.0.write() = paused;
    }
}

impl Operations {
    /// Has no further job claimed until [`Operations::resume`], also after a restart. A queue that is paused stays as it is.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`]; then the queue goes on.
    pub async fn pause(&self, by: &str) -> Result<Pause, QueueError> {
        if let Some(paused) = self.paused() {
            return Ok(paused);
        }
        let pause = Pause { by: by.to_owned(), at: self.0.now() };
        self.0.registry.put(SETTING.to_owned(), &pause).await?;
        self.0.paused.set(Some(pause.clone()));
        Ok(pause)
    }

    /// Has jobs claimed again.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`]; then the queue stays paused.
    pub async fn resume(&self) -> Result<(), QueueError> {
        if self.paused().is_none() {
            return Ok(());
        }
        self.0.registry.delete(SETTING.to_owned()).await?;
        self.0.paused.set(None);
        self.0.ready.notify_one();
        Ok(())
    }

    /// Who paused the queue, if it is.
    pub fn paused(&self) -> Option<Pause> {
        self.0.paused.get()
    }
}

impl Inner {
    pub(super) fn is_paused(&self) -> bool {
        self.paused.0.read().is_some()
    }
}
