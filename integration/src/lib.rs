//! Tests against real PostgreSQL.

mod site;

pub use site::{Backup, Said, Site, Survey, files, options, survey, wait_open, wait_paused};
