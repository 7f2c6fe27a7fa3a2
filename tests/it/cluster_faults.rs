//! Faults of nodes, of their network, of their clocks and of the database, under load. The long form, by
//! `tests/cluster/run.sh`, sets CEOAGENT_TEST_FAULTS to the seconds of its longest scenario.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::Duration,
};

use rand::RngExt;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::time::{Instant, sleep};

use crate::{
    cluster::{Cluster, Load, Moment, setup},
    database::{Postgres, as_server, free_port, give_away, url_at},
    harness::{PATIENCE, Service},
    loop_disk::LoopDisk,
    proxy::{Mode, Proxy},
    redis_server::RedisServer,
};

const KILL_PAUSE: Duration = Duration::from_secs(3);

/// More than all clients submit together. They have one address, so they share this quota.
const SUBMITS_PER_MINUTE: &str = "12000";

/// Seconds of a scenario: `short` in the normal run.
fn length(short: u64, long: impl FnOnce(u64) -> u64) -> Duration {
    let longest = std::env::var("CEOAGENT_TEST_FAULTS").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(longest.map_or(short, long))
}

fn three(url: &str) -> Vec<String> {
    vec![url.to_owned(); 3]
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_of_a_random_node_every_three_seconds_and_a_redis_that_is_flushed_paused_and_killed_cost_no_job() {
    let (postgres, mut redis) = (Postgres::start(), RedisServer::start());
    let urls = three(&postgres.create("jobs"));
    let cluster = Cluster::start_with(&urls, |_, setup| {
        setup.with("REDIS_URL", &redis.url()).with("SUBMITS_PER_MINUTE", SUBMITS_PER_MINUTE)
    });
    let cluster = cluster.await;
    let end = Instant::now() + length(9, |longest| longest);
    let (mut pause, mut calls) = (Duration::ZERO, [Duration::ZERO; 2]);
    for round in 0.. {
        if Instant::now() >= end {
            break;
        }
        let (victim, dispatcher) = (rand::rng().random_range(0..3), cluster.dispatcher().await);
        let killed = Moment::now();
        cluster.nodes[victim].signal("KILL");
        hurt(&mut redis, round);
        sleep(KILL_PAUSE).await;
        heal(&mut redis, round);
        for node in (0..3).filter(|node| *node != victim) {
            pause = pause.max(cluster.assert_went_on(node, killed));
        }
        let longest = &mut calls[usize::from(victim == dispatcher)];
        *longest = (*longest).max(cluster.longest_pause_of_calls(killed));
        cluster.nodes[victim].ready().await;
    }
    println!(
        "SIGKILL: longest pause of submits {pause:?}, of calls {:?}, if the dispatcher died {:?}",
        calls[0], calls[1]
    );
    cluster.assert_marks().await;
}

/// Flushes Redis, then pauses it or kills it, by turns.
fn hurt(redis: &mut RedisServer, round: usize) {
    // The nodes use it.
    let deadline = Instant::now() + PATIENCE;
    while redis.command(&["--scan", "--pattern", "ceoagent:rate:*"]).is_empty() {
        assert!(Instant::now() < deadline, "no submission is counted in Redis");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(redis.command(&["flushall"]), "OK");
    if round.is_multiple_of(2) { redis.signal("STOP") } else { redis.kill() }
}

fn heal(redis: &mut RedisServer, round: usize) {
    if round.is_multiple_of(2) { redis.signal("CONT") } else { redis.start_again() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_all_nodes_refuses_nothing_on_the_others_and_leaves_no_outcome_unknown() {
    let postgres = Postgres::start();
    let cluster = Cluster::start(&three(&postgres.create("jobs"))).await;
    let end = Instant::now() + length(0, |longest| longest / 4);
    let (mut pause, mut calls, mut rounds) = (Duration::ZERO, Duration::ZERO, 0);
    while rounds == 0 || Instant::now() < end {
        for (number, node) in cluster.nodes.iter().enumerate() {
            let (stopped_at, starts) = (Moment::now(), node.starts());
            node.signal("TERM");
            node.started_again(starts).await;
            assert_eq!(node.exit().and_then(|exit| exit.code()), Some(0), "{}", node.log());
            for other in (0..3).filter(|other| *other != number) {
                assert_eq!(cluster.refusals(other, stopped_at), [], "node {other}, while node {number} restarts");
                pause = pause.max(cluster.longest_pause(other, stopped_at));
            }
            calls = calls.max(cluster.longest_pause_of_calls(stopped_at));
        }
        rounds += 1;
    }
    println!("rolling restart, {rounds} rounds: longest pause of submits {pause:?}, of calls {calls:?}");
    let figures = cluster.assert_marks().await;
    assert_eq!((figures.unknown, figures.second_calls), (0, 0), "{figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigstop_of_the_dispatcher_for_eight_seconds_costs_no_job() {
    let postgres = Postgres::start();
    let cluster = Cluster::start(&three(&postgres.create("jobs"))).await;
    let end = Instant::now() + length(1, |longest| longest / 4);
    let (mut pause, mut calls) = (Duration::ZERO, Duration::ZERO);
    while Instant::now() < end {
        let stopped_at = Moment::now();
        let dispatcher = cluster.dispatcher().await;
        let (stopped, starts) = (&cluster.nodes[dispatcher], cluster.nodes[dispatcher].starts());
        stopped.signal("STOP");
        sleep(Duration::from_secs(8)).await;
        stopped.signal("CONT");
        stopped.started_again(starts).await;
        for node in (0..3).filter(|node| *node != dispatcher) {
            pause = pause.max(cluster.assert_went_on(node, stopped_at));
        }
        calls = calls.max(cluster.longest_pause_of_calls(stopped_at));
    }
    println!("SIGSTOP: longest pause of submits {pause:?}, of calls {calls:?}");
    cluster.assert_marks().await;
}

/// Cuts the first of three nodes off from the database, in each way for so long.
async fn cut_off(is_dispatcher: bool, modes: &[Mode], length: Duration) {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let proxy = Proxy::start(postgres.port()).await;
    let mut urls = three(&url);
    let cut = if is_dispatcher { 0 } else { 2 };
    urls[cut] = url_at(proxy.port(), "jobs");
    let cluster = Cluster::start(&urls).await;
    for mode in modes {
        let from = Moment::now();
        proxy.set(*mode);
        sleep(length).await;
        let calls = cluster.longest_pause_of_calls(from);
        proxy.set(Mode::Pass);
        cluster.nodes[cut].ready().await;
        let refusals = cluster.refusals(cut, from);
        let slowest = refusals.iter().map(|(_, took)| *took).max().unwrap_or_default();
        let statuses: std::collections::BTreeSet<_> = refusals.iter().map(|(status, _)| *status).collect();
        let pauses: Vec<_> =
            (0..3).filter(|node| *node != cut).map(|node| cluster.assert_went_on(node, from)).collect();
        println!(
            "{mode:?} for {length:?}, of the dispatcher: {is_dispatcher}: longest pause of calls {calls:?}, of submits \
             elsewhere {pauses:?}, on it {:?}; {} refusals {statuses:?}, the slowest after {slowest:?}",
            cluster.longest_pause(cut, from),
            refusals.len()
        );
        cluster.accepted(30).await;
    }
    cluster.assert_marks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_that_is_cut_off_from_the_database_costs_no_job() {
    let length = length(10, |_| 40);
    let modes = [Mode::Hold, Mode::Swallow, Mode::HalfOpen, Mode::Reset];
    cut_off(true, &modes[..if length.as_secs() == 10 { 1 } else { 4 }], length).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_from_the_database_costs_no_job() {
    let length = length(3, |_| 40);
    let slow = Mode::Delay(Duration::from_millis(200));
    cut_off(false, &[Mode::Swallow, Mode::HalfOpen, Mode::Reset, Mode::Cut, slow], length).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_after_a_crash_of_the_primary_has_every_accepted_job() {
    let mut primary = Postgres::start();
    primary.create("jobs");
    let standby = primary.synchronous_standby();
    let (first, second) = (primary.port(), standby.port());
    let url = format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/jobs?sslmode=disable");
    let cluster = Cluster::start(&three(&url)).await;
    cluster.accepted(100).await;
    let crashed = Moment::now();
    primary.stop_immediately();
    standby.promote();
    for node in &cluster.nodes {
        node.ready().await;
    }
    cluster.accepted(60).await;
    let pauses: Vec<_> = (0..3).map(|node| cluster.longest_pause(node, crashed)).collect();
    println!("promotion: longest pause of submits {pauses:?}, of calls {:?}", cluster.longest_pause_of_calls(crashed));
    cluster.assert_marks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_and_restart_of_the_database_under_the_load_of_three_nodes_costs_no_job() {
    let mut postgres = Postgres::start();
    let cluster = Cluster::start(&three(&postgres.create("jobs"))).await;
    for down in [0, length(2, |_| 20).as_secs()] {
        let crashed = Moment::now();
        postgres.stop_immediately();
        sleep(Duration::from_secs(down)).await;
        postgres.start_again();
        for node in &cluster.nodes {
            node.ready().await;
        }
        cluster.accepted(60).await;
        let pauses: Vec<_> = (0..3).map(|node| cluster.longest_pause(node, crashed)).collect();
        let calls = cluster.longest_pause_of_calls(crashed);
        println!("crash, {down} s down: longest pause of submits {pauses:?}, of calls {calls:?}");
    }
    cluster.assert_marks().await;
}

/// Debian's libfaketime.
fn faketime() -> String {
    let path = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    assert!(Path::new(&path).exists(), "this test needs Debian's package faketime");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_whose_clocks_are_five_minutes_off_delay_no_job() {
    let postgres = Postgres::start();
    let urls = three(&postgres.create("jobs"));
    let cluster = Cluster::start_under(Load::Greedy, &urls, |node, setup| {
        let off = ["+0", "+5m", "-5m"][node];
        setup.with("LD_PRELOAD", &faketime()).with("FAKETIME", off).with("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    });
    let cluster = cluster.await;
    // Each of them hands out the calls for a time.
    for _ in 0..3 {
        let from = Moment::now();
        cluster.accepted(60).await;
        let mut services = Vec::new();
        for node in &cluster.nodes {
            services.push(node.ready().await);
        }
        for (number, service) in services.iter().enumerate() {
            let job = service.submit(&format!("Late {number}?")).await;
            assert_eq!(job.status, 202, "{job:#?}");
            let ended = service.ended(&job.id()).await.body;
            assert_eq!(ended["status"], "succeeded", "{ended:#}");
            let created: jiff::Timestamp = ended["created_at"].as_str().unwrap().parse().unwrap();
            let off = jiff::Timestamp::now().duration_since(created).abs();
            assert!(off < jiff::SignedDuration::from_secs(60), "node {number} dates its jobs {off:?} off: {ended:#}");
        }
        println!("clocks 5 min off: longest pause of calls {:?}", cluster.longest_pause_of_calls(from));
        let dispatcher = cluster.dispatcher().await;
        cluster.nodes[dispatcher].signal("KILL");
        sleep(Duration::from_millis(500)).await;
    }
    cluster.assert_marks().await;
}

/// As docs/cluster.md says for three nodes.
const POOL: usize = 30;

/// Debian's PgBouncer in front of a server.
struct PgBouncer {
    port: u16,
    process: Child,
    _folder: tempfile::TempDir,
}

impl PgBouncer {
    async fn start(postgres: &Postgres, mode: &str) -> PgBouncer {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let file = folder.path().join("pgbouncer.ini");
        let target = postgres.port();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={target} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = {POOL}\n"
        );
        fs::write(&file, settings).unwrap();
        give_away(folder.path());
        give_away(&file);
        let process = as_server("/usr/sbin/pgbouncer").arg(&file).spawn().expect("this test needs Debian's pgbouncer");
        let deadline = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(Instant::now() < deadline, "pgbouncer does not listen");
            sleep(Duration::from_millis(10)).await;
        }
        PgBouncer { port, process, _folder: folder }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbouncer_is_refused_in_transaction_mode_and_serves_in_session_mode() {
    let postgres = Postgres::start();
    postgres.create("jobs");
    for mode in ["transaction", "statement"] {
        let pooler = PgBouncer::start(&postgres, mode).await;
        let start = || setup("http://127.0.0.1:9", &url_at(pooler.port, "jobs")).run(&["serve"]);
        // Those of other nodes use the pooler meanwhile.
        let starts = thread::scope(|scope| [(); 4].map(|()| scope.spawn(start)).map(|start| start.join().unwrap()));
        for (status, said) in starts {
            assert!(!status.success() && said.contains("use pool_mode=session"), "{mode}: {said}");
        }
    }
    let pooler = PgBouncer::start(&postgres, "session").await;
    let cluster = Cluster::start(&three(&url_at(pooler.port, "jobs"))).await;
    let dispatcher = cluster.dispatcher().await;
    let killed = Moment::now();
    cluster.nodes[dispatcher].signal("KILL");
    cluster.accepted(100).await;
    cluster.nodes[dispatcher].ready().await;
    println!("SIGKILL behind PgBouncer: longest pause of calls {:?}", cluster.longest_pause_of_calls(killed));
    cluster.assert_marks().await;
}

/// Files with a new certificate of the loopback address and its key.
pub(crate) fn certificate(folder: &Path, name: &str) -> [String; 2] {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let paths = [folder.join(format!("{name}.crt")), folder.join(format!("{name}.key"))];
    for (path, text) in paths.iter().zip([cert.pem(), signing_key.serialize_pem()]) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        give_away(path);
    }
    paths.map(|path| path.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_the_database_is_demanded_and_its_certificate_checked() {
    let folder = tempfile::tempdir().unwrap();
    give_away(folder.path());
    let ([cert, key], [other, _]) = (certificate(folder.path(), "server"), certificate(folder.path(), "other"));
    let files = [format!("ssl_cert_file={cert}"), format!("ssl_key_file={key}")];
    let postgres = Postgres::start_with(&["ssl=on", &files[0], &files[1]]);
    let url = postgres.create("jobs").replace("sslmode=disable", "sslmode=require");
    let node = |ca: &str, url: &str| setup("http://127.0.0.1:9", url).with("SSL_CERT_FILE", ca);
    let (status, said) = node(&other, &url).run(&["serve"]);
    assert!(!status.success() && said.contains("can't use the database") && said.contains("certificate"), "{said}");
    let service: Service = node(&cert, &url).start();
    assert_eq!(service.submit("Is it safe?").await.status, 202);
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
                     where application_name like 'ceoagent%' and not ssl";
    assert_eq!(postgres.sql("jobs", encrypted), "0");
    let plain = Postgres::start();
    let url = plain.create("jobs").replace("sslmode=disable", "sslmode=require");
    let (status, said) = node(&cert, &url).run(&["serve"]);
    assert!(!status.success() && said.contains("server does not support TLS"), "{said}");
}

/// A folder of a disk, for a server.
fn folder_on(disk: &LoopDisk) -> PathBuf {
    let folder = disk.path().join("database");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    give_away(&folder);
    folder
}

/// Fills a disk and waits until all nodes refuse questions in words. Gives the file to remove.
async fn fill(disk: &LoopDisk, cluster: &Cluster) -> PathBuf {
    let (ballast, full_at) = (disk.path().join("ballast"), Moment::now());
    let mut file = fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[b'x'; 4 << 10]).is_ok() {}
    let deadline = Instant::now() + PATIENCE;
    let refusals = || (0..3).map(|node| cluster.refusals(node, full_at)).collect::<Vec<_>>();
    while refusals().iter().any(|refused| refused.len() < 7) {
        assert!(Instant::now() < deadline, "questions are accepted on a full disk");
        sleep(Duration::from_millis(20)).await;
    }
    let refused = refusals().concat();
    assert!(refused.iter().all(|(status, _)| *status == Some(503)), "{refused:?}");
    for node in 0..3 {
        // Now and then a page of a table has room for one more row.
        cluster.refusal(node).await.assert_problem(503, "storage_unavailable");
    }
    let end = Instant::now() + length(1, |_| 40);
    while Instant::now() < end {
        for node in &cluster.nodes {
            let ready = Service::at(node.base().expect("it waits for room")).get("/health/ready").await;
            assert_eq!(ready.status, 503, "{:?}", ready.body);
        }
    }
    ballast
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_database_refuses_questions_and_costs_no_accepted_job() {
    let disk = LoopDisk::new(128);
    let postgres = Postgres::start_in(Some(folder_on(&disk)), None, &[]);
    let cluster = Cluster::start(&three(&postgres.create("jobs"))).await;
    let before = cluster.nodes[0].ready().await.submit("Before the disk is full?").await;
    let ballast = fill(&disk, &cluster).await;
    for node in &cluster.nodes {
        let path = format!("/api/v1/jobs/{}", before.body["id"].as_str().unwrap());
        let read = Service::at(node.base().unwrap()).get(&path).await;
        assert_eq!(read.status, 200, "what is stored can be read: {:?} {}", read.body, node.log());
    }
    fs::remove_file(&ballast).unwrap();
    let freed = Moment::now();
    for node in &cluster.nodes {
        node.ready().await;
    }
    cluster.accepted(60).await;
    println!("full disk: submits go on {:?} after there is room", cluster.longest_pause(0, freed));
    let log: String = cluster.nodes.iter().map(|node| node.log()).collect();
    assert!(log.contains("can store nothing more"), "{log}");
    assert!(log.contains("No space left on device"), "{log}");
    cluster.assert_marks().await;
    drop(postgres);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_write_ahead_log_refuses_questions_and_costs_no_accepted_job() {
    let disk = LoopDisk::new(32);
    let mut postgres = Postgres::start_in(None, Some(folder_on(&disk)), &[]);
    let cluster = Cluster::start(&three(&postgres.create("jobs"))).await;
    let ballast = fill(&disk, &cluster).await;
    assert!(postgres.log().contains("PANIC"), "{}", postgres.log());
    fs::remove_file(&ballast).unwrap();
    // The server has crashed and may have ended: it can't recover on a full disk.
    postgres.stop_immediately();
    postgres.start_again();
    let freed = Moment::now();
    for node in &cluster.nodes {
        node.ready().await;
    }
    cluster.accepted(60).await;
    println!(
        "full disk of the write-ahead log: submits go on {:?} after there is room",
        cluster.longest_pause(0, freed)
    );
    cluster.assert_marks().await;
    drop(postgres);
}

/// Waits until a node is ready and has, or has not, a note of settings that differ from those of another. Gives its text.
async fn until_settings_note(node: &Service, is_wanted: bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ready = node.get("/health/ready").await;
        let mut notes = ready.body["notes"].as_array().into_iter().flatten();
        let note = notes.find(|note| note["code"] == "settings_differ");
        if ready.status == 200 && note.is_some() == is_wanted {
            return note.map(|note| note["message"].as_str().unwrap().to_owned()).unwrap_or_default();
        }
        assert!(Instant::now() < deadline, "wanted: {is_wanted}. {ready:#?}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_cluster_on_the_same_database_is_warned_of_by_the_names_of_its_settings() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let first = setup("http://127.0.0.1:9", &url).start();
    let same = setup("http://127.0.0.1:9", &url).start();
    let another = setup("http://127.0.0.1:9", &url).with("ADMIN_TOKEN", "of-another-cluster");
    let another = another.with("ANTHROPIC_API_KEY", "sk-of-another-account");
    let another = another.with("DAILY_BUDGET", "25 USD").with("RATE_LIMITS", "100 requests").start();
    let names = "ADMIN_TOKEN, ANTHROPIC_API_KEY, DAILY_BUDGET, RATE_LIMITS";
    for node in [&another, &same, &first] {
        node.until_said("two clusters need two databases");
        node.until_said(names);
        let note = until_settings_note(node, true).await;
        assert!(note.contains(&format!("other values of {names}. Give all nodes the same")), "{note}");
        assert_eq!(node.metric("ceoagent_settings_differ").await, "4");
    }
    let stats = first.admin_get("/api/v1/admin/stats").await.body;
    let notes = stats["notes"].as_array().unwrap();
    assert!(notes.iter().any(|note| note["code"] == "settings_differ"), "{stats:#}");
    another.kill();
    for node in [&same, &first] {
        until_settings_note(node, false).await;
    }
    assert!(!same.kill().contains("WEBHOOK_SECRET"));
}
