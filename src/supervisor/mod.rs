//! The supervisor: PID 1 of the guest, or the first process of the service.
//!
//! It owns the only reaper. It forks the server before any thread exists, then serves one loop over a
//! signal descriptor and the [`channel`]: it forks a worker for each launch that the server asks for, and
//! reports the end of every child exactly once. It is single-threaded for ever, parses nothing but headers
//! of its own format, and allocates nothing that grows with what the host sends.
//!
//! ```text
//!   host --ttrpc--> server --Launch(fds)--> supervisor --fork--> worker --libcontainer--> container init
//!                     ^                        |                   |
//!                     +------ Exited(pid) -----+                   |
//!                     +------ Reply(request) ----------------------+
//! ```
//!
//! A child is reported before it is reaped, so its pid can't name another process until the server could
//! know of the end. When the server ends, the supervisor's loop ends with it: PID 1 then powers the guest off.
//! SIGTERM and SIGINT are passed on to the server, which they end.

pub mod channel;
pub mod client;
mod fds;
mod fork;
mod reaper;
mod run;

pub(crate) use fds::own;
pub use fork::{Forked, fork};
pub use reaper::ExitStatus;
pub use run::{Ended, Supervisor, SupervisorError};
