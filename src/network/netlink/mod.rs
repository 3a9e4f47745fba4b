//! rtnetlink(7), as far as it is needed here: messages are built and read byte by byte, and nothing is trusted to be
//! as long as it says.
//!
//! All of it blocks, though never for long: the kernel has its answer ready when a request has been sent.

mod message;
mod socket;

pub(super) use message::{Attributes, Fields, Request};
pub use socket::Refused;
pub(super) use socket::Socket;
