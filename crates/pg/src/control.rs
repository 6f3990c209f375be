//! `global/pg_control` (`catalog/pg_control.h`: `ControlFileData` and its `CheckPoint`), as 64-bit little-endian machines
//! write it. Formats 1300 (PostgreSQL 14 to 16), 1700 (17) and 1800 (18) are known.

use crate::field::{u32_at, u64_at};
use crate::{Lsn, SystemIdentifier, TimelineId};

/// What a cluster's control file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identifier.
    pub system_identifier: SystemIdentifier,
    /// The format of this file: 1300, 1700 or 1800.
    pub control_version: u32,
    /// The catalogs' format, part of a tablespace's version folder.
    pub catalog_version: u32,
    /// What the server was doing when it last wrote the file.
    pub state: ClusterState,
    /// When that was: seconds since 1970, UTC.
    pub time: i64,
    /// The last checkpoint's record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The checkpoint's timeline.
    pub checkpoint_timeline: TimelineId,
    /// The timeline before; another one for a checkpoint that ends a recovery.
    pub checkpoint_prev_timeline: TimelineId,
    /// The next transaction id, with its epoch in the upper 32 bits.
    pub next_xid: u64,
    /// When the checkpoint was: seconds since 1970, UTC.
    pub checkpoint_time: i64,
    /// Recovery must replay at least up to here; invalid where nothing is demanded.
    pub min_recovery_point: Lsn,
    /// The timeline of that point; 0 where nothing is demanded.
    pub min_recovery_timeline: TimelineId,
    /// The start of the backup that is being recovered; invalid where there is none.
    pub backup_start: Lsn,
    /// The end of a backup from a standby; invalid where there is none.
    pub backup_end: Lsn,
    /// The setting of that name. A server that recovers needs settings that are not smaller than these.
    pub wal_level: WalLevel,
    /// The setting of that name.
    pub max_connections: u32,
    /// The setting of that name.
    pub max_worker_processes: u32,
    /// The setting of that name.
    pub max_wal_senders: u32,
    /// The setting `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// The setting `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// Bytes of a data page (`blcksz`).
    pub block_size: u32,
    /// Pages of one file of a large relation (`relseg_size`).
    pub relation_segment_blocks: u32,
    /// Bytes of a WAL page (`xlog_blcksz`).
    pub wal_block_size: u32,
    /// Bytes of a WAL segment, as they stand there (`xlog_seg_size`).
    pub wal_segment_size: u32,
    /// The version of the page checksums; 0 where they are off.
    pub data_checksum_version: u32,
}

/// `DBState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting up.
    Startup,
    /// Shut down cleanly.
    ShutDown,
    /// A standby, shut down cleanly.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Recovering after a crash.
    InCrashRecovery,
    /// Recovering from an archive, or a running standby.
    InArchiveRecovery,
    /// Running as a primary.
    InProduction,
}

/// `wal_level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Enough for a crash, too little for an archive.
    Minimal,
    /// Enough for archives and standbys.
    Replica,
    /// Enough for logical decoding too.
    Logical,
}

/// The bytes are no control file that can be read and believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// Fewer bytes than the format has.
    #[error("pg_control is cut off: only {0} bytes are there")]
    Short(usize),
    /// A format that this crate does not know.
    #[error(
        "pg_control has format {0}, but only 1300 (PostgreSQL 14 to 16), 1700 (17) and 1800 (18) of 64-bit little-endian machines are known"
    )]
    Version(u32),
    /// The checksum does not fit: a torn read, or damage.
    #[error(
        "pg_control is damaged, or was read while it was written: its checksum is {stored:08X}, its content has {computed:08X}"
    )]
    Checksum {
        /// What stands there.
        stored: u32,
        /// What the content has.
        computed: u32,
    },
    /// A field that has a few values holds none of them.
    #[error("pg_control holds {value} as its {field}, which means nothing")]
    Value {
        /// The field.
        field: &'static str,
        /// What stands there.
        value: u32,
    },
}

/// The system identifier alone, from the first 8 bytes. Nothing is checked: these bytes never change.
pub fn system_identifier_of(bytes: &[u8]) -> Option<SystemIdentifier> {
    u64_at(bytes, 0).map(SystemIdentifier)
}

impl ControlFile {
    /// Reads a control file and checks its CRC-32C.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlFileError> {
        let short = ControlFileError::Short(bytes.len());
        // Where the checksum stands, behind everything that it covers.
        let crc_at = match u32_at(bytes, 8).ok_or(short)? {
            1300 | 1700 => 288,
            1800 => 292,
            other => return Err(ControlFileError::Version(other)),
        };
        let stored = u32_at(bytes, crc_at).ok_or(short)?;
        let computed = crc32c::crc32c(bytes.get(..crc_at).ok_or(short)?);
        if stored != computed {
            return Err(ControlFileError::Checksum { stored, computed });
        }
        let u32_of = |at| u32_at(bytes, at).ok_or(short);
        let u64_of = |at| u64_at(bytes, at).ok_or(short);
        Ok(ControlFile {
            system_identifier: SystemIdentifier(u64_of(0)?),
            control_version: u32_of(8)?,
            catalog_version: u32_of(12)?,
            state: match u32_of(16)? {
                0 => ClusterState::Startup,
                1 => ClusterState::ShutDown,
                2 => ClusterState::ShutDownInRecovery,
                3 => ClusterState::ShuttingDown,
                4 => ClusterState::InCrashRecovery,
                5 => ClusterState::InArchiveRecovery,
                6 => ClusterState::InProduction,
                value => {
                    return Err(ControlFileError::Value {
                        field: "state",
                        value,
                    });
                }
            },
            time: u64_of(24)?.cast_signed(),
            checkpoint: Lsn(u64_of(32)?),
            redo: Lsn(u64_of(40)?),
            checkpoint_timeline: TimelineId(u32_of(48)?),
            checkpoint_prev_timeline: TimelineId(u32_of(52)?),
            next_xid: u64_of(64)?,
            checkpoint_time: u64_of(104)?.cast_signed(),
            min_recovery_point: Lsn(u64_of(136)?),
            min_recovery_timeline: TimelineId(u32_of(144)?),
            backup_start: Lsn(u64_of(152)?),
            backup_end: Lsn(u64_of(160)?),
            wal_level: match u32_of(172)? {
                0 => WalLevel::Minimal,
                1 => WalLevel::Replica,
                2 => WalLevel::Logical,
                value => {
                    return Err(ControlFileError::Value {
                        field: "wal_level",
                        value,
                    });
                }
            },
            max_connections: u32_of(180)?,
            max_worker_processes: u32_of(184)?,
            max_wal_senders: u32_of(188)?,
            max_prepared_transactions: u32_of(192)?,
            max_locks_per_transaction: u32_of(196)?,
            block_size: u32_of(216)?,
            relation_segment_blocks: u32_of(220)?,
            wal_block_size: u32_of(224)?,
            wal_segment_size: u32_of(228)?,
            data_checksum_version: u32_of(252)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), version in prop::sample::select(vec![1300u32, 1700, 1800])) {
            let _ = ControlFile::parse(&bytes);
            if bytes.len() > 12 {
                bytes[8..12].copy_from_slice(&version.to_le_bytes());
            }
            let crc_at = if version < 1800 { 288 } else { 292 };
            if bytes.len() > crc_at + 4 {
                let crc = crc32c::crc32c(&bytes[..crc_at]);
                bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(control) = ControlFile::parse(&bytes) {
                prop_assert_eq!(Some(control.system_identifier), system_identifier_of(&bytes));
            }
        }
    }
}
