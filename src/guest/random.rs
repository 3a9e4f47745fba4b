//! The kernel's random number generator (random(4)): what the host knows to be random, mixed in.
//!
//! A guest that was started from a snapshot has the same generator as its twins, and a paused one is behind.
#![expect(unsafe_code, reason = "the ioctls of the random devices")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

/// Where the generator is talked to.
const DEVICE: &str = "/dev/random";
/// The source of the virtual machine, if it has one (virtio-rng).
const HARDWARE: &str = "/dev/hwrng";
/// As much as the generator keeps.
const SEED: usize = 64;
/// How many bytes go in at a time.
const PIECE: usize = 512;
/// The most bytes that a host may send: far more than the generator keeps.
pub const DATA_LIMIT: usize = 1 << 20;

/// The generator was not reseeded.
#[derive(Debug, thiserror::Error)]
pub enum RandomError {
    /// There is nothing to mix in.
    #[error("there is no data to seed with")]
    Empty,
    /// Far more than can be of use.
    #[error("{len} bytes of data to seed with, the limit is {DATA_LIMIT}")]
    TooLong {
        /// How many came.
        len: usize,
    },
    /// The kernel refused.
    #[error("{step} {DEVICE}: {source}")]
    Device {
        /// What was done to it.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// `struct rand_pool_info` of linux/random.h.
#[repr(C)]
struct PoolInfo {
    /// In bits.
    entropy: libc::c_int,
    /// In bytes.
    len: libc::c_int,
    data: [u8; PIECE],
}

mod ioctls {
    use super::libc::c_int;

    // The kernel declares its argument as two integers, and reads what follows them as well.
    nix::ioctl_write_ptr!(add_entropy, b'R', 0x03, [c_int; 2]);
    nix::ioctl_none!(reseed, b'R', 0x07);
}

/// Mixes `data` in, counts each byte as eight bits of entropy, and makes the generator use it at once.
///
/// # Errors
///
/// [`RandomError`]; in a user namespace of its own nobody may do this.
pub fn reseed(data: &[u8]) -> Result<(), RandomError> {
    match data.len() {
        0 => return Err(RandomError::Empty),
        len if len > DATA_LIMIT => return Err(RandomError::TooLong { len }),
        _ => {}
    }
    let device = open()?;
    for piece in data.chunks(PIECE) {
        credit(&device, piece).map_err(device_error("add entropy to"))?;
    }
    renew(&device)
}

/// Mixes in what is at hand without a host: the machine's own source if it has one, and `hint`, which counts
/// for nothing.
///
/// # Errors
///
/// As [`reseed`].
pub fn stir(hint: &[u8]) -> Result<(), RandomError> {
    let mut device = open()?;
    device.write_all(hint).map_err(|source| RandomError::Device { step: "write to", source })?;
    if let Some(seed) = from_hardware(Path::new(HARDWARE)) {
        credit(&device, &seed).map_err(device_error("add entropy to"))?;
    }
    renew(&device)
}

fn open() -> Result<File, RandomError> {
    OpenOptions::new().write(true).open(DEVICE).map_err(|source| RandomError::Device { step: "open", source })
}

fn device_error(step: &'static str) -> impl Fn(Errno) -> RandomError {
    move |errno| RandomError::Device { step, source: errno.into() }
}

fn credit(device: &File, piece: &[u8]) -> nix::Result<()> {
    let mut info = PoolInfo { entropy: 0, len: 0, data: [0; PIECE] };
    for (to, from) in info.data.iter_mut().zip(piece) {
        *to = *from;
    }
    let len = libc::c_int::try_from(piece.len().min(PIECE)).map_err(|_| Errno::EOVERFLOW)?;
    info.len = len;
    info.entropy = len.saturating_mul(8);
    let info: *const PoolInfo = &raw const info;
    // SAFETY: `info` begins with the two integers and is followed by at least `len` bytes of data, all of it
    // alive for the call; the kernel only reads.
    unsafe { ioctls::add_entropy(device.as_raw_fd(), info.cast()) }.map(drop)
}

fn renew(device: &File) -> Result<(), RandomError> {
    // SAFETY: takes no argument.
    match unsafe { ioctls::reseed(device.as_raw_fd()) } {
        // It has never been seeded, and takes all that is there when it is.
        Ok(_) | Err(Errno::ENODATA) => Ok(()),
        Err(errno) => Err(device_error("reseed")(errno)),
    }
}

/// What the machine's own source gives at once.
fn from_hardware(path: &Path) -> Option<Vec<u8>> {
    let device = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let mut seed = Vec::with_capacity(SEED);
    // It may have less just now, and says so when it is asked for more.
    let _ = device.take(u64::try_from(SEED).ok()?).read_to_end(&mut seed);
    (!seed.is_empty()).then_some(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_none_is_refused_before_the_device_is_opened() {
        assert!(matches!(reseed(&[]), Err(RandomError::Empty)));
        let error = reseed(&vec![0; DATA_LIMIT + 1]).unwrap_err().to_string();
        assert_eq!(error, "1048577 bytes of data to seed with, the limit is 1048576");
    }

    #[test]
    fn a_source_that_has_little_gives_that() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hwrng");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut source = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut source, &[7; 32]).unwrap();
        assert_eq!(from_hardware(&path), Some(vec![7; 32]));
    }

    #[test]
    fn a_machine_without_a_source_has_nothing_to_give() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hwrng");
        assert_eq!(from_hardware(&path), None);
        std::fs::write(&path, "").unwrap();
        assert_eq!(from_hardware(&path), None);
        std::fs::write(&path, [7; 100]).unwrap();
        assert_eq!(from_hardware(&path), Some(vec![7; SEED]));
    }
}
