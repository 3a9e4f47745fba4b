//! What an ELF file tells of how it wants to be run.
//!
//! The initrd holds no C library: a program that asks for a dynamic linker would end the guest's start with a
//! panic that names neither. Source: elf(5).

/// `p_type` of the segment that names the dynamic linker.
const PT_INTERP: u32 = 3;
/// `ELFCLASS64`, `ELFDATA2LSB`: 64 bits, little endian.
const CLASS_AND_DATA: [u8; 2] = [2, 1];

/// The dynamic linker a 64-bit little-endian ELF program asks for; none for a static program or another file.
pub fn interpreter(file: &[u8]) -> Option<String> {
    if file.get(..4)? != b"\x7fELF" || file.get(4..6)? != CLASS_AND_DATA {
        return None;
    }
    let table = usize::try_from(u64_at(file, 32)?).ok()?;
    let entry_size = usize::from(u16_at(file, 54)?);
    let entries = usize::from(u16_at(file, 56)?);
    (0..entries).find_map(|index| {
        let entry = file.get(table.checked_add(index * entry_size)?..)?;
        if u32_at(entry, 0)? != PT_INTERP {
            return None;
        }
        let offset = usize::try_from(u64_at(entry, 8)?).ok()?;
        let size = usize::try_from(u64_at(entry, 32)?).ok()?;
        let path = file.get(offset..offset.checked_add(size)?)?;
        Some(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned())
    })
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of one segment, which names `/ld.so` when it is of type `p_type` 3.
    fn elf(p_type: u32) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&1_u16.to_le_bytes());
        let mut entry = vec![0; 56];
        entry[..4].copy_from_slice(&p_type.to_le_bytes());
        entry[8..16].copy_from_slice(&120_u64.to_le_bytes());
        entry[32..40].copy_from_slice(&7_u64.to_le_bytes());
        [file, entry, b"/ld.so\0".to_vec()].concat()
    }

    #[test]
    fn only_a_program_header_of_the_right_type_counts() {
        assert_eq!(interpreter(&elf(3)).as_deref(), Some("/ld.so"));
        assert_eq!(interpreter(&elf(1)), None);
    }

    #[test]
    fn other_files_ask_for_none() {
        assert_eq!(interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(interpreter(b""), None);
    }

    #[test]
    fn no_prefix_or_offset_panics() {
        let whole = elf(3);
        for end in 0..whole.len() {
            assert_eq!(interpreter(&whole[..end]), None);
        }
        let mut far = whole;
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(interpreter(&far), None);
    }
}
