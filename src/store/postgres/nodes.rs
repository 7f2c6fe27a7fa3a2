//! The nodes of a database. Each has a row in the table `node`, under a name that no other live process has. It writes a beat
//! into it every second and reads all rows in the same statement.
//!
//! - A process holds an advisory lock for its name. One that starts under the name of a live process fails. A process that has
//!   been killed leaves the lock at once; one that is silent for [`SILENCE`] is cut off from the database.
//! - The node with the seat removes the row of a node without a beat for a lease. Its attempts are over then.
//! - A node whose row is gone, or whose beats were not answered for a lease less [`MARGIN`], *lapses*: it takes a new
//!   incarnation, so that it gives up its calls, and registers again.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_postgres::{Statement, types::ToSql};
use tracing::{error, info, warn};

use super::{
    connection::{Link, answer, in_time},
    error::OpenError,
    formats::{FORMAT_LOCK, Formats},
    marks::CommonSettings,
    roster::{Roster, Row},
    seat::{BEAT_PAUSE, HOLDER_PAUSE, SILENCE, connect},
    shared::{Shared, Standing},
};
use crate::{
    digest::sha256,
    job::Owner,
    process,
    store::nodes::{LEASE, Nodes},
};

/// The first number of the advisory locks of names.
pub(super) const NAME_LOCK: i32 = i32::from_be_bytes(*b"ceoa");

/// A node gives up its calls so long before the others take it for lost.
const MARGIN: Duration = Duration::from_secs(1);

/// How often a start looks whether its name is free.
const NAME_PAUSE: Duration = Duration::from_millis(200);

/// New beats after which a name belongs to a live process. One may still come from a process that has just been killed.
const LIVE_BEATS: u32 = 2;

/// After so long, the dispatcher has read that a node stops: it reads with each beat.
const HAND_OVER: Duration = Duration::from_secs(2);

/// How long a node that stops waits until the database knows that.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a process is to the database.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    /// `None` for a command that makes no calls.
    pub name: Option<&'a str>,
    /// Settings that all nodes have in common.
    pub common: &'a CommonSettings<'a>,
    pub formats: Formats,
    /// See [`LEASE`].
    pub lease: Duration,
}

impl Member<'static> {
    pub const COMMAND: Member<'static> =
        Member { name: None, common: &[], formats: Formats::OF_THIS_PROGRAM, lease: LEASE };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Ready,
    Leaving,
}

/// This node, and the others.
pub(crate) struct KnownNodes {
    name: String,
    lease: Duration,
    own: watch::Sender<Owner>,
    incarnation: Mutex<Incarnation>,
    roster: Mutex<Roster>,
    pub(crate) phase: watch::Sender<Phase>,
    /// The phase that the database knows.
    written: watch::Sender<Phase>,
}

struct Incarnation {
    number: u32,
    /// When the newest beat that was answered was sent, or the registration. `None` while the others can't know of it.
    beat_at: Option<Instant>,
    is_registered: bool,
}

impl KnownNodes {
    pub(crate) fn new(member: &Member<'_>) -> KnownNodes {
        let name = member.name.unwrap_or("command").to_owned();
        let number = random_number();
        KnownNodes {
            own: watch::Sender::new(Owner::new(&name, number)),
            incarnation: Mutex::new(Incarnation { number, beat_at: None, is_registered: false }),
            roster: Mutex::default(),
            phase: watch::Sender::new(Phase::Starting),
            written: watch::Sender::new(Phase::Starting),
            lease: member.lease,
            name,
        }
    }

    /// The number of the incarnation, and whether the database knows it.
    pub(crate) fn incarnation(&self) -> (u32, bool) {
        let incarnation = self.incarnation.lock();
        (incarnation.number, incarnation.is_registered)
    }

    /// An incarnation is about to be registered. From now on the others may give it calls.
    pub(crate) fn registers(&self, number: u32) {
        let mut incarnation = self.incarnation.lock();
        if incarnation.number == number {
            incarnation.beat_at = Some(incarnation.beat_at.unwrap_or_else(Instant::now));
        }
    }

    /// The other nodes without a beat for a lease, right after an answer.
    pub(crate) fn lost(&self) -> Vec<Row> {
        let mut lost = self.roster.lock().lost(self.lease, Instant::now());
        lost.retain(|row| row.name != self.name);
        lost
    }

