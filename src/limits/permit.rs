//! Permission to make one call, and its part of the daily budget.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{
    budget::{Reservation, Room},
    gate::Refusal,
    model::Tokens,
    state::{Inner, Reserved},
};
use crate::{
    digest::{Lane, ModelKey},
    job::{AtRisk, FailureCode},
};

const PROBE_POLL: Duration = Duration::from_secs(1);

/// Permission to make one call. A permit that is dropped unsettled counts as not used.
#[derive(Debug)]
pub struct Permit {
    pub(super) shared: Arc<Inner>,
    /// A call of each model whose job may be claimed; once the call is known, of its model alone.
    pub(super) reserved: Vec<Reserved>,
    pub(super) lanes: Vec<Lane>,
    pub(super) signal: Option<oneshot::Receiver<()>>,
    pub(super) used: Option<Tokens>,
    pub(super) bytes: Option<usize>,
    pub(super) is_account_probe: bool,
    pub(super) share: Option<BudgetShare>,
}

/// A call's part of the daily budget. Drop it when the ledger has the cost of the call, and not before.
#[derive(Debug)]
pub struct BudgetShare {
    pub(super) shared: Arc<Inner>,
    // Dropped before those who wait are woken.
    pub(super) reservation: Option<Reservation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotNow {
    pub after: Duration,
    pub code: Option<FailureCode>,
}

impl Permit {
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Waits until the call may be made. False if it must not be made, because Claude refused others meanwhile.
    pub async fn ready(&mut self) -> bool {
        match self.signal.take() {
            Some(signal) => signal.await.is_ok(),
            None => true,
        }
    }

    pub fn is_probe(&self) -> bool {
        self.is_account_probe || self.reserved.iter().any(|one| one.is_probe)
    }

    /// Called once the call is known. Returns the reservations of other models, and reserves the likely need of so many bytes.
    /// Fails if the model is not reserved and can't be called now.
    pub fn expect(&mut self, model: &str, bytes: usize) -> Result<(), NotNow> {
        let (key, now) = (ModelKey::of(model), Instant::now());
        let mut state = self.shared.state.lock();
        let own = match self.reserved.iter().position(|one| one.key == key) {
            Some(place) => self.reserved.swap_remove(place),
            None => {
                let gate = &mut state.named(model).gate;
                let is_probe = gate.admit(now).map_err(|refusal| NotNow {
                    after: if let Refusal::For(wait) = refusal { wait } else { PROBE_POLL },
                    code: gate.closed(now).map(|closed| closed.code),
                })?;
                state.reserve(key, is_probe).map_err(|after| NotNow { after, code: None })?
            }
        };
        for other in self.reserved.drain(..) {
            state.end(&other, None, false, now);
        }
        let taken = state.named(model).expect(own.taken, bytes);
        self.reserved.push(Reserved { taken, ..own });
        self.bytes = Some(bytes);
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    pub fn make_room(&mut self, most: AtRisk) -> Room {
        let reservation = self.share.as_mut().and_then(|share| share.reservation.as_mut());
        reservation.map_or(Room::Yes, |reservation| reservation.adjust(most))
    }

    pub fn budget_share(&mut self) -> Option<BudgetShare> {
        self.share.take()
    }

    /// Unknown tokens count as reserved. A failure does not change what calls usually need.
    pub fn settle_failed(mut self, tokens: Option<Tokens>) {
        self.used = Some(tokens.unwrap_or_else(|| self.taken()));
    }

    pub fn settle(self, took: Duration, tokens: Option<Tokens>) {
        if let Some(own) = self.reserved.first() {
            let mut state = self.shared.state.lock();
            let model = state.model(own.key);
            model.learn_seconds(took);
            if let Some(tokens) = tokens.filter(|tokens| *tokens != Tokens::default()) {
                model.learn_tokens(tokens, self.bytes);
            }
        }
        self.settle_failed(tokens);
    }

    /// The call that was expected was not made. If it was a probe, the next one need not wait.
    pub fn return_unused(mut self) {
        self.bytes = None;
    }

    /// Its call has to wait for another to end.
    pub fn is_ahead(&self) -> bool {
        self.signal.is_some()
    }

    pub(super) fn taken(&self) -> Tokens {
        self.reserved.first().map(|own| own.taken).unwrap_or_default()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (inner, now) = (&self.shared, Instant::now());
        drop(self.signal.take());
        let is_probe = self.is_probe();
        let was_made = self.bytes.is_some() || self.used.is_some();
        let mut state = inner.state.lock();
        state.permits -= 1;
        for one in self.reserved.drain(..) {
            state.end(&one, self.used, was_made, now);
        }
        if self.is_account_probe {
            state.account.end_probe(was_made, now);
        }
        state.release_ahead();
        drop(state);
        // Callers that wait for the end of a probe have to look at the clock again.
        if is_probe { inner.changed.notify_waiters() } else { inner.changed.notify_one() }
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.reservation = None;
        self.shared.changed.notify_one();
    }
}
