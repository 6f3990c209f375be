#![no_main]
//! Documents of the repository: what is accepted can be written again.

use libfuzzer_sys::fuzz_target;
use walden_model::{
    Document, IdentityDocument, RepositoryDocument, Sha256Digest, StartedDocument, document,
};

fn try_one<T: Document>(bytes: &[u8]) {
    if let Ok(read) = document::decode::<T>(bytes) {
        assert!(document::encode(&read).is_ok());
    }
}

fuzz_target!(|json: &[u8]| {
    // With a digest line that fits: behind it stands what is worth trying.
    let digest = Sha256Digest::of(json).hex();
    let bytes = [json, format!("{{\"sha256\":\"{digest}\"}}\n").as_bytes()].concat();
    for bytes in [json, &bytes] {
        try_one::<RepositoryDocument>(bytes);
        try_one::<IdentityDocument>(bytes);
        try_one::<StartedDocument>(bytes);
        let _ = walden_model::CommitDocument::decode(bytes);
    }
});
