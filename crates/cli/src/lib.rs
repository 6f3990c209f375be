//! Configuration, rendering and exit codes of the three programs.

pub mod command;
pub mod config;
pub mod exit;
pub mod fetch;
pub mod logging;
pub mod problem;
pub mod push;
pub mod render;
