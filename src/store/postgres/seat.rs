//! The seat: the right to decide which calls to Claude are made, and all else that one node does for all. One node of a
//! database has it, the dispatcher.
//!
//! A node gets the seat with a session's advisory lock, which is free as soon as the holder's process dies, and then raises
//! the epoch in the table `seat`. Every write transaction of the holder locks that row and compares the epoch, so a former
//! holder can write nothing, whenever it wakes up. The holder writes a beat twice a second. The other nodes ask for the lock
//! every [`TRY_PAUSE`], and take it only once the holder has no connection any more: a holder whose connection with the lock
//! was reset is healthy. They end the connections of a holder without a new beat for [`SILENCE`], because it is paused or cut
//! off. After an outage of the database they first wait whether the holder comes back ([`GRACE`]): its calls go on, and are
//! paid.
//!
//! Changed settings are announced on the connection of this task: it has no transaction, and the server sends notifications
//! only between two of them. So a node hears of a revoked key while its writer waits for its turn.
//!
//! A holder that stops leaves the seat first. Its writer then compares the epoch no more, so that the end of its calls can be
//! written while another node has the seat. It refuses claims instead.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_postgres::types::ToSql;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, warn};

use super::{
    connection::{Database, Link, SETTING_CHANNEL, answer},
    error::OpenError,
    shared::{Shared, Standing},
    writer::Command,
};
use crate::clock::Clock;

/// The advisory lock.
const SEAT_LOCK: i64 = i64::from_be_bytes(*b"ceoagent");

/// How often a node asks for the lock. It must not wait for it in a statement, which would keep the server from cleaning up
/// old row versions.
const TRY_PAUSE: Duration = Duration::from_millis(200);

pub(super) const BEAT_PAUSE: Duration = Duration::from_secs(1);

/// By its beats the holder hears of changes, and it has to know each second that it does.
pub(super) const HOLDER_PAUSE: Duration = Duration::from_millis(500);

/// A holder without a beat for so long is taken for lost.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

/// A start waits no longer for an answer about the seat: the server may have no connection left for this question.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);

/// A holder has so long to come back after this node lost its own connection.
const GRACE: Duration = Duration::from_secs(10);

/// A holder whose writer does not work for so long, although the database answers, leaves the seat to another node.
const BROKEN: Duration = Duration::from_secs(30);

/// Beats after which the holder deletes rows of the feed as old. A node that has not read them reads all pending jobs.
const BEATS_PER_TRIM: u32 = 120;

/// Whether this node has the seat.
pub struct Seat(pub(super) watch::Receiver<Standing>);

impl Seat {
    /// Waits until this node has asked for the seat, [`ASK_TIMEOUT`] at most. True if it got it.
    pub async fn is_free(&mut self) -> bool {
        let standing = timeout(ASK_TIMEOUT, self.0.wait_for(|standing| *standing != Standing::Unknown)).await;
        matches!(standing, Ok(Ok(standing)) if *standing == Standing::Seated)
    }

