//! What a person, cron or a timer runs. See [`walden::walden`].

use std::process::ExitCode;

fn main() -> ExitCode {
    walden::command::guarded(walden::exit::common::FAILURE, || {
        walden::walden::program(
            std::env::args_os(),
            std::env::var_os(walden::config::VARIABLE),
            std::env::current_exe(),
        )
    })
}
