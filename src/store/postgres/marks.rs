//! Some settings must be the same on all nodes of a database. A node shows 12 bits of a digest of each in the name of its
//! connections, so that the others can compare them and nobody can find a secret by them.

use std::borrow::Cow;

use crate::digest::sha256;

/// Hexadecimal digits of a setting's mark. The name of a connection has room for 21.
const DIGITS: usize = 3;

/// Settings that nodes must have in common: names and values.
pub type CommonSettings<'a> = [(&'static str, Cow<'a, str>)];

/// The name of the settings, and the marks of their values, one after the other.
pub(super) struct Marks {
    names: Vec<&'static str>,
    text: String,
}

impl Marks {
    pub(super) fn new(settings: &CommonSettings<'_>) -> Marks {
        let mark = |(name, value): &(&str, Cow<'_, str>)| {
            let [a, b, ..] = sha256(&[b"ceoagent ", name.as_bytes(), b"=", value.as_bytes()]);
            format!("{a:02x}{:x}", b >> 4)
        };
        Marks { names: settings.iter().map(|(name, _)| *name).collect(), text: settings.iter().map(mark).collect() }
    }

    /// The name of a node's connections. PostgreSQL cuts it after 63 bytes.
    pub(super) fn connection_name(&self, node: &str) -> String {
        format!("ceoagent {node} {}", if self.text.is_empty() { "-" } else { &self.text })
    }

    /// The settings that differ on a node whose connections have this name.
    pub(super) fn differing(&self, connection_name: &str) -> Vec<&'static str> {
        let other = connection_name.rsplit(' ').next().unwrap_or_default();
        // Of a command that has none of these settings.
        if other.len() != self.text.len() {
            return Vec::new();
        }
        let pairs = self.text.as_bytes().chunks(DIGITS).zip(other.as_bytes().chunks(DIGITS));
        self.names.iter().zip(pairs).filter(|(_, (own, other))| own != other).map(|(name, _)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_names_the_settings_in_which_another_differs_and_shows_no_secret() {
        let own = Marks::new(&[("ADMIN_TOKEN", "a long secret".into()), ("ANTHROPIC_API_KEY", "key".into())]);
        let other = Marks::new(&[("ADMIN_TOKEN", "another secret".into()), ("ANTHROPIC_API_KEY", "key".into())]);
        let node = "0190a5c5c4b97f3c8f0a5f3f6a2b1c4d";
        let name = other.connection_name(node);
        assert!(name.len() <= 63 && !name.contains("secret"), "{name}");
        assert_eq!(own.differing(&name), ["ADMIN_TOKEN"]);
        assert_eq!(own.differing(&own.connection_name(node)), [""; 0]);
        assert_eq!(own.differing(&Marks::new(&[]).connection_name(node)), [""; 0], "a command is not a node");
    }
}
