//! One process of a node and its connections to the database: its writer, its feed, its seat.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::database::{Commit, Database, Peer, SeatRow};
use crate::{
    clock::Clock,
    limits::Limits,
    process::Node,
    store::{
        Feed, Nodes, StoreError,
        postgres::{Formats, KnownNodes, Member, Phase, Row},
    },
};

/// As `store::postgres` has them.
const BEAT_LIMIT: Duration = Duration::from_secs(4);
const TRY_PAUSE: Duration = Duration::from_millis(200);
const BEAT_PAUSE: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(5);
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Connection {
    /// Of this process, among all.
    pub(super) number: u32,
    pub(super) database: Arc<Database>,
    pub(super) process: Node,
    pub(super) clock: Clock,
    /// The name of its node.
    name: String,
    pub(super) nodes: Arc<KnownNodes>,
    pub(super) lost: CancellationToken,
    /// Whether the node is cut off from the database, whichever process runs on it.
    pub(super) is_cut: Arc<AtomicBool>,
    state: Mutex<State>,
    events: mpsc::UnboundedSender<Event>,
    seated: watch::Sender<bool>,
    /// Cancelled: the node wants the seat no more.
    leaving: CancellationToken,
    /// The seat is left, or was never taken.
    has_left: CancellationToken,
}

struct State {
    feed: Option<Arc<dyn Feed>>,
    /// Rows of the feed that the node knows.
    rows: usize,
    /// Goes up when the connection fails.
    link: u64,
    is_down: bool,
    epoch: Option<u64>,
    beat_at: Instant,
}

/// What comes from the server.
enum Event {
    /// There are so many rows; heard at this moment.
    News(usize, Instant),
    Answer {
        link: u64,
        rows: usize,
        reply: Box<dyn FnOnce() + Send>,
    },
    Failed,
}

fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable { reason: reason.to_owned() }
}

impl Peer for Connection {
    fn number(&self) -> u32 {
        self.number
    }

    fn is_reachable(&self) -> bool {
        !self.is_cut.load(Ordering::Relaxed) && !self.database.weather.lock().is_down
    }

    fn is_silent(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed) || self.process.is_paused() || self.process.is_dead()
    }

    fn is_gone(&self) -> bool {
        self.process.is_dead() && !self.is_cut.load(Ordering::Relaxed)
    }

    fn has_link(&self, link: u64) -> bool {
        self.state.lock().link == link
    }

    fn fail(&self) {
        let mut state = self.state.lock();
        state.link += 1;
        state.is_down = true;
        let _ = self.events.send(Event::Failed);
    }

    fn hear(&self, rows: usize, at: Instant) {
        let _ = self.events.send(Event::News(rows, at));
    }
}

impl Connection {
    pub(super) fn open(
        database: &Arc<Database>,
        number: u32,
        process: &Node,
        clock: Clock,
        is_cut: Arc<AtomicBool>,
        (name, lease): (String, Duration),
    ) -> Arc<Connection> {
        let (events, incoming) = mpsc::unbounded_channel();
        let state = State { feed: None, rows: 0, link: 0, is_down: false, epoch: None, beat_at: Instant::now() };
        let connection = Arc::new(Connection {
            number,
            database: Arc::clone(database),
            process: process.clone(),
            clock,
            nodes: Arc::new(KnownNodes::new(&Member { name: Some(&name), lease, ..Member::COMMAND })),
            name,
            lost: CancellationToken::new(),
            is_cut,
            state: Mutex::new(state),
            events,
            seated: watch::Sender::new(false),
            leaving: CancellationToken::new(),
            has_left: CancellationToken::new(),
        });
        let peer: Arc<dyn Peer> = Arc::clone(&connection) as _;
        database.connected(Arc::downgrade(&peer));
        process.spawn(Arc::clone(&connection).listen(incoming));
        connection
    }

