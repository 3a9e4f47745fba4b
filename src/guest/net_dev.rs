//! `/proc/<pid>/net/dev`: what the interfaces of a network namespace received and sent (proc_pid_net(5)).
//!
//! Total: a line without the documented columns is left out, a number that is none counts as 0.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Mutex, PoisonError};

use rustix::buffer::spare_capacity;

/// Enough for the interfaces of most namespaces: about 120 bytes each.
const ROOM: usize = 4 << 10;
/// More than one line has.
const LINE: usize = 512;
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

/// The interfaces that process `pid` sees, the loopback included.
///
/// # Errors
/// The process has ended, or `/proc` is not mounted.
pub fn of_process(pid: nix::unistd::Pid) -> io::Result<Vec<Traffic>> {
    let mut text = Vec::with_capacity(ROOM);
    // Without the limit the length would be asked for first, which the kernel does not know.
    File::open(format!("/proc/{pid}/net/dev"))?.take(LIMIT).read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// The interfaces of this process, through a file that stays open until [`OwnTraffic::close`]: to find it takes longer
/// than to read it. (A container's own would keep its network namespace.)
#[derive(Debug, Default)]
pub struct OwnTraffic(Mutex<Option<File>>);

impl OwnTraffic {
    /// What they received and sent until now.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn read(&self) -> io::Result<Vec<Traffic>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match kept.take() {
            Some(file) => file,
            None => File::open("/proc/self/net/dev")?,
        };
        let file = kept.insert(file);
        let mut text = Vec::new();
        loop {
            text.reserve(ROOM);
            let (len, asked) = (text.len(), text.capacity().saturating_sub(text.len()));
            let offset = u64::try_from(len).unwrap_or(u64::MAX);
            let read = rustix::io::pread(&*file, spare_capacity(&mut text), offset)?;
            // The kernel fills a page with whole lines: what leaves room for another was all.
            if read == 0 || read < asked.min(ROOM).saturating_sub(LINE) {
                break;
            }
        }
        Ok(parse(&text))
    }

    /// Closes it until it is needed.
    pub fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Lines of `name: bytes packets errs drop fifo frame compressed multicast | bytes packets errs drop ...`, without
/// the bar, behind two of headings. A name may have any byte that is no blank, also a colon (`eth0:1` is an old
/// alias).
fn parse(text: &[u8]) -> Vec<Traffic> {
    let counters = |all: &[u64]| {
        let mut all = all.iter().copied();
        let mut next = || all.next().unwrap_or(0);
        Counters { bytes: next(), packets: next(), errors: next(), dropped: next() }
    };
    let mut found = Vec::new();
    nakai_scan::named_numbers(text, &mut [0; 12], &mut |name, all| {
        let name = String::from_utf8_lossy(name).into_owned();
        // Between them there are kinds of frames and of errors that the protocol has no place for.
        let (received, sent) = all.split_at_checked(8).unwrap_or_default();
        found.push(Traffic { name, received: counters(received), sent: counters(sent) });
    });
    found
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
        let found = parse(text.as_bytes());
        let names: Vec<_> = found.iter().map(|traffic| traffic.name.as_str()).collect();
        assert_eq!(names, ["lo", "eth0", "eth0:1"]);
        assert_eq!(found[1].received, Counters { bytes: 987_654_321, packets: 4321, errors: 1, dropped: 2 });
        assert_eq!(found[1].sent, Counters { bytes: u64::MAX, packets: 44, errors: 3, dropped: 4 });
        assert_eq!(found[2].sent, Counters { bytes: 9, packets: 10, errors: 11, dropped: 12 });
    }

    #[test]
    fn this_process_has_a_loopback() {
        let own = OwnTraffic::default();
        let loopback = || own.read().unwrap().into_iter().find(|traffic| traffic.name == "lo").unwrap();
        let before = loopback();
        // The file that is open tells what is now.
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.send_to(&[1; 500], receiver.local_addr().unwrap()).unwrap();
        receiver.recv(&mut [0; 500]).unwrap();
        assert!(loopback().received.bytes >= before.received.bytes + 500);
        own.close();
        assert!(own.0.lock().unwrap().is_none());
        assert!(loopback().received.bytes >= before.received.bytes + 500);
        let this = of_process(nix::unistd::Pid::this()).unwrap();
        assert!(this.iter().any(|traffic| traffic.name == "lo"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*", numbers in "[a-z]{0,3}:( [0-9-]{0,24}){0,20}") {
            parse(text.as_bytes());
            parse(numbers.as_bytes());
        }
    }
}
