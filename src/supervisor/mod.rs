//! The supervisor: PID 1 of the guest, or the first process of the service.
//!
//! It owns the only reaper. It forks the server before any thread exists, then serves one loop over a
//! signal descriptor and the [`channel`]: it forks a worker for each launch that the server asks for, or a process right
//! into its container (`entry`), reports the end of every child exactly once, and holds what the next server needs if
//! this one dies. It is single-threaded for ever, parses nothing but headers of its own format, and allocates nothing
//! that grows with what the host sends.
//!
//! ```text
//!   host --ttrpc--> server --Launch(fds)--> supervisor --fork--> worker --libcontainer--> container init
//!                     ^                        |                   |
//!                     +------ Exited(pid) -----+                   |
//!                     |                        ^                   |
//!                     |                        +-- Hold(pid, fds) -+
//!                     +------ Reply(request) ----------------------+
//! ```
//!
//! A child is reported before it is reaped, so its pid can't name another process until the server could
//! know of the end. A server that dies is followed by another, which asks for what is held and goes on; containers
//! notice nothing. Only a server that dies before the guest has ever booted ends the supervisor too: PID 1 then
//! powers the guest off. SIGTERM and SIGINT ask the server to destroy its sandbox and end.
//!
//! ```text
//!   booting --Serving--> serving --dies--> (pause) --fork--> serving ...
//!      |                    |
//!      +--dies--> end       +--ShutDown, or dies when asked to stop--> end
//! ```

pub mod channel;
pub mod client;
mod dispatcher;
mod enter;
mod entry;
mod error;
mod fds;
mod fork;
mod holds;
mod home;
mod lifeline;
mod reaper;
mod restarts;
mod run;
mod text;
pub mod tool;

pub use enter::Place;
pub use error::SupervisorError;
pub(crate) use fds::{close_all_but, own};
pub use fork::{Forked, fork};
pub(crate) use fork::{fork_apart, fork_into};
pub use lifeline::ServerEnds;
pub use reaper::ExitStatus;
pub use run::{Ended, Supervisor, WorkerChannels};
