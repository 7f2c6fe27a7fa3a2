//! The seat: the right to write. One node of a database has it, the *active* one; all others stand by.
//!
//! A node gets the seat with a session's advisory lock, which is free as soon as the holder's process dies, and then raises
//! the epoch in the table `seat`. Every write transaction locks that row and compares the epoch, so a former holder can
//! write nothing, whenever it wakes up. The holder writes a beat each second. Standby nodes ask for the lock every
//! [`TRY_PAUSE`]; they end the connections of a holder without a new beat
//! for [`SILENCE`], because it is paused or cut off.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_postgres::types::ToSql;
use tracing::{error, warn};

use super::{
    connection::{Database, Link, OpenError, answer},
    shared::Shared,
};
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
        let (is_free, _) = ask(&link).await?;
        Ok(is_free.then(|| Seat { database: Arc::clone(database), link, has_lock: true }))
    }

    /// Waits for the seat, through all outages of the database.
    pub async fn wait(database: &Arc<Database>) -> Seat {
        loop {
            match Seat::wait_on_one_connection(database).await {
                Ok(seat) => return seat,
                Err(error) => warn!(%error, "this standby node can't reach the database; trying again"),
            }
            sleep(BEAT_PAUSE).await;
        }
    }

    async fn wait_on_one_connection(database: &Arc<Database>) -> Result<Seat, OpenError> {
        let link = connect(database).await?;
        // By this node's own clock: a jump of the server's must end no node.
        let (mut beat, mut seen_at) = (0.0, Instant::now());
        loop {
            let (is_free, newest) = ask(&link).await?;
            if is_free {
                return Ok(Seat { database: Arc::clone(database), link, has_lock: true });
            }
            if newest > beat {
                (beat, seen_at) = (newest, Instant::now());
            } else if seen_at.elapsed() > SILENCE {
                warn!("the active node is silent; ending its connections");
                answer(link.client.query(include_str!("unseat.sql"), &[&beat])).await?;
                seen_at = Instant::now();
            }
            sleep(TRY_PAUSE).await;
        }
    }

    /// Writes the beats, from the moment that the writer has the seat until it is lost; then cancels `shared.lost`.
    pub(super) async fn hold(mut self, shared: Arc<Shared>) {
        let (clock, lost) = (&shared.clock, &shared.lost);
        shared.is_seated.notified().await;
        loop {
            tokio::select! {
                () = sleep(BEAT_PAUSE) => {}
                () = self.link.closed.cancelled(), if self.has_lock => {}
            }
            let sent_at = Instant::now();
            match self.beat(clock).await {
                Ok(true) => *shared.beat_at.lock() = sent_at,
                Ok(false) => {
                    error!("another node has become the active one; this process has to end");
                    return lost.cancel();
                }
                Err(error) => {
                    warn!(%error, "the seat's beat could not be written; connecting again");
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
            (self.has_lock, _) = ask(&self.link).await?;
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

/// Asks for the lock. Returns whether it was free, and the time of the newest beat.
async fn ask(link: &Link) -> Result<(bool, f64), OpenError> {
    let row = answer(link.client.query_one(include_str!("try_seat.sql"), &[&SEAT_LOCK])).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
