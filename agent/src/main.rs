//! The `virtuoso` command: the agent, and the client that asks it.

use std::process::ExitCode;

fn main() -> ExitCode {
    virtuoso::cli::run(std::env::args_os(), |start| virtuoso::daemon::run(&start.source, start.config, &start.log))
}
