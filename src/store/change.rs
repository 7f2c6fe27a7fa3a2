//! What belongs to a change of a job: its cost, and its message to the callback URL. Pure; every store uses it.

use super::traits::StoreError;
use crate::{
    clock::Timestamp,
    job::{Attempt, AttemptReport, Job, JobRecord, TransitionError, delivery::Delivery},
    ledger::{Day, Sums, UNKNOWN_MODEL},
};

/// What an attempt that ended adds to the ledger, if anything.
pub(super) fn cost_of(attempt: &Attempt) -> Option<(Day, String, Sums)> {
    let sums = Sums::of(&attempt.report)?;
    let model = attempt.report.model.as_deref().unwrap_or(UNKNOWN_MODEL).to_owned();
    Some((Day::of(attempt.finished_at), model, sums))
}

/// The message to a job's callback URL after a change of the job.
pub(super) fn delivery_after(before: &Job, after: &Job, delivery: Delivery, now: Timestamp) -> Delivery {
    match (before.state.is_final(), after.state.is_final()) {
        (false, true) => delivery.due(now),
        (true, false) => delivery.withdrawn(),
        // An answer read again can turn a failure into a success.
        (true, true) if before.state != after.state => delivery.due(now),
        (true, true) | (false, false) => delivery,
    }
}

/// A record that is about to be inserted, with the message to its callback URL: due if the job has ended already.
pub(super) fn with_delivery(record: JobRecord) -> JobRecord {
    let delivery = record.request.callback_url.as_deref().map(|url| {
        let delivery = Delivery::to(url);
        if record.job.state.is_final() { delivery.due(record.job.created_at) } else { delivery }
    });
    JobRecord { delivery, ..record }
}

/// The newest message of an ended job, due again. A job that was imported after its end has none yet.
///
/// # Errors
/// [`StoreError::NotFound`] without a callback URL, [`StoreError::Transition`] if the job has not ended.
pub(super) fn resent(
    job: &Job,
    delivery: Option<Delivery>,
    callback_url: impl FnOnce() -> Result<Option<String>, StoreError>,
    now: Timestamp,
) -> Result<Delivery, StoreError> {
    if !job.state.is_final() {
        let wanted = "sent to its callback URL";
        return Err(TransitionError::Illegal { status: job.status(now), wanted }.into());
    }
    let delivery = match delivery {
        Some(delivery) => delivery,
        None => Delivery::to(&callback_url()?.ok_or(StoreError::NotFound(job.id))?),
    };
    Ok(delivery.resent(now))
}

/// About how much a report takes.
pub(super) fn report_bytes(report: &AttemptReport) -> usize {
    report.result.as_ref().map_or(0, |result| result.get().len()) + report.raw_answer.as_ref().map_or(0, String::len)
}
