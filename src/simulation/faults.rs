//! What goes wrong, at random moments.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{RngExt, rngs::StdRng};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    database::{Peer, Weather},
    machine::{Machine, World},
};

/// Shorter than the silence after which a node loses the seat, by the pause between two beats.
const STALL: Range<u64> = 1_500..3_500;

/// So long after a stall, all nodes have written a beat.
const BEATS_AGAIN: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kinds {
    All,
    /// The database answers nothing for a while.
    Stalls,
    /// A node stops in order.
    Stops,
}

impl Kinds {
    /// The name of the test, or a part of it.
    pub(super) fn test(self) -> &'static str {
        match self {
            Kinds::All => "whatever_fails",
            Kinds::Stalls => "where_the_database_stalls",
            Kinds::Stops => "where_nodes_stop_in_order",
        }
    }

    fn range(self) -> Range<u32> {
        match self {
            Kinds::All => 0..115,
            Kinds::Stalls => 100..107,
            Kinds::Stops => 107..115,
        }
    }
}

pub(super) struct Faults {
    pub(super) kinds: Kinds,
    pub(super) world: Arc<World>,
    pub(super) machines: Vec<Arc<Machine>>,
    pub(super) random: StdRng,
    pub(super) until: Instant,
}

impl Faults {
    /// Makes faults until the time is over, then ends all of them.
    pub(super) async fn run(mut self) {
        while Instant::now() < self.until {
            sleep(Duration::from_millis(self.random.random_range(200..5_000))).await;
            // Most often the node that hands out the calls.
            let is_seated =
                |machine: &&Arc<Machine>| machine.run.lock().as_ref().is_some_and(|run| run.connection.is_seated());
            let dispatcher = self.machines.iter().find(is_seated).filter(|_| self.random.random_bool(0.4)).cloned();
            let machine = dispatcher
                .unwrap_or_else(|| Arc::clone(&self.machines[self.random.random_range(0..self.machines.len())]));
            let lasts = Duration::from_millis(self.random.random_range(500..12_000));
            self.fail(machine, lasts).await;
        }
        self.end_all();
    }

    async fn fail(&mut self, machine: Arc<Machine>, lasts: Duration) {
        let database = Arc::clone(&self.world.database);
        let kind = self.random.random_range(self.kinds.range());
        database.journal.event(&format!("fault {kind} for {lasts:?}"));
        let run = machine.run.lock().clone();
        match kind {
            0..25 => machine.kill.notify_one(),
            25..45 => {
                let Some(run) = run else { return };
                run.process.pause();
                tokio::spawn(async move {
                    sleep(lasts).await;
                    run.process.go_on();
                });
            }
            45..65 => {
                machine.is_cut.store(true, Ordering::Relaxed);
                tokio::spawn(async move {
                    sleep(lasts).await;
                    machine.is_cut.store(false, Ordering::Relaxed);
                });
            }
            65..72 => {
                database.set_down(true);
                sleep(lasts / 2).await;
                database.set_down(false);
            }
            72..82 => {
                let by = Duration::from_secs(self.random.random_range(1..400));
                if self.random.random_bool(0.5) {
                    machine.clock.set_forward(by);
                } else {
                    machine.clock.set_back(by);
                }
            }
            82..90 => _ = run.inspect(|run| run.connection.fail()),
            90..100 => {
                let (loss, slowness) = (self.random.random_range(0.0..0.3), self.random.random_range(1..60));
                *database.weather.lock() = Weather { loss, slowness, ..Weather::default() };
                sleep(lasts / 2).await;
                *database.weather.lock() = Weather::default();
            }
            100..107 => {
                let until = Instant::now() + Duration::from_millis(self.random.random_range(STALL));
                *database.weather.lock() = Weather { stalls_until: Some(until), ..Weather::default() };
                sleep_until(until).await;
                *database.weather.lock() = Weather::default();
                // Two stalls without a beat in between are one that is too long.
                sleep(BEATS_AGAIN).await;
            }
            _ => machine.stop.notify_one(),
        }
    }

    fn end_all(&self) {
        *self.world.database.weather.lock() = Weather::default();
        self.world.claude.state.lock().is_healed = true;
        for machine in &self.machines {
            machine.is_cut.store(false, Ordering::Relaxed);
            if let Some(run) = &*machine.run.lock() {
                run.process.go_on();
            }
        }
    }
}
