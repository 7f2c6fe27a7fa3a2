//! Claude, who counts the calls.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc, time::Duration};

use futures_util::FutureExt;
use parking_lot::Mutex;
use rand::{RngExt, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::database::Database;
use crate::{
    agent::{
        Analyst, Progress,
        plan::{Assignment, Plan},
    },
    claude::message::{MessageRequest, OnProgress},
    job::{
        AtRisk, AttemptError, AttemptReport, FailureClass, FailureCode, JobRequest, TokenUsage,
        disposition::{Disposition, Scope, SharedFailure},
    },
    store::JobStore,
};

pub(super) const MODEL: &str = "simulated";

/// The most that a call can cost.
pub(super) const AT_RISK: AtRisk = AtRisk { input_tokens: 10, output_tokens: 90, nanodollars: None };

const MINUTE: Duration = Duration::from_secs(60);

pub(super) struct Claude {
    pub(super) database: Arc<Database>,
    /// The account's limit on calls.
    pub(super) per_minute: NonZeroU32,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) random: StdRng,
    /// Every call answers.
    pub(super) is_healed: bool,
    pub(super) calls: Vec<Instant>,
    pub(super) under_way: usize,
    pub(super) most_at_once: usize,
    /// Days that have passed, and the most tokens that calls may be billed for on each.
    pub(super) day: u32,
    pub(super) billed: BTreeMap<u32, u64>,
}

/// Makes the calls of one process.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) claude: Arc<Claude>,
    pub(super) process: u32,
}

enum Answer {
    Memo { after: Duration, tokens: u64 },
    RateLimited { retry_after: Duration },
    Overloaded,
    ConnectionLost { after: Duration },
    NotSent,
}

impl Answer {
    fn most_tokens(&self) -> u64 {
        match self {
            Answer::Memo { tokens, .. } => AT_RISK.input_tokens + tokens,
            Answer::ConnectionLost { .. } => AT_RISK.input_tokens + AT_RISK.output_tokens,
            Answer::RateLimited { .. } | Answer::Overloaded | Answer::NotSent => 0,
        }
    }
}

/// A call that is under way.
struct UnderWay<'a>(&'a Claude);

impl UnderWay<'_> {
    fn begin(claude: &Claude) -> UnderWay<'_> {
        let mut state = claude.state.lock();
        state.under_way += 1;
        state.most_at_once = state.most_at_once.max(state.under_way);
        UnderWay(claude)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state.lock().under_way -= 1;
    }
}

impl Claude {
    fn answer(&self) -> Answer {
        let mut state = self.state.lock();
        let tokens = state.random.random_range(10..80);
        let millis = state.random.random_range(200..4_000);
        let after = Duration::from_millis(millis);
        match state.random.random_range(0..100) {
            _ if state.is_healed => Answer::Memo { after, tokens },
            0..4 => Answer::RateLimited { retry_after: after },
            4..8 => Answer::Overloaded,
            8..12 => Answer::ConnectionLost { after },
            12..14 => Answer::NotSent,
            14..20 => Answer::Memo { after: after * 8, tokens },
            _ => Answer::Memo { after, tokens },
        }
    }

    fn called(&self, process: u32, request: &JobRequest, answer: &Answer) {
        let (journal, store) = (&self.database.journal, &self.database.store);
        journal.called(process, request, |id| store.get(id).now_or_never()?.ok()?);
        let calls = {
            let (mut state, now) = (self.state.lock(), Instant::now());
            state.calls.retain(|at| *at + MINUTE > now);
            state.calls.push(now);
            let day = state.day;
            *state.billed.entry(day).or_default() += answer.most_tokens();
            state.calls.len()
        };
        if calls > self.per_minute.get() as usize {
            journal.violated(format!("{calls} calls in a minute, where {} are allowed", self.per_minute));
        }
    }
}

fn failed(code: FailureCode, http_status: Option<u16>) -> AttemptReport {
    let error = Some(AttemptError { code, message: String::new() });
    AttemptReport { error, http_status, model: Some(MODEL.to_owned()), ..AttemptReport::default() }
}

impl Analyst for Caller {
    fn plan(&self, assignment: Assignment<'_>) -> Result<Plan, Box<AttemptReport>> {
        let call = MessageRequest {
            model: MODEL.to_owned(),
            prompt: assignment.request.request_id.clone().unwrap_or_default(),
            time_limit: MINUTE,
            ..MessageRequest::default()
        };
        Ok(Plan::stand_in(call, AT_RISK, assignment.now))
    }

    async fn attempt(&self, plan: &Plan, on_progress: OnProgress<'_>) -> (Disposition, AttemptReport) {
        let answer = self.claude.answer();
        let retry = |code, class| Disposition::Retry { code, class, after: None };
        if let Answer::NotSent = answer {
            sleep(Duration::from_millis(50)).await;
            let code = FailureCode::ConnectFailed;
            return (retry(code, FailureClass::Connect), failed(code, None));
        }
        let request = JobRequest { request_id: Some(plan.call.prompt.clone()), ..JobRequest::default() };
        self.claude.called(self.process, &request, &answer);
        let _under_way = UnderWay::begin(&self.claude);
        let limits = [Some(u64::from(self.claude.per_minute.get())), None, None];
        match answer {
            Answer::Memo { after, tokens } => {
                sleep(after / 4).await;
                on_progress(Progress::Head(limits));
                on_progress(Progress::Text("a memo"));
                sleep(after - after / 4).await;
                let result = serde_json::value::to_raw_value("a memo").ok();
                let usage = Some(TokenUsage {
                    input_tokens: AT_RISK.input_tokens,
                    output_tokens: tokens,
                    ..TokenUsage::default()
                });
                let (http_status, model) = (Some(200), Some(MODEL.to_owned()));
                (Disposition::Succeed, AttemptReport { result, usage, http_status, model, ..AttemptReport::default() })
            }
            Answer::RateLimited { retry_after } => {
                sleep(Duration::from_millis(100)).await;
                on_progress(Progress::Head(limits));
                let (code, opens_after) = (FailureCode::RateLimited, Some(retry_after));
                let failure = SharedFailure { code, scope: Scope::Model, signature: 1, witnesses: 1, opens_after };
                let alone = Disposition::Retry { code, class: FailureClass::Suspect, after: opens_after };
                (Disposition::Block { failure, alone: Box::new(alone) }, failed(code, Some(429)))
            }
            Answer::Overloaded => {
                sleep(Duration::from_millis(100)).await;
                let code = FailureCode::Overloaded;
                (retry(code, FailureClass::Overload), failed(code, Some(529)))
            }
            Answer::ConnectionLost { after } => {
                sleep(after).await;
                let code = FailureCode::ConnectionLost;
                let report = AttemptReport { may_have_been_billed: true, at_risk: Some(AT_RISK), ..failed(code, None) };
                (retry(code, FailureClass::Other), report)
            }
            Answer::NotSent => unreachable!("answered before"),
        }
    }
}
