//! How a verb that takes long tells how far it is. What is done with it is the caller's affair.

/// Hears how far a verb is. Calls come from several threads, often; an implementation must not block.
pub trait Progress: Send + Sync {
    /// A new phase begins. `name` is for people; `total_bytes` is what [`advance`](Progress::advance) will add up to in it,
    /// where that is known.
    fn phase(&self, name: &str, total_bytes: Option<u64>);

    /// That many more bytes of the current phase are done.
    fn advance(&self, bytes: u64);

    /// Something that a person should read while it goes on.
    fn message(&self, text: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &str, _total_bytes: Option<u64>) {}

    fn advance(&self, _bytes: u64) {}

    fn message(&self, _text: &str) {}
}
