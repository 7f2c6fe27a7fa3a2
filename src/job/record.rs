//! A job with all that belongs to it.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::{
    attempt::{Attempt, AttemptError, AttemptOutcome, FailureCode},
    delivery::Delivery,
    life::{Job, JobState},
    request::{Depth, JobRequest},
};

#[derive(Clone, Debug)]
pub struct JobRecord {
    pub job: Job,
    pub request: Arc<JobRequest>,
    /// Oldest first.
    pub attempts: Vec<Arc<Attempt>>,
    pub delivery: Option<Delivery>,
}

impl JobRecord {
    pub fn fresh(job: Job, request: Arc<JobRequest>) -> JobRecord {
        let delivery = request.callback_url.as_deref().map(Delivery::to);
        JobRecord { job, request, attempts: Vec::new(), delivery }
    }

    pub fn result(&self) -> Option<&RawValue> {
        self.answer()?.report.result.as_deref()
    }

    pub fn is_brief(&self) -> bool {
        self.answer().is_some_and(|attempt| attempt.report.depth == Some(Depth::Brief))
    }

    /// Bytes of its texts: question, answers, memo.
    pub fn text_bytes(&self) -> usize {
        let JobRequest { query, context, options, .. } = &*self.request;
        let reports = self.attempts.iter().map(|attempt| &attempt.report);
        let answers = reports.clone().filter_map(|report| Some(report.raw_answer.as_ref()?.len()));
        let memos = reports.filter_map(|report| Some(report.result.as_ref()?.get().len()));
        let asked = [query].into_iter().chain(context).chain(options).map(String::len);
        asked.chain(answers).chain(memos).sum()
    }

    pub fn answer(&self) -> Option<&Attempt> {
        let brought = |attempt: &&Arc<Attempt>| match attempt.outcome {
            AttemptOutcome::Succeeded | AttemptOutcome::Reparsed | AttemptOutcome::Shared => true,
            AttemptOutcome::Failed
            | AttemptOutcome::Released
            | AttemptOutcome::Cancelled
            | AttemptOutcome::OutcomeUnknown => false,
        };
        self.attempts.iter().rev().find(brought).map(|attempt| &**attempt)
    }

    /// Why a failed job failed, in the words of the attempt that it failed with.
    pub fn error(&self) -> Option<AttemptError> {
        let JobState::Failed { code } = self.job.state else { return None };
        let last = self.attempts.last().and_then(|attempt| attempt.report.error.as_ref());
        let known = last.filter(|error| error.code == code).map(|error| error.message.as_str());
        let message = match (code, known) {
            // The attempt's message is written for the model, which gets it in the repair prompt.
            (FailureCode::InvalidOutput, Some(wrong)) => {
                format!("Claude's answer could not be parsed as a memo: {wrong}; retry the job")
            }
            (_, Some(message)) => message.to_owned(),
            (FailureCode::Poisoned, None) => {
                let last = last.map_or("", |error| error.message.as_str());
                format!("this question was refused repeatedly while others were answered: {last}")
            }
            (FailureCode::DeadlineExceeded, None) => "the job's deadline passed before it could run".to_owned(),
            (other, None) => format!("the job failed: {other}"),
        };
        Some(AttemptError { code, message })
    }
}
