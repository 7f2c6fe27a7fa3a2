//! What all nodes of a database must have in common: their time, which is the database's, and some settings. A difference of
//! settings is only warned of: they are also changed node by node.

use std::{collections::BTreeSet, mem, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::shared::Shared;
use crate::clock::Timestamp;

const PAUSE: Duration = Duration::from_secs(10);

/// The names of settings that have another value on another live node.
#[derive(Default)]
pub(super) struct Differing(Mutex<BTreeSet<&'static str>>);

impl Differing {
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.0.lock().iter().copied().collect()
    }

    /// Whether a setting differs that did not differ before.
    fn set(&self, found: BTreeSet<&'static str>) -> bool {
        let mut names = self.0.lock();
        let before = mem::replace(&mut *names, found);
        !names.is_subset(&before)
    }
}

/// Follows the database's clock, and warns of nodes with other settings.
pub(super) async fn watch(shared: Arc<Shared>, differing: Arc<Differing>) {
    loop {
        let asked_at = Instant::now();
        // Without an answer, the clock goes on by itself.
        if let Ok(rows) = shared.readers.read(include_str!("peers.sql"), &[]).await
            && let Some(row) = rows.first()
            && let (Ok(now), Ok(names)) = (row.try_get(0), row.try_get::<_, Vec<String>>(1))
        {
            shared.clock.follow(Timestamp::from_millis(now), asked_at.elapsed());
            let found: BTreeSet<_> = names.iter().flat_map(|name| shared.database.marks.differing(name)).collect();
            shared.metrics.settings_differ.set(i64::try_from(found.len()).unwrap_or(i64::MAX));
            if differing.set(found) {
                warn!(
                    settings = differing.names().join(", "),
                    "another node of this database has other values of these settings. All nodes of a database need the \
                     same; two clusters need two databases. During a change node by node this is normal"
                );
            }
        }
        sleep(PAUSE).await;
    }
}