    /// Waits until this node has the seat. Then it has it until its store is lost.
    pub async fn taken(&mut self) {
        if self.0.wait_for(|standing| *standing == Standing::Seated).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Asks for the seat, through all outages of the database, and then holds it until it is lost or this node leaves it.
pub(super) async fn run(shared: Arc<Shared>, writer: mpsc::WeakSender<Command>) {
    let mut is_outage = false;
    loop {
        match wait(&shared, is_outage).await {
            Ok(link) => {
                let (reply, seated) = oneshot::channel();
                let asked = send(&writer, Command::TakeSeat(reply)).await;
                if asked && timeout(GRACE, seated).await.is_ok_and(|seated| seated.is_ok()) {
                    let holder = Holder { link, has_lock: true, is_leaving: false, shared: Arc::clone(&shared) };
                    if !holder.hold(&writer).await {
                        return;
                    }
                }
            }
            Err(error) => warn!(%error, "this node can't ask for the seat; trying again"),
        }
        is_outage = !shared.leaving.is_cancelled();
        sleep(BEAT_PAUSE).await;
    }
}

/// False if the writer has ended.
async fn send(writer: &mpsc::WeakSender<Command>, command: Command) -> bool {
    match writer.upgrade() {
        Some(writer) => writer.send(command).await.is_ok(),
        None => false,
    }
}

/// Waits for the lock. It is held as long as its connection lives. A node that is leaving only goes on to look whether the
/// database answers.
async fn wait(shared: &Shared, is_outage: bool) -> Result<Link, OpenError> {
    let link = listen(shared).await?;
    let mut holder = Silence::new(is_outage);
    loop {
        let asked_at = Instant::now();
        let is_leaving = shared.leaving.is_cancelled();
        let (has_lock, beat) = ask(&link, shared, !holder.is_outage && !is_leaving, !is_leaving).await?;
        *shared.beat_at.lock() = asked_at;
        if has_lock {
            return Ok(link);
        }
        shared.standing.send_if_modified(|standing| std::mem::replace(standing, Standing::Beside) == Standing::Unknown);
        if holder.is_silent(beat, Instant::now()) && !is_leaving {
            warn!("the node with the seat is silent; ending its connections");
            answer(link.client.query(include_str!("unseat.sql"), &[&beat, &shared.database.node])).await?;
            holder = Silence::new(false);
        }
        sleep(TRY_PAUSE).await;
    }
}

/// How long the holder has written no beat, by this node's own clock: the server's may jump, and differs from that of a server
/// which takes its place.
struct Silence {
    /// This node waits whether the holder comes back.
    is_outage: bool,
    beat: Option<(f64, Instant)>,
}

impl Silence {
    fn new(is_outage: bool) -> Silence {
        Silence { is_outage, beat: None }
    }

    /// Notes the newest beat. True if there was no other for too long.
    fn is_silent(&mut self, newest: f64, now: Instant) -> bool {
        match self.beat {
            Some((beat, seen_at)) if beat.total_cmp(&newest).is_eq() => {
                now - seen_at > if self.is_outage { GRACE } else { SILENCE }
            }
            known => {
                // A holder asks for its lock before it writes a beat.
                self.is_outage &= known.is_none();
                self.beat = Some((newest, now));
                false
            }
        }
    }
}

/// The node with the seat.
struct Holder {
    link: Link,
    has_lock: bool,
    /// The writer compares the epoch no more.
    is_leaving: bool,
    shared: Arc<Shared>,
}

impl Holder {
    /// Writes the beats until this node leaves the seat, and then returns true; or until the seat is lost, and then cancels
    /// `lost`.
    async fn hold(mut self, writer: &mpsc::WeakSender<Command>) -> bool {
        let shared = Arc::clone(&self.shared);
        let (mut beats, mut old, mut pause) = (0, 0, HOLDER_PAUSE);
        let mut trimming = None;
        let mut broken_since = None;
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.link.closed.cancelled(), if self.has_lock => {}
                () = shared.leaving.cancelled() => match self.leave(writer).await {
                    Ok(()) => return true,
                    Err(error) => {
                        warn!(%error, "this node could not leave the seat; trying again");
                        sleep(TRY_PAUSE).await;
                    }
                }
            }
            pause = HOLDER_PAUSE;
            let sent_at = Instant::now();
            match self.beat(&shared.clock).await {
                Ok(true) => {
                    *shared.beat_at.lock() = sent_at;
                    let is_broken = shared.trouble.lock().is_some();
                    broken_since = is_broken.then(|| broken_since.unwrap_or(sent_at));
                    if broken_since.is_some_and(|since: Instant| since.elapsed() > BROKEN) {
                        error!("this node can't write to the database; it leaves the seat to another and ends");
                        shared.lost.cancel();
                        return false;
                    }
                }
                // An earlier try to leave succeeded, and its answer was lost.
                Ok(false) if self.is_leaving => {
                    self.left();
                    return true;
                }
                Ok(false) => {
                    error!("another node has taken the seat; this process has to end");
                    shared.lost.cancel();
                    return false;
                }
                Err(error) => {
                    warn!(%error, "the seat's beat could not be written; connecting again");
                    // Without the lock this node has the seat until another raises the epoch.
                    (self.has_lock, broken_since) = (false, None);
                    if let Ok(link) = listen(&shared).await {
                        (self.link, pause) = (link, Duration::ZERO);
                    }
                }
            }
            beats += 1;
            if beats % BEATS_PER_TRIM == 0 {
                // The next beat must not wait.
                drop(trimming.replace(AbortOnDropHandle::new(tokio::spawn(trim_feed(Arc::clone(&shared), old)))));
                old = shared.state.read().n;
            }
        }
    }

