//! Reading the answers that were kept of a failed job again.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::{Queue, QueueError};
use crate::job::{AttemptReport, FailureCode, JobEvent, JobId, JobRecord, JobState};

impl Queue {
    /// Reads the answers that were kept of a failed job again, newest first, by `read`, which also names what it mended. The first that reads now makes the
    /// job a success; nothing is called and nothing billed. A job that has its memo keeps it as it is.
    ///
    /// # Errors
    /// [`QueueError::Unreadable`] and [`QueueError::Conflict`], with which nothing has changed; [`QueueError::NotFound`],
    /// [`QueueError::Unavailable`].
    pub async fn reparse(
        &self,
        id: JobId,
        read: impl Fn(&str) -> Result<(Box<RawValue>, Vec<&'static str>), String>,
    ) -> Result<JobRecord, QueueError> {
        let record = self.get(id).await?;
        match record.job.state {
            JobState::Succeeded => return Ok(record),
            JobState::Failed { .. } => {}
            JobState::Queued { .. } | JobState::Running { .. } | JobState::Cancelled => {
                let status = record.job.status(self.now());
                return Err(QueueError::Conflict(format!(
                    "a job that is {status} can't be read again, a failed one can"
                )));
            }
        }
        let mut complaint = None;
        for attempt in record.attempts.iter().rev() {
            let report = &attempt.report;
            // What a model says while it declines is no memo, whatever it looks like.
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
                        reparsed_from: Some(attempt.number),
                        result: Some(result),
                        repaired: repaired.into_iter().map(str::to_owned).collect(),
                        ..AttemptReport::default()
                    };
                    let event = JobEvent::Reparse { attempt: record.job.attempt, report: Arc::new(report) };
                    self.transition(id, event).await?;
                    return self.get(id).await;
                }
                Err(wrong) => drop(complaint.get_or_insert(wrong)),
            }
        }
        Err(match complaint {
            Some(wrong) => QueueError::Unreadable(wrong),
            None => {
                QueueError::Conflict("no answer was kept of this job, so there is nothing to read again".to_owned())
            }
        })
    }
}
