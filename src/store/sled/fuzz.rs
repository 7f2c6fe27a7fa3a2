//! Whatever lies on the disk as a record: it is a job or an error, never a panic, and every job comes back as it was.
//! `PROPTEST_CASES` sets how much of it is tried.

use std::num::NonZeroU64;

use proptest::{collection::vec, prelude::*, sample::Index};
use strum::IntoEnumIterator;

use crate::{
    clock::Timestamp,
    digest::ModelKey,
    job::{FailureClass, FailureCode, Failures, IdempotencyKey, Job, JobState, Priority},
    store::{archive::Line, record},
};

fn time() -> impl Strategy<Value = Timestamp> + Clone {
    any::<i64>().prop_map(Timestamp::from_millis)
}

fn state() -> impl Strategy<Value = JobState> {
    let codes: Vec<FailureCode> = FailureCode::iter().collect();
    prop_oneof![
        time().prop_map(|run_at| JobState::Queued { run_at }),
        Just(JobState::Running),
        Just(JobState::Succeeded),
        prop::sample::select(codes).prop_map(|code| JobState::Failed { code }),
        Just(JobState::Cancelled),
    ]
}

fn job() -> impl Strategy<Value = Job> {
    let priority = prop::sample::select(vec![Priority::High, Priority::Normal, Priority::Low]);
    let key = (any::<[u8; 16]>(), any::<[u8; 16]>(), time());
    let key = key.prop_map(|(key, body, expires_at)| Box::new(IdempotencyKey { key, body, expires_at }));
    let digests = (any::<Option<u64>>(), any::<Option<u64>>(), any::<(bool, bool)>());
    let counts = (any::<u32>(), any::<u16>(), any::<u32>());
    let times = (time(), time(), prop::option::of(time()), prop::option::of(time()), prop::option::of(time()));
    (any::<u128>(), priority, state(), prop::option::of(key), digests, counts, times).prop_map(
        |(
            id,
            priority,
            state,
            idempotency,
            (caller, question, (waited_for, is_timed)),
            (attempt, failed, releases),
            times,
        )| {
            let (created_at, due_at, deadline_at, started_at, finished_at) = times;
            Job {
                waited_for,
                caller: caller.and_then(NonZeroU64::new),
                question: question.and_then(NonZeroU64::new),
                model: question.map(|question| ModelKey::of(&question.to_string())),
                state,
                attempt,
                failures: Failures::of(FailureClass::Overload, failed),
                releases,
                idempotency,
                due_at,
                is_timed,
                deadline_at,
                started_at,
                finished_at,
                ..Job::new(uuid::Uuid::from_u128(id), priority, created_at)
            }
        },
    )
}

proptest! {
    #[test]
    fn every_job_comes_back_as_it_was_written(job in job()) {
        prop_assert_eq!(record::decode(&record::encode(&job).unwrap()).unwrap(), job);
    }

    #[test]
    fn a_changed_record_is_a_job_or_an_error(
        job in job(), changes in vec((any::<Index>(), any::<u8>()), 1..6), version in 0..=record::VERSION, cut in any::<Index>(),
    ) {
        let mut bytes = record::encode(&job).unwrap();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes[0] = version;
        for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
            if let Ok(read) = record::decode(bytes) {
                prop_assert_eq!(record::decode(&record::encode(&read).unwrap()).unwrap(), read);
            }
        }
    }

    #[test]
    fn bytes_that_were_never_a_record_are_no_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = record::decode(&bytes);
    }

    #[test]
    fn lines_that_were_never_exported_are_errors(line in "\\PC{0,80}|\\{\"id\":\\PC{0,40}\\}") {
        prop_assert!(Line::read(line.as_bytes()).is_err());
    }
}
