//! `/proc/<pid>/net/dev`: what the interfaces of a network namespace received and sent (proc_pid_net(5)).
//!
//! Total: a line without the documented columns is left out, a number that is none counts as 0.

use std::fs::File;
use std::io::{self, Read as _};

/// Enough for the interfaces of most namespaces: about 120 bytes each.
const ROOM: usize = 4 << 10;
/// More than there can be.
const LIMIT: u64 = 64 << 20;

/// What one interface received and sent since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The interface.
    pub name: String,
    /// What came in.
    pub received: Counters,
    /// What went out.
    pub sent: Counters,
}

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of whole frames.
    pub bytes: u64,
    /// Frames.
    pub packets: u64,
    /// Frames that were broken.
    pub errors: u64,
    /// Frames that there was no room for.
    pub dropped: u64,
}

/// The interfaces that process `pid` sees, the loopback included; those of this process without one.
///
/// # Errors
/// The process has ended, or `/proc` is not mounted.
pub fn read(pid: Option<nix::unistd::Pid>) -> io::Result<Vec<Traffic>> {
    let path = pid.map_or_else(|| "/proc/self/net/dev".to_owned(), |pid| format!("/proc/{pid}/net/dev"));
    let mut text = Vec::with_capacity(ROOM);
    // Without the limit the length would be asked for first, which the kernel does not know.
    File::open(path)?.take(LIMIT).read_to_end(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Vec<Traffic> {
    text.lines().filter_map(parse_line).collect()
}

/// `name: bytes packets errs drop fifo frame compressed multicast | bytes packets errs drop ...`. The two lines of
/// headings have no colon. A name may (`eth0:1` is an old alias), numbers don't.
fn parse_line(line: &str) -> Option<Traffic> {
    let (name, numbers) = line.rsplit_once(':')?;
    let numbers: Vec<u64> = numbers.split_whitespace().map(|number| number.parse().unwrap_or(0)).collect();
    let counters = |first: usize| match *numbers.get(first..)? {
        [bytes, packets, errors, dropped, ..] => Some(Counters { bytes, packets, errors, dropped }),
        _ => None,
    };
    Some(Traffic { name: name.trim().to_owned(), received: counters(0)?, sent: counters(8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_each_interface_are_read() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    1234      10    0    0    0     0          0         0     1234      10    0    0    0     0       0          0
  eth0:987654321 4321    1    2    0     0          0         9 18446744073709551615      44    3    4    0     0       0          0
eth0:1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
short: 1 2 3 4 5 6 7 8 9
";
        let found = parse(text);
        let names: Vec<_> = found.iter().map(|traffic| traffic.name.as_str()).collect();
        assert_eq!(names, ["lo", "eth0", "eth0:1"]);
        assert_eq!(found[1].received, Counters { bytes: 987_654_321, packets: 4321, errors: 1, dropped: 2 });
        assert_eq!(found[1].sent, Counters { bytes: u64::MAX, packets: 44, errors: 3, dropped: 4 });
        assert_eq!(found[2].sent, Counters { bytes: 9, packets: 10, errors: 11, dropped: 12 });
    }

    #[test]
    fn this_process_has_a_loopback() {
        assert!(read(None).unwrap().iter().any(|traffic| traffic.name == "lo"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*", numbers in "[a-z]{0,3}:( [0-9-]{0,24}){0,20}") {
            parse(&text);
            parse(&numbers);
        }
    }
}
