//! Webhooks of ended jobs.

use super::super::{batch::Batch, error::Result};
use crate::{
    clock::Timestamp,
    job::{JobId, delivery::Delivery},
    store::{change, traits::StoreError},
};

impl Batch<'_> {
    pub(crate) fn resend(&mut self, id: JobId, now: Timestamp) -> Result<()> {
        let (seq, job) = self.job(id)?;
        let delivery = self.delivery(seq)?;
        let callback_url = || {
            let request = self.shared.request(self.disk, seq, id)?;
            let request = request.ok_or(StoreError::Corrupt { id, reason: "its request is missing".to_owned() })?;
            Ok(request.callback_url.clone())
        };
        let resent = change::resent(&job, delivery, callback_url, now)?;
        self.staged.has_other_writes = true;
        self.set_delivery(seq, resent)
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
