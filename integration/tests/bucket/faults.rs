//! What goes wrong on the way to the store and back passes, and leaves nothing half done.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use walden_testkit::{Fault, FaultProxy, PgInstall, S3Server, StopMode, TestDir, on_version};

use super::{Host, silent};

#[test]
fn what_passes_on_the_way_to_the_store_is_outlived() {
    on_version(17, "bucket_faults", outlived);
}

fn storm() -> Fault {
    Fault::error(503, "SlowDown")
}

fn outlived(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let server = S3Server::s3s_fs()?;
    let proxy = FaultProxy::before(server.address())?;
    let mut host = Host::new(install, dir, &server, &proxy, "log_level: trace\n")?;

    // A segment for each of them: what is archived is not put again.
    let ways_there = [
        ("a storm of 503", storm(), 3),
        ("a cut in the middle of the body", Fault::CutUpload(700), 2),
        ("an answer that is lost", Fault::LoseAnswer, 1),
        ("a wrong ETag", Fault::WrongEtag, 1),
    ];
    for (what, fault, times) in ways_there {
        proxy.fault("PUT", &host.segment, 0, times, fault);
        host.push()?.exited(0).with_context(|| what.to_owned())?;
        ensure!(
            proxy
                .take_seen()
                .iter()
                .any(|line| line.starts_with("PUT ")),
            "{what}: something was put"
        );
        proxy.mend();
        host.fetches_the_same().with_context(|| what.to_owned())?;
        host.next()?;
    }
    host.push()?.exited(0)?;
    let ways_back = [
        ("a storm of 503", storm(), 3),
        (
            "a cut in the middle of the body",
            Fault::CutDownload(700),
            2,
        ),
        ("a body that stops", Fault::HangDownload(700), 1),
        ("a trickle", Fault::Trickle(Duration::from_micros(20)), 1),
        ("a wrong ETag", Fault::WrongEtag, 1),
    ];
    for (what, fault, times) in ways_back {
        proxy.fault("GET", &host.segment, 0, times, fault);
        host.fetches_the_same().with_context(|| what.to_owned())?;
        proxy.mend();
    }

    // A backup and a restore through all of it.
    host.archives_again()?;
    for (name, fault) in [
        ("started.json", storm()),
        ("packs/00000000", Fault::CutUpload(100_000)),
        ("files/00000000", Fault::LoseAnswer),
        ("commits/", Fault::LoseAnswer),
    ] {
        proxy.fault("PUT", name, 0, 1, fault);
    }
    let said = host.site.walden(&["backup"])?.exited(0)?;
    silent("a backup", &(said.stdout + &said.stderr), &server)?;
    proxy.mend();
    host.site.production.stop(StopMode::Fast)?;
    for (name, fault) in [
        ("commits/", Fault::CutDownload(100)),
        ("files/00000000", storm()),
        ("packs/00000000", Fault::CutDownload(300_000)),
        ("list-type=2", storm()),
    ] {
        proxy.fault("GET", name, 0, 1, fault);
    }
    // Judged by pg_verifybackup.
    let mut restored = host.site.restore("restored", &[])?;
    proxy.mend();
    restored.start()?;
    walden_integration::wait_open(&restored)?;
    silent("the restored server's log", &restored.log(), &server)
}
