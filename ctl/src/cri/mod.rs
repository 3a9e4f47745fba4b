//! Containers by CRI's configuration: what the kubelet asks a runtime for, carried out through the agent.
//!
//! ```text
//! pod.json, container.json ─ json ─> config ┐
//! nakai-ctl run, with Docker's flags          ├─ spec::plan ─> Plan ─ Engine ─> the agent's calls
//! nakai-ctl zun create                      ┘  (pure)          (roots, files, disks, the notebook, logs)
//! ```
//!
//! There is one path down. What Docker and Zun have and CRI has not is in [`Extras`]. Nothing that is asked for is
//! dropped in silence: it has its effect, or it is refused by name, or a warning names it.

pub mod capabilities;
pub mod config;
mod create;
mod devices;
pub mod engine;
mod error;
pub mod extras;
mod holdings;
pub mod image;
pub mod json;
mod labels;
pub mod log;
pub mod log_file;
pub mod mounts;
mod network;
mod order;
mod resources;
mod root;
pub mod seccomp;
pub mod spec;
pub mod supervise;
mod user_namespace;
pub mod users;
pub mod volumes;

pub use crate::plug::Machine;
pub use config::{ContainerConfig, PodSandboxConfig};
pub use engine::Engine;
pub use error::CriError;
pub use extras::Extras;
pub use holdings::Holdings;
pub use image::ImageConfig;
pub use mounts::Places;
pub use order::Order;
