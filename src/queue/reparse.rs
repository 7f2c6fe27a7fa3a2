//! Parses the stored answers of a failed job again.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::{error::QueueError, handles::Operations};
use crate::job::{AttemptReport, FailureCode, JobEvent, JobId, JobRecord, JobState};

impl Operations {
    /// Parses the stored answers of a failed job with `read`, which also returns what it
    /// repaired, newest first. With the first that can be parsed the job
    /// succeeds. Makes no call and costs nothing. A succeeded job does not change.
    ///
    /// # Errors
    /// [`QueueError::Unreadable`] and [`QueueError::Conflict`], after which nothing has changed; [`QueueError::NotFound`],
    /// [`QueueError::Unavailable`].
    pub async fn reparse(
        &self,
        id: JobId,
        read: impl Fn(&str) -> Result<(Box<RawValue>, Vec<&'static str>), String>,
    ) -> Result<JobRecord, QueueError> {
        let record = self.0.get(id).await?;
        match record.job.state {
            JobState::Succeeded => return Ok(record),
            JobState::Failed { .. } => {}
            JobState::Queued { .. } | JobState::Running | JobState::Cancelled => {
                let status = record.job.status(self.0.now());
                return Err(QueueError::Conflict(format!("the job is {status}; only a failed job can be reparsed")));
            }
        }
        let mut complaint = None;
        for attempt in record.attempts.iter().rev() {
            let report = &attempt.report;
            // A refusal is not a memo, even if it looks like one.
            let refused = report.error.as_ref().is_some_and(|error| error.code == FailureCode::Refused);
            let Some(answer) = report.raw_answer.as_deref().filter(|answer| !refused && !answer.trim().is_empty())
            else {
                continue;
            };
            match read(answer) {
                Ok((result, repaired)) => {
                    let report = AttemptReport {
                        model: report.model.clone(),
                        prompt_version: report.prompt_version.clone(),
                        prompt_sha256: report.prompt_sha256.clone(),
                        depth: report.depth,
                        reparsed_from: Some(attempt.number),
                        result: Some(result),
                        repaired: repaired.into_iter().map(str::to_owned).collect(),
                        ..AttemptReport::default()
                    };
                    let event = JobEvent::Reparse { attempt: record.job.attempt, report: Arc::new(report) };
                    self.0.transition(id, event).await?;
                    return self.0.get(id).await;
                }
                Err(wrong) => drop(complaint.get_or_insert(wrong)),
            }
        }
        Err(match complaint {
            Some(wrong) => QueueError::Unreadable(wrong),
            None => QueueError::Conflict("the job has no stored answer to parse again".to_owned()),
        })
    }
}
