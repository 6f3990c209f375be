//! `walden find`: losses are found, and nothing else.

mod losses;
mod rewrites;
