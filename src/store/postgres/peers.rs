//! What all nodes of a database must have in common: their time, which is the database's, and some settings. A difference of
//! settings is only warned of: they are also changed node by node.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::shared::Shared;
use crate::clock::Timestamp;

const PAUSE: Duration = Duration::from_secs(10);

/// Follows the database's clock, and warns of nodes with other settings.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut known = BTreeSet::new();
    loop {
        let asked_at = Instant::now();
        // Without an answer, the clock goes on by itself.
        if let Ok(rows) = shared.readers.read(include_str!("peers.sql"), &[]).await
            && let Some(row) = rows.first()
            && let (Ok(now), Ok(names)) = (row.try_get(0), row.try_get::<_, Vec<String>>(1))
        {
            shared.clock.follow(Timestamp::from_millis(now), asked_at.elapsed());
            let differing: BTreeSet<_> = names.iter().flat_map(|name| shared.database.marks.differing(name)).collect();
            if !differing.is_subset(&known) {
                let settings = differing.iter().copied().collect::<Vec<_>>().join(", ");
                warn!(
                    settings,
                    "another node of this database has other values of these settings. All nodes of a database need the \
                     same; two clusters need two databases. During a change node by node this is normal"
                );
            }
            known = differing;
        }
        sleep(PAUSE).await;
    }
}
