use std::{os::unix::fs::FileExt, sync::Arc};

use proptest::prelude::*;
use serde_json::Value;

use super::{super::disk::Disk, *};
use crate::{
    clock::Clock,
    job::JobRequest,
    metrics::Metrics,
    store::{
        JobStore,
        contract::{at, claim, job, success},
        sled::{SledConfig, SledStore},
    },
};

fn open(path: &Path) -> SledStore {
    let config = SledConfig { path: path.to_owned(), cache_bytes: 16 << 20, keep_answers: false };
    SledStore::open(config, Clock::manual(at(0)), Metrics::new()).unwrap()
}

/// Question `n`, which differs from every other in each of its lines.
fn question(n: u32, bytes: usize) -> String {
    format!("Is plan {n} good? ").repeat(bytes / 16 + 1)
}

/// A store of finished jobs with long questions and answers, in several segments; and one job queued, one running.
async fn fill(path: &Path, jobs: u32) {
    let store = open(path);
    for n in 0..jobs {
        let request = JobRequest { query: question(n, 12_000), ..JobRequest::default() };
        store.insert(job(n), Arc::new(request)).await.unwrap();
        if n + 2 < jobs {
            claim(&store, n, n).await;
            store.transition(job(n).id, success(1, 30_000), at(n + 1)).await.unwrap();
        }
    }
    claim(&store, jobs - 2, jobs).await;
    store.close().await;
}

/// The jobs of the archive, a line each, and the summary.
pub(crate) fn lines(path: &Path) -> Result<(Vec<String>, Summary), SalvageError> {
    let mut archive = Writer::new(Vec::new(), |line| line.into(), at(0), true);
    let summary = export(path, &mut archive)?;
    let text = String::from_utf8(std::mem::take(archive.out())).unwrap();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(lines[0].contains("\"kind\":\"header\"") && lines.last().unwrap().contains("\"kind\":\"end\""), "{text}");
    Ok((lines[1..lines.len() - 1].to_vec(), summary))
}

fn salvage(path: &Path) -> (Vec<Value>, Summary) {
    let (lines, summary) = lines(path).unwrap();
    (lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect(), summary)
}

/// Checks that what a line tells of job `n` is true. Gives whether it is all there is.
fn assert_true(line: &Value) -> bool {
    let n = u32::try_from(line["number"].as_u64().unwrap() - 1).unwrap();
    let is_whole = line["unreadable"].is_null();
    if !line["id"].is_null() {
        assert_eq!(line["id"], job(n).id.to_string());
    }
    if !line["request"].is_null() {
        assert_eq!(line["request"]["query"], question(n, 12_000));
    }
    for attempt in line["attempts"].as_array().unwrap() {
        assert_eq!(attempt["report"]["raw_answer"], "as it came");
        assert_eq!(attempt["report"]["result"]["summary"].as_str().unwrap().len(), 30_000);
    }
    if is_whole && line["status"] == "succeeded" {
        assert_eq!(line["attempts"].as_array().unwrap().len(), 1);
    }
    is_whole
}

/// Everything in the folder, to compare.
fn bytes_in(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[tokio::test]
async fn a_healthy_store_comes_back_whole_and_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 60).await;
    let before = bytes_in(folder.path());
    let (lines, summary) = salvage(folder.path());
    assert!(summary.is_complete(), "{summary}");
    assert_eq!(bytes_in(folder.path()), before);
    assert_eq!(lines.len(), 60);
    for (n, line) in lines.iter().enumerate() {
        assert_eq!(line["number"], n + 1);
        assert!(assert_true(line), "{line}");
        let status = ["succeeded", "running", "queued"][(n + 2).saturating_sub(59).min(2)];
        assert_eq!(line["status"], status, "{n}");
    }
}

#[tokio::test]
async fn what_a_crash_left_of_no_job_is_none() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 3).await;
    {
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        codec::write_chunks(disk.tree(), &keys::request(4), b"{\"query\":\"half\"}").unwrap();
        disk.tree().insert(keys::PRUNING, &1u64.to_be_bytes()).unwrap();
        disk.tree().remove(keys::metadata(1)).unwrap();
        disk.sync().unwrap();
    }
    let (lines, summary) = salvage(folder.path());
    assert!(summary.is_complete(), "{summary}");
    assert_eq!(lines.iter().map(|line| line["number"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test]
async fn a_job_without_metadata_or_with_half_a_question_is_given_and_marked() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 4).await;
    {
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        disk.tree().remove(keys::metadata(1)).unwrap();
        disk.tree().insert(keys::metadata(2), b"\x00nonsense").unwrap();
        let whole = question(2, 12_000);
        disk.tree().insert(keys::chunk(&keys::request(3), 0), &whole.as_bytes()[..9_000]).unwrap();
        disk.sync().unwrap();
    }
    let (lines, summary) = salvage(folder.path());
    assert!(!summary.is_complete());
    let told = summary.to_string();
    assert!(told.contains("3 records could not be read") && told.contains("the metadata of job number 2"), "{told}");
    assert!(told.contains(&format!("the request of job {}", job(2).id)), "{told}");
    for line in &lines[..2] {
        assert_eq!(line["unreadable"], serde_json::json!(["the metadata"]));
        assert!(!assert_true(line) && line["id"].is_null());
        assert_eq!(line["attempts"].as_array().unwrap().len(), 1);
    }
    assert!(lines[2]["request"].is_null() && lines[2]["status"] == "running", "{}", lines[2]);
    assert!(lines[2]["fragments"]["the request"].as_str().unwrap().starts_with("Is plan 2 good?"));
    assert!(assert_true(&lines[3]));
}

