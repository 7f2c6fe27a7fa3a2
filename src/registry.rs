//! Settings that are made while the service runs: API keys, sessions, the pause, rotated secrets, the history. Each is a
//! JSON text under a name. Apart from jobs.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use tracing::error;

use crate::store::{self, StoreError};

/// The settings. Clones are handles to the same ones.
#[derive(Clone)]
pub struct Registry(Arc<dyn store::Registry>);

/// The store can't be used at the moment. The text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

impl From<StoreError> for Unavailable {
    fn from(error: StoreError) -> Unavailable {
        Unavailable(error.to_string())
    }
}

impl Registry {
    pub fn new(store: Arc<dyn store::Registry>) -> Registry {
        Registry(store)
    }

    /// The settings whose names begin with `prefix`, by the rest of their names. One that can't be read is logged and left
    /// out.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn load<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, Unavailable> {
        let stored = self.0.prefix(prefix).await?.into_iter();
        let read = |(name, text): (String, String)| {
            let value = serde_json::from_str(&text);
            let value =
                value.inspect_err(|error| error!(name, %error, "failed to read a stored setting; it is left out"));
            Some((name.strip_prefix(prefix)?.to_owned(), value.ok()?))
        };
        Ok(stored.filter_map(read).collect())
    }

    /// The setting of this name.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Unavailable> {
        let stored = self.load(name).await?.into_iter();
        Ok(stored.filter(|(rest, _)| rest.is_empty()).map(|(_, value)| value).next())
    }

    /// Saves a setting: it is durable when this returns.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn put(&self, name: String, value: &impl Serialize) -> Result<(), Unavailable> {
        let text = serde_json::to_string(value).map_err(|error| Unavailable(error.to_string()))?;
        Ok(self.0.put(name, text).await?)
    }

    /// Removes a setting, if there is one of this name.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn delete(&self, name: String) -> Result<(), Unavailable> {
        Ok(self.0.delete(name).await?)
    }
}
