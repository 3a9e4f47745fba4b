//! Statistics as they go over the wire: `CgroupStats` of the protocol, encoded.
//!
//! Most of them is `memory.stat`, fifty keys with a number each, which the protocol has as a map. A map that is made only to
//! be encoded takes ten times the instructions of the file's lines going to their places one by one. All else is the
//! generated messages' own.

use nakai_protocols::agent::{CgroupStats, MemoryStats};
use protobuf::Message as _;

/// Tags: the number of a field and how it is encoded, which for these is a length and so many bytes.
const MEMORY_STATS: u8 = 2 << 3 | 2;
const MAP: u8 = 6 << 3 | 2;
/// In an entry of the map: its key, and its value, which is a number.
const KEY: u8 = 1 << 3 | 2;
const VALUE: u8 = 2 << 3;

/// `MemoryStats.stats`, encoded: one entry behind the other. Of two with one key a reader takes the last.
#[derive(Debug, Default)]
pub(super) struct Entries(Vec<u8>);

impl Entries {
    /// With room for so many bytes.
    pub(super) fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Adds one.
    pub(super) fn push(&mut self, key: &str, value: u64) {
        let len = key.len().saturating_add(varint_len(key.len() as u64)).saturating_add(varint_len(value));
        self.0.push(MAP);
        push_varint(&mut self.0, len.saturating_add(2) as u64);
        self.0.push(KEY);
        push_varint(&mut self.0, key.len() as u64);
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(VALUE);
        push_varint(&mut self.0, value);
    }
}

/// Statistics of which the map of memory is encoded already.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// All but memory.
    pub(super) stats: CgroupStats,
    /// Memory but for the map, and that.
    pub(super) memory: Option<(MemoryStats, Entries)>,
}

impl Used {
    /// Encodes all of it.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Writing to memory does not fail, and no field is required.
        let mut bytes = self.stats.write_to_bytes().unwrap_or_default();
        if let Some((memory, Entries(map))) = &self.memory {
            let rest = memory.write_to_bytes().unwrap_or_default();
            bytes.reserve(map.len().saturating_add(rest.len()).saturating_add(11));
            bytes.push(MEMORY_STATS);
            push_varint(&mut bytes, rest.len().saturating_add(map.len()) as u64);
            bytes.extend_from_slice(&rest);
            bytes.extend_from_slice(map);
        }
        bytes
    }
}

/// A number in groups of seven bits, the lowest first; all but the last are marked.
fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    loop {
        let [lowest, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            bytes.push(lowest & 0x7f);
            return;
        }
        bytes.push(lowest | 0x80);
    }
}

fn varint_len(value: u64) -> usize {
    let bits = u64::BITS.saturating_sub((value | 1).leading_zeros());
    usize::try_from(bits.div_ceil(7)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nakai_protocols::agent::MemoryData;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_generated_messages_read_it_back(
            map in prop::collection::hash_map("[a-z_]{0,200}", any::<u64>(), 0..60),
            cache: u64,
            usage: u64,
            small in 0_u64..300,
        ) {
            let usage = MemoryData { usage, ..Default::default() };
            let memory = MemoryStats { cache, usage: Some(usage).into(), ..Default::default() };
            let mut used = Used::default();
            used.stats.pids_stats.mut_or_insert_default().current = small;
            let mut entries = Entries::default();
            entries.push("twice", 1);
            map.iter().for_each(|(key, value)| entries.push(key, *value));
            entries.push("twice", small);
            used.memory = Some((memory.clone(), entries));
            let read = CgroupStats::parse_from_bytes(&used.encode()).unwrap();
            let mut stats = map;
            stats.insert("twice".to_owned(), small);
            used.stats.memory_stats = Some(MemoryStats { stats, ..memory }).into();
            prop_assert_eq!(read, used.stats);
        }
    }
}