    /// Lets another node take the seat at once. The writer first stops comparing the epoch. Otherwise its next transaction would fail.
    async fn leave(&mut self, writer: &mpsc::WeakSender<Command>) -> Result<(), OpenError> {
        let (reply, done) = oneshot::channel();
        if !send(writer, Command::LeaveSeat(reply)).await || done.await.is_err() {
            return Err(OpenError::Connect("the writer does not work".to_owned()));
        }
        self.is_leaving = true;
        let node: [&(dyn ToSql + Sync); 1] = [&self.shared.database.node];
        answer(self.link.client.execute(include_str!("leave_seat.sql"), &node)).await?;
        self.left();
        Ok(())
    }

    fn left(&self) {
        self.shared.metrics.dispatcher.set(0);
        self.shared.standing.send_replace(Standing::Beside);
    }

    /// Asks for the lock again if it was lost, and writes a beat. False if another node has the seat.
    async fn beat(&mut self, clock: &Clock) -> Result<bool, OpenError> {
        if !self.has_lock {
            (self.has_lock, _) = ask(&self.link, &self.shared, true, true).await?;
        }
        let time = postcard::to_stdvec(&clock.save()).unwrap_or_default();
        let beat = [&self.shared.database.node as &(dyn ToSql + Sync), &time];
        let row = answer(self.link.client.query_opt(include_str!("beat.sql"), &beat)).await?;
        let Some(row) = row else { return Ok(false) };
        self.shared.saw(row.try_get(0)?);
        Ok(true)
    }
}

/// Deletes the rows of the feed up to this one.
async fn trim_feed(shared: Arc<Shared>, old: i64) {
    if let Err(error) = shared.readers.read(include_str!("trim_feed.sql"), &[&old]).await {
        warn!(%error, "failed to delete old rows of the feed; trying again");
    }
}

/// Connects, and announces changed settings from now on.
async fn listen(shared: &Shared) -> Result<Link, OpenError> {
    let link = connect(&shared.database).await?;
    answer(link.client.batch_execute(&format!("listen {SETTING_CHANNEL}"))).await?;
    // Changes before that may not have been announced.
    shared.database.settings_watch.any_changed();
    Ok(link)
}

pub(super) async fn connect(database: &Database) -> Result<Link, OpenError> {
    let link = database.connect().await?;
    // What it writes may be lost: a beat, and a service time that is a second old.
    answer(link.client.batch_execute("set synchronous_commit to off")).await?;
    Ok(link)
}

/// Asks for the lock, if this node may succeed another holder, or be the holder again. Returns whether this connection has it
/// now, and the time of the newest beat.
async fn ask(link: &Link, shared: &Shared, may_succeed: bool, may_return: bool) -> Result<(bool, f64), OpenError> {
    let values: [&(dyn ToSql + Sync); 4] = [&SEAT_LOCK, &may_succeed, &may_return, &shared.database.node];
    let row = answer(link.client.query_one(include_str!("try_seat.sql"), &values)).await?;
    shared.saw(row.try_get(2)?);
    Ok((row.try_get(0)?, row.try_get(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_silent_once_its_beat_stays_the_same_and_not_when_the_clock_of_the_server_goes_back() {
        let start = Instant::now();
        let mut holder = Silence::new(false);
        let mut is_silent = |beat, seconds| holder.is_silent(beat, start + Duration::from_secs(seconds));
        assert!(!is_silent(3_600.0, 0) && !is_silent(1.0, 4) && !is_silent(2.0, 8), "each of them is a beat");
        assert!(!is_silent(2.0, 13) && is_silent(2.0, 14));
        let mut holder = Silence::new(true);
        let mut is_silent = |beat, seconds| holder.is_silent(beat, start + Duration::from_secs(seconds));
        assert!(!is_silent(1.0, 0) && !is_silent(1.0, 10), "it may come back after an outage");
        assert!(!is_silent(2.0, 11) && is_silent(2.0, 17), "it came back");
    }
}
