//! Permission to make one call, and the call's part of the daily budget.

use std::time::Duration;

use tokio::{sync::oneshot, time::Instant};

use super::{
    Limits, Tokens,
    budget::{Need, PutOff, Reservation},
    gate::Admission,
};
use crate::digest::{Lane, ModelKey};

/// How long a job waits for the probe of another to end.
const PROBE_POLL: Duration = Duration::from_secs(1);

/// Permission to make one call. Settle it with what the call needed; one that is dropped unsettled counts as not used.
#[derive(Debug)]
pub struct Permit {
    limits: Limits,
    /// A call of each model whose job may be claimed; once the call is known, of its model alone.
    reserved: Vec<Reserved>,
    /// The lanes whose jobs may be claimed.
    lanes: Vec<Lane>,
    /// Tells when the call may be made, if not yet.
    turn: Option<oneshot::Receiver<()>>,
    /// None: not used.
    used: Option<Tokens>,
    /// Bytes of the call, once it is known.
    bytes: Option<usize>,
    /// The call finds out whether the account's gate can be opened.
    is_account_probe: bool,
    kept: Option<Kept>,
}

/// A call of a model that nobody else can make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    pub(super) key: ModelKey,
    pub(super) taken: Tokens,
    /// The call finds out whether the model's gate can be opened.
    pub(super) is_probe: bool,
}

/// A call's part of the daily budget. To be dropped once the ledger has what the call cost, and not before.
#[derive(Debug)]
pub struct Kept {
    limits: Limits,
    // Dropped before the waiting workers are woken.
    reservation: Option<Reservation>,
}

/// Whether the daily budget has room for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It has, and so much is kept for it.
    Yes,
    /// Not now, and the next permit will be for a call of this size.
    NotNow,
    /// Not for a call of this size: smaller ones may fit.
    TooLarge,
    /// Nobody can tell: money is bounded, and the model has no price.
    NoPrice,
}

/// Why the call of a permit can't be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotNow {
    /// When it may be.
    pub after: Duration,
    /// What the model's gate is closed for, if it is.
    pub reason: Option<&'static str>,
}

impl Permit {
    pub(super) fn new(
        limits: Limits,
        reserved: Vec<Reserved>,
        lanes: Vec<Lane>,
        turn: Option<oneshot::Receiver<()>>,
        is_account_probe: bool,
        reservation: Option<Reservation>,
    ) -> Permit {
        let kept = reservation.map(|reservation| Kept { limits: limits.clone(), reservation: Some(reservation) });
        Permit { limits, reserved, lanes, turn, used: None, bytes: None, is_account_probe, kept }
    }

    /// The lanes of which a job may be claimed.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Waits until the call may be made. False if it must not be, as Claude has turned others away meanwhile.
    pub async fn turn(&mut self) -> bool {
        match self.turn.take() {
            Some(turn) => turn.await.is_ok(),
            None => true,
        }
    }

    /// Whether the call finds out if a closed gate can be opened.
    pub fn is_probe(&self) -> bool {
        self.is_account_probe || self.reserved.iter().any(|one| one.is_probe)
    }

    /// Now that the call is known, gives the reservations of other models back, and takes what its input is likely to need
    /// instead of what is usual: as many tokens as the model has needed for so many bytes. If that is too little, later calls
    /// make up for it, so the limit holds over time.
    /// Errors: Where nothing is reserved of the model and it can't be called now.
    pub fn expect(&mut self, model: &str, bytes: usize) -> Result<(), NotNow> {
        let (key, now) = (ModelKey::of(model), Instant::now());
        let mut state = self.limits.0.state.lock();
        let place = self.reserved.iter().position(|one| one.key == key);
        let own = match place {
            Some(place) => self.reserved.swap_remove(place),
            None => {
                let known = state.named(model);
                let is_probe = match known.gate.admit(now) {
                    Admission::Open => false,
                    Admission::Probe => true,
                    closed => {
                        let after = if let Admission::Wait(wait) = closed { wait } else { PROBE_POLL };
                        return Err(NotNow { after, reason: known.gate.closed(now).map(|closed| closed.reason) });
                    }
                };
                state.reserve(key, is_probe).map_err(|after| NotNow { after, reason: None })?
            }
        };
        for other in std::mem::take(&mut self.reserved) {
            state.unreserve(other, now);
        }
        let taken = state.named(model).expect(own.taken, bytes);
        self.reserved.push(Reserved { taken, ..own });
        self.bytes = Some(bytes);
        drop(state);
        self.limits.0.changed.notify_one();
        Ok(())
    }

