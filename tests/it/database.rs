//! A PostgreSQL server of its own for a test: a temporary folder, a free port of the loopback interface. It is killed at the
//! end of the test. The server refuses to run as root, so root starts it as the user `postgres` of Debian's package.

use std::{
    net::{TcpListener, TcpStream},
    os::unix::fs::chown,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const USER: &str = "postgres";

pub(crate) struct Postgres {
    folder: tempfile::TempDir,
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
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            chown(folder.path(), Some(id_of("-u", Some(USER))), Some(id_of("-g", Some(USER)))).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = settings.iter().map(ToString::to_string).collect();
        let mut postgres = Postgres { folder, port, settings, server: None };
        let data = postgres.data();
        let made = program("initdb")
            .args(["--auth=trust", "--no-sync", "--encoding=UTF8", "--no-locale", "-U", USER, "-D"])
            .arg(data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        postgres.start_again();
        postgres
    }

    /// The URL of a new database.
    pub(crate) fn create(&self, name: &str) -> String {
        self.sql("postgres", &format!("create database {name} strategy file_copy"));
        self.url(name)
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    pub(crate) fn start_again(&mut self) {
        let mut server = program("postgres");
        server.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=60"] {
            server.args(["-c", setting]);
        }
        for setting in &self.settings {
            server.args(["-c", setting]);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        self.server = Some(server.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.is_ready() {
            assert!(Instant::now() < deadline, "{}", std::fs::read_to_string(self.folder.path().join("log")).unwrap());
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

    /// The rows of a statement, a line each.
    pub(crate) fn sql(&self, database: &str, statement: &str) -> String {
        let address = ["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER, "-d", database];
        let mut psql = program("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]).args(address).args(["-c", statement]);
        let out = psql.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    fn is_ready(&self) -> bool {
        let port = self.port.to_string();
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            && program("pg_isready").args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop_immediately();
    }
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
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups", &path]);
        command
    } else {
        Command::new(path)
    };
    // Its own folder may be closed to that user.
    command.current_dir("/").stdin(Stdio::null());
    command
}
