//! The first minutes of a new user: a copied settings file, a mistake in it, the demo.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Child,
};

use crate::harness::{Setup, below_a_file, simulator};

/// A setup that finds no key and no address but what a test writes into `.env`.
fn setup() -> Setup {
    let claude_is_not_there = "http://127.0.0.1:9";
    Setup::new(claude_is_not_there).without("ANTHROPIC_API_KEY").without("ADMIN_TOKEN").without("HOST")
}

fn write_dotenv(setup: &Setup, text: &str) {
    let path = setup.folder().join(".env");
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A demo that goes on after its memo; killed when dropped.
struct Demo {
    child: Child,
    /// What it said up to its links.
    said: String,
    port: u16,
}

impl Demo {
    fn start(setup: &Setup) -> Demo {
        let child = setup.command().arg("demo").spawn().unwrap();
        let mut demo = Demo { child, said: String::new(), port: 0 };
        // Not taken from it, so that it stays open for what is said later.
        let mut out = BufReader::new(demo.child.stdout.as_mut().unwrap());
        while !demo.said.contains("/docs") {
            assert!(out.read_line(&mut demo.said).unwrap() > 0, "the demo ended: {}", demo.said);
        }
        let link = demo.said.lines().find_map(|line| line.trim().strip_prefix("Ask and read in a browser: ")).unwrap();
        demo.port = link.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
        assert_eq!(link, format!("http://127.0.0.1:{}/", demo.port), "a link that a browser can open");
        demo
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn after_a_copy_of_the_example_file_the_demo_is_open_to_this_machine_alone() {
    let setup = setup();
    write_dotenv(&setup, include_str!("../../.env.example"));
    let demo = Demo::start(&setup);
    // Another address of the same machine: whoever listens on all has it too.
    assert!(TcpStream::connect(("127.0.0.2", demo.port)).is_err());
    assert!(TcpStream::connect(("127.0.0.1", demo.port)).is_ok());
    for folder in ["data", "data/demo"] {
        let mode = fs::metadata(setup.folder().join(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{folder}");
    }
}

#[test]
fn a_demo_on_all_interfaces_tells_links_that_can_be_opened_and_where_its_admin_token_is() {
    let mut setup = setup();
    write_dotenv(&setup, "HOST=0.0.0.0\n");
    let demo = Demo::start(&setup);
    let base = format!("http://127.0.0.1:{}", demo.port);
    assert!(
        demo.said.contains(&format!("{base}/admin, with the admin token in data/demo/admin-token")),
        "{}",
        demo.said
    );

    setup.set("CEOAGENT_URL", &base);
    let (status, said) = setup.run(&["stats"]);
    assert!(status.success() && said.contains("1 succeeded"), "the token of data/demo is found: {said}");
}

#[tokio::test]
async fn a_demo_that_ends_names_the_admin_page_and_its_token_and_asks_claude_where_a_key_is_set() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).without("ANTHROPIC_API_KEY").without("ADMIN_TOKEN");
    write_dotenv(&setup, "ANTHROPIC_API_KEY=sk-test-secret\n");
    let (status, said) = tokio::task::spawn_blocking(move || setup.run(&["demo", "--once"])).await.unwrap();
    assert!(status.success() && said.contains("Asking claude-sonnet-5-5 with your key."), "{said}");
    assert!(said.contains("/admin\nwith the admin token in data/demo/admin-token."), "{said}");
    assert_eq!(claude.counters().calls, 1);
}

#[test]
fn a_wrong_value_that_nobody_typed_is_told_with_where_it_is_from() {
    let mut setup = setup();
    let tip = |setup: &Setup, args: &[&str]| {
        let (status, said) = setup.run(args);
        assert_eq!(status.code(), Some(2), "{said}");
        said.lines().find_map(|line| Some(line.trim().strip_prefix("tip: ")?.to_owned()))
    };
    write_dotenv(&setup, "WORKERS=abc\nON_UNKNOWN_OUTCOME=ignore\n");
    assert_eq!(tip(&setup, &["serve"]).unwrap(), "the value comes from WORKERS in the settings file .env");
    assert_eq!(
        tip(&setup, &["serve", "--workers=1"]).unwrap(),
        "the value comes from ON_UNKNOWN_OUTCOME in the settings file .env"
    );
    setup.set("WORKERS", "def");
    assert_eq!(tip(&setup, &["serve"]).unwrap(), "the value comes from the environment variable WORKERS");
    assert_eq!(tip(&setup, &["serve", "--workers=ghi"]), None);
    assert_eq!(tip(&setup, &["serve", "--workers", "ghi"]), None);
}

#[test]
fn a_misspelt_name_in_the_settings_file_is_told_with_the_one_that_is_meant() {
    let setup = setup().with("PORTS", "1");
    write_dotenv(&setup, "WORKRES=3\nNO_COLOR=1\nADMIN_TOKEN=a-token-for-tests-only\n");
    let output = setup.command().arg("openapi").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(said, "warning: unknown setting WORKRES in .env. Did you mean WORKERS?\n");
}

#[test]
fn why_a_start_failed_is_told_once() {
    let setup = setup().with("ANTHROPIC_API_KEY", "sk-test-secret");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let nowhere = below_a_file(&setup);
    let told = |name: &str, value: &str| {
        let (status, said) = setup.run(&["serve", &format!("--{name}={value}"), "--host=127.0.0.1"]);
        assert!(!status.success() && said.contains("(os error "), "{said}");
        assert_eq!(said.matches("(os error ").count(), 1, "{said}");
    };
    told("port", &port);
    told("prompts-dir", "no-such-folder");
    told("data-dir", Path::new(&nowhere).to_str().unwrap());
}
