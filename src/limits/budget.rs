//! The daily budget, in tokens and money.
//!
//! The most that a call can need is *reserved* before it is made, until its end is in the ledger. A call is made only if what
//! was spent, what is reserved and its own need fit together, so the budget holds with any number of calls under way. At the
//! end of a day up to one call's `MAX_TOKENS` stay unused. What is at risk, in calls of unknown outcome, counts as spent.
//!
//! One exception: a call that needs more than the whole budget is made if nothing else was spent or is under way. Otherwise
//! its job would block the queue for ever.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    clock::{Clock, Moments, Timestamp},
    config::values::DailyBudget,
    job::AtRisk,
    ledger::{Day, Spending, dollars},
};

pub const WARN_PERCENT: u64 = 80;

/// A call that needs more per cent of the usual is large: if it does not fit, it alone waits. If a call of about the usual size
/// does not fit, hardly any other would, so the queue waits.
const LARGE_PERCENT: u64 = 125;

/// For so long, the queue waits for the call that did not fit. Its job may be cancelled meanwhile.
const PUT_OFF_FOR: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    pub tokens: u64,
    /// 0 for a model without a price.
    pub nanodollars: u64,
}

impl From<AtRisk> for Need {
    fn from(most: AtRisk) -> Need {
        let tokens = most.input_tokens.saturating_add(most.output_tokens);
        Need { tokens, nanodollars: most.nanodollars.unwrap_or(0) }
    }
}

impl Need {
    fn is_large_beside(self, usual: Need) -> bool {
        let is_large = |need: u64, usual: u64| need.saturating_mul(100) > usual.saturating_mul(LARGE_PERCENT);
        is_large(self.tokens, usual.tokens) || is_large(self.nanodollars, usual.nanodollars)
    }

    fn add(&mut self, other: Need) {
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.nanodollars = self.nanodollars.saturating_add(other.nanodollars);
    }

    fn subtract(&mut self, other: Need) {
        self.tokens = self.tokens.saturating_sub(other.tokens);
        self.nanodollars = self.nanodollars.saturating_sub(other.nanodollars);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Yes,
    /// The next permit will be for a call of this size.
    NotNow,
    /// Smaller calls may fit.
    TooLarge,
    /// Money is bounded, and the model has no price.
    NoPrice,
}

/// What is reserved, as the dispatcher tells other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct BudgetMemo {
    reserved: Need,
    /// What the call needs that was put off, and since when.
    next: Option<(Need, Timestamp)>,
}

pub struct Budget {
    daily: DailyBudget,
    usual: Need,
    clock: Clock,
    spending: Spending,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reserved: Need,
    /// What the next call needs, where one had to be put off for it, and when that was.
    next: Option<(Need, Instant)>,
    warned_on: Option<Day>,
    held_on: Option<Day>,
}

pub(super) struct Reservation {
    budget: Arc<Budget>,
    amount: Need,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub limit: u64,
    /// What was spent, and what may have been.
    pub spent: u64,
    pub reserved: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub tokens: Option<Line>,
    pub nanodollars: Option<Line>,
    /// The next call does not fit into what is left: the queue is held until the day turns.
    pub is_reached: bool,
    pub day_ends_at: Timestamp,
    pub day_ends_in: Duration,
}

impl Line {
    pub fn used(&self) -> f64 {
        self.spent as f64 / self.limit as f64
    }

    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.spent).saturating_sub(self.reserved)
    }

    fn is_nearly_used(&self) -> bool {
        u128::from(self.spent) * 100 >= u128::from(self.limit) * u128::from(WARN_PERCENT)
    }

    /// A need beyond the whole budget counts as the whole.
    fn fits(&self, need: u64, beside_reserved: bool) -> bool {
        let reserved = if beside_reserved { self.reserved } else { 0 };
        self.spent.saturating_add(reserved).saturating_add(need.min(self.limit)) <= self.limit
    }
}

impl Status {
    pub fn lines(&self) -> impl Iterator<Item = Line> {
        self.tokens.into_iter().chain(self.nanodollars)
    }

    pub fn is_nearly_used(&self) -> bool {
        self.lines().any(|line| line.is_nearly_used())
    }

    fn fits(&self, need: Need, beside_reserved: bool) -> bool {
        self.tokens.is_none_or(|line| line.fits(need.tokens, beside_reserved))
            && self.nanodollars.is_none_or(|line| line.fits(need.nanodollars, beside_reserved))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.tokens.map(|line| format!("{} of {} tokens", line.spent, line.limit));
        let cost =
            self.nanodollars.map(|line| format!("{:.2} of {:.2} US dollars", dollars(line.spent), dollars(line.limit)));
        f.write_str(&tokens.into_iter().chain(cost).collect::<Vec<_>>().join(" and "))
    }
}

