//! Object stores behind one port, [`ObjectStore`]. This room knows keys and bytes, and nothing of what they mean.
//! See docs/ARCHITECTURE.md.

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod key;
mod listing;
mod local;
mod port;

pub use error::{StoreError, StoreErrorKind};
pub use key::{BadKey, Key};
pub use listing::{list_all, list_folders};
pub use local::LocalStore;
pub use port::{ByteStream, ListOptions, ListPage, ObjectMeta, ObjectStore, PutMode, Upload};
