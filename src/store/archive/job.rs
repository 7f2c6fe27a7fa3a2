//! A job with all that belongs to it as one line of JSON.

use std::{num::NonZeroU64, sync::Arc};

use serde::{Deserialize, Serialize};

use super::format::{ArchiveError, Kind};
use crate::{
    clock::Timestamp,
    digest::ModelKey,
    job::{
        Attempt, FailureCode, Failures, IdempotencyKey, Job, JobId, JobRecord, JobRequest, JobState, Owner, Priority,
        delivery::{Delivery, DeliveryState},
    },
};

/// Most attempts of an imported job. One a minute for two years; a higher number is damage, not history.
const MOST_ATTEMPTS: u32 = 1_000_000;

/// No time of an imported job is later, the end of the year 2199: what computes with times must not overflow.
const LAST_TIME: Timestamp = Timestamp::from_millis(7_258_118_399_999);

/// The life-cycle part of a job as it stands in a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Life(#[serde(with = "LifeInLine")] pub Job);

/// Digests are texts: many readers of JSON have no whole numbers of 64 bits.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Job")]
struct LifeInLine {
    id: JobId,
    #[serde(flatten, with = "StateInLine")]
    state: JobState,
    priority: Priority,
    waited_for: bool,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_text")]
    caller: Option<NonZeroU64>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_text")]
    question: Option<NonZeroU64>,
    /// The request has it.
    #[serde(skip)]
    model: Option<ModelKey>,
    attempt: u32,
    failures: Failures,
    releases: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotency: Option<Box<IdempotencyKey>>,
    created_at: Timestamp,
    due_at: Timestamp,
    is_timed: bool,
    deadline_at: Option<Timestamp>,
    /// No node makes the attempt where the job arrives.
    #[serde(skip)]
    owner: Option<Owner>,
    #[serde(skip)]
    asks: Option<ModelKey>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "JobState", tag = "status", rename_all = "snake_case")]
enum StateInLine {
    Queued {
        run_at: Timestamp,
    },
    Running,
    Succeeded,
    Failed {
        #[serde(rename = "error_code")]
        code: FailureCode,
    },
    Cancelled,
}

#[derive(Serialize)]
struct Line<'a> {
    kind: Kind,
    #[serde(flatten, with = "LifeInLine")]
    life: &'a Job,
    request: &'a JobRequest,
    attempts: &'a [Arc<Attempt>],
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook: Option<&'a Delivery>,
}

/// The rest of a line. Read apart from the job's life, so that results keep their exact text.
#[derive(Deserialize)]
struct Bodies {
    request: JobRequest,
    attempts: Vec<Arc<Attempt>>,
    webhook: Option<Delivery>,
}

/// The life of a job and the state of its webhook, for checksums.
pub(super) fn head(job: Job, webhook: Option<&Delivery>) -> String {
    serde_json::to_string(&(Life(job), webhook)).unwrap_or_default()
}

pub(super) fn write(record: &JobRecord) -> serde_json::Result<String> {
    let JobRecord { job, request, attempts, delivery } = record;
    serde_json::to_string(&Line { kind: Kind::Job, life: job, request, attempts, webhook: delivery.as_ref() })
}

pub(super) fn read(line: &[u8]) -> Result<JobRecord, ArchiveError> {
    let Life(mut job) = serde_json::from_slice(line)?;
    let Bodies { request, attempts, webhook } = serde_json::from_slice(line)?;
    job.model = request.model.as_deref().map(ModelKey::of);
    check(&job, &request, &attempts).map_err(ArchiveError::Inconsistent)?;
    let delivery = request.callback_url.as_deref().map(|url| checked(webhook, url, job.state.is_final()));
    Ok(JobRecord { job, request: Arc::new(request), attempts, delivery })
}

/// The webhook of a job. Without one, the job would send no message at its end.
fn checked(webhook: Option<Delivery>, callback_url: &str, is_final: bool) -> Delivery {
    let webhook = webhook.unwrap_or_else(|| Delivery::to(callback_url));
    match (is_final, webhook.state) {
        (false, _) => webhook.withdrawn(),
        (true, DeliveryState::Waiting) => webhook.skipped(),
        (true, _) => webhook,
    }
}

/// Refuses what no job of this program can have.
fn check(job: &Job, request: &JobRequest, attempts: &[Arc<Attempt>]) -> Result<(), &'static str> {
    if job.is_running() && job.attempt == 0 {
        return Err("running without an attempt");
    }
    if job.state.is_final() != job.finished_at.is_some() {
        return Err("status and finished_at do not agree");
    }
    if job.attempt > MOST_ATTEMPTS || job.releases > MOST_ATTEMPTS {
        return Err("it counts more than 1000000 attempts");
    }
    let own = [Some(job.created_at), Some(job.due_at), job.deadline_at, job.started_at, job.finished_at];
    let state = match job.state {
        JobState::Queued { run_at } => Some(run_at),
        JobState::Running | JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => None,
    };
    let key = job.idempotency.as_ref().map(|key| key.expires_at);
    let of_attempts = attempts.iter().flat_map(|attempt| [attempt.started_at, attempt.finished_at]);
    let mut times = own.into_iter().chain([state, key]).flatten().chain(of_attempts);
    if times.any(|time| time.as_millis() < 0 || time > LAST_TIME) {
        return Err("one of its times is before 1970 or after 2199");
    }
    if attempts.iter().any(|attempt| attempt.number == 0 || attempt.number > job.closed_attempts()) {
        return Err("the number of an attempt is higher than its state allows");
    }
    if request.query.is_empty() {
        return Err("the query is empty");
    }
    Ok(())
}

