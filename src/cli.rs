//! The command line: what there is to call, one file a command.

pub mod demo;
pub mod export;
pub mod healthcheck;
pub mod loadtest;
mod logging;
pub mod memo;
pub mod serve;

use std::{io::Write, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};

use crate::config::{Settings, ignore_empty_environment, load_dotenv};

/// Takes decision questions over HTTP, has Claude analyse them, gives back decision memos, and never loses a question.
#[derive(Parser, Debug)]
#[command(name = "ceoagent", version, about, max_term_width = 120, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  ceoagent demo                        try it with a simulated Claude, no key needed
  ANTHROPIC_API_KEY=… ceoagent serve   run the service
  ceoagent loadtest --rate 30 --html report.html
                                       how it does when more is asked than can be answered
  ceoagent export --salvage > jobs.jsonl
                                       what can be read of a damaged data folder
  ceoagent openapi > openapi.json      the API's description, for client generators";

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the service
    Serve(Box<Settings>),
    /// Run the service and ask one question, against a simulated Claude if no key is set
    Demo(Box<demo::Demo>),
    /// Ask a running service whether it is well; exit code 1 if it is not
    Healthcheck(Box<Settings>),
    /// Write the jobs of a data folder to standard output as JSON lines, without a running service
    ///
    /// Exit code 0 if all was read, 3 if something could not be, which the summary on standard error and the lines
    /// themselves tell, 1 if nothing could.
    Export(Box<export::Export>),
    /// Send questions at a given rate and report what became of them, by default to a service with a simulated Claude
    Loadtest(Box<loadtest::Loadtest>),
    /// Print the OpenAPI document of the API
    Openapi,
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    match try_run() {
        Ok(code) => code,
        Err(error) => {
            // The chain of causes on one line, as people read errors.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A key on the command line shows in the process list for as long as the process lives.
fn refuse_key_as_flag(matches: &clap::ArgMatches) -> anyhow::Result<()> {
    let given = matches.subcommand().is_some_and(|(_, given)| {
        given.try_contains_id("anthropic_api_key").is_ok()
            && given.value_source("anthropic_api_key") == Some(ValueSource::CommandLine)
    });
    if given {
        anyhow::bail!(
            "--anthropic-api-key would show the key in the process list; set ANTHROPIC_API_KEY in the environment or in .env"
        );
    }
    Ok(())
}

fn try_run() -> anyhow::Result<ExitCode> {
    load_dotenv()?;
    let matches = ignore_empty_environment(Cli::command()).get_matches();
    refuse_key_as_flag(&matches)?;
    let host_is_set = matches.subcommand().is_some_and(|(_, given)| {
        given.try_contains_id("host").is_ok() && given.value_source("host") != Some(ValueSource::DefaultValue)
    });
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Serve(settings) => {
            settings.validate()?;
            serve::run(&settings)
        }
        Command::Demo(demo) => {
            demo.settings.validate()?;
            demo.run(host_is_set)
        }
        Command::Healthcheck(settings) => healthcheck::run(&settings),
        Command::Export(export) => export.run(),
        Command::Loadtest(test) => {
            test.settings.validate()?;
            let given = matches.subcommand().map(|(_, given)| given);
            test.run(|setting| {
                given.is_some_and(|given| given.value_source(setting) != Some(ValueSource::DefaultValue))
            })
        }
        Command::Openapi => {
            let document = crate::http::openapi().to_pretty_json()?;
            writeln!(std::io::stdout(), "{document}")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
