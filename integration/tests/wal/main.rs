//! `walden-wal-push`, `walden-wal-fetch` and `walden init` on real WAL: what PostgreSQL relies on, and every bad input.
#![expect(
    clippy::print_stderr,
    reason = "a test says what it skipped, and with which seed it ran"
)]

mod archiver;
mod bad_input;
mod bench;
mod configuration;
mod durability;
mod failing_calls;
mod fetch;
mod init;
mod kills;
mod outages;
mod push;
mod recovery;

/// Makes a `#[test]` of each named function, on PostgreSQL 17.
macro_rules! on_17 {
    ($($test:ident),+ $(,)?) => {
        mod on_17 {
            $(
                #[test]
                fn $test() {
                    walden_testkit::on_version(17, stringify!($test), super::$test);
                }
            )+
        }
    };
}
use on_17;
