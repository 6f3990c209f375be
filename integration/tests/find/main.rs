//! `walden find`: losses are found, and nothing else.

mod rewrites;