    /// Takes a new incarnation: the others may take this one for lost, or do.
    pub(crate) fn lapse(&self, why: &str) {
        let number = {
            let mut incarnation = self.incarnation.lock();
            *incarnation = Incarnation { number: random_number(), beat_at: None, is_registered: false };
            incarnation.number
        };
        warn!("this node gives up its calls: {why}");
        self.own.send_replace(Owner::new(&self.name, number));
    }

    /// Lapses as soon as the lease is almost over without an answer.
    pub(crate) async fn watch_lease(&self) {
        let usable = self.lease - MARGIN.min(self.lease / 2);
        loop {
            let now = Instant::now();
            let end = self.incarnation.lock().beat_at.map_or(now + usable, |beat_at| beat_at + usable);
            if end <= now {
                self.lapse("the database has not answered for almost a lease");
            }
            sleep_until(end.max(now)).await;
        }
    }

    /// Has the others give no more calls to this node. Returns once they know it, or the database does not answer.
    pub(crate) async fn drain(&self) {
        self.phase.send_replace(Phase::Leaving);
        let mut written = self.written.subscribe();
        let is_known = written.wait_for(|phase| *phase == Phase::Leaving);
        if timeout(DRAIN_TIMEOUT, is_known).await.is_err() {
            warn!("other nodes may not know yet that this one stops: the database does not answer");
        } else if self.roster.lock().has_other(&self.name) {
            // The calls that it is given until then are released.
            sleep(HAND_OVER).await;
        }
    }

    /// Takes the answer to a beat of an incarnation. False if the database has no such row.
    pub(crate) fn answered(&self, number: u32, rows: Vec<(Row, bool)>, sent_at: Instant, phase: Phase) -> bool {
        let has_own = rows.iter().any(|(_, is_own)| *is_own);
        self.roster.lock().update(rows.into_iter().map(|(row, _)| row).collect(), sent_at, Instant::now());
        let mut incarnation = self.incarnation.lock();
        if incarnation.number == number && has_own {
            (incarnation.beat_at, incarnation.is_registered) = (Some(sent_at), true);
            self.written.send_replace(phase);
        }
        has_own
    }
}

impl Nodes for KnownNodes {
    fn own(&self) -> watch::Receiver<Owner> {
        self.own.subscribe()
    }

    fn ready(&self) -> Vec<Owner> {
        let now = Instant::now();
        let roster = self.roster.lock();
        let others = roster.ready(now).filter(|row| row.name != self.name).map(Row::owner);
        let is_ready = *self.phase.borrow() == Phase::Ready && roster.is_recent(now);
        let own = (is_ready && self.incarnation.lock().is_registered).then(|| *self.own.borrow());
        own.into_iter().chain(others).collect()
    }

    fn is_at_work(&self, owner: Owner) -> bool {
        owner == *self.own.borrow() || self.roster.lock().is_at_work(owner)
    }

    fn may_run(&self, owner: Owner) -> bool {
        let own = *self.own.borrow();
        owner == own || !own.follows(owner) && self.roster.lock().may_run(owner, Instant::now())
    }
}

/// Writes the beats.
pub(super) struct Beats {
    shared: Arc<Shared>,
    nodes: Arc<KnownNodes>,
    connection: Option<Connection>,
}

impl Beats {
    /// Registers this node.
    ///
    /// # Errors
    /// [`OpenError::NameTaken`] if a live process has its name.
    pub(super) async fn open(shared: Arc<Shared>, nodes: Arc<KnownNodes>) -> Result<Beats, OpenError> {
        let connection = Connection::open(&shared).await?;
        let mut beats = Beats { shared, nodes, connection: Some(connection) };
        beats.wait_for_name().await?;
        beats.beat().await?;
        Ok(beats)
    }

