//! What the agent lets others see of itself.
//!
//! - [`log`]: structured lines for machines, one JSON object each, written by a thread of their own, so that
//!   a slow console never holds up a request;
//! - [`metrics`]: numbers for a monitoring system, fresh at every look;
//! - [`console`]: the few plain lines for a person, usable where no thread may exist (the supervisor).

pub mod console;
pub mod log;
pub mod metrics;
