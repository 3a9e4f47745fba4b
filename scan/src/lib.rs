//! Loops over bytes: texts of the kernel's taken apart, and messages of the protocol written.
//!
//! They are a crate because of how it is built. The agent is built for size, and of what it does a second time each
//! second (statistics of a container) such loops are the most; built for speed they take a third of the instructions,
//! for a few kilobytes.
//!
//! Nothing here fails: what can't be understood is left out. Nothing is generic: that would be built as its caller is.

mod text;
mod wire;

pub use text::{named_numbers, pairs, whole, words};
pub use wire::{Open, Wire};
