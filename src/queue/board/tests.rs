use std::num::NonZeroU32;

use super::*;
use crate::{
    job::{AttemptReport, JobEvent, Owner, PRIORITY_OFFSET, Priority, caller},
    queue::{admission::DiskSpace, rates::Rates},
    store::contract::{RISK, asking, at, job},
};

/// A board that is fed by hand, at second 10.
struct World {
    board: Arc<Board>,
    clock: Clock,
}

impl World {
    fn new(jobs: impl IntoIterator<Item = Job>) -> World {
        let clock = Clock::manual(at(10));
        let world = World { board: Arc::new(Board::new(clock.clone(), Arc::default())), clock };
        world.feed(jobs);
        world
    }

    fn feed(&self, jobs: impl IntoIterator<Item = Job>) -> Moved {
        let jobs: Vec<Arc<Job>> = jobs.into_iter().map(Arc::new).collect();
        self.board.changed(&jobs, EndedCounts::default())
    }

    /// What an event makes of a pending job, as the store would.
    fn apply(&self, id: JobId, event: &JobEvent) -> Moved {
        let job = self.board.get(id).unwrap().apply(event, self.clock.now()).unwrap();
        self.feed([job])
    }

    /// Picks a job and claims it.
    fn claim(&self, pick: Pick) -> Option<JobId> {
        let proposal = self.board.propose(pick, &Lanes::All)?;
        self.apply(proposal.job.id, &claim());
        Some(proposal.job.id)
    }

    fn claim_all(&self) -> Vec<JobId> {
        std::iter::from_fn(|| self.claim(Pick::First)).collect()
    }

    fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

fn claim() -> JobEvent {
    JobEvent::Claim { owner: Owner::ANY, asks: None }
}

fn ids<const N: usize>(numbers: [u32; N]) -> Vec<JobId> {
    numbers.map(|n| job(n).id).to_vec()
}

/// A job of a caller.
fn by(n: u32, caller: u64) -> Job {
    Job { caller: NonZeroU64::new(caller), ..job(n) }
}

#[test]
fn jobs_go_by_effective_time() {
    let with = |n, priority| Job { priority, ..job(n) };
    let world = World::new([
        with(0, Priority::Low),
        with(1, Priority::Normal),
        with(2, Priority::Normal),
        with(3, Priority::High),
    ]);
    let ahead = [0, 1, 2, 3].map(|n| world.board.ahead_of(&world.board.get(job(n).id).unwrap()).all);
    assert_eq!(ahead, [3, 1, 2, 0]);
    assert_eq!(world.claim_all(), ids([3, 1, 2, 0]));
    let old = Job { priority: Priority::Low, ..job(0) };
    let young = Job { created_at: at(0).plus(PRIORITY_OFFSET * 2), ..job(1) };
    assert_eq!(World::new([old, young]).claim_all(), ids([0, 1]), "no priority starves another");
}

#[test]
fn callers_take_turns() {
    let urgent = Job { priority: Priority::High, ..by(4, 1) };
    let world = World::new([by(0, 1), by(1, 1), by(2, 1), by(3, 2), urgent, job(5)]);
    assert_eq!(world.board.ahead_of(&by(2, 1)).all, 5, "everybody else's one and three of its own go before it");
    let order = world.claim_all();
    let own: Vec<JobId> = order.iter().copied().filter(|id| ![job(3).id, job(5).id].contains(id)).collect();
    assert_eq!(own, ids([4, 0, 1, 2]), "priority moves a job among its caller's own");
    let mut first_round = order[..3].to_vec();
    first_round.sort();
    assert_eq!(first_round, ids([3, 4, 5]), "one of each; jobs without a caller count as one caller's");
}

#[test]
fn a_claim_takes_the_job_that_is_picked_or_the_first() {
    let later = Job { state: JobState::Queued { run_at: at(50) }, ..job(3) };
    let world = World::new([job(0), job(1), job(2), later.clone()]);
    assert_eq!(world.claim(Pick::Job(job(2).id)), Some(job(2).id));
    assert_eq!(world.claim(Pick::Job(job(2).id)), Some(job(0).id), "it runs");
    assert_eq!(world.claim(Pick::Job(later.id)), Some(job(1).id), "its time has not come");
    assert_eq!(world.claim(Pick::Job(job(9).id)), None, "there is neither such a job nor another one");
}

#[test]
fn jobs_that_nobody_asked_to_wait_for_go_first_where_wanted() {
    let waited = |n| Job { waited_for: true, ..job(n) };
    let world = World::new([waited(0), waited(1), job(2), job(3)]);
    assert_eq!((world.board.ready(None), world.board.ready(Some(List::Background))), (4, 2));
    assert_eq!(world.board.ahead_of(&job(3)), Ahead { all: 3, background: 1 });
    let picks =
        [Pick::Background, Pick::First, Pick::Background, Pick::Background].map(|pick| world.claim(pick).unwrap());
    assert_eq!(picks.to_vec(), ids([2, 0, 3, 1]), "the last rather than none");
}

#[test]
fn a_scheduled_job_is_ready_at_its_time_and_not_before() {
    let later = Job { state: JobState::Queued { run_at: at(50) }, ..job(0) };
    let world = World::new([later]);
    let counts = |queued, scheduled| StatusCounts { queued, scheduled, ..StatusCounts::default() };
    world.pass(39);
    assert_eq!((world.board.ready(None), world.board.counts()), (0, counts(0, 1)));
    assert_eq!((world.board.next_due(), world.board.oldest_queued()), (Some(at(50)), None));
    world.pass(1);
    assert_eq!((world.board.ready(None), world.board.counts()), (1, counts(1, 0)));
    assert_eq!(world.board.oldest_queued(), Some(job(0).due_at));
    assert_eq!((world.claim_all(), world.board.oldest_queued()), (ids([0]), None));
}

#[test]
fn a_proposed_job_is_picked_by_nobody_else_and_takes_its_place_again_if_it_is_not_claimed() {
    let world = World::new([job(0), job(1)]);
    let first = world.board.propose(Pick::First, &Lanes::All).unwrap();
    assert_eq!(world.board.propose(Pick::Job(job(0).id), &Lanes::All).unwrap().job.id, job(1).id);
    assert_eq!((world.board.ready(None), world.board.counts().queued), (1, 2), "the second was given up at once");
    drop(first);
    assert_eq!(world.board.ready(None), 2);

    let proposal = world.board.propose(Pick::First, &Lanes::All).unwrap();
    world.apply(job(0).id, &JobEvent::Cancel { at_risk: None });
    drop(proposal);
    assert_eq!(world.claim_all(), ids([1]), "what was cancelled meanwhile does not come back");
}

#[test]
fn a_claim_that_the_feed_has_not_told_of_yet_is_known_once_it_is_confirmed() {
    let world = World::new([job(0)]);
    let proposal = world.board.propose(Pick::First, &Lanes::All).unwrap();
    let claimed = proposal.job.apply(&claim(), at(10)).unwrap();
    proposal.confirm(&claimed);
    assert_eq!(world.board.running(), [Arc::new(claimed.clone())]);
    world.apply(claimed.id, &JobEvent::Cancel { at_risk: Some(RISK) });
    proposal.confirm(&claimed);
    drop(proposal);
    assert!(world.board.running().is_empty() && world.board.get(claimed.id).is_none(), "it has ended since");
}

#[test]
fn what_is_overdue_and_when_the_next_thing_is_due() {
    let with_deadline = Job { deadline_at: Some(at(90)), ..job(1) };
    let world = World::new([job(0), with_deadline.clone()]);
    assert_eq!((world.claim(Pick::First), world.board.next_due()), (Some(job(0).id), Some(at(90))));
    world.pass(79);
    assert!(world.board.overdue(10).is_empty());
    world.pass(1);
    assert_eq!(world.board.overdue(10), [Arc::new(with_deadline)]);
}

#[test]
fn jobs_that_ask_the_same_are_held_back_while_one_of_them_runs() {
    let hurried = Job { deadline_at: Some(at(32)), ..asking(1, 7) };
    let later = Job { state: JobState::Queued { run_at: at(50) }, due_at: at(50), ..asking(3, 7) };
    let world = World::new([asking(0, 7), hurried, asking(2, 7), later, asking(4, 8), job(5)]);
    let proposal = world.board.propose(Pick::First, &Lanes::All).unwrap();
    assert_eq!((proposal.job.id, world.board.ready(None)), (job(0).id, 2), "from the proposal on");
    let moved = world.apply(job(0).id, &claim());
    assert_eq!(moved.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), ids([1, 2]));
    assert_eq!(moved.blocked, HashSet::from_iter(ids([1, 2])));
    assert_eq!(world.claim(Pick::Job(job(2).id)), Some(job(4).id), "not even by name");
    assert!(world.board.is_blocked(job(1).id) && !world.board.is_blocked(job(3).id));
    world.pass(25);
    assert!(world.board.overdue(9).is_empty(), "its deadline waits too");
    assert_eq!(world.board.followers(job(0).id), ids([1, 2, 3]));