impl Budget {
    pub fn new(daily: DailyBudget, usual: Need, clock: Clock, spending: Spending) -> Budget {
        Budget { daily, usual, clock, spending, state: Mutex::default() }
    }

    pub fn status(&self) -> Status {
        self.status_with(&self.state.lock())
    }

    fn status_with(&self, state: &State) -> Status {
        let now = self.clock.now();
        let day = Day::of(now);
        let spent = self.spending.on(day);
        let line = |limit: Option<u64>, spent, reserved| limit.map(|limit| Line { limit, spent, reserved });
        let mut status = Status {
            tokens: line(self.daily.tokens, spent.most_tokens(), state.reserved.tokens),
            nanodollars: line(self.daily.cost.map(|cost| cost.0), spent.most_nanodollars(), state.reserved.nanodollars),
            is_reached: false,
            day_ends_at: day.end(),
            day_ends_in: day.end().since(now),
        };
        status.is_reached = !status.fits(self.next(state), false);
        status
    }

    /// Keeps a part for the next call, whichever that is; none if there is not enough.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Reservation> {
        let mut state = self.state.lock();
        let status = self.status_with(&state);
        let need = self.next(&state);
        if status.fits(need, true) {
            state.reserved.add(need);
            return Some(Reservation { budget: Arc::clone(self), amount: need });
        }
        if status.is_reached {
            let today = Some(Day::of(self.clock.now()));
            if state.held_on != today {
                state.held_on = today;
                warn!(
                    budget.spent = %status, budget.opens_at = %status.day_ends_at,
                    "the daily budget is used up: the queue is blocked until midnight UTC"
                );
            }
        }
        None
    }

    /// Reserves what a call that is under way needs at most, whether it fits or not.
    pub(super) fn occupy(self: &Arc<Self>, most: AtRisk) -> Reservation {
        let amount = Need::from(most);
        self.state.lock().reserved.add(amount);
        Reservation { budget: Arc::clone(self), amount }
    }

    pub(super) fn memo(&self, moments: &Moments) -> BudgetMemo {
        let state = self.state.lock();
        BudgetMemo { reserved: state.reserved, next: state.next.map(|(need, at)| (need, moments.timestamp(at))) }
    }

    pub(super) fn adopt(&self, memo: BudgetMemo, moments: &Moments) {
        let mut state = self.state.lock();
        state.reserved = memo.reserved;
        state.next = memo.next.map(|(need, at)| (need, moments.instant(at)));
    }

    /// Reserves nothing any more. Calls that are under way are to be counted with [`Budget::occupy`].
    pub(super) fn release_all(&self) {
        self.state.lock().reserved = Need::default();
    }

    fn next(&self, state: &State) -> Need {
        let put_off = state.next.filter(|(_, at)| at.elapsed() < PUT_OFF_FOR);
        put_off.map_or(self.usual, |(need, _)| need)
    }

    fn warn(&self, state: &mut State) {
        let status = self.status_with(state);
        let today = Some(Day::of(self.clock.now()));
        if status.is_nearly_used() && state.warned_on != today {
            state.warned_on = today;
            warn!(budget.spent = %status, "{WARN_PERCENT} % of the daily budget is used");
        }
        if state.held_on.is_some() && state.held_on != today {
            state.held_on = None;
            info!("a new day: the queue continues");
        }
    }
}

impl Reservation {
    /// Changes it to the need of the call, if that fits.
    pub(super) fn adjust(&mut self, most: AtRisk) -> Room {
        if most.nanodollars.is_none() && self.budget.daily.cost.is_some() {
            return Room::NoPrice;
        }
        let need = Need::from(most);
        let mut state = self.budget.state.lock();
        state.reserved.subtract(self.amount);
        self.amount = Need::default();
        if self.budget.status_with(&state).fits(need, true) {
            state.next = None;
            self.amount = need;
            state.reserved.add(need);
            return Room::Yes;
        }
        if need.is_large_beside(self.budget.usual) {
            return Room::TooLarge;
        }
        state.next = Some((need, Instant::now()));
        Room::NotNow
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.reserved.subtract(self.amount);
        self.budget.warn(&mut state);
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("tokens", &self.amount.tokens).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::values::Nanodollars,
        ledger::{Risk, Spent, Sums},
    };

    /// The moment at which these tests begin.
    fn start() -> Timestamp {
        Timestamp::from_millis(1_795_428_600_000)
    }

    /// A budget beside the ledger that it is held to: what was spent on that day, and on no other.
    struct Desk {
        budget: Arc<Budget>,
        clock: Clock,
        spending: Spending,
    }