    async fn wait_for_name(&mut self) -> Result<(), OpenError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let (mut last, mut new_beats) = ((None, Instant::now()), 0);
        loop {
            let (_, beat) = connection.claim_name(&self.nodes.name).await?;
            if connection.has_name {
                return Ok(());
            }
            if beat != last.0 {
                new_beats += u32::from(last.0.is_some());
                last = (beat, Instant::now());
            }
            if new_beats >= LIVE_BEATS {
                return Err(OpenError::NameTaken { name: self.nodes.name.clone() });
            }
            if last.1.elapsed() > SILENCE {
                warn!("another process with the name of this node is silent; ending its connection");
                connection.end_holder(&self.nodes.name, "ceoagent ").await?;
                last.1 = Instant::now();
            }
            sleep(NAME_PAUSE).await;
        }
    }

    /// Writes beats until another process has the name of this node; then the store is lost.
    pub(super) async fn run(mut self) {
        let nodes = Arc::clone(&self.nodes);
        tokio::select! {
            () = nodes.watch_lease() => {}
            () = self.beat_for_ever() => {}
        }
    }

    async fn beat_for_ever(&mut self) {
        let (mut phase, mut standing) = (self.nodes.phase.subscribe(), self.shared.standing.subscribe());
        let mut has_failed = false;
        loop {
            let closed = self.connection.as_ref().map(|connection| connection.link.closed.clone());
            // The dispatcher has to hear soon which nodes have ended: until then, their calls count.
            let is_seated = *standing.borrow_and_update() == Standing::Seated;
            tokio::select! {
                () = sleep(if is_seated { HOLDER_PAUSE } else { BEAT_PAUSE }) => {}
                Ok(()) = phase.changed() => {}
                Ok(()) = standing.changed() => {}
                () = async { closed.unwrap_or_default().cancelled().await } => self.connection = None,
            }
            match self.beat().await {
                Ok(()) if has_failed => {
                    info!("the beats of this node are written again");
                    has_failed = false;
                }
                Ok(()) => {}
                Err(error @ (OpenError::NameTaken { .. } | OpenError::Format { .. })) => {
                    error!("{error}");
                    return self.shared.lost.cancel();
                }
                Err(error) => {
                    if !has_failed {
                        warn!(%error, "the beat of this node could not be written; trying again");
                    }
                    (self.connection, has_failed) = (None, true);
                }
            }
        }
    }

    async fn beat(&mut self) -> Result<(), OpenError> {
        let (shared, nodes) = (&self.shared, &self.nodes);
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(Connection::open(shared).await?),
        };
        if !connection.has_name {
            let (process, _) = connection.claim_name(&nodes.name).await?;
            let own = &shared.database.node;
            if !connection.has_name && process.is_some_and(|process| process != *own) {
                return Err(OpenError::NameTaken { name: nodes.name.clone() });
            }
            if !connection.has_name {
                // The server has not noticed yet that the former connection of this process is gone.
                connection.end_holder(&nodes.name, &format!("ceoagent {own} ")).await?;
            }
        }
        let (number, is_registered) = nodes.incarnation();
        let phase = *nodes.phase.borrow();
        if !is_registered {
            connection.register(shared, nodes, number, phase).await?;
        }
        let sent_at = Instant::now();
        let (rows, format) = connection.beat(&nodes.name, number, phase).await?;
        if !nodes.answered(number, rows, sent_at, phase) && nodes.incarnation.lock().number == number {
            nodes.lapse("another node has taken it for lost");
        }
        shared.format.store(shared.formats.check(format)?, Ordering::Relaxed);
        if *shared.standing.borrow() == Standing::Seated {
            connection.remove_lost(nodes).await?;
            let common = nodes.roster.lock().common_format();
            if let Some(common) = common.filter(|common| i32::from(*common) > format) {
                connection.raise_format(common).await?;
            }
        }
        Ok(())
    }

    /// Removes the row of this node.
    pub(super) async fn remove(shared: &Shared, nodes: &KnownNodes) {
        let (name, process) = (&nodes.name, &shared.database.node);
        let values: [&(dyn ToSql + Sync); 2] = [name, process];
        let removing = shared.readers.read(include_str!("remove_node.sql"), &values);
        if !matches!(timeout(DRAIN_TIMEOUT, removing).await, Ok(Ok(_))) {
            warn!("the row of this node could not be removed: its attempts end after a lease");
        }
    }
}

struct Connection {
    link: Link,
    beat: Statement,
    /// It holds the lock of the node's name.
    has_name: bool,
}

impl Connection {
    async fn open(shared: &Shared) -> Result<Connection, OpenError> {
        let link = connect(&shared.database).await?;
        let beat = answer(link.client.prepare(include_str!("beat_node.sql"))).await?;
        Ok(Connection { link, beat, has_name: false })
    }

    /// Asks for the lock of the name. Returns the process in its row, and the beat.
    async fn claim_name(&mut self, name: &str) -> Result<(Option<String>, Option<i64>), OpenError> {
        let sql = include_str!("claim_name.sql");
        let row = answer(self.link.client.query_one(sql, &[&NAME_LOCK, &name_number(name), &name])).await?;
        self.has_name = row.try_get(0)?;
        Ok((row.try_get(1)?, row.try_get(2)?))
    }

