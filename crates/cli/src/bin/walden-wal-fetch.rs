//! PostgreSQL's `restore_command`. See [`walden::fetch`].

use std::process::ExitCode;

fn main() -> ExitCode {
    walden::command::guarded(walden::exit::fetch::INTERNAL, || {
        walden::fetch::program(
            std::env::args_os(),
            std::env::var_os(walden::config::VARIABLE),
        )
    })
}
