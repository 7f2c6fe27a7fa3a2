//! The pause: an operator stops the claiming of jobs, and nothing else. Questions are accepted, attempts under way end,
//! and it holds across restarts until an operator ends it.

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::ToSchema;

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

    pub(super) fn get(&self) -> Option<Pause> {
        self.0.read().clone()
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.read().is_some()
    }

    /// Stores the change, then makes it.
    pub(super) async fn set(&self, registry: &Registry, paused: Option<Pause>) -> Result<(), Unavailable> {
        match &paused {
            Some(pause) => registry.put(SETTING.to_owned(), pause).await?,
            None => registry.delete(SETTING.to_owned()).await?,
        }
        *self.0.write() = paused;
        Ok(())
    }
}
