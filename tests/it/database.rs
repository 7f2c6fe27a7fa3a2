//! A PostgreSQL server of its own for a test: a temporary folder, a free port of the loopback interface. It is killed at the
//! end of the test. The server refuses to run as root, so root starts it as the user `postgres` of Debian's package.

use std::{
    net::{TcpListener, TcpStream},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const USER: &str = "postgres";

pub(crate) struct Postgres {
    folder: tempfile::TempDir,
    data: PathBuf,
    port: u16,
    settings: Vec<String>,
    server: Option<Child>,
}

impl Postgres {
    pub(crate) fn start() -> Postgres {
        Postgres::start_with(&[])
    }

    /// With settings such as `fsync=off`.
    pub(crate) fn start_with(settings: &[&str]) -> Postgres {
        Postgres::start_in(None, None, settings)
    }

    /// With its data, and its write-ahead log in segments of 1 MiB, in existing folders.
    pub(crate) fn start_in(data: Option<PathBuf>, wal: Option<PathBuf>, settings: &[&str]) -> Postgres {
        let mut postgres = Postgres::new(data, settings);
        let mut initdb = program("initdb");
        initdb.args(["--auth=trust", "--no-sync", "--encoding=UTF8", "--no-locale", "-U", USER, "-D"]);
        initdb.arg(&postgres.data);
        if wal.is_some() {
            initdb.arg("--wal-segsize=1");
        }
        initdb.arg("-X").arg(wal.unwrap_or_else(|| postgres.folder.path().join("wal")));
        run(&mut initdb);
        postgres.start_again();
        postgres
    }

    fn new(data: Option<PathBuf>, settings: &[&str]) -> Postgres {
        let folder = tempfile::tempdir().unwrap();
        let data = data.unwrap_or_else(|| folder.path().join("data"));
        give_away(folder.path());
        let port = free_port();
        let settings = settings.iter().map(ToString::to_string).collect();
        Postgres { folder, data, port, settings, server: None }
    }

    /// A standby of this server. From now on a commit waits until it is there too.
    pub(crate) fn synchronous_standby(&self) -> Postgres {
        let mut standby = Postgres::new(None, &[]);
        let mut backup = program("pg_basebackup");
        backup.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER, "-R", "-X", "stream"]);
        run(backup.args(["-c", "fast", "--no-sync", "-D"]).arg(&standby.data));
        standby.start_again();
        self.sql("postgres", "alter system set synchronous_standby_names = '*'");
        self.sql("postgres", "select pg_reload_conf()");
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.sql("postgres", "select count(*) from pg_stat_replication where sync_state = 'sync'") != "1" {
            assert!(Instant::now() < deadline, "the standby never became synchronous");
            thread::sleep(Duration::from_millis(20));
        }
        standby
    }

    /// Makes a standby the primary.
    pub(crate) fn promote(&self) {
        run(program("pg_ctl").args(["promote", "-D"]).arg(&self.data));
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a new database.
    pub(crate) fn create(&self, name: &str) -> String {
        self.sql("postgres", &format!("create database {name} strategy file_copy"));
        self.url(name)
    }

    pub(crate) fn url(&self, database: &str) -> String {
        url_at(self.port, database)
    }

    pub(crate) fn start_again(&mut self) {
        let mut server = program("postgres");
        server.arg("-D").arg(&self.data).args(["-p", &self.port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=100"] {
            server.args(["-c", setting]);
        }
        for setting in &self.settings {
            server.args(["-c", setting]);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        self.server = Some(server.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.is_ready() {
            assert!(Instant::now() < deadline, "{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// As a crash: no connection is ended in order, nothing is written any more.
    pub(crate) fn stop_immediately(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill").args(["-QUIT", &server.id().to_string()]).status();
            let _ = server.wait();
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The rows of a statement, a line each.
    pub(crate) fn sql(&self, database: &str, statement: &str) -> String {
        let address = ["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER, "-d", database];
        let mut psql = program("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]).args(address).args(["-c", statement]);
        let out = psql.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// Writes a backup of a database, in the format of `pg_restore`.
    pub(crate) fn dump(&self, database: &str, file: &Path) {
        let port = self.port.to_string();
        let mut dump = program("pg_dump");
        dump.args(["-h", "127.0.0.1", "-p", &port, "-U", USER, "-Fc", database]);
        run(dump.stdout(std::fs::File::create(file).unwrap()));
    }

    /// Replaces what a database has by that of a backup.
    pub(crate) fn restore(&self, database: &str, file: &Path) {
        let port = self.port.to_string();
        let mut restore = program("pg_restore");
        restore.args(["-h", "127.0.0.1", "-p", &port, "-U", USER, "-d", database, "--clean", "--if-exists"]);
        run(restore.stdin(std::fs::File::open(file).unwrap()));
    }

    fn is_ready(&self) -> bool {
        let port = self.port.to_string();
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            && program("pg_isready").args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop_immediately();
    }
}

/// The URL of a database behind a port of the loopback interface.
pub(crate) fn url_at(port: u16, database: &str) -> String {
    format!("postgres://{USER}@127.0.0.1:{port}/{database}?sslmode=disable")
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Gives a file or folder to the user that servers run as.
pub(crate) fn give_away(path: &Path) {
    if is_root() {
        chown(path, Some(id_of("-u", Some(USER))), Some(id_of("-g", Some(USER)))).unwrap();
    }
}

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A program, run as the user of the servers.
pub(crate) fn as_server(path: &str) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups", path]);
        command
    } else {
        Command::new(path)
    };
    // Its own folder may be closed to that user.
    command.current_dir("/").stdin(Stdio::null());
    command
}

fn is_root() -> bool {
    id_of("-u", None) == 0
}

fn id_of(what: &str, user: Option<&str>) -> u32 {
    let out = Command::new("id").arg(what).args(user).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
}

/// A program of the newest PostgreSQL that is installed.
fn program(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|version| version.file_name().into_string().ok()?.parse::<u32>().ok()).max();
    let path = newest.map_or_else(|| name.into(), |version| format!("/usr/lib/postgresql/{version}/bin/{name}"));
    as_server(&path)
}
