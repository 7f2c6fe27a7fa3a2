//! The estimate of when the answer of a queued job comes: the figures for `outlook`, from the queue as it stands.

use super::{
    handles::{Inner, Queue},
    order::DEMOTED_SHARE,
    outlook::{self, Allowance, Figures, Outlook},
    service_time::Kind,
};
use crate::job::{Job, JobState};

/// A rush is expected to last this part longer of the time that it has lasted. Its end can't be known. Over the jobs of a
/// rush, half as long again makes the smallest median error: most of them come late in it.
const RUSH_GOES_ON: f64 = 0.5;

impl Queue {
    /// Why a queued job waits, and for how long. `None` for any other job; then `allowance` is not called. `kind` is the
    /// kind of its answer.
    pub fn outlook(&self, job: &Job, kind: &Kind, allowance: impl FnOnce() -> Allowance) -> Option<Outlook> {
        let JobState::Queued { .. } = job.state else { return None };
        let now = self.0.now();
        let own_time = self.0.service_time.whole(kind);
        if self.0.board.is_blocked(job.id) {
            return Some(outlook::behind_the_same(own_time));
        }
        let allowance = allowance();
        let (place, claims, background) = self.0.ahead_of(job, allowance);
        outlook::outlook(job, &Figures { place, own_time, ..self.0.figures(claims, background) }, allowance, now)
    }
}

impl Inner {
    /// How many jobs go before this one as things stand, how many are likely to be claimed before it, and of how many of
    /// those nobody waits for the answer.
    fn ahead_of(&self, job: &Job, allowance: Allowance) -> (usize, usize, usize) {
        let Inner { order, board, policy, .. } = self;
        if let Some(ahead) = order.ahead_of_job(job.id) {
            return (ahead, ahead, 0);
        }
        let (ahead, interactive) = (board.ahead_of(job), order.ready());
        // Those that clients wait for go first, wherever they stand.
        let all = (ahead.all + interactive).min(board.ready(None).saturating_sub(1)).max(ahead.all);
        let demoted = ahead.all.saturating_sub(ahead.background + interactive);
        let share = policy.background_share as usize;
        let demoted_share = share * DEMOTED_SHARE as usize;
        let (same, own_share) = if job.waited_for { (demoted, demoted_share) } else { (ahead.background, share) };
        // The jobs that are claimed before it if clients come on and on, so that its turn comes by its share.
        let by_share = (same + 1) * own_share - 1;
        let place = if interactive == 0 { all } else { all.min(by_share) };
        let Some(rush) = order.rush().filter(|_| interactive > 0) else {
            return (place, place, ahead.background.min(place));
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; saturates")]
        let in_rush = (rush.as_secs_f64() * RUSH_GOES_ON * self.claims_per_second(allowance)) as usize;
        let by_shares = ahead.background.min(in_rush / share) + demoted.min(in_rush / demoted_share);
        let claims = if by_share <= in_rush { by_share } else { in_rush + all.saturating_sub(by_shares) };
        (place, claims, ahead.background.min(claims))
    }

    /// How many jobs can be claimed in a second.
    pub(super) fn claims_per_second(&self, allowance: Allowance) -> f64 {
        let workers = self.policy.workers.min(allowance.calls_at_once);
        (workers as f64 / self.service_time.mean().as_secs_f64().max(1e-3)).min(allowance.calls_per_second)
    }

    /// The figures for a job before which so many are claimed, of which nobody waits for some.
    pub(super) fn figures(&self, ahead: usize, background: usize) -> Figures {
        let Inner { running, service_time, policy, .. } = self;
        let rest = |(kind, progress)| service_time.rest(&kind, progress);
        let mean = service_time.mean_of(ahead, background);
        Figures {
            place: ahead,
            ahead,
            running: running.progress().into_iter().map(rest).collect(),
            workers: policy.workers,
            service_time: mean,
            own_time: mean,
            is_paused: self.is_paused(),
        }
    }
}
