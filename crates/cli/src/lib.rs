//! Configuration, rendering and exit codes of the three programs.

pub mod config;
pub mod exit;
pub mod logging;
pub mod problem;
