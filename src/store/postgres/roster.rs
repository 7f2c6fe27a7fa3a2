//! What this node knows of the others, by their beats and its own clock: the server's may jump, and differs from that of a
//! server which takes its place.

use std::time::Duration;

use tokio::time::Instant;

use super::formats::Formats;
use crate::job::Owner;

/// A node without a new beat for so long gets no calls.
const RECENT: Duration = Duration::from_secs(3);

/// Without an answer of the database for so long, the other nodes could not write beats either.
const OUTAGE: Duration = Duration::from_secs(3);

/// How long the roster remembers that it was asked for a node that it does not know.
const ASKED_FOR: Duration = Duration::from_mins(1);

/// A node, as it stands in the database.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) incarnation: u32,
    /// Only compared with others.
    pub(crate) beat: i64,
    pub(crate) is_ready: bool,
    pub(crate) is_connected: bool,
    pub(crate) version: String,
    pub(crate) formats: Formats,
}

impl Row {
    pub(crate) fn owner(&self) -> Owner {
        Owner::new(&self.name, self.incarnation)
    }
}

struct Known {
    row: Row,
    /// When this node saw a new beat; `None` until it sees one.
    heard_at: Option<Instant>,
    /// The lease of the node began then.
    lease_since: Instant,
}

/// A read of all nodes that was answered.
#[derive(Clone, Copy)]
struct Read {
    sent_at: Instant,
    answered_at: Instant,
}

/// An owner that no row had.
struct Missing {
    owner: Owner,
    first_asked: Instant,
    last_asked: Instant,
}

#[derive(Default)]
pub(super) struct Roster {
    nodes: Vec<Known>,
    last: Option<Read>,
    missing: Vec<Missing>,
}

impl Roster {
    /// Takes the rows of a read. After an outage all nodes have a whole lease again.
    pub(super) fn update(&mut self, rows: Vec<Row>, sent_at: Instant, now: Instant) {
        let is_outage = self.last.is_none_or(|last| now - last.answered_at > OUTAGE);
        let before = std::mem::take(&mut self.nodes);
        let know = |row: Row| {
            let known = before.iter().find(|known| known.row.owner() == row.owner());
            let unchanged = known.filter(|known| known.row.beat == row.beat);
            let heard_at = match unchanged {
                Some(known) => known.heard_at,
                // It may have died long ago.
                None if known.is_none() && is_outage => None,
                None => Some(now),
            };
            let lease_since = unchanged.filter(|_| !is_outage).map_or(now, |known| known.lease_since);
            Known { row, heard_at, lease_since }
        };
        self.nodes = rows.into_iter().map(know).collect();
        let is_gone = |owner: &Owner| self.nodes.iter().all(|known| known.row.owner() != *owner);
        let gone = before.iter().map(|known| known.row.owner()).filter(is_gone);
        let asked_at = self.last.map_or(now, |last| last.sent_at);
        self.missing.extend(gone.map(|owner| Missing { owner, first_asked: asked_at, last_asked: now }));
        self.last = Some(Read { sent_at, answered_at: now });
        self.missing.retain(|missing| now - missing.last_asked < ASKED_FOR);
    }