    /// Keeps the call's part of the daily budget, now that it is known which call it is; `need` is what it needs at most.
    pub fn make_room(&mut self, need: impl FnOnce() -> Need) -> Room {
        let Some(reservation) = self.kept.as_mut().and_then(|kept| kept.reservation.as_mut()) else { return Room::Yes };
        let need = need();
        if need.nanodollars.is_none() && reservation.needs_price() {
            return Room::NoPrice;
        }
        match reservation.adjust(need) {
            Ok(()) => Room::Yes,
            Err(PutOff::Queue) => Room::NotNow,
            Err(PutOff::Call) => Room::TooLarge,
        }
    }

    /// The call's part of the daily budget, to be kept for longer than the permit; none without a budget.
    pub fn keep(&mut self) -> Option<Kept> {
        self.kept.take()
    }

    /// The call failed and needed so many tokens; if that is not known, it counts with what was taken for it. A failure
    /// says nothing of what calls usually need.
    pub fn settle_failed(mut self, tokens: Option<Tokens>) {
        self.used = Some(tokens.unwrap_or_else(|| self.taken()));
    }

    /// The call took so long and needed so many tokens; if these are not known, it counts with what was taken for it.
    pub fn settle(mut self, took: Duration, tokens: Option<Tokens>) {
        self.used = Some(tokens.unwrap_or_else(|| self.taken()));
        let Some(own) = self.reserved.first() else { return };
        let mut state = self.limits.0.state.lock();
        let model = state.model(own.key);
        model.learn_seconds(took);
        if let Some(tokens) = tokens.filter(|tokens| *tokens != Tokens::default()) {
            model.learn_tokens(tokens, self.bytes);
        }
    }

    /// Whether the call waits for another to end.
    #[cfg(test)]
    pub(super) fn is_ahead(&self) -> bool {
        self.turn.is_some()
    }

    /// What was taken for the call.
    pub(super) fn taken(&self) -> Tokens {
        self.reserved.first().map(|own| own.taken).unwrap_or_default()
    }
}

impl super::State {
    /// Gives back a call that is not made.
    fn unreserve(&mut self, reserved: Reserved, now: Instant) {
        let model = self.model(reserved.key);
        model.give_back(reserved.taken);
        model.under_way -= 1;
        if reserved.is_probe {
            model.gate.end_probe(false, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (inner, now) = (&self.limits.0, Instant::now());
        drop(self.turn.take());
        let is_probe = self.is_probe();
        let is_known = self.bytes.is_some() || self.used.is_some();
        let mut state = inner.state.lock();
        state.permits -= 1;
        for one in std::mem::take(&mut self.reserved) {
            match self.used {
                None if !is_known => state.unreserve(one, now),
                used => {
                    let model = state.model(one.key);
                    match used {
                        None => model.give_back(one.taken),
                        Some(used) => model.settle(one.taken, used),
                    }
                    model.under_way -= 1;
                    if one.is_probe {
                        model.gate.end_probe(true, now);
                    }
                }
            }
        }
        if self.is_account_probe {
            state.account.end_probe(is_known, now);
        }
        state.give_turns();
        drop(state);
        // Whoever waits for a probe to end has to look at the clock again.
        if is_probe { inner.changed.notify_waiters() } else { inner.changed.notify_one() }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.reservation = None;
        self.limits.0.changed.notify_one();
    }
}
