//! Walden's verbs. Each takes a request, a value, and gives a report or an error; none touches stdout, arguments or the
//! environment. See docs/ARCHITECTURE.md.
// Without buckets a place is a folder and nothing else.
#![cfg_attr(not(feature = "s3"), allow(irrefutable_let_patterns, unused_variables))]

pub mod archive;
pub mod backup;
pub mod catalog;
pub mod codec;
pub mod conflicts;
pub mod copy;
pub mod encryption;
pub mod event;
pub mod expire;
pub mod fetch;
pub mod find;
pub mod host;
pub mod index;
pub mod init;
pub mod list;
pub mod names;
pub mod pin;
pub mod pipeline;
pub mod progress;
pub mod push;
pub mod push_missing;
pub mod repository;
pub mod resolve;
pub mod restore;
mod retired;
mod side_by_side;
pub mod verify;
pub mod wal;
pub mod windows;
