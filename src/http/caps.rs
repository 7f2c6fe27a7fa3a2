//! The operator's caps on calls to Claude. A change is stored, and holds on all nodes until the next change, by the API or of
//! the setting RATE_LIMITS.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{
    config::values::RateCaps,
    limits::Limits,
    registry::{Live, Registry, Unavailable},
};

const SETTING: &str = "limits";

/// The operator's caps.
pub struct Caps {
    limits: Limits,
    registry: Registry,
    /// Those of the setting RATE_LIMITS.
    of_setting: RateCaps,
    /// Held from reading the caps until they are in force, so that no older ones replace newer ones.
    changing: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct StoredCaps {
    caps: RateCaps,
    /// The setting at the time. Once that is changed, the stored caps no longer hold.
    instead_of: RateCaps,
}

impl Caps {
    /// Over limits with the caps of the setting.
    pub fn new(limits: Limits, registry: Registry) -> Caps {
        let of_setting = limits.caps();
        Caps { limits, registry, of_setting, changing: Mutex::default() }
    }

    /// Changes the caps that `wanted` has. Returns all.
    pub(super) async fn change(&self, wanted: RateCaps) -> Result<RateCaps, Unavailable> {
        let _changing = self.changing.lock().await;
        let change = |stored| {
            let before = self.in_force(stored);
            let caps = RateCaps {
                requests: wanted.requests.or(before.requests),
                input_tokens: wanted.input_tokens.or(before.input_tokens),
                output_tokens: wanted.output_tokens.or(before.output_tokens),
            };
            Ok::<_, Unavailable>(Some(StoredCaps { caps, instead_of: self.of_setting }))
        };
        let after = self.in_force(self.registry.update(SETTING, change).await?);
        self.apply(after);
        Ok(after)
    }

    fn in_force(&self, stored: Option<StoredCaps>) -> RateCaps {
        stored.filter(|stored| stored.instead_of == self.of_setting).map_or(self.of_setting, |stored| stored.caps)
    }

    fn apply(&self, caps: RateCaps) {
        if caps != self.limits.caps() {
            self.limits.set_caps(caps);
        }
    }
}

#[async_trait]
impl Live for Caps {
    fn prefix(&self) -> &'static str {
        SETTING
    }

    async fn reload(&self, _: &str) -> Result<(), Unavailable> {
        let _changing = self.changing.lock().await;
        self.apply(self.in_force(self.registry.get(SETTING).await?));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, sync::Arc};

    use super::*;
    use crate::{
        digest::ModelKey,
        store::{
            fault::{FaultStore, Outage},
            memory::MemoryStore,
        },
    };

    fn requests(requests: u32) -> RateCaps {
        RateCaps { requests: NonZeroU32::new(requests), ..RateCaps::default() }
    }

    fn node(store: &Arc<FaultStore<MemoryStore>>, of_setting: RateCaps) -> Caps {
        let limits = Limits::new(of_setting, 1, None, Arc::new(|| ModelKey::of("m")));
        Caps::new(limits, Registry::new(Arc::clone(store) as _))
    }

    #[tokio::test]
    async fn changed_limits_hold_on_all_nodes_and_after_a_restart_until_the_setting_changes() {
        let store = Arc::new(FaultStore::over(MemoryStore::default()));
        let nodes = [node(&store, requests(100)), node(&store, requests(100)), node(&store, requests(50))];
        let input_tokens = NonZeroU32::new(5_000);
        nodes[0].change(RateCaps { input_tokens, ..RateCaps::default() }).await.unwrap();
        nodes[1].change(requests(7)).await.unwrap();
        let mut in_force = Vec::new();
        for node in &nodes {
            node.reload(SETTING).await.unwrap();
            in_force.push(node.limits.caps());
        }
        let changed = RateCaps { input_tokens, ..requests(7) };
        assert_eq!(in_force, [changed, changed, requests(50)], "the last has another setting");
        let output_tokens = NonZeroU32::new(6_000);
        let both = tokio::join!(
            nodes[0].change(requests(8)),
            nodes[1].change(RateCaps { output_tokens, ..RateCaps::default() })
        );
        assert!(both.0.is_ok() && both.1.is_ok());
        nodes[0].reload(SETTING).await.unwrap();
        let changed = RateCaps { requests: NonZeroU32::new(8), output_tokens, ..changed };
        assert_eq!(nodes[0].limits.caps(), changed, "of changes at once, both hold");
        store.break_down(Outage::Fails);
        assert!(nodes[0].change(requests(9)).await.is_err() && nodes[0].limits.caps() == changed);
    }
}
