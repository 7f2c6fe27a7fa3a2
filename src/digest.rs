//! SHA-256, by the cryptography that TLS brings along.

use std::num::NonZeroU32;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// A short digest of a model's name: all jobs are in memory, and each may name a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelKey(NonZeroU32);

/// The model that a job names; `None` if the service chooses.
pub type Lane = Option<ModelKey>;

impl ModelKey {
    /// The key of the model of this name.
    pub fn of(model: &str) -> ModelKey {
        let [a, b, c, d, ..] = sha256(&[model.as_bytes()]);
        ModelKey(NonZeroU32::new(u32::from_be_bytes([a, b, c, d])).unwrap_or(NonZeroU32::MIN))
    }
}

/// The digest of `parts`, one after the other.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}
