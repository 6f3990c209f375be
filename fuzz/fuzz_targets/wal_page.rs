#![no_main]
//! First pages of segments: a segment that passes stands where its name says.

use libfuzzer_sys::fuzz_target;
use walden_pg::{LongPageHeader, SegmentName, TimelineId, WalSegmentSize, check_segment};

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = LongPageHeader::parse(bytes) else {
        return;
    };
    let Ok(size) = WalSegmentSize::new(header.segment_size.into()) else {
        return;
    };
    let name = SegmentName::containing(TimelineId(2), header.page_address, size);
    if let Ok(facts) = check_segment(&name, bytes, size.bytes()) {
        assert_eq!(name.start(facts.size), Some(header.page_address));
        assert!(facts.header.timeline <= name.timeline);
    }
});
