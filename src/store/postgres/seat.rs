//! The seat: the right to write. One node of a database has it, the *active* one; all others stand by.
//!
//! A node gets the seat with a session's advisory lock, which is free as soon as the holder's process dies, and then raises
//! the epoch in the table `seat`. Every write transaction locks that row and compares the epoch, so a former holder can
//! write nothing, whenever it wakes up. The holder writes a beat each second. Standby nodes ask for the lock every
//! [`TRY_PAUSE`]; they end the connections of a holder whose beat is older than [`SILENCE`], because it is paused or cut off.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::connection::{Database, Link, OpenError, answer};
use crate::clock::Clock;

/// The advisory lock.
const SEAT_LOCK: i64 = i64::from_be_bytes(*b"ceoagent");

/// How often a standby node asks for the lock. It must not wait for it in a statement, which would keep the server from
/// cleaning up old row versions.
const TRY_PAUSE: Duration = Duration::from_millis(200);

const BEAT_PAUSE: Duration = Duration::from_secs(1);

/// A holder without a beat for so long is taken for lost.
const SILENCE: Duration = Duration::from_secs(5);

/// The lock, as long as its connection lives.
pub struct Seat {
    pub(super) database: Arc<Database>,
    link: Link,
    has_lock: bool,
}

impl Seat {
    /// The seat, if it is free.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn take(database: &Arc<Database>) -> Result<Option<Seat>, OpenError> {
        let link = connect(database).await?;
        let is_free = ask(&link).await?;
        Ok(is_free.then(|| Seat { database: Arc::clone(database), link, has_lock: true }))
    }

    /// Waits for the seat, through all outages of the database.
    pub async fn wait(database: &Arc<Database>) -> Seat {
        loop {
            let waiting = async {
                let link = connect(database).await?;
                while !ask(&link).await? {
                    sleep(TRY_PAUSE).await;
                }
                Ok::<_, OpenError>(Seat { database: Arc::clone(database), link, has_lock: true })
            };
            match waiting.await {
                Ok(seat) => return seat,
                Err(error) => warn!(%error, "this standby node can't reach the database; trying again"),
            }
            sleep(BEAT_PAUSE).await;
        }
    }

    /// Writes the beats until the seat is lost; then cancels `lost`.
    pub(super) async fn hold(mut self, clock: Clock, lost: CancellationToken) {
        loop {
            tokio::select! {
                () = sleep(BEAT_PAUSE) => {}
                () = self.link.closed.cancelled(), if self.has_lock => {}
            }
            match self.beat(&clock).await {
                Ok(true) => {}
                Ok(false) => {
                    error!("another node has become the active one; this process has to end");
                    return lost.cancel();
                }
                Err(error) => {
                    warn!(%error, "the connection that holds the seat is gone; connecting again");
                    // Without the lock this node stays the active one until another raises the epoch.
                    self.has_lock = false;
                    if let Ok(link) = connect(&self.database).await {
                        self.link = link;
                    }
                }
            }
        }
    }

    /// Writes a beat, and asks for the lock again if it was lost. False if another node has the seat.
    async fn beat(&mut self, clock: &Clock) -> Result<bool, OpenError> {
        let time = postcard::to_stdvec(&clock.save()).unwrap_or_default();
        let beat = [&self.database.node as &(dyn ToSql + Sync), &time];
        let is_held = answer(self.link.client.execute(include_str!("beat.sql"), &beat)).await? > 0;
        if is_held && !self.has_lock {
            self.has_lock = ask(&self.link).await?;
        }
        Ok(is_held)
    }
}

async fn connect(database: &Database) -> Result<Link, OpenError> {
    let link = database.connect().await?;
    // What it writes may be lost: a beat, and a service time that is a second old.
    answer(link.client.batch_execute("set synchronous_commit to off")).await?;
    Ok(link)
}

/// Asks for the lock, and ends the connections of a holder that is silent.
async fn ask(link: &Link) -> Result<bool, OpenError> {
    let silence = SILENCE.as_secs_f64();
    let row = answer(link.client.query_one(include_str!("try_seat.sql"), &[&SEAT_LOCK, &silence])).await?;
    let (is_free, is_silent): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if !is_free && is_silent {
        warn!("the active node is silent; ending its connections");
        answer(link.client.query(include_str!("unseat.sql"), &[&silence])).await?;
    }
    Ok(is_free)
}
