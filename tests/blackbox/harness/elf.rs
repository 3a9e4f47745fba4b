//! Programs of a few instructions, for what no program of the image does.

/// Where the first byte of the text is in memory.
pub(crate) const TEXT: u32 = BASE + HEADERS;

const BASE: u32 = 0x40_0000;
/// elf(5): the header and that of one segment.
const HEADERS: u32 = 64 + 56;

/// A program for x86-64: `text` can be read, written and executed, and is begun at its first byte.
pub(crate) fn program(text: &[u8]) -> Vec<u8> {
    let (start, entry) = (u64::from(BASE), u64::from(TEXT));
    let size = u64::from(HEADERS) + text.len() as u64;
    [
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
        &b"\x02\0\x3e\0\x01\0\0\0"[..],
        &[entry, 64, 0].map(u64::to_le_bytes).concat(),
        b"\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0",
        b"\x01\0\0\0\x07\0\0\0",
        &[0, start, start, size, size, 0x1000].map(u64::to_le_bytes).concat(),
        text,
    ]
    .concat()
}