    pub(super) fn trouble(&self) -> Option<String> {
        let state = self.state.lock();
        let is_silent = state.beat_at.elapsed() > BEAT_LIMIT;
        (state.is_down || is_silent || self.lost.is_cancelled()).then(|| "no connection".to_owned())
    }

    /// Resets the feed and connects it.
    pub(super) async fn subscribe(&self, feed: Arc<dyn Feed>) -> Result<(), StoreError> {
        sleep(self.database.latency()).await;
        if !self.is_reachable() {
            return Err(unavailable("no connection"));
        }
        self.state.lock().feed = Some(feed);
        self.read_all();
        Ok(())
    }

    fn read_all(&self) {
        let (pending, totals, rows) = self.database.feed.all();
        let feed = {
            let mut state = self.state.lock();
            state.rows = rows;
            state.feed.clone()
        };
        feed.inspect(|feed| feed.reset(pending, totals));
    }

    fn catch_up(&self, rows: usize) {
        let (feed, from) = {
            let mut state = self.state.lock();
            let from = state.rows;
            state.rows = from.max(rows);
            (state.feed.clone(), from)
        };
        let Some(feed) = feed else { return };
        for row in self.database.feed.rows(from, rows.max(from)) {
            feed.changed(&row.jobs, row.totals);
        }
    }

    /// Makes a read.
    pub(super) async fn read<T>(&self, read: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        sleep(self.database.latency()).await;
        if !self.is_reachable() || self.lost.is_cancelled() {
            sleep(self.database.up_to(SILENCE)).await;
            return Err(unavailable("no connection"));
        }
        let result = read.await;
        sleep(self.database.latency()).await;
        result
    }