    let release = JobEvent::Release { attempt: 1, run_at: at(35), is_demoted: false, report: Arc::default() };
    let moved = world.apply(job(0).id, &release);
    assert_eq!((moved.jobs.len(), moved.blocked.len()), (2, 0));
    assert_eq!(world.board.overdue(9).iter().map(|job| job.id).collect::<Vec<_>>(), ids([1]));
    assert_eq!(world.claim_all(), ids([0, 5]));
    world.pass(15);
    assert_eq!(world.board.followers(job(0).id), ids([1, 2, 3]));
    let fail = JobEvent::Fail { attempt: 2, code: crate::job::FailureCode::Refused, report: Arc::default() };
    world.apply(job(0).id, &fail);
    assert_eq!(world.claim(Pick::First), Some(job(2).id), "the next one asks");
}

#[test]
fn a_follower_that_missed_the_answer_is_known_by_the_job_that_has_it() {
    let later = Job { state: JobState::Queued { run_at: at(50) }, due_at: at(50), ..asking(2, 7) };
    let world = World::new([asking(0, 7), later]);
    world.claim(Pick::First).unwrap();
    world.feed([asking(1, 7)]);
    world.apply(job(0).id, &JobEvent::Succeed { attempt: 1, report: Arc::default() });
    let answered_by = |id| {
        let proposal = world.board.propose(Pick::Job(id), &Lanes::All).unwrap();
        assert_eq!(proposal.job.id, id);
        proposal.answered_by
    };
    assert_eq!(answered_by(job(1).id), Some(job(0).id));
    world.apply(job(1).id, &JobEvent::Share { report: Arc::default() });
    world.pass(40);
    assert_eq!(answered_by(job(2).id), None, "what was asked for later is asked then");
}

#[test]
fn no_more_than_a_bound_wait_for_one_answer() {
    let most = u32::try_from(MAX_SAME_QUESTION).unwrap();
    let world = World::new((0..most - 1).map(|n| asking(n, 7)));
    let question = asking(0, 7).question.unwrap();
    assert!(!world.board.is_crowded(question));
    world.feed([asking(most, 7)]);
    assert!(world.board.is_crowded(question));
}

fn bounds() -> Bounds {
    Bounds {
        max_pending: 8,
        max_scheduled: 4,
        max_pending_per_caller: 5,
        rates: Rates::new(NonZeroU32::new(100), None),
        disk_space: DiskSpace::default(),
        is_folder_gone: false.into(),
    }
}

