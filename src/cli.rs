//! The command line, one file for each command.

mod analyze;
mod client;
mod demo;
mod export;
mod healthcheck;
mod import;
mod jobs;
mod keys;
mod list;
mod loadtest;
mod local_service;
mod logging;
mod memo;
mod migrate;
mod move_data;
mod operate;
mod outcome;
mod own_data;
mod progress;
mod serve;
mod terminal;
mod webhooks;

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand,
    builder::StyledStr,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use clap_complete::Shell;

use self::{
    client::{ClientError, REFUSED},
    serve::Signals,
};
use crate::{
    app::error::StartError,
    config::{
        self, ConfigError, FURTHER, SETTINGS, Settings,
        dotenv::{self, Dotenv},
        environment::{self, EnvironmentError},
    },
};

/// A queue service that has Claude analyse decision questions and returns decision memos
#[derive(Parser, Debug)]
#[command(name = "ceoagent", version, about, max_term_width = 120, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  ceoagent demo                        try it with a simulated Claude, without an API key
  ANTHROPIC_API_KEY=… ceoagent serve   run the service
  ceoagent analyze \"Should we hire?\"   submit a question and read the memo
  ceoagent jobs list --status failed   list failed jobs
  ceoagent keys create alice           create an API key for a caller
  ceoagent webhooks test https://example.com/hook
                                       send a signed test message to a receiver
  ceoagent export > archive.jsonl      export jobs, costs, history and audit log
  ceoagent move --from data --to DATABASE_URL
                                       move everything from the data folder to PostgreSQL
  ceoagent loadtest --rate 30 --html report.html
                                       measure the service under overload
  ceoagent export --salvage > archive.jsonl
                                       recover jobs from a damaged data folder
  ceoagent openapi > openapi.json      the OpenAPI document, for client generators";

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the service
    #[command(
        after_help = "The key of the Claude API is the setting ANTHROPIC_API_KEY, in the environment or in .env only: a flag would \
                      show in the process list."
    )]
    Serve(Box<Settings>),
    /// Run the service and submit one question; without an API key, Claude is simulated
    Demo(Box<demo::Demo>),
    /// Submit a question and show its memo
    Analyze(Box<analyze::Analyze>),
    /// List, show, watch, cancel, retry and delete jobs
    #[command(subcommand)]
    Jobs(jobs::Jobs),
    /// List, create and revoke the API keys of callers; needs the admin token
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Show and replace the secret of webhooks, test a receiver, list and resend webhooks
    #[command(subcommand)]
    Webhooks(webhooks::Webhooks),
    /// Show the state of a running service; needs the admin token
    Stats(Box<operate::Operate>),
    /// Pause the queue of a running service; needs the admin token
    Pause(Box<operate::Operate>),
    /// Resume the queue of a paused service; needs the admin token
    Resume(Box<operate::Operate>),
    /// Check that a running service is alive or, with --ready, that it accepts jobs; exit code 1 if not
    Healthcheck(Box<healthcheck::Healthcheck>),
    /// Export an archive to standard output as JSON lines
    Export(Box<export::Export>),
    /// Change the owner of the data folder to the service's user; for containers, needs root
    OwnData(Box<own_data::OwnData>),
    /// Import an archive from standard input, into a running service or an empty place
    Import(Box<import::Import>),
    /// Move everything between a data folder and PostgreSQL, while no service runs
    Move(Box<move_data::Move>),
    /// Create or upgrade the schema of the PostgreSQL database
    Migrate(Box<migrate::Migrate>),
    /// Submit questions at a given rate and report the results, by default to a service with a simulated Claude
    Loadtest(Box<loadtest::Loadtest>),
    /// Print the OpenAPI document
    Openapi,
    /// Print shell completions
    #[command(after_help = "Examples:
  ceoagent completions bash > /etc/bash_completion.d/ceoagent
  ceoagent completions zsh > \"${fpath[1]}/_ceoagent\"
  ceoagent completions fish > ~/.config/fish/completions/ceoagent.fish")]
    Completions { shell: Shell },
}

/// The heading of the settings in the help of all commands but `serve`.
const SOME_SETTINGS: &str = "Settings, with all others of `ceoagent serve --help`";

/// Exit code if the settings can't be used, as for a wrong command line. A service manager must not try again.
const WRONG_SETTINGS: u8 = 2;

