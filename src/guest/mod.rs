//! The VM as a place to live: what the agent does to its guest's kernel and file system, sandboxes apart.
//!
//! - [`root`] and [`power`]: the first and the last thing of PID 1, for the supervisor (no threads, no logger);
//! - [`boot`]: the rest of the boot, in the server, as timed steps;
//! - [`mount`], [`mountinfo`], [`beneath`]: the one place where mounts are made, listed, and given a target;
//! - [`modules`]: kernel modules, loaded without a helper program;
//! - [`details`]: what the host asks about the guest's hardware;
//! - [`swap`]: swap space;
//! - [`clock`], [`random`]: set and reseeded when the host asks;
//! - [`copy_file`], [`volume`]: files that the host sends, and volumes that it asks about; [`tree`] goes through
//!   directories for them and for storages; [`kata_dir`]: where their paths may be;
//! - [`bulkhead`]: keeps a file system that hangs from taking all threads; [`spare_thread`]: there is one even where the kernel
//!   has no room for more;
//! - [`allocator`]: the server's own memory; [`program`]: what of it is the program;
//! - [`cgroups`], [`hostname`], [`loopback`], [`rlimit`], [`security`]: one step each.
//!
//! Lowest floor: imports nothing of the crate but `config` and `observe` (and the types of messages). Everything
//! here blocks for the time of a few system calls; async code calls it by `spawn_blocking`.

pub mod allocator;
pub mod beneath;
pub mod boot;
pub mod bulkhead;
pub mod cgroups;
pub mod clock;
pub mod copy_file;
pub mod details;
pub mod filesystems;
pub mod hostname;
pub mod kata_dir;
pub mod loopback;
pub mod modules;
pub mod mount;
pub mod mountinfo;
pub mod net_dev;
pub mod power;
pub mod program;
pub mod random;
pub mod rlimit;
pub mod root;
pub mod security;
pub mod spare_thread;
pub mod swap;
pub mod tree;
pub mod volume;