/// Asks whether these jobs of caller `alice` may become pending.
fn admit(world: &World, numbers: std::ops::Range<u32>) -> Result<Arrivals, Refused> {
    let alice = caller::named("alice");
    let jobs: Vec<Job> = numbers.map(|n| Job { caller: alice, ..job(n) }).collect();
    world.board.admit(&bounds(), (alice, alice), &jobs.iter().collect::<Vec<_>>(), false)
}

#[test]
fn bounds_count_what_is_pending_and_what_arrives() {
    let world = World::new([]);
    let arrivals = admit(&world, 0..3).unwrap();
    let refused = admit(&world, 3..6).unwrap_err();
    assert!(matches!(refused, Refused::CallerFull { pending: 3, more: 3, .. }), "{refused}");
    world.feed((0..2).map(|n| Job { caller: caller::named("alice"), ..job(n) }));
    assert!(admit(&world, 3..6).is_err(), "what has arrived counts once, what has not counts too");
    drop(arrivals);
    assert!(admit(&world, 3..6).is_ok(), "one was not taken");
    assert!(admit(&world, 3..7).is_err());
    let (first, again) =
        (admit(&world, 3..6).unwrap(), [job(3)].map(|job| Job { caller: caller::named("alice"), ..job }));
    drop(world.board.admit(&bounds(), (caller::operator(), None), &[&again[0]], false).unwrap());
    assert!(admit(&world, 6..7).is_err(), "the same job twice counts until the first has arrived");
    drop(first);
    world.apply(job(0).id, &JobEvent::Cancel { at_risk: None });
    assert!(admit(&world, 3..7).is_ok(), "what has ended does not count");
}

#[test]
fn a_job_arrives_claimed_only_if_no_other_is_ready_or_asks_the_same() {
    let world = World::new([]);
    let arrive = |job: &Job| {
        let arrivals = world.board.admit(&bounds(), (None, None), &[job], false).unwrap();
        (world.board.arrives_claimed(job), arrivals)
    };
    let (first, arrivals) = arrive(&asking(0, 7));
    assert!(first && !arrive(&asking(1, 7)).0 && arrive(&asking(2, 8)).0);
    world.feed([asking(3, 7)]);
    assert!(world.board.is_blocked(job(3).id));
    drop(arrivals);
    assert_eq!(world.board.ready(None), 1, "it never arrived");
    assert!(!arrive(&asking(4, 9)).0, "another one can be claimed");
    let (_, _arrivals) = arrive(&asking(5, 7));
    world.claim(Pick::First).unwrap();
    let (claims, arrivals) = arrive(&asking(6, 6));
    assert!(claims);
    world.feed([asking(6, 6).apply(&claim(), at(10)).unwrap()]);
    drop(arrivals);
    assert!(world.board.is_under_way(asking(6, 6).question), "it runs");
}

#[test]
fn a_reset_board_is_as_one_that_heard_of_every_change() {
    let world = World::new([asking(0, 7), asking(1, 7), by(2, 3), job(3)]);
    let arrivals = admit(&world, 8..10).unwrap();
    let proposal = world.board.propose(Pick::First, &Lanes::All).unwrap();
    let running = asking(0, 7).apply(&claim(), at(10)).unwrap();
    let ended = EndedCounts { succeeded: 1, ..EndedCounts::default() };
    let pending = || [running.clone(), asking(1, 7), by(2, 3), Job { caller: caller::named("alice"), ..job(8) }];
    world.board.reset(&pending().map(Arc::new), ended);
    drop(proposal);
    assert_eq!((world.board.ready(None), world.board.counts().succeeded), (2, 1));
    assert!(world.board.is_blocked(job(1).id) && world.board.get(job(3).id).is_none());
    assert!(admit(&world, 20..24).is_err(), "one has arrived and one still arrives");
    drop(arrivals);
    assert!(admit(&world, 20..24).is_ok());
    world.board.assert_consistent(pending().map(Arc::new).to_vec());
    let report = Arc::new(AttemptReport::default());
    world.apply(job(0).id, &JobEvent::Succeed { attempt: 1, report });
    assert_eq!(world.board.ready(None), 3);
}