    fn desk(daily: DailyBudget, usual: Need) -> Desk {
        let clock = Clock::manual(start());
        let spending = Spending::default();
        let budget = Arc::new(Budget::new(daily, usual, clock.clone(), spending.clone()));
        Desk { budget, clock, spending }
    }

    fn tokens(tokens: u64) -> AtRisk {
        AtRisk { input_tokens: tokens, output_tokens: 0, nanodollars: None }
    }

    fn of_tokens(limit: u64, usual: u64) -> Desk {
        desk(DailyBudget { tokens: Some(limit), cost: None }, tokens(usual).into())
    }

    fn spend(desk: &Desk, tokens: u64) {
        let day = Day::of(start());
        let mut sums = desk.spending.on(day);
        sums.tokens.output_tokens += tokens;
        desk.spending.set(Spent { day, sums });
    }

    #[test]
    fn calls_under_way_have_their_part_reserved_and_what_they_do_not_need_is_there_again() {
        let desk = of_tokens(100, 30);
        let held: Vec<Reservation> = std::iter::from_fn(|| desk.budget.reserve()).collect();
        assert_eq!(held.len(), 3, "the fourth might not fit");
        assert!(!desk.budget.status().is_reached, "it may, once the others have ended");
        for reservation in held {
            spend(&desk, 10);
            drop(reservation);
        }
        assert_eq!(desk.budget.status().tokens.unwrap().left(), 70);
        let held: Vec<Reservation> = std::iter::from_fn(|| desk.budget.reserve()).collect();
        assert_eq!(held.len(), 2);
    }

    #[test]
    fn a_reached_budget_opens_when_the_day_turns() {
        let desk = of_tokens(100, 30);
        spend(&desk, 71);
        assert!(desk.budget.reserve().is_none());
        let status = desk.budget.status();
        assert!(status.is_reached && status.day_ends_at == Day::of(start()).end());
        desk.clock.advance(status.day_ends_in - Duration::from_millis(1));
        assert!(desk.budget.reserve().is_none(), "not a moment earlier");
        desk.clock.advance(Duration::from_millis(1));
        assert!(desk.budget.reserve().is_some() && !desk.budget.status().is_reached);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_put_off_and_never_comes_again_blocks_others_for_a_minute_only() {
        let desk = of_tokens(100, 10);
        spend(&desk, 89);
        assert_eq!(desk.budget.reserve().unwrap().adjust(tokens(12)), Room::NotNow);
        assert!(desk.budget.reserve().is_none() && desk.budget.status().is_reached);
        tokio::time::advance(PUT_OFF_FOR).await;
        assert!(desk.budget.reserve().is_some() && !desk.budget.status().is_reached);
    }

    #[test]
    fn a_call_too_large_for_what_is_left_is_put_off_alone_and_smaller_ones_go_on() {
        let desk = of_tokens(100, 10);
        let mut first = desk.budget.reserve().unwrap();
        assert_eq!(first.adjust(tokens(60)), Room::Yes);
        let mut second = desk.budget.reserve().unwrap();
        assert_eq!(second.adjust(tokens(50)), Room::TooLarge, "50 beside 60 are too many");
        drop(second);
        let small = desk.budget.reserve();
        assert!(small.is_some() && !desk.budget.status().is_reached);
        drop((first, small));
        let mut again = desk.budget.reserve().unwrap();
        assert_eq!(again.adjust(tokens(50)), Room::Yes);
    }

    #[test]
    fn a_call_larger_than_the_whole_budget_is_made_alone_on_a_fresh_day() {
        let desk = of_tokens(100, 10);
        let mut large = desk.budget.reserve().unwrap();
        assert_eq!(large.adjust(tokens(500)), Room::Yes);
        assert!(desk.budget.reserve().is_none(), "alone");
        drop(large);
        spend(&desk, 1);
        let mut large = desk.budget.reserve().unwrap();
        assert_eq!(large.adjust(tokens(500)), Room::TooLarge, "not on a day that has begun");
    }

    #[test]
    fn money_and_what_is_at_risk_count_too() {
        let daily = DailyBudget { tokens: Some(1_000_000), cost: Some(Nanodollars(100)) };
        let usual = Need { tokens: 1, nanodollars: 10 };
        let desk = desk(daily, usual);
        assert_eq!(desk.budget.reserve().unwrap().adjust(tokens(1)), Room::NoPrice);
        let at_risk = Risk { nanodollars: 45, ..Risk::default() };
        let sums = Sums { nanodollars: 46, at_risk, ..Sums::default() };
        desk.spending.set(Spent { day: Day::of(start()), sums });
        let status = desk.budget.status();
        assert!(status.is_reached && status.is_nearly_used());
        assert_eq!(status.to_string(), "0 of 1000000 tokens and 0.00 of 0.00 US dollars");
        assert_eq!(status.nanodollars.unwrap().used(), 0.91);
    }
}
