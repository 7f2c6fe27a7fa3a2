//! Webhooks of ended jobs.

use super::super::{batch::Batch, error::Result};
use crate::{
    clock::Timestamp,
    job::{JobId, TransitionError, delivery::Delivery},
    store::traits::StoreError,
};

impl Batch<'_> {
    pub(crate) fn resend(&mut self, id: JobId, now: Timestamp) -> Result<()> {
        let (seq, job) = self.job(id)?;
        if !job.state.is_final() {
            let wanted = "sent to its callback URL";
            return Err(TransitionError::Illegal { status: job.status(now), wanted }.into());
        }
        let delivery = match self.delivery(seq)? {
            Some(delivery) => delivery,
            // A job imported after its end has none yet.
            None => {
                let request = self.shared.request(self.disk, seq, id)?;
                let request = request.ok_or(StoreError::Corrupt { id, reason: "its request is missing".to_owned() })?;
                Delivery::to(request.callback_url.as_deref().ok_or(StoreError::NotFound(id))?)
            }
        };
        self.staged.has_other_writes = true;
        self.set_delivery(seq, delivery.resent(now))
    }

    pub(crate) fn record_delivery(&mut self, id: JobId, delivery: Delivery) -> Result<()> {
        let Ok((seq, _)) = self.job(id) else { return Ok(()) };
        if let Some(current) = self.open_delivery(seq)
            && current.next_at().is_some()
            && current.is_same_round(&delivery)
        {
            self.staged.has_other_writes = true;
            self.set_delivery(seq, delivery)?;
        }
        Ok(())
    }
}
