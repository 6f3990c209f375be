//! PostgreSQL's `restore_command`. See [`walden::fetch`].

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let variable = std::env::var_os(walden::config::VARIABLE);
    if walden::prefetch::is_asked_for(&arguments) {
        return walden::command::guarded(walden::prefetch::EXIT, || {
            walden::fetch::program(&arguments, variable);
            walden::prefetch::EXIT
        });
    }
    walden::command::guarded(walden::exit::fetch::INTERNAL, || {
        walden::fetch::program(&arguments, variable)
    })
}
