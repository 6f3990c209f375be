//! What tests against a real PostgreSQL stand on. Never shipped.
//!
//! [`PgInstall`] is a PostgreSQL of one major version, [`TestDir`] a folder for one test,
//! [`Cluster`] a server in it, [`Binaries`] Walden's programs where the server's user can run them,
//! and [`Ledger`] the truth about what was committed, in WAL order, kept outside the database.
//! [`S3Server`] is a store to keep objects in, and [`FaultProxy`] what goes wrong on the way to it.
//! [`on_every_version!`] runs a test on each supported major version.
//!
//! PostgreSQL refuses to run as root. Where a test is root, the server and everything that acts as
//! the database host's user run as `nobody`.
#![expect(
    clippy::print_stderr,
    reason = "a test that fails says where its folder and its logs are"
)]

mod binaries;
mod cluster;
mod dir;
mod install;
mod judges;
mod ledger;
mod load;
mod process;
mod proxy;
mod s3;
mod tls;
mod wal;

pub use anyhow::Result;
pub use binaries::Binaries;
pub use cluster::{Cluster, ClusterBuilder, StartFailure, StopMode};
pub use dir::{TestDir, on_version};
pub use install::PgInstall;
pub use jiff::Timestamp;
pub use judges::{pg_amcheck, pg_verifybackup, pg_waldump};
pub use ledger::{Ledger, Target};
pub use load::Load;
pub use postgres;
pub use process::{own_by_server, poll, run, run_as_server};
pub use proxy::{Fault, FaultProxy};
pub use s3::S3Server;
pub use tls::TlsFront;
pub use wal::{Outcome, RestorePoint};

/// Makes a `#[test]` of each named function for each supported major version, in modules `pg14` to
/// `pg18`. A function is `fn(&PgInstall, &TestDir) -> Result<()>`; its folder stays where it fails.
#[macro_export]
macro_rules! on_every_version {
    ($($test:ident),+ $(,)?) => {
        $crate::on_every_version!(@module pg14 14 $($test)+);
        $crate::on_every_version!(@module pg15 15 $($test)+);
        $crate::on_every_version!(@module pg16 16 $($test)+);
        $crate::on_every_version!(@module pg17 17 $($test)+);
        $crate::on_every_version!(@module pg18 18 $($test)+);
    };
    (@module $module:ident $major:literal $($test:ident)+) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    $crate::on_version($major, stringify!($test), super::$test);
                }
            )+
        }
    };
}
