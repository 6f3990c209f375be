//! Configuration, rendering and exit codes of the three programs. Each binary calls one `program` and nothing else.

mod arguments;
pub mod command;
pub mod config;
mod conflicts;
mod copy;
pub mod exit;
mod expire;
pub mod fetch;
mod find;
mod logging;
pub mod prefetch;
mod problem;
mod progress;
pub mod push;
mod push_missing;
mod render;
mod restore;
mod verify;
mod wal;
pub mod walden;
