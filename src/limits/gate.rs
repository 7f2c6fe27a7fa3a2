//! The gate: stops calls while all of them would fail alike, and finds out when that is over.
//!
//! A failure that concerns every call closes the gate: for a time (a rate limit), or until a call is answered (a refused key).
//! One question alone never closes it for long:
//!
//! ```text
//!  open ──block, enough different questions met it──▶ closed ──its time is over, or a probe is answered──▶ open
//!    └──block, too few──▶ only that job is set aside    └──a probe fails──▶ closed, next probe later
//! ```
//!
//! - While it is closed, one call at a time probes. The probe takes another job than the one that closed the gate, because
//!   that job is released until after the probe.
//! - If only one question met the failure, the first probe follows after [`FIRST_PROBE`]; else after [`BLOCK_PAUSE`], or at the end of
//!   the rate limit. A question that a probe disproved closes the gate again only together with another.
//! - A failure that may be the fault of one question (a firewall's page, an unknown 400) needs two or three questions.
//!
//! Pure: the time is passed in.

use std::{collections::VecDeque, time::Duration};

use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

/// Pause between probes if several questions met the failure and only a person can end it.
pub(super) const BLOCK_PAUSE: Duration = Duration::from_secs(30);

/// Pause before the first probe if only one question met the failure.
const FIRST_PROBE: Duration = Duration::from_secs(1);

/// The random part of a closing, so that callers of one account do not all come back at once.
const JITTER: f64 = 0.1;

/// Most failures since the last answer that are remembered: more than any block needs.
const MAX_MET: usize = 64;

/// Most questions that are remembered as proved wrong, the newest.
const MAX_DISPROVED: usize = 256;

/// A failure that every call may meet.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// A stable snake_case word: what for.
    pub reason: &'static str,
    /// What the upstream said.
    pub detail: &'a str,
    /// The same for failures that count as one.
    pub signature: u64,
    /// The question that met it.
    pub question: u64,
    /// How many different questions must have met it since the last answer.
    pub witnesses: usize,
    /// It ends by itself after so long; `None`: a person must act.
    pub opens_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// The gate is closed.
    Closed {
        /// It was open, or closed for another reason.
        is_news: bool,
        /// When the next call is made, by another question.
        probe_in: Duration,
    },
    /// Too few questions met it: it concerns this one alone until others do.
    Alone,
}

/// The closed gate.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Gate)]
pub struct Closed {
    /// When it opens by itself; `None`: it is held until a call is answered.
    #[serde(skip)]
    pub opens_at: Option<Instant>,
    /// Stable code of the reason.
    pub reason: &'static str,
    /// Claude's message.
    pub detail: String,
    #[serde(skip)]
    since: Instant,
    #[serde(skip)]
    next_probe: Instant,
    /// Probes that failed.
    #[serde(skip)]
    probes: u32,
}

impl Closed {
    /// How long until it opens by itself; none if a call must be answered first.
    pub fn opens_in(&self, now: Instant) -> Option<Duration> {
        self.opens_at.map(|at| at.saturating_duration_since(now))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Open,
    /// As a probe: see [`Gate::begin_probe`].
    Probe,
    /// Not before so long.
    Wait(Duration),
    /// Not before the probe under way has ended.
    Probing,
}

#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: Option<Closed>,
    is_probing: bool,
    /// Signatures and questions of the failures since the last answer.
    met: Vec<(u64, u64)>,
    /// Questions whose failure closed the gate while others were answered.
    disproved: VecDeque<u64>,
}

