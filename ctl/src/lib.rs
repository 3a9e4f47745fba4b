//! Host client of the agent: connect, call, build container specs, pump stdio, and launch the
//! virtual machine that the agent lives in.
//!
//! Start with [`Address`] and [`Client`] to talk to an agent that runs already, or with
//! [`vm::Vm::start`] to boot one. [`SpecBuilder`] gives the specification of an ordinary container,
//! [`rootfs::SharedRootfs`] puts its files where the guest sees them, and [`stdio::attach`] carries
//! its streams.
//!
//! This crate plays the part of the shim. It trusts neither the guest's answers (sizes and text are
//! bounded by the wire) nor the archives it is given ([`unpack`]).

pub mod address;
pub mod client;
pub mod connect;
pub mod cri;
pub mod disk;
pub mod docker;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod hotplug;
mod hybrid;
pub mod image;
mod mounting;
mod mounts;
pub mod nets;
mod network;
pub mod pending;
pub mod plug;
pub mod qmp;
pub mod removal;
pub mod rootfs;
pub mod sandbox;
pub mod spec;
pub mod state;
pub mod stdio;
pub mod sweep;
#[cfg(test)]
mod testing;
pub mod time;
mod tree;
pub mod tty;
pub mod unpack;
pub mod vm;
pub mod vms;
pub mod zun;

pub use address::Address;
pub use client::Client;
pub use error::CallError;
pub use spec::SpecBuilder;
