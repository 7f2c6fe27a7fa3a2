//! Carries hints of waiting clients among the nodes of a database, by its notifications.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    queue::{Hint, Queue},
    store::postgres::PostgresStore,
};

/// Hints that come within this time are sent together.
const BATCH_TIME: Duration = Duration::from_millis(2);

/// Most bytes of a notification; PostgreSQL takes 8,000.
const MAX_BYTES: usize = 7_500;

/// How often the hints of clients that still wait are sent again, for nodes that have started since or lost some.
const REPEAT_PAUSE: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct Letter {
    node: String,
    hints: Vec<Hint>,
}

/// Sends and receives until `closing` is cancelled.
pub(super) async fn run(queue: Queue, node: String, database: Arc<PostgresStore>, closing: CancellationToken) {
    let carrying = async { tokio::join!(send(&queue, &node, &database), receive(&queue, &database)) };
    closing.run_until_cancelled(carrying).await;
}

async fn send(queue: &Queue, node: &str, database: &PostgresStore) {
    let (mut hints, mut repeat) = (queue.hints(), interval(REPEAT_PAUSE));
    loop {
        let first = tokio::select! {
            hint = hints.recv() => hint,
            _ = repeat.tick() => {
                queue.repeat_hints();
                continue;
            }
        };
        let mut batch = match first {
            Ok(first) => vec![first],
            Err(RecvError::Lagged(_)) => Vec::new(),
            Err(RecvError::Closed) => return,
        };
        sleep(BATCH_TIME).await;
        batch.extend(std::iter::from_fn(|| hints.try_recv().ok()));
        for text in letters(node, batch) {
            if let Err(error) = database.send_hint(&text).await {
                debug!(%error, "failed to tell other nodes of waiting clients");
            }
        }
    }
}

async fn receive(queue: &Queue, database: &PostgresStore) {
    let mut texts = database.hints();
    loop {
        match texts.recv().await {
            Ok(text) => match serde_json::from_str::<Letter>(&text) {
                Ok(Letter { node, hints }) => queue.hear(&node, hints),
                Err(error) => debug!(%error, "another node sent a hint that this one does not know"),
            },
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// The hints as texts that are short enough.
fn letters(node: &str, hints: Vec<Hint>) -> Vec<String> {
    let (mut letters, mut letter, mut bytes) = (Vec::new(), Vec::new(), 0);
    let write = |hints: Vec<Hint>| serde_json::to_string(&Letter { node: node.to_owned(), hints }).ok();
    for hint in hints {
        let size = serde_json::to_string(&hint).map_or(0, |text| text.len()) + 1;
        if bytes + size > MAX_BYTES - node.len() && !letter.is_empty() {
            letters.extend(write(std::mem::take(&mut letter)));
            bytes = 0;
        }
        bytes += size;
        letter.push(hint);
    }
    if !letter.is_empty() {
        letters.extend(write(letter));
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_hints_are_sent_in_several_notifications_and_all_arrive() {
        let hints: Vec<Hint> = (0..2_000).map(|client| Hint::Left { client }).collect();
        let letters = letters("node:8080", hints.clone());
        assert!(letters.len() > 2 && letters.iter().all(|text| text.len() < 8_000));
        let read = |text: &String| serde_json::from_str::<Letter>(text).unwrap().hints;
        assert_eq!(letters.iter().flat_map(read).collect::<Vec<_>>(), hints);
        assert!(super::letters("a", Vec::new()).is_empty());
    }
}
