//! nakai: the guest agent for VM-sandboxed containers.
//!
//! `docs/architecture.md` tells how the rooms below belong together. Imports go down the floors only:
//! `rpc` -> `sandbox` -> `storage`, `network`, `device`, `cgroup`, `stdio`, `spec` -> `guest`, `ids`. Every floor may use
//! `config`, `observe` and `vsock`. `server` joins the rooms into one process.
//!
//! `supervisor` and `worker` run in processes of their own and stand apart: the server's side of them is
//! `supervisor::client`, which launches a `worker::job`.

// Each call that is under way is such a future. Here and not for the whole package, whose tests may have large ones.
#![warn(clippy::large_futures)]

pub mod cgroup;
pub mod config;
pub mod console;
pub mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod guest;
pub mod ids;
pub mod journal;
pub mod mem_agent;
pub mod network;
pub mod observe;
#[cfg(feature = "policy")]
pub mod policy;
pub mod records;
pub mod rpc;
pub mod sandbox;
pub mod server;
pub mod spec;
pub mod stdio;
pub mod storage;
pub mod supervisor;
pub mod systemd;
pub mod vsock;
pub mod worker;
