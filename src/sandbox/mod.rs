//! To be written.

pub mod dns;
pub mod hooks;