#[tokio::test]
async fn damage_anywhere_costs_what_lay_there_and_never_makes_wrong_data() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 150).await;
    let size = fs::metadata(folder.path().join("db")).unwrap().len();
    assert!(size > 6 << 20, "several segments: {size}");
    for (place, bytes) in [(0, 64 << 10), (16, 64 << 10), (2 << 20, 4096), (3 << 20, 200_000), (size - (1 << 20), 4096)]
    {
        let damaged = tempfile::tempdir().unwrap();
        copy_folder(folder.path(), damaged.path()).unwrap();
        let db = File::options().write(true).open(damaged.path().join("db")).unwrap();
        db.write_all_at(&vec![0xA5; bytes], place).unwrap();
        let before = bytes_in(damaged.path());
        let (lines, summary) = salvage(damaged.path());
        assert_eq!(bytes_in(damaged.path()), before);
        let whole = lines.iter().filter(|line| assert_true(line)).count();
        // A job is some 43 KB here, and 17 records share a page.
        assert!(whole >= 150 - 17 - 2 * (bytes / 43_000 + 1), "{bytes} at {place}: {whole}, {summary}");
        assert!(whole == 150 || !summary.is_complete(), "{summary}");
    }
}

#[tokio::test]
async fn a_start_that_is_refused_for_a_damaged_segment_leaves_everything_to_be_read() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 100).await;
    let db = File::options().read(true).write(true).open(folder.path().join("db")).unwrap();
    db.write_all_at(&[0xA5; 20], 2 << 20).unwrap();
    let before = bytes_in(folder.path());
    let error = Disk::open(folder.path(), 16 << 20).unwrap_err().to_string();
    assert!(error.contains(&format!("damaged at byte {}", 2 << 20)), "{error}");
    assert!(error.contains("ceoagent export --salvage"), "{error}");
    assert_eq!(bytes_in(folder.path()), before);
    let (lines, summary) = salvage(folder.path());
    assert_eq!(lines.iter().filter(|line| assert_true(line)).count(), 100, "{summary}");
}

#[tokio::test]
async fn of_a_truncated_file_the_rest_is_read() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 150).await;
    let db = folder.path().join("db");
    let size = fs::metadata(&db).unwrap().len();
    // What is where in the file depends on when sled wrote what: about half of what is usual must come out.
    for (part, at_least) in [(3, 50), (2, 25), (1, 10)] {
        File::options().write(true).open(&db).unwrap().set_len(size / 4 * part + 7).unwrap();
        let (lines, summary) = salvage(folder.path());
        let whole = lines.iter().filter(|line| assert_true(line)).count();
        assert!(whole == 150 || !summary.is_complete(), "{summary}");
        assert!(whole >= at_least, "{part}/4: {whole}; {summary}");
    }
    fs::write(&db, b"").unwrap();
    let (lines, summary) = salvage(folder.path());
    assert!(lines.is_empty() && summary.to_string().contains("restore the data folder from a backup"), "{summary}");
}

#[test]
fn a_folder_without_a_store_and_a_store_in_use_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let error = lines(folder.path()).unwrap_err();
    assert!(matches!(error, SalvageError::Nothing { .. }), "{error}");
    let _store = open(folder.path());
    let error = lines(folder.path()).unwrap_err();
    assert!(error.to_string().contains("in use by another ceoagent"), "{error}");
}

/// A step in the life of a sled store.
#[derive(Clone, Debug)]
enum Step {
    Set(u8, u16, usize),
    Remove(u8, u16),
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![4 => 0usize..200, 1 => 20_000usize..24_000];
    prop_oneof![
        40 => (0u8..3, 0u16..400, length).prop_map(|(prefix, seq, length)| Step::Set(prefix, seq, length)),
        20 => (0u8..3, 0u16..400).prop_map(|(prefix, seq)| Step::Remove(prefix, seq)),
        1 => Just(Step::Reopen),
    ]
}

fn key(prefix: u8, seq: u16) -> Vec<u8> {
    let seq = Seq::from(seq);
    match prefix {
        0 => keys::metadata(seq).to_vec(),
        1 => keys::chunk(&keys::request(seq), 0),
        _ => keys::chunk(&keys::attempt(seq, 1), 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_of_a_healthy_store_tells_what_sled_tells(steps in proptest::collection::vec(any_step(), 1..1_500)) {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = Disk::open(folder.path(), 16 << 20).unwrap();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Set(prefix, seq, length) => {
                    disk.tree().insert(key(prefix, seq), vec![u8::try_from(n % 251).unwrap(); length]).unwrap();
                }
                Step::Remove(prefix, seq) => {
                    disk.tree().remove(key(prefix, seq)).unwrap();
                }
                Step::Reopen => {
                    disk.sync().unwrap();
                    drop(disk);
                    disk = Disk::open(folder.path(), 16 << 20).unwrap();
                }
            }
        }
        disk.sync().unwrap();
        let log = Log::read(File::open(folder.path().join("db")).unwrap()).unwrap();
        let of_log: Vec<(Vec<u8>, Vec<u8>)> =
            log.keys().map(|key| (key.clone(), log.get(key).unwrap().unwrap())).collect();
        let of_sled: Vec<(Vec<u8>, Vec<u8>)> =
            disk.tree().iter().map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect();
        prop_assert!(of_log == of_sled, "{} records in the log, {} in sled", of_log.len(), of_sled.len());
    }
}