impl Gate {
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        let Some(closed) = self.closed(now) else { return Admission::Open };
        let (opens_at, next_probe) = (closed.opens_at, closed.next_probe);
        match () {
            () if self.is_probing => opens_at.map_or(Admission::Probing, |at| Admission::Wait(at - now)),
            () if next_probe <= now => Admission::Probe,
            () => Admission::Wait(next_probe - now),
        }
    }

    pub(super) fn closed(&mut self, now: Instant) -> Option<&Closed> {
        self.closed.take_if(|closed| closed.opens_at.is_some_and(|at| at <= now));
        self.closed.as_ref()
    }

    pub(super) fn begin_probe(&mut self) {
        self.is_probing = true;
    }

    /// The probe has ended. One that was `made` and changed nothing is followed by the next after a pause.
    pub(super) fn end_probe(&mut self, made: bool, now: Instant) {
        self.is_probing = false;
        if let Some(closed) = self.closed.as_mut().filter(|closed| made && closed.next_probe <= now) {
            closed.probes += 1;
            closed.next_probe = now + quick(closed.probes);
        }
    }

    /// A call met a failure that may concern all. `random` in 0..1 is the jitter.
    pub(super) fn block(&mut self, block: &Block<'_>, now: Instant, random: f64) -> Ruling {
        let witness = (block.signature, block.question);
        if !self.met.contains(&witness) {
            if self.met.len() == MAX_MET {
                self.met.remove(0);
            }
            self.met.push(witness);
        }
        let met_by = self.met.iter().filter(|(signature, _)| *signature == block.signature).count();
        let is_disproved = self.disproved.contains(&block.question);
        let needed = if is_disproved { block.witnesses.max(2) } else { block.witnesses };
        if met_by < needed {
            return Ruling::Alone;
        }
        let probes = self.closed(now).map_or(0, |closed| closed.probes + 1);
        let stretch = 1.0 + JITTER * random;
        let opens_at = block.opens_after.map(|time| now + time.mul_f64(stretch));
        let pause = match opens_at {
            _ if met_by == 1 => FIRST_PROBE,
            Some(at) => at - now,
            None if needed > 1 => quick(probes),
            None => BLOCK_PAUSE.mul_f64(stretch),
        };
        let next_probe = opens_at.map_or(now + pause, |at| at.min(now + pause));
        let is_news = self.closed.as_ref().is_none_or(|closed| closed.reason != block.reason);
        match (&mut self.closed, opens_at) {
            // A limit ends nothing that a person must end, and a shorter one no longer one.
            (Some(closed), Some(_)) if closed.opens_at.is_none_or(|at| Some(at) > opens_at) => {
                let at = closed.opens_at.filter(|_| met_by > 1).unwrap_or(next_probe);
                closed.next_probe = closed.next_probe.max(at);
                closed.probes = probes;
            }
            _ => {
                let since = self.closed.as_ref().map_or(now, |closed| closed.since);
                let (reason, detail) = (block.reason, block.detail.to_owned());
                self.closed = Some(Closed { opens_at, reason, detail, since, next_probe, probes });
            }
        }
        let ends_at = self.closed.as_ref().map_or(next_probe, |closed| closed.opens_at.unwrap_or(closed.next_probe));
        Ruling::Closed { is_news, probe_in: ends_at.saturating_duration_since(now) }
    }

    /// A call that began at `begun` was answered. Returns whether that opened the gate.
    pub(super) fn answered(&mut self, question: u64, begun: Instant) -> bool {
        self.disproved.retain(|known| *known != question);
        let Some(closed) = &self.closed else {
            self.met.clear();
            return false;
        };
        if begun < closed.since {
            return false;
        }
        for (_, other) in std::mem::take(&mut self.met) {
            if other != question && !self.disproved.contains(&other) {
                if self.disproved.len() == MAX_DISPROVED {
                    self.disproved.pop_front();
                }
                self.disproved.push_back(other);
            }
        }
        self.closed = None;
        true
    }
}

