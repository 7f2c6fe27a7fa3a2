//! Several queues over one store, as the nodes of a cluster stand over one database.

use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::registry::Registry;

/// A node, and the task in which it follows what others change.
struct Node {
    queue: Queue,
    _following: AbortOnDropHandle<()>,
}

async fn node(store: &Arc<MemoryStore>, clock: &Clock) -> Node {
    let queue = Queue::over(Arc::clone(store) as _, clock, &Policy::plain(), &Metrics::new()).await;
    let (registry, copies) = (Registry::new(Arc::clone(store) as _), queue.operations().live());
    let following = AbortOnDropHandle::new(tokio::spawn(async move { registry.follow(copies).await }));
    Node { queue, _following: following }
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_pause_on_one_node_holds_on_all_and_so_does_its_end() {
    let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)));
    let (one, other) = (node(&store, &clock).await, node(&store, &clock).await);
    other.queue.enqueue(Submission::default()).await.unwrap();
    one.queue.operations().pause("ops").await.unwrap();
    until(|| other.queue.work().is_paused()).await;
    assert!(other.queue.work().propose(&Lanes::All).is_none());
    let work = other.queue.work();
    let ready = tokio::spawn(async move { work.until_ready().await });
    tokio::task::yield_now().await;
    assert!(!ready.is_finished());
    one.queue.operations().resume().await.unwrap();
    ready.await.unwrap();
    assert_eq!(other.queue.operations().paused(), None);
}