    /// Whether the database has answered recently.
    pub(super) fn is_recent(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now - last.answered_at <= RECENT)
    }

    pub(super) fn has_other(&self, name: &str) -> bool {
        self.nodes.iter().any(|known| known.row.name != name)
    }

    /// Whether a node most likely makes the calls that it has. It may be one that stops. While the database stalls, beats are
    /// late and show nothing: only a read that was sent [`RECENT`] after the newest beat shows that a node is silent.
    pub(super) fn is_at_work(&self, owner: Owner) -> bool {
        let Some(last) = self.last else { return true };
        let is_heard =
            |known: &Known| known.row.is_connected && last.sent_at.duration_since(known.lease_since) <= RECENT;
        self.nodes.iter().any(|known| known.row.owner() == owner && is_heard(known))
    }

    /// The nodes that want calls, have a connection, and have written a beat recently.
    pub(super) fn ready(&self, now: Instant) -> impl Iterator<Item = &Row> {
        let is_recent = move |known: &&Known| known.heard_at.is_some_and(|heard_at| now - heard_at <= RECENT);
        self.nodes.iter().filter(is_recent).map(|known| &known.row).filter(|row| row.is_ready && row.is_connected)
    }

    /// Whether a node is in the database. One that is not known yet is taken for gone only by a read that was sent after the
    /// first such question: it may just have registered.
    pub(super) fn may_run(&mut self, owner: Owner, now: Instant) -> bool {
        if self.nodes.iter().any(|known| known.row.owner() == owner) {
            return true;
        }
        let first_asked = match self.missing.iter_mut().find(|missing| missing.owner == owner) {
            Some(missing) => {
                missing.last_asked = now;
                missing.first_asked
            }
            None => {
                self.missing.push(Missing { owner, first_asked: now, last_asked: now });
                now
            }
        };
        self.last.is_none_or(|last| last.sent_at <= first_asked)
    }

    /// The newest format that all nodes can read.
    pub(super) fn common_format(&self) -> Option<u8> {
        Formats::common(self.nodes.iter().map(|known| known.row.formats))
    }

    /// Nodes without a beat for a lease in which the database answered. Asked right after an update.
    pub(super) fn lost(&self, lease: Duration, now: Instant) -> Vec<Row> {
        let lost = self.nodes.iter().filter(|known| now - known.lease_since >= lease);
        lost.map(|known| known.row.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn node(name: &str, incarnation: u32, beat: i64) -> Row {
        let formats = Formats::OF_THIS_PROGRAM;
        Row {
            name: name.to_owned(),
            incarnation,
            beat,
            is_ready: true,
            is_connected: true,
            version: "1.0.0".to_owned(),
            formats,
        }
    }

    /// A roster, and a clock in seconds.
    struct Test {
        roster: Roster,
        start: Instant,
    }

    impl Test {
        fn new() -> Test {
            Test { roster: Roster::default(), start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn read(&mut self, seconds: u64, rows: &[Row]) {
            self.roster.update(rows.to_vec(), self.at(seconds), self.at(seconds));
        }

        fn ready(&self, seconds: u64) -> Vec<String> {
            self.roster.ready(self.at(seconds)).map(|row| row.name.clone()).collect()
        }

        fn lost(&self, seconds: u64) -> Vec<String> {
            self.roster.lost(LEASE, self.at(seconds)).into_iter().map(|row| row.name).collect()
        }
    }

    #[test]
    fn a_node_gets_calls_while_its_beats_are_new_and_is_lost_after_a_lease_without_one() {
        let mut test = Test::new();
        test.read(0, &[node("a", 1, 7)]);
        assert_eq!(test.ready(0), [""; 0], "an old beat may be that of a dead node");
        // The server's clock goes back.
        test.read(1, &[node("a", 1, 3)]);
        test.read(2, &[node("a", 1, 3), Row { is_ready: false, ..node("b", 2, 1) }, node("c", 3, 1)]);
        assert_eq!(test.ready(3), ["a", "c"], "b does not want any");
        for seconds in 3..=30 {
            test.read(seconds, &[node("a", 1, 3), node("c", 3, i64::try_from(seconds).unwrap())]);
            assert_eq!(test.lost(seconds), [""; 0]);
        }
        assert_eq!(test.ready(30), ["c"]);
        test.read(31, &[node("a", 1, 3), node("c", 3, 31)]);
        assert_eq!(test.lost(31), ["a"]);
    }

    #[test]
    fn after_an_outage_of_the_database_all_nodes_have_a_whole_lease() {
        let mut test = Test::new();
        (0..=20).for_each(|seconds| test.read(seconds, &[node("a", 1, 7)]));
        test.read(60, &[node("a", 1, 7)]);
        (61..=89).for_each(|seconds| test.read(seconds, &[node("a", 1, 7)]));
        assert_eq!(test.lost(89), [""; 0]);
        test.read(90, &[node("a", 1, 7)]);
        assert_eq!(test.lost(90), ["a"]);
    }

    #[test]
    fn a_stall_of_the_database_makes_no_node_silent_and_beats_that_stay_away_do() {
        for stall in [1_500, 2_500, 4_000, 20_000] {
            let mut test = Test::new();
            let start = test.start;
            let at = |millis: u64| start + Duration::from_millis(millis);
            let owner = node("a", 1, 0).owner();
            (0..=4).for_each(|seconds| test.read(seconds, &[node("a", 1, i64::try_from(seconds).unwrap())]));
            // The node's next beat comes just after this read. It stalls together with the next read, which is first.
            test.read(5, &[node("a", 1, 4)]);
            let answered = 6_000 + stall;
            test.roster.update(vec![node("a", 1, 4)], at(6_000), at(answered));
            assert!(test.roster.is_at_work(owner), "after {stall} ms");
            let next = answered + 1_000;
            test.roster.update(vec![node("a", 1, 6)], at(next), at(next));
            for after in 0..=3 {
                assert!(test.roster.is_at_work(owner), "{after} s after its newest beat");
                let read = at(next + 1_000 * (after + 1));
                test.roster.update(vec![node("a", 1, 6)], read, read);
            }
            assert!(!test.roster.is_at_work(owner));
        }
    }

    #[test]
    fn an_owner_is_gone_once_a_read_after_the_first_question_lacks_it() {
        let mut test = Test::new();
        let (gone, there) = (Owner::new("a", 1), Owner::new("b", 1));
        assert!(test.roster.may_run(gone, test.at(0)), "nothing is known yet");
        test.read(1, &[node("a", 2, 7), node("b", 1, 1)]);
        assert!(!test.roster.may_run(gone, test.at(1)), "the node has another incarnation");
        assert!(test.roster.may_run(there, test.at(1)));
        let new = Owner::new("c", 1);
        assert!(test.roster.may_run(new, test.at(2)), "it may have registered after the read");
        test.read(3, &[node("c", 1, 1)]);
        assert!(test.roster.may_run(new, test.at(3)));
        assert!(!test.roster.may_run(there, test.at(3)), "its row is gone");
    }
}