/// The pause before probe number `probes` where another question is likely to be answered.
fn quick(probes: u32) -> Duration {
    FIRST_PROBE.saturating_mul(1 << probes.min(8)).min(BLOCK_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn hold(question: u64, witnesses: usize) -> Block<'static> {
        let detail = "no";
        let (reason, signature) = ("permission_denied", 403);
        Block { reason, detail, signature, question, witnesses, opens_after: None }
    }

    fn limit(question: u64, seconds: u64) -> Block<'static> {
        let opens_after = Some(Duration::from_secs(seconds));
        Block { reason: "rate_limited", signature: 429, opens_after, ..hold(question, 1) }
    }

    /// A probe of a closed gate, which must be due.
    fn probe(gate: &mut Gate, now: Instant) {
        assert_eq!(gate.admit(now), Admission::Probe);
        gate.begin_probe();
        assert!(matches!(gate.admit(now), Admission::Probing | Admission::Wait(_)), "one at a time");
    }

    fn closed_for(ruling: Ruling) -> Duration {
        let Ruling::Closed { probe_in, .. } = ruling else { panic!("not closed") };
        probe_in
    }

    #[test]
    fn what_one_question_met_is_probed_after_a_second_and_what_two_met_after_a_hold() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        assert_eq!(gate.block(&hold(1, 1), now, 0.0), Ruling::Closed { is_news: true, probe_in: SECOND });
        assert_eq!(gate.admit(now), Admission::Wait(SECOND));
        probe(&mut gate, now + SECOND);
        assert_eq!(
            gate.block(&hold(2, 1), now + SECOND, 0.0),
            Ruling::Closed { is_news: false, probe_in: BLOCK_PAUSE }
        );
        gate.end_probe(true, now + SECOND);
        assert_eq!(gate.admit(now + SECOND), Admission::Wait(BLOCK_PAUSE));
        assert!(gate.answered(3, now + SECOND));
        assert_eq!(gate.admit(now), Admission::Open);
    }

    #[test]
    fn a_firewalls_page_concerns_its_question_alone_until_a_different_one_meets_it_too() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(gate.block(&hold(1, 2), now, 0.0), Ruling::Alone, "the same question again is no witness");
        }
        gate.answered(2, now);
        assert_eq!(gate.block(&hold(3, 2), now, 0.0), Ruling::Alone, "one was answered in between");
        assert_eq!(closed_for(gate.block(&hold(1, 2), now, 0.0)), SECOND);
        for pause in [2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            assert_eq!(closed_for(gate.block(&hold(1, 2), now, 0.0)), pause);
        }
    }

    #[test]
    fn a_question_that_a_probe_proved_wrong_never_closes_the_gate_alone_again_until_it_is_answered() {
        for first in [hold(1, 1), limit(1, 3600)] {
            let (mut gate, now) = (Gate::default(), Instant::now());
            closed_for(gate.block(&first, now, 0.0));
            probe(&mut gate, now + SECOND);
            assert!(gate.answered(2, now + SECOND));
            gate.end_probe(true, now + SECOND);
            for _ in 0..10 {
                assert_eq!(gate.block(&first, now + SECOND, 0.0), Ruling::Alone);
                gate.answered(3, now + SECOND);
            }
            assert_eq!(gate.block(&first, now + SECOND, 0.0), Ruling::Alone);
            closed_for(gate.block(&Block { question: 4, ..first }, now + SECOND, 0.0));
            gate.answered(1, now + SECOND);
            closed_for(gate.block(&first, now + SECOND, 0.0));
        }
    }

    #[test]
    fn an_hour_of_retry_after_for_one_question_costs_the_others_a_second() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        assert_eq!(closed_for(gate.block(&limit(1, 3600), now, 0.0)), Duration::from_hours(1));
        assert_eq!(gate.admit(now), Admission::Wait(SECOND));
        probe(&mut gate, now + SECOND);
        gate.block(&limit(2, 3599), now + SECOND, 0.0);
        gate.end_probe(true, now + SECOND);
        assert_eq!(gate.admit(now + SECOND), Admission::Wait(Duration::from_secs(3599)), "it is true of all");
        assert_eq!(gate.admit(now + Duration::from_hours(2)), Admission::Open);
    }

    #[test]
    fn a_probe_that_fails_in_another_way_is_followed_by_the_next_after_a_pause() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        gate.block(&hold(1, 1), now, 0.0);
        let mut at = now + SECOND;
        for pause in [2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            probe(&mut gate, at);
            gate.end_probe(true, at);
            assert_eq!(gate.admit(at), Admission::Wait(pause));
            at += pause;
        }
        probe(&mut gate, at);
        gate.end_probe(false, at);
        assert_eq!(gate.admit(at), Admission::Probe, "no call was made");
    }

    #[test]
    fn only_a_call_that_began_after_the_closing_opens_it() {
        let (mut gate, now) = (Gate::default(), Instant::now() + SECOND);
        gate.block(&hold(1, 1), now, 0.0);
        assert!(!gate.answered(2, now - SECOND));
        assert!(gate.answered(2, now));
    }

    #[test]
    fn a_limit_ends_no_hold_and_a_shorter_limit_no_longer_one() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        gate.block(&hold(1, 1), now, 0.0);
        gate.block(&limit(2, 5), now, 0.0);
        assert_eq!(gate.closed(now + Duration::from_secs(6)).map(|closed| closed.reason), Some("permission_denied"));
        let mut gate = Gate::default();
        gate.block(&limit(1, 60), now, 0.0);
        gate.block(&limit(2, 5), now, 0.0);
        assert!(gate.closed(now + Duration::from_secs(59)).is_some());
        assert!(gate.closed(now + Duration::from_secs(60)).is_none());
    }
}
