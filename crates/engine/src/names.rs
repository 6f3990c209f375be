//! Reading the names behind OIDs that a backup recorded.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use walden_model::names::{NameEntry, Names, Wanted};
use walden_model::{BackupRecord, HeadKind, ShardRef, SystemKeys, keys};

use crate::archive::Archive;
use crate::codec::{CodecError, Expected};
use crate::repository::RepositoryError;

/// Reads what is wanted of a backup's names, and what that belongs to ([`Names::root`]). `None` where the backup recorded none.
///
/// Memory grows with what is wanted, not with what is stored.
///
/// # Errors
/// As [`Archive::read_object`]; a line that is no entry, or a shard that is not the one the commit document names, is damage.
/// Without names everything else can still be told, by numbers.
pub async fn read(
    archive: impl Into<Archive>,
    keys: &SystemKeys,
    record: &BackupRecord,
    wanted: Wanted,
) -> Result<Option<Names>, RepositoryError> {
    let Some(recorded) = &record.names else {
        return Ok(None);
    };
    let archive = &archive.into();
    let mut names = Names::default();
    let mut asked = HashSet::new();
    let mut wanted = wanted;
    // An owner may stand before what belongs to it, and own nothing else that is wanted: then the shards are read again.
    while !wanted.is_empty() {
        for shard in &recorded.shards {
            names = read_shard(archive, keys, record, shard, &wanted, names).await?;
        }
        wanted = Wanted::default();
        for owner in names.missing_owners() {
            if asked.insert(owner) {
                wanted.relation(owner);
            }
        }
    }
    Ok(Some(names))
}

async fn read_shard(
    archive: &Archive,
    keys: &SystemKeys,
    record: &BackupRecord,
    shard: &ShardRef,
    wanted: &Wanted,
    names: Names,
) -> Result<Names, RepositoryError> {
    let key = keys.names(&record.backup_id, shard.number);
    let expected = Expected {
        kind: HeadKind::Names,
        archive_id: record.archive_id,
        key: keys::below_cluster(&key).to_owned(),
    };
    let found = Arc::new(Mutex::new(Names::default()));
    let sink = || {
        *found.lock().unwrap_or_else(PoisonError::into_inner) = names.clone();
        let (found, wanted) = (found.clone(), wanted.clone());
        move |content: Vec<u8>| {
            let mut names = found.lock().unwrap_or_else(PoisonError::into_inner);
            take_lines(&content, &wanted, &mut names)
        }
    };
    match archive
        .read_object(&key, &expected, Some(shard.table), sink)
        .await
    {
        Err(RepositoryError::Sink { key, source }) => {
            let what = match source.get_ref().and_then(|line| line.source()) {
                Some(cause) => format!("{source}: {cause}"),
                None => source.to_string(),
            };
            let source = CodecError::Damaged { what };
            return Err(RepositoryError::Object { key, source });
        }
        other => drop(other?),
    }
    let mut names = found.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *names))
}

/// Frames end at a line's end.
fn take_lines(content: &[u8], wanted: &Wanted, names: &mut Names) -> io::Result<()> {
    let lines = content
        .strip_suffix(b"\n")
        .ok_or_else(|| refused("a line is not ended"))?;
    for line in lines.split(|&byte| byte == b'\n') {
        let entry = NameEntry::decode_line(line).map_err(refused)?;
        if let Some(entry) = entry.filter(|entry| wanted.wants(entry)) {
            names.insert(entry);
        }
    }
    Ok(())
}

fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
