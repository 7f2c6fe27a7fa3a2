use std::{fmt::Write, fs, path::Path, process};

use clap::FromArgMatches;

use super::{
    dotenv::{FILE, misspelt, read},
    values::Nanodollars,
    *,
};

const SECRET: &str = "sk-ant-0123456789-do-not-tell";

fn command() -> Command {
    Settings::augment_args(Command::new("ceoagent"))
}

/// Reads and checks `flags`, whatever the environment of the test run.
fn parse(flags: &[&str]) -> Result<Settings, String> {
    let command = command().no_binary_name(true).mut_args(|arg| arg.env(None::<&'static str>));
    let matches = command.try_get_matches_from(flags).map_err(|error| error.to_string())?;
    let settings = Settings::from_arg_matches(&matches).map_err(|error| error.to_string())?;
    settings.validate().map(|()| settings).map_err(|error| error.to_string())
}

fn refusal(flags: &[&str]) -> String {
    parse(flags).expect_err("should be refused")
}

/// What a process makes of a `.env` file, an environment and flags: the settings as `Debug` shows them, or the error.
fn start(dotenv: &str, environment: &[(&str, &str)], flags: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(FILE), dotenv).unwrap();
    let output = process::Command::new(env::current_exe().unwrap())
        .args(["--exact", "config::tests::a_process_reads_its_settings", "--nocapture"])
        .current_dir(folder.path())
        .env_clear()
        .envs(environment.iter().copied())
        .env("FLAGS_OF_THE_TEST", flags.join("\n"))
        .output()
        .unwrap();
    // The test runner's last line has its duration, which differs.
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().filter(|line| !line.starts_with("test result")).map(|line| format!("{line}\n")).collect()
}

/// The other half of [`start`]: does nothing unless that runs it.
#[test]
fn a_process_reads_its_settings() {
    let Ok(flags) = env::var("FLAGS_OF_THE_TEST") else { return };
    if let Err(error) = dotenv::load(&variables()) {
        return println!("{error}");
    }
    match finish(command().no_binary_name(true)).try_get_matches_from(flags.lines()) {
        Ok(matches) => println!("{:?}", Settings::from_arg_matches(&matches).unwrap()),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn without_any_setting_the_defaults_hold_and_there_is_no_secret() {
    let settings = parse(&[]).unwrap();
    assert_eq!(settings.host.to_string(), "0.0.0.0");
    assert_eq!((settings.port, settings.max_query_length, settings.max_retries), (8000, 10_000, 3));
    assert_eq!((settings.request_timeout, INTERACTIVE_TIMEOUT), (None, Duration::from_secs(60)));
    assert_eq!(settings.model_name, ["claude-sonnet-5-5"]);
    assert!(!settings.requires_api_key(), "the service is open");
    assert_eq!(settings.retention, Retention { age: Duration::from_hours(720), jobs: 100_000 });
    assert!(settings.anthropic_api_key.is_none() && settings.admin_token.is_none() && !settings.debug);
}

#[test]
fn a_bad_value_is_refused_with_the_setting_the_value_and_what_is_allowed() {
    let cases = [
        ("MAX_TOKENS", "128001", "from 1 to 128000"),
        ("PORT", "65536", "from 0 to 65535"),
        ("PORT", "http", "from 0 to 65535"),
        ("WORKERS", "0", "from 1 to 1024"),
        ("WORKERS", "-1", "from 1 to 1024"),
        ("MAX_QUERY_LENGTH", "100001", "from 1 to 100000"),
        ("REQUEST_TIMEOUT", "1.5", "from 1 to 3600"),
        ("MAX_RETRIES", "21", "from 0 to 20"),
        ("MAX_QUEUED_JOBS", "0", "from 1 to 10000000"),
        ("SHUTDOWN_GRACE", "601", "from 0 to 600"),
        ("HOST", "localhost", "IP address such as"),
        ("DEBUG", "maybe", "true or false"),
        ("REQUIRE_API_KEY", "perhaps", "true or false"),
        ("LOG_LEVEL", "loud", "error, warn, info or debug"),
        ("LOG_LEVEL", "warn,ceoagent=loud", "error, warn, info or debug"),
        ("EFFORT", "much", "auto, none, low"),
        ("RATE_LIMITS", "1000", "`N requests`"),
        ("RATE_LIMITS", "0 requests", "1 to 1000000"),
        ("RATE_LIMITS", "1 requests, 2 requests", "for example"),
        ("RATE_LIMITS", "999 input tokens", "1000 to 1000000000"),
        ("RATE_LIMITS", "1000 tokens", "`N input tokens`"),
        ("RETENTION", "30", "`N days`"),
        ("TRUSTED_PROXIES", "10.0.0.0/33", "IP addresses or networks"),
        ("TRUSTED_PROXIES", "::ffff:10.0.0.0/104", "IP addresses or networks"),
        ("WEBHOOK_ALLOW_PRIVATE", "true", "for example 10.0.0.0/8"),
        ("RETENTION", "3651 days", "1 to 3650"),
        ("RETENTION", "0 jobs", "1 to 10000000"),
        ("DAILY_BUDGET", "25", "`N USD`"),
        ("DAILY_BUDGET", "999 tokens", "1000 to 1000000000000"),
        ("JWT_AUTH", "jwks.json", "keys, issuer and audience"),
        ("JWT_AUTH", "keys=jwks.json, issuer=https://id.example", "tokens for others would be accepted"),
        ("LOG_FORMAT", "xml", "text, json"),
        ("ON_UNKNOWN_OUTCOME", "ignore", "retry, fail"),
        ("MODEL_NAME", " ", "model's id such as"),
        ("MODEL_NAME", "claude sonnet", "model's id such as"),
        ("ANTHROPIC_BASE_URL", "api.anthropic.com", "https://"),
        ("ANTHROPIC_BASE_URL", "ftp://api.anthropic.com", "https://"),
        ("ANTHROPIC_BASE_URL", "https://api.anthropic.com/?key=1", "without ?"),
        ("ANTHROPIC_BASE_URL", "foo", "for example https://api.anthropic.com"),
    ];
    for (name, value, allowed) in cases {
        let flag = format!("--{}={value}", name.to_lowercase().replace('_', "-"));
        let error = refusal(&[&flag]);
        assert!([name, value, allowed].iter().all(|part| error.contains(part)), "{name}: {error}");
    }
}

#[test]
fn the_bounds_in_the_help_are_those_that_hold() {
    for arg in command().get_arguments() {
        let help = arg.get_help().unwrap().to_string();
        let Some((low, high)) = help.rsplit_once(" (").and_then(|(_, range)| range.split_once(" to ")) else {
            continue;
        };
        let (flag, high) = (arg.get_long().unwrap(), high.trim_end_matches(')'));
        assert!(parse(&[&format!("--{flag}={low}")]).is_ok(), "{flag} {low}");
        assert!(parse(&[&format!("--{flag}={high}")]).is_ok(), "{flag} {high}");
        assert!(refusal(&[&format!("--{flag}=none")]).contains(&format!("from {low} to {high}")), "{flag}");
    }
}

#[test]
fn a_flag_is_its_variables_name_in_lower_case() {
    for arg in command().get_arguments() {
        let name = arg.get_env().unwrap().to_str().unwrap();
        assert_eq!(arg.get_long().unwrap(), name.to_lowercase().replace('_', "-"));
        assert_eq!(arg.get_value_names().unwrap(), [name], "errors show the value's name");
    }
}

#[test]
fn debug_needs_no_value_and_takes_none_that_follows_it() {
    assert!(parse(&["--debug"]).unwrap().debug);
    assert!(!parse(&["--debug=off"]).unwrap().debug);
    assert!(refusal(&["--debug", "false"]).contains("unexpected argument"));
}

#[test]
fn an_unfit_secret_is_refused_by_name_and_never_shown() {
    let cases = [
        ("ANTHROPIC_API_KEY", format!("{SECRET} {SECRET}")),
        ("ANTHROPIC_API_KEY", format!("{SECRET}\n")),
        ("ANTHROPIC_API_KEY", String::new()),
        ("WEBHOOK_SECRET", SECRET.to_owned()),
        ("WEBHOOK_SECRET", format!("whsec_{}", BASE64_STANDARD.encode([7; 23]))),
        ("ADMIN_TOKEN", SECRET[..15].to_owned()),
        ("ADMIN_TOKEN", format!("{SECRET}密")),
        ("ANTHROPIC_BASE_URL", format!("https://me:{SECRET}@gateway.example")),
        ("REDIS_URL", format!("http://:{SECRET}@redis.example")),
        ("REDIS_URL", format!("redis:{SECRET}")),
    ];
    for (name, value) in cases {
        let error = refusal(&[&format!("--{}={value}", name.to_lowercase().replace('_', "-"))]);
        assert!(error.contains(name) && error.contains("must be"), "{error}");
        assert!(!error.contains("sk-ant"), "{error}");
    }
}

#[test]
fn redis_without_a_database_is_refused_because_the_nodes_would_share_no_jobs() {
    let error = refusal(&["--redis-url=redis://redis.example"]);
    assert!(error.contains("REDIS_URL is set, but DATABASE_URL is not"), "{error}");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";
    let settings = parse(&[
        "--redis-url=rediss://:s3cret@redis.example:6380/1",
        "--database-url=postgres://db.example/ceoagent",
        "--admin-token=0f8a2c51b7d94e36",
        &format!("--webhook-secret={secret}"),
    ]);
    assert!(settings.unwrap().redis_url.is_some());
}

#[test]
fn a_daily_budget_is_money_or_tokens_or_both_and_money_is_exact() {
    let read = |text: &str| parse(&[&format!("--daily-budget={text}")]).map(|settings| settings.daily_budget.unwrap());
    let usd = |nanodollars| Some(Nanodollars(nanodollars));
    for (text, cost, tokens) in [
        ("7.50 USD", usd(7_500_000_000), None),
        ("0.01 usd", usd(10_000_000), None),
        ("25USD", usd(25_000_000_000), None),
        ("2000000 tokens", None, Some(2_000_000)),
        ("25 USD, 2000000 tokens", usd(25_000_000_000), Some(2_000_000)),
        ("1000 tokens,1 USD", usd(1_000_000_000), Some(1_000)),
    ] {
        assert_eq!(read(text), Ok(DailyBudget { cost, tokens }), "{text}");
    }
    for text in ["0", "0.001", "-1", "1e3", "1,5", "7.", ".5", "1.0000000001", "1000000.1", "99999999999999999999"] {
        let error = read(&format!("{text} USD")).unwrap_err();
        assert!(error.contains("`N USD` (0.01 to 1000000)"), "{error}");
    }
}

#[test]
fn a_part_of_the_rate_limits_or_of_the_retention_may_be_left_out() {
    let settings = parse(&["--rate-limits=1000 requests, 400000 output tokens", "--retention=7 days"]).unwrap();
    let caps = settings.rate_limits.unwrap();
    assert_eq!(
        [caps.requests, caps.input_tokens, caps.output_tokens].map(|cap| cap.map_or(0, u32::from)),
        [1_000, 0, 400_000]
    );
    assert_eq!(settings.retention, Retention { age: Duration::from_hours(168), jobs: 100_000 });
    let retention = parse(&["--retention=1 job"]).unwrap().retention;
    assert_eq!(retention, Retention { age: Duration::from_hours(720), jobs: 1 });
}

#[test]
fn callers_need_a_key_where_one_is_set_unless_the_setting_says_otherwise() {
    let requires = |flags: &[&str]| parse(flags).unwrap().requires_api_key();
    let jwt = "--jwt-auth=keys=jwks.json, issuer=https://id.example, audience=ceoagent";
    assert!(!requires(&[]) && requires(&["--require-api-key"]));
    assert!(requires(&["--api-keys=alice:0123456789abcdef"]) && requires(&[jwt]));
    assert!(!requires(&[jwt, "--require-api-key=false"]));
    let auth =
        JwtAuth { keys: "jwks.json".into(), issuer: "https://id.example".to_owned(), audience: "ceoagent".to_owned() };
    assert_eq!(parse(&[jwt]).unwrap().jwt_auth, Some(auth));
}

#[test]
fn a_log_level_is_a_word_or_a_filter() {
    let level = |text: &str| parse(&[&format!("--log-level={text}")]).unwrap().log_level.unwrap().0;
    assert_eq!(level("WARN"), "warn");
    assert_eq!(level("debug"), "info,ceoagent=debug", "the details of libraries would bury those of the service");
    assert_eq!(level("warn,ceoagent::queue=trace"), "warn,ceoagent::queue=trace");
}

#[test]
fn effort_is_low_where_a_client_waits_unless_a_level_is_set() {
    let words = |effort: Effort| [true, false].map(|is_waited_for| effort.resolved(is_waited_for).word());
    assert_eq!(words(Effort::Auto), [Some("low"), Some("high")]);
    assert_eq!(words(Effort::Max), [Some("max"), Some("max")]);
    assert_eq!(words(Effort::None), [None, None]);
}

#[test]
fn prices_and_models_are_lists() {
    let settings = parse(&["--model-prices=a=2/10,b=x=0.1/0.005", "--model-name=c, d"]).unwrap();
    let price = |model: &str, input, output| ModelPrice {
        model: model.to_owned(),
        input: Nanodollars(input),
        output: Nanodollars(output),
    };
    assert_eq!(settings.model_prices, [price("a", 2_000, 10_000), price("b=x", 100, 5)]);
    assert_eq!((settings.model(), &settings.model_name[..]), ("c", &["c".to_owned(), "d".to_owned()][..]));
    for text in ["a", "a=1", "=1/2", "a b=1/2", "a=1/0.0001", "a=1/2/3", "a=-1/2"] {
        let error = parse(&[&format!("--model-prices={text}")]).unwrap_err();
        assert!(error.contains("US dollars per million tokens"), "{error}");
    }
}

#[test]
fn a_secret_shows_in_no_debug_output_and_in_no_help() {
    let given = parse(&["--anthropic-api-key", SECRET, "--admin-token", SECRET]).unwrap();
    assert_eq!(given.admin_token.as_ref().unwrap().expose_secret(), SECRET);
    assert!(!format!("{given:?}").contains(SECRET));
    let environment = [("ANTHROPIC_API_KEY", SECRET), ("ADMIN_TOKEN", SECRET), ("ANTHROPIC_BASE_URL", SECRET)];
    let help = start("", &environment, &["--help"]);
    assert!(help.contains("ADMIN_TOKEN") && !help.contains(SECRET), "{help}");
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
    let file = "WORKERS=2\nPORT=2000\nMAX_RETRIES=2\n";
    let output = start(file, &[("WORKERS", "3"), ("PORT", "3000")], &["--workers=4"]);
    for part in ["workers: Some(4),", "port: 3000,", "max_retries: 2,", "max_query_length: 10000,"] {
        assert!(output.contains(part), "{part} {output}");
    }
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let names: Vec<String> =
        command().get_arguments().map(|arg| arg.get_env().unwrap().to_str().unwrap().to_owned()).collect();
    let empty: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    let defaults = start("", &[], &[]);
    assert!(defaults.contains("port: 8000"), "{defaults}");
    assert_eq!(start("", &empty, &[]), defaults);
    assert!(start("PORT=2000", &empty, &[]).contains("port: 2000"));
    assert_eq!(start("PORT=\n", &[], &[]), defaults);
}

#[test]
fn a_value_of_the_file_arrives_as_it_stands_there() {
    let settings = start("\u{feff}DATA_DIR='a\"b\\c$d #e'\r\nexport PORT=\"2000\" # mine\n", &[], &[]);
    assert!(settings.contains(&format!("data_dir: {:?}", r#"a"b\c$d #e"#)), "{settings}");
    assert!(settings.contains("port: 2000"), "{settings}");
}

#[test]
fn a_broken_line_of_the_file_is_reported_by_its_number_without_its_text() {
    let cases = [
        (format!("PORT=1\n\n{SECRET}\n"), 3),
        (format!("WORKERS=1\r\nADMIN_TOKEN='{SECRET}\r\nPORT=1\r\n"), 2),
        (format!("A='1\n2'\nPORT\u{20}{SECRET} # comment"), 3),
        (format!("PORTS=1\nPORT\nADMIN_TOKEN={SECRET}"), 2),
        (format!("PORT=1\nADMIN_TOKEN={SECRET}\0"), 2),
    ];
    for (text, line) in cases {
        let output = start(&text, &[], &[]);
        assert!(output.contains(&format!("line {line} of the settings file .env")), "{line} {output}");
        assert!(output.contains("NAME=value") && !output.contains("sk-ant"), "{output}");
    }
}

#[test]
fn without_a_file_there_are_no_entries_and_an_unreadable_one_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(read(&folder.path().join(FILE)).unwrap().is_empty());
    let error = read(folder.path()).unwrap_err().to_string();
    assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
}

/// A default as `.env` needs it.
fn in_dotenv(default: &str) -> String {
    if default.contains(' ') { format!("'{default}'") } else { default.to_owned() }
}

/// The settings under a heading of the help, with their help and default, in order.
fn documented(heading: &str) -> Vec<(String, String, String)> {
    let command = command();
    let text = |arg: &clap::Arg| {
        let default = arg.get_default_values().first().map_or("", |value| value.to_str().unwrap());
        let help = arg.get_help().unwrap().to_string();
        (arg.get_env().unwrap().to_str().unwrap().to_owned(), help, default.to_owned())
    };
    command.get_arguments().filter(|arg| arg.get_help_heading() == Some(heading)).map(text).collect()
}

/// Asserts that a file of the repository ends in these lines, after the line `mark`. With UPDATE_DOCS set, writes them.
#[track_caller]
fn assert_documents(path: &str, mark: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = fs::read_to_string(&path).unwrap();
    let (before, found) = text.split_once(mark).expect("the mark");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{mark}{expected}")).unwrap();
    } else {
        assert_eq!(found, expected, "UPDATE_DOCS=1 cargo test --lib config writes {}", path.display());
    }
}

#[test]
fn the_example_file_has_the_usual_settings_with_their_help_and_default() {
    let mut expected = String::new();
    for (name, help, default) in documented(SETTINGS) {
        // A default that stood there as a setting would be taken for one that was made.
        let mark = if default.is_empty() { "" } else { "#" };
        let comment = textwrap::fill(&help, textwrap::Options::new(120).initial_indent("# ").subsequent_indent("# "));
        write!(expected, "\n{comment}\n{mark}{name}={}\n", in_dotenv(&default)).unwrap();
    }
    assert_documents(".env.example", "single quotes.\n", &expected);
}

#[test]
fn the_page_of_settings_is_made_from_them() {
    let mut expected = String::new();
    for heading in [SETTINGS, FURTHER] {
        write!(expected, "\n## {heading}\n\n| setting | default | meaning |\n|---|---|---|\n").unwrap();
        for (name, help, default) in documented(heading) {
            let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
            writeln!(expected, "| `{name}` | {default} | {help} |").unwrap();
        }
    }
    assert_documents("docs/configuration.md", "\n`.env.example`.\n", &expected);
}

#[test]
fn there_are_few_settings_and_the_seeds_come_first() {
    let names = |heading| documented(heading).into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    let (usual, further) = (names(SETTINGS), names(FURTHER));
    let seeds = [
        "ANTHROPIC_API_KEY",
        "MODEL_NAME",
        "HOST",
        "PORT",
        "DEBUG",
        "MAX_QUERY_LENGTH",
        "REQUEST_TIMEOUT",
        "MAX_RETRIES",
    ];
    assert_eq!(usual[..seeds.len()], seeds);
    assert!(usual.len() <= 20 && further.len() <= 17, "{usual:?} {further:?}");
}

#[test]
fn the_short_help_of_serve_fits_one_screen_and_the_long_one_has_every_setting() {
    let mut command = finish(command());
    let (short, long) = (command.render_help().to_string(), command.render_long_help().to_string());
    assert!(short.lines().count() <= 40, "{} lines:\n{short}", short.lines().count());
    assert!(short.contains("DAILY_BUDGET") && !short.contains("MAX_TOKENS"), "{short}");
    for (name, ..) in [documented(SETTINGS), documented(FURTHER)].concat() {
        assert!(long.contains(&name), "{name}");
    }
}

#[test]
fn a_copy_of_the_example_file_sets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    fs::write(&path, include_str!("../../.env.example")).unwrap();
    let entries = read(&path).unwrap();
    assert!(entries.iter().any(|(name, _)| name == "ANTHROPIC_API_KEY"));
    assert!(entries.iter().all(|(_, value)| value.is_empty()), "{entries:?}");
}

#[test]
fn a_misspelt_setting_is_reported_with_the_right_name_and_the_variables_of_others_are_not() {
    for (name, meant) in [
        ("WORKRES", "WORKERS"),
        ("workers", "WORKERS"),
        ("MAX_RETRYS", "MAX_RETRIES"),
        ("API_KEY", "API_KEYS"),
        ("HOTS", "HOST"),
        ("CEOAGENT_TOKENS", "CEOAGENT_TOKEN"),
    ] {
        assert_eq!(misspelt(name, &variables()), Some((name.to_owned(), meant.to_owned())));
    }
    let others = ["RUST_LOG", "HTTP_PROXY", "NO_COLOR", "TMPDIR", "OTEL_EXPORTER_OTLP_HEADERS", "PATH", "TZ"];
    let known = variables();
    for name in others.into_iter().chain(known.iter().map(|variable| variable.name.as_str())) {
        assert_eq!(misspelt(name, &known), None);
    }
}
