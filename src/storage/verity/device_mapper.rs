//! The kernel's device mapper, by its ioctls (`<linux/dm-ioctl.h>`): as much of it as one read-only target needs.

#![expect(unsafe_code, reason = "ioctl(2) takes a pointer")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc::{self, c_int};

use super::{Table, VerityError};

const CONTROL: &str = "/dev/mapper/control";
/// The version of the interface that has all that is used here.
const VERSION: [u32; 3] = [4, 0, 0];
const READ_ONLY: u32 = 1 << 0;
/// A device that is still open goes when it is closed.
const DEFERRED_REMOVE: u32 = 1 << 17;
const NAME_MAX: usize = 128;
const PARAMETERS_MAX: usize = 2048;

/// `struct dm_ioctl`.
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_number: u32,
    padding: u32,
    device: u64,
    name: [u8; NAME_MAX],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// A command with `struct dm_target_spec` and its parameters behind it.
#[repr(C)]
struct Command {
    header: Header,
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target: [u8; 16],
    parameters: [u8; PARAMETERS_MAX],
}

type Ioctl = unsafe fn(c_int, *mut Header) -> nix::Result<c_int>;

mod ioctls {
    use super::Header;
    nix::ioctl_readwrite!(create, 0xfd, 3, Header);
    nix::ioctl_readwrite!(remove, 0xfd, 4, Header);
    nix::ioctl_readwrite!(suspend, 0xfd, 6, Header);
    nix::ioctl_readwrite!(load, 0xfd, 9, Header);
}

/// Makes the device of a table, and returns its node.
pub(in super::super) fn create(name: &str, table: &Table) -> Result<PathBuf, VerityError> {
    let control = open(CONTROL)?;
    run(&control, "create", ioctls::create, &mut Command::of(name, READ_ONLY))?;
    let activate = || {
        let mut load = Command::of(name, READ_ONLY);
        load.header.target_count = 1;
        load.length = table.sectors;
        fill(&mut load.target, "verity");
        if !fill(&mut load.parameters, &table.parameters) {
            return Err(failed("load", name)(Errno::E2BIG));
        }
        run(&control, "load", ioctls::load, &mut load)?;
        // Without the flag of a suspension it is the opposite.
        let mut resume = Command::of(name, 0);
        run(&control, "resume", ioctls::suspend, &mut resume)?;
        Ok(PathBuf::from(format!("/dev/dm-{}", minor(resume.header.device))))
    };
    let activated = activate();
    if activated.is_err() {
        let _ = remove(name);
    }
    activated
}

/// Removes a device. One that is not there is as good.
pub(in super::super) fn remove(name: &str) -> Result<(), VerityError> {
    remove_by(CONTROL, name)
}

fn remove_by(control: &str, name: &str) -> Result<(), VerityError> {
    let control = match open(control) {
        // Without a device mapper there is none. Whatever else keeps it from being opened says nothing of that.
        Err(VerityError::Absent { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) =>
        {
            return Ok(());
        }
        control => control?,
    };
    match run(&control, "remove", ioctls::remove, &mut Command::of(name, DEFERRED_REMOVE)) {
        Err(VerityError::Mapper { source: Errno::ENXIO, .. }) => Ok(()),
        other => other,
    }
}

fn open(control: &str) -> Result<File, VerityError> {
    let opened = OpenOptions::new().read(true).write(true).open(control);
    opened.map_err(|source| VerityError::Absent { control: control.to_owned(), source })
}

fn failed(step: &'static str, name: &str) -> impl FnOnce(Errno) -> VerityError {
    let name = name.to_owned();
    move |source| VerityError::Mapper { step, name, source }
}

fn run(control: &File, step: &'static str, ioctl: Ioctl, command: &mut Command) -> Result<(), VerityError> {
    let name: String =
        command.header.name.iter().take_while(|byte| **byte != 0).map(|b| char::from(*b)).collect();
    // SAFETY: the pointer is to the whole command, whose size its header tells; the kernel writes no more than that.
    let done = unsafe { ioctl(control.as_raw_fd(), (&raw mut *command).cast()) };
    done.map(drop).map_err(failed(step, &name))
}

/// The number of the device among its driver's, of a number in the kernel's 64-bit form.
fn minor(device: u64) -> u64 {
    (device & 0xff) | ((device >> 12) & 0xf_ff00)
}

/// Copies text into a field; false if it has no room for it and the zero behind it.
fn fill(field: &mut [u8], text: &str) -> bool {
    let has_room = text.len() < field.len();
    if has_room {
        field.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    }
    has_room
}

impl Command {
    fn of(name: &str, flags: u32) -> Self {
        let mut header = Header {
            version: VERSION,
            data_size: u32::try_from(size_of::<Self>()).unwrap_or_default(),
            data_start: u32::try_from(size_of::<Header>()).unwrap_or_default(),
            target_count: 0,
            open_count: 0,
            flags,
            event_number: 0,
            padding: 0,
            device: 0,
            name: [0; NAME_MAX],
            uuid: [0; 129],
            data: [0; 7],
        };
        fill(&mut header.name, name);
        Self {
            header,
            sector_start: 0,
            length: 0,
            status: 0,
            next: 0,
            target: [0; 16],
            parameters: [0; PARAMETERS_MAX],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_the_kernels() {
        assert_eq!(size_of::<Header>(), 312);
        assert_eq!(std::mem::offset_of!(Command, parameters), 312 + 40);
        assert_eq!((minor(0xfd00), minor(0x0010_fd07)), (0, 0x107));
    }

    #[test]
    fn a_device_is_gone_only_if_there_is_no_device_mapper() {
        remove_by("/dev/no-such-directory/control", "name").unwrap();
        // As without a descriptor: whether there is one can't be told.
        let error = remove_by("/dev/null/control", "name").unwrap_err().to_string();
        assert!(error.contains("/dev/null/control") && error.contains("Not a directory"), "{error}");
    }
}
