//! What the dispatcher knows of the account, as other nodes show it and as the next dispatcher starts with it. Times are
//! service time, so that they mean the same on every node.

use serde::{Deserialize, Serialize};

use super::{budget::BudgetMemo, gate::GateMemo, model::ModelMemo, reach::ReachMemo};
use crate::digest::ModelKey;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memo {
    pub(super) account: GateMemo,
    pub(super) models: Vec<(ModelKey, ModelMemo)>,
    pub(super) budget: Option<BudgetMemo>,
    pub(super) reach: Option<ReachMemo>,
    pub(super) is_exhausted: bool,
}
