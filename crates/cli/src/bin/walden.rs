//! Placeholder until its verb stands.
fn main() {}
