//! The command line of the host client: `nakai-ctl --help`.
//!
//! Exit status: the container's own where there is one, 125 for this program's failures, 0 otherwise.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
