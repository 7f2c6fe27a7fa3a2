//! The `ceoagent` binary: one line, everything else is in the library.

fn main() -> std::process::ExitCode {
    ceoagent::cli::run()
}
