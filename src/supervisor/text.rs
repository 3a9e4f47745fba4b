//! The program's code, as forked processes see it.
//!
//! fork(2) leaves out the page tables of what is mapped from a file and was never written: the child faults each page in
//! again when it comes to it. A creation takes three forks, worker, intermediate process and init, which run much of
//! the same code: a third of their page faults. Where a single page of a mapping is the process's own, fork copies the
//! page tables of all of it (mm/memory.c, `vma_needs_copy`). So one byte of each such mapping is written, with the
//! value that it has.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Makes forks bring along what is mapped of the program by then. Where that can't be, they are slower.
pub(super) fn share_with_forks() {
    let _ = write_to_mappings();
}

fn write_to_mappings() -> io::Result<()> {
    let mut maps = String::new();
    File::open("/proc/self/maps")?.read_to_string(&mut maps)?;
    // Its writes reach pages that the process itself may only read, and give it its own copy (proc_pid_mem(5)).
    let memory = File::options().read(true).write(true).open("/proc/self/mem")?;
    for address in maps.lines().filter_map(start_of_code) {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, address)?;
        memory.write_all_at(&byte, address)?;
    }
    Ok(())
}

/// Where a mapping begins that is of a file and private and not writable, by its line in `/proc/<pid>/maps`.
fn start_of_code(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights) = (fields.next()?, fields.next()?);
    let inode = fields.nth(2)?;
    let (start, _) = range.split_once('-')?;
    if !matches!(rights, "r--p" | "r-xp") || inode == "0" {
        return None;
    }
    u64::from_str_radix(start, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_and_constants_of_a_file_are_written() {
        for (line, start) in [
            ("00200000-002d4000 r--p 00000000 00:02 1234    /init", Some(0x0020_0000)),
            ("002d4000-00718000 r-xp 000d3000 00:02 1234    /init", Some(0x002d_4000)),
            ("00718000-0071e000 rw-p 00516000 00:02 1234    /init", None),
            ("7fff1000-7fff3000 r-xp 00000000 00:00 0       [vdso]", None),
            ("nonsense", None),
        ] {
            assert_eq!(start_of_code(line), start, "{line}");
        }
        write_to_mappings().unwrap();
    }
}
