//! Which jobs to list, and which page of them.

use std::{collections::BTreeSet, num::NonZeroU64};

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    attempt::{Attempt, FailureCode},
    id::JobId,
    life::{Job, JobState},
    record::JobRecord,
    request::{JobRequest, Priority},
    status::JobStatus,
};
use crate::clock::Timestamp;

/// The jobs that match every condition. A condition that is unset or an empty list holds for all jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub ids: Option<BTreeSet<JobId>>,
    pub statuses: Vec<JobStatus>,
    pub priorities: Vec<Priority>,
    /// Failed with any of these.
    pub codes: Vec<FailureCode>,
    pub created_from: Option<Timestamp>,
    pub created_before: Option<Timestamp>,
    /// The query contains this text. In lower case, see [`JobFilter::with_text`].
    pub text: Option<String>,
    /// The model asked for, or one that answered.
    pub model: Option<String>,
    /// All of these labels; no job has two of one key.
    pub metadata: BTreeSet<(String, String)>,
    pub caller: Option<String>,
    /// The digest of that name ([`Job::caller`]), by which most jobs are passed over unread. The queue adds it.
    pub caller_digest: Option<NonZeroU64>,
}

impl JobFilter {
    /// Only jobs whose query contains `text`, in upper or lower case.
    pub fn with_text(self, text: Option<&str>) -> JobFilter {
        JobFilter { text: text.map(str::to_lowercase), ..self }
    }

    pub fn takes(&self, job: &Job, now: Timestamp) -> bool {
        let is_among = |codes: &[FailureCode]| matches!(job.state, JobState::Failed { code } if codes.contains(&code));
        self.ids.as_ref().is_none_or(|ids| ids.contains(&job.id))
            && (self.statuses.is_empty() || self.statuses.contains(&job.status(now)))
            && (self.priorities.is_empty() || self.priorities.contains(&job.priority))
            && (self.codes.is_empty() || is_among(&self.codes))
            && self.caller_digest.is_none_or(|digest| job.caller == Some(digest))
            && self.created_from.is_none_or(|from| job.created_at >= from)
            && self.created_before.is_none_or(|before| job.created_at < before)
    }

    /// Whether there are conditions on the request, which has to be read for them.
    pub fn needs_request(&self) -> bool {
        self.text.is_some() || self.model.is_some() || !self.metadata.is_empty() || self.caller.is_some()
    }

    /// Whether the request meets the conditions on it, but for the model.
    pub fn takes_request(&self, request: &JobRequest) -> bool {
        self.caller.as_ref().is_none_or(|caller| request.caller.as_ref() == Some(caller))
            && self.metadata.iter().all(|(key, value)| request.metadata.get(key) == Some(value))
            && self.text.as_ref().is_none_or(|text| request.query.to_lowercase().contains(text.as_str()))
    }

    /// Whether the model asked for meets the condition; `None` if that depends on the attempts.
    pub fn takes_model(&self, request: &JobRequest) -> Option<bool> {
        (self.model.is_none() || request.model == self.model).then_some(true)
    }

    pub fn takes_answers<'a>(&self, attempts: impl IntoIterator<Item = &'a Attempt>) -> bool {
        let wanted = self.model.as_deref();
        attempts.into_iter().any(|attempt| attempt.report.model.as_deref() == wanted)
    }
}

/// The order of a listing: by submission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    NewestFirst,
    OldestFirst,
}

impl Order {
    /// Where a listing in this order goes on.
    pub fn onward(self) -> Side {
        match self {
            Order::NewestFirst => Side::Older,
            Order::OldestFirst => Side::Newer,
        }
    }
}

/// A side of a place in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Older,
    Newer,
}

impl Side {
    pub fn opposite(self) -> Side {
        match self {
            Side::Older => Side::Newer,
            Side::Newer => Side::Older,
        }
    }
}

/// A place between two jobs, and the side to go to: a page begins there, whatever has been added or removed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub side: Side,
    pub from: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Listing {
    pub filter: JobFilter,
    pub order: Order,
    /// If unset, the page begins with the first job.
    pub cursor: Option<Cursor>,
    pub limit: usize,
}

impl Listing {
    pub fn side(&self) -> Side {
        self.cursor.map_or(self.order.onward(), |cursor| cursor.side)
    }

