//! What calls cost: tokens and money by day and model. Pure sums; the store commits them together with the attempts.
//!
//! Two columns that are never mixed: what Claude *reported*, which is billed, and what is *at risk*: the most that calls of
//! unknown outcome (a crash, a cancelled call, a broken connection) may have cost. The true bill lies between the first and
//! the sum of both. Money is in whole nano-dollars (1e-9 $), so sums are exact.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    job::{AttemptReport, TokenUsage},
};

/// The newest days stay: a year and a month. Counted, and not from today, so that a wrong clock deletes nothing.
pub const DAYS_KEPT: usize = 400;

/// Stands for the model of an attempt that a crash ended: it is not on record.
pub const UNKNOWN_MODEL: &str = "unknown";

/// Stands for the models of a day beyond those that have sums of their own.
pub const OTHER_MODELS: &str = "other";

const DAY: Duration = Duration::from_hours(24);

/// A day of UTC, as in the Claude Console, by its number since 1970-01-01.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(u32);

impl Day {
    pub fn of(moment: Timestamp) -> Day {
        let days = u128::try_from(moment.as_millis()).unwrap_or(0) / DAY.as_millis();
        Day(u32::try_from(days).unwrap_or(u32::MAX))
    }

    pub fn from_number(number: u32) -> Day {
        Day(number)
    }

    pub fn number(self) -> u32 {
        self.0
    }

    pub fn start(self) -> Timestamp {
        self.end().minus(DAY)
    }

    pub fn end(self) -> Timestamp {
        let millis = DAY.as_millis() * (u128::from(self.0) + 1);
        Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
    }
}

/// As `2026-11-23`.
impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.start().date())
    }
}

/// Stored by position: never reorder, never remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Calls for which tokens were reported, whether or not their answer was of use.
    pub calls: u64,
    pub tokens: TokenUsage,
    /// What these cost, as far as the models have a price.
    pub nanodollars: u64,
    /// Calls of models without a price: their cost is not in the sum.
    pub unpriced_calls: u64,
    /// What may come on top.
    pub at_risk: Risk,
}

/// The most that calls of unknown end may have cost beyond what was reported of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Risk {
    pub calls: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Their cost, as far as it can be estimated.
    pub nanodollars: u64,
    /// Calls whose cost can't be, as their models have no price.
    pub unpriced_calls: u64,
}

impl Sums {
    /// What a call adds; `None` if it cost nothing and can't have.
    pub fn of(report: &AttemptReport) -> Option<Sums> {
        let tokens = report.usage.filter(|tokens| tokens.total() > 0);
        let mut sums = Sums::default();
        if let Some(tokens) = tokens {
            sums.calls = 1;
            sums.tokens = tokens;
            sums.nanodollars = report.nanodollars.unwrap_or(0);
            sums.unpriced_calls = u64::from(report.nanodollars.is_none());
        }
        if report.may_have_been_billed {
            let most = report.at_risk;
            let reported = tokens.unwrap_or_default();
            let input = reported.total_input();
            let beyond = |most: Option<u64>, reported: u64| most.unwrap_or(0).saturating_sub(reported);
            let cost = most.and_then(|most| most.nanodollars);
            sums.at_risk = Risk {
                calls: 1,
                input_tokens: beyond(most.map(|most| most.input_tokens), input),
                output_tokens: beyond(most.map(|most| most.output_tokens), reported.output_tokens),
                nanodollars: beyond(cost, sums.nanodollars),
                unpriced_calls: u64::from(cost.is_none()),
            };
        }
        (sums != Sums::default()).then_some(sums)
    }

    pub fn add(&mut self, other: &Sums) {
        self.tokens = self.tokens.plus(other.tokens);
        self.combine(other, u64::saturating_add);
    }

    /// What is beyond `other`.
    #[must_use]
    pub fn minus(mut self, other: &Sums) -> Sums {
        self.tokens = self.tokens.minus(other.tokens);
        self.combine(other, u64::saturating_sub);
        self
    }

    fn combine(&mut self, other: &Sums, combine: fn(u64, u64) -> u64) {
        let pairs = [
            (&mut self.calls, other.calls),
            (&mut self.nanodollars, other.nanodollars),
            (&mut self.unpriced_calls, other.unpriced_calls),
            (&mut self.at_risk.calls, other.at_risk.calls),
            (&mut self.at_risk.input_tokens, other.at_risk.input_tokens),
            (&mut self.at_risk.output_tokens, other.at_risk.output_tokens),
            (&mut self.at_risk.nanodollars, other.at_risk.nanodollars),
            (&mut self.at_risk.unpriced_calls, other.at_risk.unpriced_calls),
        ];
        for (sum, other) in pairs {
            *sum = combine(*sum, other);
        }
    }