    /// Makes a change by the writer.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let link = {
            let state = self.state.lock();
            if state.is_down || self.lost.is_cancelled() {
                return Err(unavailable("no connection"));
            }
            state.link
        };
        let (this, lost) = (Arc::clone(self), self.lost.clone());
        self.send(link, change, move |seat| {
            let epoch = this.state.lock().epoch;
            if epoch.is_none_or(|epoch| epoch == seat.epoch) {
                return Ok(());
            }
            lost.cancel();
            Err(unavailable("another node has the seat"))
        })
        .await
    }

    async fn send<T: Send + 'static>(
        self: &Arc<Self>,
        link: u64,
        change: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        check: impl FnOnce(&mut SeatRow) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let this = Arc::clone(self);
        // At the server, which goes on when the node does not.
        tokio::spawn(async move {
            match this.database.transaction(&*this, link, check, change).await {
                (Some(result), Commit::Done(rows)) => {
                    let reply = Box::new(move || drop(reply.send(result)));
                    let _ = this.events.send(Event::Answer { link, rows, reply });
                }
                _ if this.has_link(link) => this.fail(),
                _ => {}
            }
        });
        answer.await.unwrap_or_else(|_| Err(unavailable("the outcome is unknown")))
    }

    /// Takes what the server sends, as the task of the writer does.
    async fn listen(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut news: Option<(Instant, usize)> = None;
        loop {
            let due = news.map_or_else(|| Instant::now() + Duration::from_secs(3_600), |(at, _)| at);
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                () = sleep_until(due), if news.is_some() => {
                    let (_, rows) = news.take().unwrap();
                    self.catch_up(rows);
                    continue;
                }
            };
            match event {
                None => return,
                Some(Event::News(rows, at)) => {
                    news = Some(news.map_or((at, rows), |(first, most)| (first.min(at), most.max(rows))));
                }
                Some(Event::Answer { link, rows, reply }) => {
                    if self.has_link(link) {
                        self.catch_up(rows);
                        reply();
                    }
                }
                Some(Event::Failed) => {
                    let mut connecting = std::pin::pin!(self.connect());
                    loop {
                        tokio::select! {
                            biased;
                            () = &mut connecting => break,
                            // What was asked before fails.
                            event = events.recv() => drop(event),
                        }
                    }
                    news = None;
                }
            }
        }
    }

    async fn connect(self: &Arc<Self>) {
        let mut pause = CONNECT_PAUSE;
        loop {
            sleep(pause + self.database.latency()).await;
            pause = (pause * 2).min(Duration::from_secs(2));
            if self.lost.is_cancelled() {
                std::future::pending::<()>().await;
            }
            if !self.is_reachable() {
                continue;
            }
            let (link, epoch) = {
                let state = self.state.lock();
                (state.link, state.epoch)
            };
            if epoch.is_some() {
                // Nothing that the old connection may still commit is left after this.
                let mut seat = self.database.seat.lock();
                if seat.owner != Some(self.number) {
                    self.lost.cancel();
                    continue;
                }
                seat.epoch += 1;
                self.state.lock().epoch = Some(seat.epoch);
                self.database.journal.new_term();
            }
            self.read_all();
            let mut state = self.state.lock();
            if state.link == link {
                state.is_down = false;
                return;
            }
        }
    }

    /// Notes which attempts are this process's.
    pub(super) async fn run_owner(self: Arc<Self>) {
        let mut own = self.nodes.own();
        loop {
            self.database.journal.owns(self.number, *own.borrow_and_update());
            if own.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes the beats of the node, and reads those of the others.
    pub(super) async fn run_beats(self: Arc<Self>) {
        let (nodes, database) = (&self.nodes, &self.database);
        nodes.phase.send_if_modified(|phase| {
            let is_starting = *phase == Phase::Starting;
            *phase = if is_starting { Phase::Ready } else { *phase };
            is_starting
        });
        let mut phase = nodes.phase.subscribe();
        loop {
            let (number, is_registered) = nodes.incarnation();
            sleep(database.latency()).await;
            if self.is_reachable() {
                if !is_registered {
                    nodes.registers(number);
                    self.register(number);
                }
                let (sent_at, phase) = (Instant::now(), *nodes.phase.borrow());
                let rows = self.beat(number, phase);
                sleep(database.latency()).await;
                if self.is_reachable()
                    && !nodes.answered(number, rows, sent_at, phase)
                    && nodes.incarnation().0 == number
                {
                    nodes.lapse("another node has taken it for lost");
                }
                if self.is_seated() && self.is_reachable() {
                    let lost = nodes.lost();
                    let is_lost =
                        |row: &Row| lost.iter().any(|lost| lost.beat == row.beat && lost.owner() == row.owner());
                    database.nodes.lock().retain(|row| !is_lost(row));
                }
            }
            // Until the phase changes, or for this long.
            let _ = timeout(BEAT_PAUSE, phase.changed()).await;
        }
    }

    fn register(&self, number: u32) {
        let mut rows = self.database.nodes.lock();
        rows.retain(|row| row.name != self.name);
        rows.push(Row {
            name: self.name.clone(),
            incarnation: number,
            beat: 0,
            is_ready: false,
            is_connected: true,
            version: String::new(),
            formats: Formats::OF_THIS_PROGRAM,
        });
    }

    fn beat(&self, number: u32, phase: Phase) -> Vec<(Row, bool)> {
        let mut rows = self.database.nodes.lock();
        let is_own = |row: &Row| row.name == self.name && row.incarnation == number;
        for row in rows.iter_mut().filter(|row| is_own(row)) {
            (row.beat, row.is_ready) = (row.beat + 1, phase == Phase::Ready);
        }
        rows.iter().map(|row| (row.clone(), is_own(row))).collect()
    }

    /// Sends what calls show to the dispatcher. Some of it is lost, and some comes twice.
    pub(super) async fn run_letters(self: Arc<Self>, limits: Limits) {
        let (mut observations, database) = (limits.observations(), Arc::clone(&self.database));
        while let Ok(observation) = observations.recv().await {
            sleep(database.latency()).await;
            let times = if self.is_seated() || !self.is_reachable() || database.is_lost() { 0 } else { 1 };
            let times = times + u32::from(times == 1 && database.is_lost());
            let dispatcher = database.dispatcher.lock().clone();
            for limits in dispatcher.iter().cycle().take(times as usize) {
                limits.hear(observation.clone());
            }
        }
    }

    /// Waits for the seat.
    pub(super) async fn seated(&self) {
        let _ = self.seated.subscribe().wait_for(|seated| *seated).await;
    }

    pub(super) fn is_seated(&self) -> bool {
        *self.seated.borrow()
    }

    /// Has the others give no more calls to this node, and lets one of them take the seat.
    pub(super) async fn drain(&self) {
        self.leaving.cancel();
        tokio::join!(self.nodes.drain(), async { _ = timeout(DRAIN_TIMEOUT, self.has_left.cancelled()).await });
    }

    /// Asks for the seat, and holds it, until this node leaves.
    pub(super) async fn run_seat(self: Arc<Self>) {
        self.hold_seats().await;
        if self.leaving.is_cancelled() {
            // Before others can take it: what this node writes from now on need not have the seat.
            self.state.lock().epoch = None;
            self.seated.send_replace(false);
            sleep(self.database.latency()).await;
            self.release_lock();
            self.has_left.cancel();
        }
    }

    async fn hold_seats(self: &Arc<Self>) {
        while self.get_lock().await {
            let link = self.state.lock().link;
            let taken = Arc::new(Mutex::new(0));
            let (number, epoch) = (self.number, Arc::clone(&taken));
            let taking = self.send(link, async { Ok(()) }, move |seat| {
                seat.epoch += 1;
                seat.owner = Some(number);
                *epoch.lock() = seat.epoch;
                Ok(())
            });
            if taking.await.is_ok() {
                self.state.lock().epoch = Some(*taken.lock());
                self.database.journal.new_term();
                self.seated.send_replace(true);
                return self.hold_seat().await;
            }
            self.release_lock();
            sleep(BEAT_PAUSE).await;
        }
    }

    fn release_lock(&self) {
        let mut seat = self.database.seat.lock();
        seat.lock.take_if(|holder| holder.number() == self.number);
    }

    /// False if this node leaves.
    async fn get_lock(self: &Arc<Self>) -> bool {
        let (mut beats, mut seen_at) = (0, Instant::now());
        loop {
            if self.leaving.run_until_cancelled(sleep(TRY_PAUSE)).await.is_none() {
                return false;
            }
            let asked_at = Instant::now();
            sleep(self.database.latency()).await;
            if !self.is_reachable() {
                continue;
            }
            self.state.lock().beat_at = asked_at;
            let mut seat = self.database.seat.lock();
            if seat.lock.as_ref().is_none_or(|holder| holder.is_gone()) {
                seat.lock = Some(Arc::clone(self) as _);
                return true;
            }
            if seat.beats > beats {
                (beats, seen_at) = (seat.beats, Instant::now());
            } else if seen_at.elapsed() > SILENCE {
                let holder = seat.lock.take();
                seen_at = Instant::now();
                drop(seat);
                holder.inspect(|holder| holder.fail());
            }
        }
    }

    async fn hold_seat(self: &Arc<Self>) {
        while self.leaving.run_until_cancelled(sleep(BEAT_PAUSE)).await.is_some() {
            let sent_at = Instant::now();
            sleep(self.database.latency()).await;
            if !self.is_reachable() {
                continue;
            }
            let mut seat = self.database.seat.lock();
            if seat.owner != Some(self.number) {
                return self.lost.cancel();
            }
            seat.beats += 1;
            seat.time = Some(self.clock.save());
            if seat.lock.is_none() {
                seat.lock = Some(Arc::clone(self) as _);
            }
            self.state.lock().beat_at = sent_at;
        }
    }
}
