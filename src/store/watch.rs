//! Announces changed settings to those who hold a copy of them.

use tokio::sync::broadcast;

/// Names that wait for a slow receiver. One that lags behind misses some and has to read all again.
const PLACES: usize = 256;

/// Where a store announces each changed setting, once the change is durable.
#[derive(Clone)]
pub(super) struct SettingsWatch(broadcast::Sender<String>);

impl Default for SettingsWatch {
    fn default() -> SettingsWatch {
        SettingsWatch(broadcast::Sender::new(PLACES))
    }
}

impl SettingsWatch {
    pub(super) fn subscribe(&self) -> broadcast::Receiver<String> {
        self.0.subscribe()
    }

    pub(super) fn changed(&self, name: &str) {
        // Fails if nobody listens.
        let _ = self.0.send(name.to_owned());
    }

    /// Any setting may have changed.
    pub(super) fn any_changed(&self) {
        self.changed("");
    }
}
