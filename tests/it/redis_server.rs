//! A Redis server of its own for a test, from Debian's package: a free port of the loopback interface, nothing on disk. It is
//! killed at the end of the test.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

pub(crate) struct RedisServer {
    port: u16,
    password: Option<&'static str>,
    /// The files of its certificate and key, if it demands TLS.
    tls: Option<[String; 2]>,
    /// Further options.
    options: Vec<String>,
    server: Option<Child>,
}

impl RedisServer {
    pub(crate) fn start() -> RedisServer {
        RedisServer::start_with(&[])
    }

    pub(crate) fn start_with(options: &[&str]) -> RedisServer {
        RedisServer::start_as(None, None, options)
    }

    pub(crate) fn start_with_password(password: &'static str) -> RedisServer {
        RedisServer::start_as(Some(password), None, &[])
    }

    /// It refuses connections without TLS.
    pub(crate) fn start_with_tls(files: [String; 2]) -> RedisServer {
        RedisServer::start_as(None, Some(files), &[])
    }

    fn start_as(password: Option<&'static str>, tls: Option<[String; 2]>, options: &[&str]) -> RedisServer {
        let options = options.iter().map(ToString::to_string).collect();
        let mut server = RedisServer { port: free_port(), password, tls, options, server: None };
        server.start_again();
        server
    }

    /// With nothing in it, at the same port.
    pub(crate) fn start_again(&mut self) {
        let mut server = Command::new(program("server"));
        let port = self.port.to_string();
        match &self.tls {
            Some([cert, key]) => {
                server.args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"]);
                server.args(["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert])
            }
            None => server.args(["--port", &port]),
        };
        server.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/tmp"]);
        server.args(self.password.iter().flat_map(|password| ["--requirepass", password]));
        server.args(&self.options);
        self.server = Some(server.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.try_command(&["ping"]).trim() != "PONG" {
            assert!(Instant::now() < deadline, "redis-server doesn't start");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn url(&self) -> String {
        let password = self.password.map_or(String::new(), |password| format!(":{password}@"));
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://{password}127.0.0.1:{}/", self.port)
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// `STOP` pauses the server, `CONT` has it continue.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.server.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// The answer to a command.
    pub(crate) fn command(&self, command: &[&str]) -> String {
        self.try_command(command).trim().to_owned()
    }

    fn try_command(&self, command: &[&str]) -> String {
        let mut client = Command::new(program("cli"));
        client.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if self.tls.is_some() {
            client.args(["--tls", "--insecure"]);
        }
        client.args(self.password.iter().flat_map(|password| ["--no-auth-warning", "-a", password]));
        String::from_utf8_lossy(&client.args(command).output().unwrap().stdout).into_owned()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Of Redis or, where that is not installed, of Valkey.
fn program(name: &str) -> String {
    let is_there = |program: &&String| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    let names = [format!("redis-{name}"), format!("valkey-{name}")];
    names.iter().find(is_there).unwrap_or(&names[0]).clone()
}
