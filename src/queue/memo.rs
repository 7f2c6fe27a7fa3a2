//! What the dispatcher knows of the attempts under way and of how long they last, as other nodes show it and as the next
//! dispatcher starts with it.

use serde::{Deserialize, Serialize};

use super::{handles::Operations, running::AttemptMemo, service_time::Times};
use crate::clock::{Moments, Timestamp};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memo {
    attempts: Vec<AttemptMemo>,
    /// Since when more clients come than can be answered in time, and when that last showed.
    rush: Option<(Timestamp, Timestamp)>,
}

impl Operations {
    pub fn memo(&self, moments: &Moments) -> Memo {
        Memo { attempts: self.0.running.memo(moments), rush: self.0.order.rush_memo(moments) }
    }

    /// Takes over what the dispatcher knows. For the other nodes.
    pub fn adopt(&self, memo: Memo, moments: &Moments) {
        // The board hears of ends sooner than the memo.
        let is_running = |attempt: &AttemptMemo| self.0.board.get(attempt.job).is_some_and(|job| job.is_running());
        let attempts = memo.attempts.into_iter().filter(is_running).collect();
        self.0.running.adopt(attempts, moments);
        self.0.order.adopt_rush(memo.rush, moments);
    }

    /// How long attempts last, by what was seen of them.
    pub fn times(&self) -> Times {
        self.0.service_time.times()
    }

    pub fn adopt_times(&self, times: Times) {
        self.0.service_time.adopt(times);
    }
}
