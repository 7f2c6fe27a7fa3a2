//! What people do about webhooks: list those that fail, and resend one.

use tokio::time::Instant;

use super::{core::add_caller_digest, error::QueueError, handles::Operations};
use crate::job::{JobId, JobPage, JobRecord, Listing, caller::Caller};

impl Operations {
    /// A page of the jobs whose webhook was tried and not accepted, newest job first: of all callers, or of the one that
    /// the filter names. It looks at no other condition.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn failing_webhooks(&self, mut listing: Listing) -> Result<JobPage, QueueError> {
        add_caller_digest(&mut listing.filter);
        Ok(self.0.outbox.failing(listing).await?)
    }

    /// Sends the newest webhook of an ended job again, whatever became of it. It counts as a submission of `by`.
    ///
    /// # Errors
    /// [`QueueError::NotFound`], [`QueueError::Conflict`], [`QueueError::Refused`], [`QueueError::Unavailable`].
    pub async fn resend_webhook(&self, id: JobId, by: Caller) -> Result<JobRecord, QueueError> {
        let record = self.0.get(id).await?;
        if record.request.callback_url.is_none() {
            return Err(QueueError::Conflict(
                "the job has no callback_url, so there is no webhook to resend".to_owned(),
            ));
        }
        if !record.job.state.is_final() {
            let status = record.job.status(self.0.now());
            return Err(QueueError::Conflict(format!("the job is {status}; its webhook is sent when it ends")));
        }
        self.charge(by).await?;
        self.0.outbox.resend(id, self.0.now()).await?;
        self.0.ended.notify_one();
        self.0.get(id).await
    }

    /// Counts something that costs as much as a submission as one of the caller's.
    ///
    /// # Errors
    /// [`QueueError::Refused`].
    pub async fn charge(&self, by: Caller) -> Result<(), QueueError> {
        let rates = &self.0.bounds.rates;
        if !rates.take_shared(by, 1).await? {
            rates.take(by, 1, Instant::now())?;
        }
        Ok(())
    }
}
