//! Messages of the protocol, written field by field.

/// A message that is being written, with its first byte.
#[derive(Debug)]
#[must_use]
pub struct Open(usize);

/// What is encoded until now. No field has a number above 15, so that a tag is one byte.
#[derive(Debug, Default)]
pub struct Wire(Vec<u8>);

impl Wire {
    /// With room for so many bytes.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// All of it.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A number; 0 goes without saying.
    pub fn number(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.0.push(field << 3);
            self.varint(value);
        }
    }

    /// A message of numbers, from its field 1 on.
    pub fn numbers(&mut self, field: u8, values: &[u64]) {
        let message = self.begin(field);
        for (field, value) in (1..).zip(values) {
            self.number(field, *value);
        }
        self.end(message);
    }

    /// A text, in UTF-8.
    pub fn text(&mut self, field: u8, text: &[u8]) {
        self.0.push(field << 3 | 2);
        self.varint(text.len() as u64);
        self.0.extend_from_slice(text);
    }

    /// Fields that are encoded already.
    pub fn append(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }

    /// Begins a message in the one that is being written.
    pub fn begin(&mut self, field: u8) -> Open {
        // Most are short, and their length is one byte.
        self.0.extend_from_slice(&[field << 3 | 2, 0]);
        Open(self.0.len())
    }

    /// Ends it.
    pub fn end(&mut self, Open(start): Open) {
        let len = self.0.len().wrapping_sub(start);
        let before = start.wrapping_sub(1);
        let Some(place) = self.0.get_mut(before) else { return };
        match u8::try_from(len) {
            Ok(len @ 0..0x80) => *place = len,
            _ => {
                let mut bytes = Self::default();
                bytes.varint(len as u64);
                self.0.splice(before..start, bytes.0);
            }
        }
    }

    /// An entry of a map from texts in UTF-8 to numbers. Of two with one key a reader takes the last.
    pub fn entry(&mut self, field: u8, key: &[u8], value: u64) {
        const KEY: u8 = 1;
        const VALUE: u8 = 2;
        match (u8::try_from(key.len()), u8::try_from(value)) {
            // Half of the values are 0.
            (Ok(len @ 0..0x70), Ok(value @ 0..0x80)) => {
                self.0.extend_from_slice(&[field << 3 | 2, len.wrapping_add(4), KEY << 3 | 2, len]);
                self.0.extend_from_slice(key);
                self.0.extend_from_slice(&[VALUE << 3, value]);
            }
            _ => {
                let entry = self.begin(field);
                self.text(KEY, key);
                self.0.push(VALUE << 3);
                self.varint(value);
                self.end(entry);
            }
        }
    }

    /// A number in groups of seven bits, the lowest first; all but the last are marked.
    pub fn varint(&mut self, mut value: u64) {
        loop {
            let [lowest, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                self.0.push(lowest & 0x7f);
                return;
            }
            self.0.push(lowest | 0x80);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nakai_protocols::agent::{CgroupStats, MemoryData, MemoryStats};
    use proptest::prelude::*;
    use protobuf::Message as _;

    proptest! {
        #[test]
        fn the_generated_messages_read_it_back(
            map in prop::collection::hash_map("[a-z_]{0,200}", any::<u64>(), 0..60),
            cache: u64,
            usage: u64,
            small in 0_u64..300,
        ) {
            let mut wire = Wire::with_room(10);
            let memory = wire.begin(2);
            wire.number(1, cache);
            wire.numbers(2, &[usage]);
            wire.entry(6, b"twice", 1);
            let mut more = Wire::default();
            map.iter().for_each(|(key, value)| more.entry(6, key.as_bytes(), *value));
            wire.append(&more.into_bytes());
            wire.entry(6, b"twice", small);
            wire.end(memory);
            wire.numbers(3, &[small, 0]);
            let read = CgroupStats::parse_from_bytes(&wire.into_bytes()).unwrap();

            let mut expected = CgroupStats::default();
            expected.pids_stats.mut_or_insert_default().current = small;
            let usage = Some(MemoryData { usage, ..Default::default() }).into();
            let mut stats = map;
            stats.insert("twice".to_owned(), small);
            let memory = MemoryStats { cache, usage, stats, ..Default::default() };
            expected.memory_stats = Some(memory).into();
            prop_assert_eq!(read, expected);
        }
    }
}
