//! Object stores behind one port, [`ObjectStore`]. This room knows keys and bytes, and nothing of what they mean.
//! See docs/ARCHITECTURE.md.

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod key;
mod listing;
mod local;
mod port;
#[cfg(feature = "s3")]
mod s3;

pub use error::{StoreError, StoreErrorKind};
pub use key::{BadKey, Key};
pub use listing::{list_all, list_folders, list_in_lanes};
pub use local::LocalStore;
pub use port::{ByteStream, ListOptions, ListPage, ObjectMeta, ObjectStore, PutMode, Upload};
#[cfg(feature = "s3")]
pub use s3::{
    Checksums, CreateOnly, ObjectLock, ObjectLockMode, S3Credentials, S3Settings, S3Store, Secret,
    ServerEncryption,
};
