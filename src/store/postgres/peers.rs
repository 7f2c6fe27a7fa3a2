//! What all nodes of a database must have in common: their time, which is the database's, and some settings.
//!
//! A node shows 16 bits of a digest of each of these settings in the name of its connections, so that the others can compare
//! them and nobody can find a secret by them. A difference is only warned of: these settings are also changed node by node.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::shared::Shared;
use crate::{clock::Timestamp, digest::sha256};

const PAUSE: Duration = Duration::from_secs(10);

/// Hexadecimal digits of a setting's mark.
const DIGITS: usize = 4;

/// Settings that nodes must have in common: names and values.
pub type CommonSettings<'a> = [(&'static str, &'a str)];

/// The name of the settings, and the marks of their values, one after the other.
pub(super) struct Marks {
    names: Vec<&'static str>,
    text: String,
}

impl Marks {
    pub(super) fn new(settings: &CommonSettings<'_>) -> Marks {
        let mark = |(name, value): &(&str, &str)| {
            let [a, b, ..] = sha256(&[b"ceoagent ", name.as_bytes(), b"=", value.as_bytes()]);
            format!("{a:02x}{b:02x}")
        };
        Marks { names: settings.iter().map(|(name, _)| *name).collect(), text: settings.iter().map(mark).collect() }
    }

    /// The name of a node's connections. PostgreSQL cuts it after 63 bytes.
    pub(super) fn connection_name(&self, node: &str) -> String {
        format!("ceoagent {node} {}", if self.text.is_empty() { "-" } else { &self.text })
    }

    /// The settings that differ on a node whose connections have this name.
    fn differing(&self, connection_name: &str) -> Vec<&'static str> {
        let other = connection_name.rsplit(' ').next().unwrap_or_default();
        // Of a command that has none of these settings.
        if other.len() != self.text.len() {
            return Vec::new();
        }
        let pairs = self.text.as_bytes().chunks(DIGITS).zip(other.as_bytes().chunks(DIGITS));
        self.names.iter().zip(pairs).filter(|(_, (own, other))| own != other).map(|(name, _)| *name).collect()
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_names_the_settings_in_which_another_differs_and_shows_no_secret() {
        let own = Marks::new(&[("ADMIN_TOKEN", "a long secret"), ("ANTHROPIC_API_KEY", "key")]);
        let other = Marks::new(&[("ADMIN_TOKEN", "another secret"), ("ANTHROPIC_API_KEY", "key")]);
        let node = "0190a5c5c4b97f3c8f0a5f3f6a2b1c4d";
        let name = other.connection_name(node);
        assert!(name.len() <= 63 && !name.contains("secret"), "{name}");
        assert_eq!(own.differing(&name), ["ADMIN_TOKEN"]);
        assert_eq!(own.differing(&own.connection_name(node)), [""; 0]);
        assert_eq!(own.differing(&Marks::new(&[]).connection_name(node)), [""; 0], "a command is not a node");
    }
}
