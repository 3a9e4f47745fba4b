//! The guest image: an initrd made of a kernel package's modules, busybox and the agent, and the root file systems
//! that containers run on in tests and demonstrations.
//!
//! Runs on the host, never in the guest. What comes from packages is kept in a [`cache::Cache`], so that only the
//! first call needs a network; where packages come from is the machine's own apt configuration. The same inputs
//! give the same bytes.
//!
//! - [`kernel`]: fetches a kernel package and knows its parts; [`modules`]: which modules another one needs.
//! - [`tree`]: a file tree in memory; [`cpio`]: that tree as the kernel wants an initrd.
//! - [`initrd`]: the guest's root; [`busybox`]: a small container root; [`debian`]: a real one; [`systemd`]: for a container
//!   that is a small system.

pub mod busybox;
pub mod cache;
pub mod command;
pub mod cpio;
pub mod debian;
pub mod elf;
pub mod files;
pub mod initrd;
pub mod kernel;
pub mod modules;
pub mod systemd;
pub mod tree;