    /// Ends the connection that has the name, if it has such an application name.
    async fn end_holder(&self, name: &str, application: &str) -> Result<(), OpenError> {
        let sql = include_str!("end_name_holder.sql");
        answer(self.link.client.execute(sql, &[&NAME_LOCK, &name_number(name), &application])).await?;
        Ok(())
    }

    async fn register(&self, shared: &Shared, nodes: &KnownNodes, number: u32, phase: Phase) -> Result<(), OpenError> {
        nodes.registers(number);
        let (client, number, is_ready) = (&self.link.client, i64::from(number), phase == Phase::Ready);
        let (oldest, newest) = (i32::from(shared.formats.oldest), i32::from(shared.formats.newest));
        let (process, version) = (&shared.database.node, env!("CARGO_PKG_VERSION"));
        in_time(async {
            client.batch_execute("begin").await?;
            client.execute(include_str!("lock.sql"), &[&FORMAT_LOCK]).await?;
            let found = client.query_one(include_str!("format.sql"), &[]).await?.try_get(0)?;
            shared.format.store(shared.formats.check(found)?, Ordering::Relaxed);
            let values: [&(dyn ToSql + Sync); 8] =
                [&nodes.name, process, &number, &version, &oldest, &newest, &is_ready, &self.has_name];
            let registered = client.execute(include_str!("register_node.sql"), &values).await?;
            client.batch_execute("commit").await?;
            if registered == 0 { Err(OpenError::NameTaken { name: nodes.name.clone() }) } else { Ok(()) }
        })
        .await
    }

    /// Writes a beat. Returns the rows of all nodes and which of them has it, and the format of the database.
    async fn beat(&self, name: &str, number: u32, phase: Phase) -> Result<(Vec<(Row, bool)>, i32), OpenError> {
        let (number, is_ready) = (i64::from(number), phase == Phase::Ready);
        let rows = answer(self.link.client.query(&self.beat, &[&name, &number, &is_ready])).await?;
        let format = rows.first().map_or(Ok(0), |row| row.try_get(8))?;
        let are_nodes = rows.iter().filter(|row| !matches!(row.try_get::<_, Option<&str>>(0), Ok(None)));
        let bound = |row: &tokio_postgres::Row, column| {
            Ok::<_, OpenError>(u8::try_from(row.try_get::<_, i32>(column)?).unwrap_or(u8::MAX))
        };
        let nodes = are_nodes.map(|row| {
            let read = Row {
                name: row.try_get(0)?,
                incarnation: u32::try_from(row.try_get::<_, i64>(1)?).unwrap_or(u32::MAX),
                beat: row.try_get(2)?,
                is_ready: row.try_get(3)?,
                is_connected: row.try_get(9)?,
                version: row.try_get(4)?,
                formats: Formats { oldest: bound(row, 5)?, newest: bound(row, 6)? },
            };
            Ok((read, row.try_get(7)?))
        });
        Ok((nodes.collect::<Result<_, OpenError>>()?, format))
    }

    /// Raises the format of the database, if all nodes can read it.
    async fn raise_format(&self, format: u8) -> Result<(), OpenError> {
        let client = &self.link.client;
        let raised = in_time(async {
            client.batch_execute("begin").await?;
            client.execute(include_str!("lock.sql"), &[&FORMAT_LOCK]).await?;
            let raised = client.execute(include_str!("raise_format.sql"), &[&i32::from(format)]).await?;
            client.batch_execute("commit").await?;
            Ok(raised)
        });
        if raised.await? > 0 {
            info!(format, "all nodes can read a newer format: they write it from now on");
        }
        Ok(())
    }

    async fn remove_lost(&self, nodes: &KnownNodes) -> Result<(), OpenError> {
        for Row { name, incarnation, beat, version, .. } in &nodes.lost() {
            let sql = include_str!("remove_lost_node.sql");
            let number = i64::from(*incarnation);
            if answer(self.link.client.execute(sql, &[name, &number, beat])).await? > 0 {
                warn!(node = name, version, "a node is lost: its attempts end with an unknown outcome");
            }
        }
        Ok(())
    }
}

fn random_number() -> u32 {
    let [a, b, c, d, ..] = process::random().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The second number of the advisory lock of a name.
pub(super) fn name_number(name: &str) -> i32 {
    let [a, b, c, d, ..] = sha256(&[name.as_bytes()]);
    i32::from_be_bytes([a, b, c, d])
}
