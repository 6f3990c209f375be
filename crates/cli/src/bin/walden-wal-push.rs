//! PostgreSQL's `archive_command`. See [`walden::push`].

use std::process::ExitCode;

fn main() -> ExitCode {
    walden::command::guarded(walden::exit::common::FAILURE, || {
        walden::push::program(
            std::env::args_os(),
            std::env::var_os(walden::config::VARIABLE),
        )
    })
}