pub fn run() -> ExitCode {
    match try_run() {
        Ok(code) => code,
        // The reader has closed the pipe: `ceoagent jobs list | head` is not a failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", terminal::escaped(&chain(&error)));
            match error.downcast_ref() {
                Some(ClientError::Refused(_)) => ExitCode::from(REFUSED),
                _ if is_of_settings(&error) => ExitCode::from(WRONG_SETTINGS),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Whether another start would fail too, until a person changes a setting.
fn is_of_settings(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || error.is::<EnvironmentError>()
        || error.downcast_ref().is_some_and(StartError::is_of_settings)
}

fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |chain, cause| match chain.as_str() {
        "" => cause,
        before if before.contains(&cause) => chain,
        before => format!("{before}: {cause}"),
    })
}

/// Names the source of a wrong value that comes from the environment or .env.
fn name_source(error: &mut clap::Error, dotenv: &Dotenv) {
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return };
    // `--max-retries <MAX_RETRIES>`
    let flag = arg.split([' ', '=']).next().unwrap_or_default().to_owned();
    let is_given = |arg: &str| arg.strip_prefix(&flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='));
    let is_about_a_value = matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation);
    if !is_about_a_value || env::args().any(|arg| is_given(&arg)) {
        return;
    }
    let name = flag.trim_start_matches('-').replace('-', "_").to_uppercase();
    if let Some(source) = dotenv.source(&name) {
        let tip = StyledStr::from(format!("the value comes from {source}"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
}

/// The source of a setting's value; `None` if the command does not have the setting, or it has no value.
fn source(matches: &clap::ArgMatches, setting: &str) -> Option<ValueSource> {
    let (_, given) = matches.subcommand()?;
    given.try_contains_id(setting).ok()?;
    given.value_source(setting)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The settings that the help of a command other than `serve` shows. All of them would bury the command's own options.
fn shown_settings(command: &str) -> &'static [&'static str] {
    match command {
        "demo" => &["host", "port", "data_dir", "model_name"],
        "healthcheck" => &["host", "port"],
        "own-data" => &["data_dir"],
        "move" | "migrate" => &["database_url"],
        "loadtest" => &["data_dir", "workers", "max_queued_jobs"],
        _ => &[],
    }
}

fn command() -> clap::Command {
    let command = Cli::command().mut_subcommands(|command| {
        if command.get_name() == "serve" {
            // `try_run` refuses this flag.
            return command.mut_arg("anthropic_api_key", |key| key.hide(true));
        }
        let shown = shown_settings(command.get_name());
        let shorten = |arg: clap::Arg| match arg.get_help_heading() {
            Some(SETTINGS | FURTHER) if shown.contains(&arg.get_id().as_str()) => {
                // A list of values with their meaning would make all options of the help take four lines.
                arg.help_heading(SOME_SETTINGS).hide_possible_values(true).hide_short_help(false)
            }
            Some(SETTINGS | FURTHER) => arg.hide(true),
            _ => arg,
        };
        command.mut_args(shorten).mut_subcommands(|action| action.mut_args(shorten))
    });
    config::finish(command.mut_subcommand("demo", |demo| {
        let help = "IP address to listen on. Default: 127.0.0.1, only reachable from this machine";
        demo.mut_arg("host", |host| host.hide_default_value(true).help(help))
    }))
}

fn try_run() -> anyhow::Result<ExitCode> {
    // First of all: as the first process of a container, the service would miss a signal that it does not listen for.
    let signals =
        env::args_os().nth(1).filter(|command| command == "serve").map(|_| Signals::listen_early()).transpose()?;
    let settings = config::variables();
    let dotenv = dotenv::load(&settings)?;
    for (name, meant) in &dotenv.misspelt {
        writeln!(io::stderr(), "warning: unknown setting {name} in .env. Did you mean {meant}?")?;
    }
    environment::tidy(&settings)?;
    let matches = command().try_get_matches().unwrap_or_else(|mut error| {
        name_source(&mut error, &dotenv);
        error.exit()
    });
    let is_given = |option: &str| source(&matches, option) == Some(ValueSource::CommandLine);
    // clap itself would also refuse CEOAGENT_URL of the environment.
    if let Some(place) = ["from", "to"].into_iter().find(|option| is_given(option) && is_given("url")) {
        let message = format!("the argument '--{place}' cannot be used with '--url'");
        command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    anyhow::ensure!(
        !is_given("anthropic_api_key"),
        "--anthropic-api-key would show the key in the process list; set ANTHROPIC_API_KEY in the environment or in .env"
    );
    let is_set = |setting: &str| source(&matches, setting).is_some_and(|source| source != ValueSource::DefaultValue);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Serve(settings) => {
            settings.validate()?;
            serve::run(&settings, signals.map_or_else(Signals::listen_early, Ok)?)
        }
        Command::Demo(demo) => {
            demo.settings.validate()?;
            block_on(demo.run(is_set("host")))
        }
        Command::Analyze(analyze) => block_on(analyze.run()),
        Command::Jobs(jobs) => block_on(jobs.run()),
        Command::Keys(keys) => block_on(keys.run()),
        Command::Webhooks(webhooks) => block_on(webhooks.run()),
        Command::Stats(operate) => block_on(operate.stats()),
        Command::Pause(operate) => block_on(operate.pause()),
        Command::Resume(operate) => block_on(operate.resume()),
        Command::Healthcheck(check) => block_on(check.run()),
        Command::Export(export) => block_on(export.run()),
        Command::OwnData(own_data) => own_data.run(),
        Command::Import(import) => block_on(import.run()),
        Command::Move(moving) => block_on(moving.run()),
        Command::Migrate(migrate) => block_on(migrate.run()),
        Command::Loadtest(test) => {
            test.settings.validate()?;
            block_on(test.run(is_set("port")))
        }
        Command::Openapi => {
            writeln!(io::stdout(), "{}", crate::http::openapi().to_pretty_json()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            // In memory first, because the generator panics on a closed pipe.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), env!("CARGO_PKG_NAME"), &mut script);
            io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    serve::runtime()?.block_on(command)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_cause_is_printed_once() {
        let error = anyhow!("in use (os error 98)").context("can't listen on x: in use (os error 98); stop it");
        assert_eq!(chain(&error), "can't listen on x: in use (os error 98); stop it");
        let error = anyhow!("no route").context("no answer").context("it broke off");
        assert_eq!(chain(&error), "it broke off: no answer: no route");
    }
}