    /// The cursors of the next and of the previous page, where the numbers of the jobs that were `found` are in the
    /// order they were looked at, and `end` is how far that went if there may be more.
    pub fn neighbours(&self, found: &[u64], end: Option<u64>) -> (Option<Cursor>, Option<Cursor>) {
        let side = self.side();
        let ahead = end.map(|from| Cursor { side, from });
        // What an empty page began with must not be passed by on the way back.
        let whole = |cursor: Cursor| match side {
            Side::Older => cursor.from.saturating_sub(1),
            Side::Newer => cursor.from.saturating_add(1),
        };
        let back = self.cursor.map(|cursor| {
            let from = found.first().copied().unwrap_or_else(|| whole(cursor));
            Cursor { side: side.opposite(), from }
        });
        if side == self.order.onward() { (ahead, back) } else { (back, ahead) }
    }
}

/// How far a search came in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct UnfinishedSearch {
    /// Submission time of the last job that was searched.
    pub searched_to: Timestamp,
    /// The searched part of all jobs, in percent.
    #[schema(maximum = 99)]
    pub percent: u8,
}

#[derive(Clone, Debug)]
pub struct JobPage {
    pub jobs: Vec<JobRecord>,
    pub next: Option<Cursor>,
    pub prev: Option<Cursor>,
    /// Set if the time of the search was over before the page was full. Only then a page with a next one can be empty.
    pub unfinished: Option<UnfinishedSearch>,
}

/// The ids of a page of jobs, in the order asked for.
#[derive(Clone, Debug)]
pub struct JobSelection {
    pub ids: Vec<JobId>,
    pub next: Option<Cursor>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    fn job() -> Job {
        Job::new(JobId::nil(), Priority::Low, at(10))
    }

    #[test]
    fn each_condition_on_a_jobs_life_counts() {
        let with = |change: fn(&mut JobFilter)| {
            let mut filter = JobFilter::default();
            change(&mut filter);
            filter.takes(&job(), at(20))
        };
        assert!(with(|_| {}));
        assert!(with(|filter| filter.statuses = vec![JobStatus::Failed, JobStatus::Queued]));
        assert!(!with(|filter| filter.statuses = vec![JobStatus::Failed]));
        assert!(with(|filter| filter.ids = Some(BTreeSet::from([JobId::nil()]))));
        assert!(!with(|filter| filter.ids = Some(BTreeSet::new())));
        assert!(with(|filter| filter.priorities = vec![Priority::Low]));
        assert!(!with(|filter| filter.priorities = vec![Priority::High]));
        assert!(!with(|filter| filter.codes = vec![FailureCode::Refused]), "it has not failed");
        assert!(with(|filter| filter.created_from = Some(at(10))));
        assert!(!with(|filter| filter.created_from = Some(at(11))));
        assert!(with(|filter| filter.created_before = Some(at(11))));
        assert!(!with(|filter| filter.created_before = Some(at(10))));
        let failed = Job { state: JobState::Failed { code: FailureCode::Refused }, ..job() };
        let refused = JobFilter { codes: vec![FailureCode::Refused], ..JobFilter::default() };
        assert!(refused.takes(&failed, at(20)));
    }

    #[test]
    fn each_condition_on_what_was_asked_counts() {
        let request = JobRequest {
            query: "Kaufen oder BAUEN? Straße".to_owned(),
            model: Some("m1".to_owned()),
            metadata: BTreeMap::from([("team".to_owned(), "ops".to_owned()), ("n".to_owned(), "1".to_owned())]),
            caller: Some("alice".to_owned()),
            ..JobRequest::default()
        };
        let plain = JobFilter::default;
        assert!(!plain().needs_request() && plain().takes_request(&request));
        assert!(plain().with_text(Some("oder bauen")).takes_request(&request));
        assert!(plain().with_text(Some("STRAẞE")).takes_request(&request));
        assert!(!plain().with_text(Some("mieten")).takes_request(&request));
        let labelled = |value: &str| {
            let metadata = BTreeSet::from([("team".to_owned(), value.to_owned())]);
            JobFilter { metadata, ..plain() }.takes_request(&request)
        };
        assert!(labelled("ops") && !labelled("op"));
        let from = |caller: &str| JobFilter { caller: Some(caller.to_owned()), ..plain() };
        assert!(from("alice").needs_request());
        assert!(from("alice").takes_request(&request) && !from("bob").takes_request(&request));
        let of = |model: &str| JobFilter { model: Some(model.to_owned()), ..plain() };
        assert_eq!((of("m1").takes_model(&request), of("m2").takes_model(&request)), (Some(true), None));
    }
}