pub(super) mod as_text {
    use std::num::NonZeroU64;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(in crate::store::archive) fn serialize<S: Serializer>(
        digest: &Option<NonZeroU64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        digest.map(|digest| digest.to_string()).serialize(serializer)
    }

    pub(in crate::store::archive) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<NonZeroU64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::job::{AttemptReport, JobEvent};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    /// A job to which `events` happened, one a second.
    fn record(events: &[JobEvent]) -> JobRecord {
        let mut job = Job::new("019aafe1-0000-7000-8000-000000000001".parse().unwrap(), Priority::High, at(0));
        let mut attempts = Vec::new();
        for (event, now) in events.iter().zip(1..) {
            attempts.extend(job.closed_attempt(event, at(now)).map(Arc::new));
            job = job.apply(event, at(now)).unwrap();
        }
        job.idempotency = Some(Box::new(IdempotencyKey { key: [1; 16], body: [2; 16], expires_at: at(99) }));
        let callback_url = Some("https://example.com/hook".to_owned());
        let request = JobRequest { query: "Buy or build?".to_owned(), callback_url, ..JobRequest::default() };
        let webhook = Delivery::to("https://example.com/hook");
        let delivery = Some(if job.state.is_final() { webhook.due(at(50)) } else { webhook });
        JobRecord { job, request: Arc::new(request), attempts, delivery }
    }

    fn succeeded() -> JobRecord {
        let report = AttemptReport {
            result: RawValue::from_string(r#"{"b":1,  "a":1.10}"#.to_owned()).ok(),
            raw_answer: Some("as it came\n".to_owned()),
            ..AttemptReport::default()
        };
        let claim = JobEvent::Claim { owner: Owner::ANY, asks: None };
        record(&[claim, JobEvent::Succeed { attempt: 1, report: Arc::new(report) }])
    }

    #[test]
    fn a_job_in_any_state_is_read_back_unchanged() {
        let claim = || JobEvent::Claim { owner: Owner::ANY, asks: None };
        let fail = JobEvent::Fail { attempt: 1, code: FailureCode::Refused, report: Arc::default() };
        let cancel = JobEvent::Cancel { at_risk: None };
        for record in [record(&[]), record(&[claim()]), record(&[claim(), fail]), record(&[cancel]), succeeded()] {
            let line = write(&record).unwrap();
            assert!(!line.contains('\n'), "{line}");
            let back = read(line.as_bytes()).unwrap();
            let unowned = Job { owner: None, ..record.job.clone() };
            assert_eq!((&back.job, &back.request, &back.delivery), (&unowned, &record.request, &record.delivery));
            assert_eq!(write(&back).unwrap(), line, "attempts too");
        }
        let back = read(write(&succeeded()).unwrap().as_bytes()).unwrap();
        assert_eq!(back.attempts[0].report.result.as_ref().unwrap().get(), r#"{"b":1,  "a":1.10}"#);
    }

    #[test]
    fn a_job_whose_line_has_no_webhook_sends_the_message_of_its_next_end() {
        for (events, state) in
            [(vec![], DeliveryState::Waiting), (vec![JobEvent::Cancel { at_risk: None }], DeliveryState::Skipped)]
        {
            let line = write(&JobRecord { delivery: None, ..record(&events) }).unwrap();
            let webhook = read(line.as_bytes()).unwrap().delivery.unwrap();
            assert_eq!((webhook.host.as_str(), webhook.state), ("example.com:443", state));
        }
    }

    #[test]
    fn a_digest_is_written_as_a_text_with_all_its_digits() {
        let mut record = record(&[]);
        (record.job.caller, record.job.question) = (NonZeroU64::new(7), NonZeroU64::new(12_634_982_911_438_402_042));
        let line = write(&record).unwrap();
        assert!(line.contains(r#""question":"12634982911438402042""#) && line.contains(r#""caller":"7""#), "{line}");
        assert_eq!(read(line.as_bytes()).unwrap().job, record.job, "{line}");
        let line = write(&record).unwrap().replace("\"caller\":\"7\"", "\"caller\":\"seven\"");
        assert!(matches!(read(line.as_bytes()), Err(ArchiveError::Unreadable(_))));
    }

    #[test]
    fn a_line_that_is_not_a_job_is_refused_with_the_reason() {
        let line = write(&succeeded()).unwrap();
        let cases = [
            (
                line.replace(
                    "\"finished_at\":\"2027-01-15T08:00:02.000Z\",\"request",
                    "\"finished_at\":null,\"request",
                ),
                "finished_at do not agree",
            ),
            (line.replace("\"succeeded\",\"priority", "\"failed\",\"priority"), "missing field `error_code`"),
            (line.replace("\"succeeded\",\"priority", "\"queued\",\"priority"), "missing field `run_at`"),
            (line.replace("{\"number\":1", "{\"number\":9"), "higher than its state allows"),
            (line.replace("Buy or build?", ""), "query is empty"),
            (line[..90].to_owned(), "not a record of an archive"),
            (line.replace("\"attempt\":1,", "\"attempt\":4294967295,"), "more than 1000000 attempts"),
            (line.replace("\"created_at\":\"2027", "\"created_at\":\"9999"), "after 2199"),
            (line.replace("\"due_at\":\"2027", "\"due_at\":\"1969"), "before 1970"),
            ("{}".to_owned(), "missing field"),
        ];
        for (line, words) in cases {
            let error = read(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
