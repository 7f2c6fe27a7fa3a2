//! Sends letters among the nodes by notifications of the database. Letters about waiting clients go to all nodes, those about
//! what calls show of Claude to the dispatcher. A lost letter costs order or time, never truth.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{interval, sleep},
};
use tracing::debug;

use super::memo::Memo;
use crate::{
    agent::models::ModelMemo,
    clock::Moments,
    limits::Observation,
    queue::{Hint, Queue},
    store::postgres::PostgresStore,
};

/// What comes within this time is sent together.
const BATCH_TIME: Duration = Duration::from_millis(2);

/// Most bytes of a notification; PostgreSQL takes 8,000.
const MAX_BYTES: usize = 7_500;

/// How often the hints of clients that still wait are sent again, for nodes that have started since or lost some.
const REPEAT_PAUSE: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct Letter {
    node: String,
    #[serde(deserialize_with = "known")]
    news: Vec<News>,
}

/// A later version may send news of other kinds beside them.
fn known<'de, D: Deserializer<'de>>(news: D) -> Result<Vec<News>, D::Error> {
    let news = Vec::<serde_json::Value>::deserialize(news)?;
    Ok(news.into_iter().filter_map(|news| serde_json::from_value(news).ok()).collect())
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum News {
    Hint(Hint),
    Observation(Observation),
    Model(ModelMemo),
}

pub(super) struct Letters {
    pub(super) queue: Queue,
    pub(super) node: String,
    pub(super) database: Arc<PostgresStore>,
    pub(super) memo: Arc<Memo>,
}

impl Letters {
    /// Sends and receives.
    pub(super) async fn run(self) {
        tokio::join!(self.send(), self.receive());
    }

    async fn send(&self) {
        let (mut hints, mut observations) = (self.queue.hints(), self.memo.limits.observations());
        let (mut repeat, mut models) = (interval(REPEAT_PAUSE), Vec::new());
        loop {
            let first = tokio::select! {
                hint = hints.recv() => hint.map(News::Hint),
                observation = observations.recv() => observation.map(News::Observation),
                _ = repeat.tick() => {
                    self.queue.repeat_hints();
                    continue;
                }
            };
            let mut batch = match first {
                Ok(first) => vec![first],
                Err(RecvError::Lagged(_)) => Vec::new(),
                Err(RecvError::Closed) => return,
            };
            sleep(BATCH_TIME).await;
            batch.extend(waiting(&mut hints).map(News::Hint));
            batch.extend(waiting(&mut observations).map(News::Observation));
            if self.memo.is_dispatcher() {
                batch.retain(|news| matches!(news, News::Hint(_)));
            } else if batch.iter().any(|news| matches!(news, News::Observation(_))) {
                let known = self.memo.models.memo(&Moments::now(&self.memo.clock));
                batch.extend(known.iter().filter(|model| !models.contains(*model)).cloned().map(News::Model));
                models = known;
            }
            for text in letters(&self.node, batch) {
                if let Err(error) = self.database.send_hint(&text).await {
                    debug!(%error, "failed to tell other nodes of clients and calls");
                }
            }
        }
    }

    async fn receive(&self) {
        let mut texts = self.database.hints();
        loop {
            match texts.recv().await {
                Ok(text) => match serde_json::from_str::<Letter>(&text) {
                    Ok(letter) => self.read(letter),
                    Err(error) => debug!(%error, "another node sent a letter that this one can't read"),
                },
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn read(&self, Letter { node, news }: Letter) {
        if node == self.node {
            return;
        }
        let (is_dispatcher, mut hints) = (self.memo.is_dispatcher(), Vec::new());
        for news in news {
            match news {
                News::Hint(hint) => hints.push(hint),
                News::Observation(observation) if is_dispatcher => self.memo.limits.hear(observation),
                News::Model(model) if is_dispatcher => {
                    self.memo.models.merge(&model, &Moments::now(&self.memo.clock));
                }
                News::Observation(_) | News::Model(_) => {}
            }
        }
        self.queue.hear(&node, hints);
    }
}

/// What has come already.
fn waiting<T: Clone>(receiver: &mut broadcast::Receiver<T>) -> impl Iterator<Item = T> {
    std::iter::from_fn(|| receiver.try_recv().ok())
}

/// The news as texts that are short enough.
fn letters(node: &str, news: Vec<News>) -> Vec<String> {
    let (mut letters, mut letter, mut bytes) = (Vec::new(), Vec::new(), 0);
    let write = |news: Vec<News>| serde_json::to_string(&Letter { node: node.to_owned(), news }).ok();
    for one in news {
        let size = serde_json::to_string(&one).map_or(0, |text| text.len()) + 1;
        if bytes + size > MAX_BYTES - node.len() && !letter.is_empty() {
            letters.extend(write(std::mem::take(&mut letter)));
            bytes = 0;
        }
        bytes += size;
        letter.push(one);
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
    fn much_news_is_sent_in_several_notifications_and_all_arrives() {
        let news: Vec<News> = (0..2_000).map(|client| News::Hint(Hint::Left { client })).collect();
        let letters = letters("node:8080", news.clone());
        assert!(letters.len() > 2 && letters.iter().all(|text| text.len() < 8_000));
        let read = |text: &String| serde_json::from_str::<Letter>(text).unwrap().news;
        assert_eq!(letters.iter().flat_map(read).collect::<Vec<_>>(), news);
        assert!(super::letters("a", Vec::new()).is_empty());
    }

    #[test]
    fn news_of_a_later_version_hides_no_other() {
        let text = r#"{"node":"b","news":[{"Weather":"fine"},{"Hint":{"Left":{"client":7}}}]}"#;
        let letter: Letter = serde_json::from_str(text).unwrap();
        assert_eq!(letter.news, [News::Hint(Hint::Left { client: 7 })]);
    }
}