    /// What counts against a budget.
    pub fn most_tokens(&self) -> u64 {
        let at_risk = self.at_risk.input_tokens.saturating_add(self.at_risk.output_tokens);
        self.tokens.total().saturating_add(at_risk)
    }

    /// What counts against a budget.
    pub fn most_nanodollars(&self) -> u64 {
        self.nanodollars.saturating_add(self.at_risk.nanodollars)
    }
}

/// What was spent on the newest day of the ledger, over all models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub day: Day,
    pub sums: Sums,
}

/// [`Spent`] as of the newest commit, for those who need it before each call. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Spending(Arc<RwLock<Spent>>);

impl Spending {
    pub fn on(&self, day: Day) -> Sums {
        let spent = *self.0.read();
        if spent.day == day { spent.sums } else { Sums::default() }
    }

    pub fn set(&self, spent: Spent) {
        *self.0.write() = spent;
    }
}

pub type ByModel = BTreeMap<String, Sums>;

/// Nano-dollars in US dollars; exact to the nano-dollar up to some nine million dollars.
pub fn dollars(nanodollars: u64) -> f64 {
    nanodollars as f64 / 1e9
}

pub fn total<'a>(sums: impl IntoIterator<Item = &'a Sums>) -> Sums {
    sums.into_iter().fold(Sums::default(), |mut total, sums| {
        total.add(sums);
        total
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaySums {
    pub day: Day,
    pub models: ByModel,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::AtRisk;

    fn usage(input_tokens: u64, output_tokens: u64) -> Option<TokenUsage> {
        Some(TokenUsage { input_tokens, output_tokens, ..TokenUsage::default() })
    }

    #[test]
    fn a_day_is_one_of_utc() {
        let day = Day::of(Timestamp::from_millis(1_795_428_600_120));
        assert_eq!(day.to_string(), "2026-11-23");
        assert_eq!(day.end().to_string(), "2026-11-24T00:00:00.000Z");
        assert_eq!(Day::of(day.end().minus(Duration::from_millis(1))), day);
        assert_eq!(Day::of(day.end()).number(), day.number() + 1);
        assert_eq!(Day::of(Timestamp::from_millis(-5)).to_string(), "1970-01-01");
    }

    #[test]
    fn what_was_reported_is_billed_whatever_became_of_the_attempt() {
        let report = AttemptReport { usage: usage(10, 2), nanodollars: Some(7), ..AttemptReport::default() };
        let sums = Sums::of(&report).unwrap();
        assert_eq!((sums.calls, sums.tokens.total(), sums.nanodollars, sums.unpriced_calls), (1, 12, 7, 0));
        assert_eq!(sums.at_risk, Risk::default());
        assert_eq!(Sums::of(&AttemptReport::default()), None);
    }

    #[test]
    fn of_a_call_of_unknown_end_what_was_reported_is_billed_and_the_rest_at_risk() {
        let at_risk = Some(AtRisk { input_tokens: 100, output_tokens: 50, nanodollars: Some(900) });
        let report = AttemptReport {
            usage: usage(80, 1),
            nanodollars: Some(200),
            may_have_been_billed: true,
            at_risk,
            ..AttemptReport::default()
        };
        let sums = Sums::of(&report).unwrap();
        assert_eq!((sums.tokens.total(), sums.nanodollars), (81, 200));
        let Risk { calls, input_tokens, output_tokens, nanodollars, unpriced_calls } = sums.at_risk;
        assert_eq!((calls, input_tokens, output_tokens, nanodollars, unpriced_calls), (1, 20, 49, 700, 0));
        assert_eq!((sums.most_tokens(), sums.most_nanodollars()), (150, 900));
    }

    #[test]
    fn a_model_without_a_price_is_counted_as_such_and_not_as_free() {
        let at_risk = Some(AtRisk { input_tokens: 9, output_tokens: 9, nanodollars: None });
        let known = AttemptReport { usage: usage(1, 1), ..AttemptReport::default() };
        let unknown = AttemptReport { may_have_been_billed: true, at_risk, ..AttemptReport::default() };
        let sums = total(&[Sums::of(&known).unwrap(), Sums::of(&unknown).unwrap()]);
        assert_eq!((sums.unpriced_calls, sums.at_risk.unpriced_calls, sums.most_nanodollars()), (1, 1, 0));
        assert_eq!(sums.most_tokens(), 20);
    }

    #[test]
    fn sums_that_no_bill_will_reach_do_not_overflow() {
        let most = AttemptReport {
            usage: usage(u64::MAX, u64::MAX),
            nanodollars: Some(u64::MAX),
            may_have_been_billed: true,
            ..AttemptReport::default()
        };
        let sums = Sums::of(&most).unwrap();
        assert_eq!(total(&[sums, sums]).most_tokens(), u64::MAX);
    }
}
