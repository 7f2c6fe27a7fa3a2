//! Whether the dispatcher may give calls to this node. What makes a node unfit also makes `/health/ready` answer `503`.

use std::{sync::Arc, time::Duration};

use crate::{
    prompts::Prompts,
    store::{Store, postgres::PostgresStore},
};

const PAUSE: Duration = Duration::from_secs(1);

/// Has the dispatcher give calls to this node as long as it is fit for them.
pub(super) async fn offer_calls(database: Arc<PostgresStore>, prompts: Prompts) {
    loop {
        database.accept_calls(is_fit(&*database, &prompts));
        tokio::time::sleep(PAUSE).await;
    }
}

/// While the database does not answer, the other nodes hear of no change, so an outage changes nothing here.
fn is_fit(store: &dyn Store, prompts: &Prompts) -> bool {
    prompts.trouble().is_none() && !store.is_feed_late()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::{FEED_LIMIT, fault::FaultStore, memory::MemoryStore};

    #[test]
    fn a_node_whose_feed_is_late_gets_no_calls_until_it_has_caught_up() {
        let prompts = Prompts::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts")).unwrap();
        let store = FaultStore::over(MemoryStore::default());
        for (lag, fit) in [(FEED_LIMIT, true), (FEED_LIMIT + Duration::from_millis(1), false), (Duration::ZERO, true)] {
            store.set_watch_lag(lag);
            assert_eq!(is_fit(&store, &prompts), fit, "{lag:?} late");
        }
    }
}
