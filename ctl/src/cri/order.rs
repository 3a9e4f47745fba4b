//! What a user asks for, whichever front end's words it was said in.

use serde::{Deserialize, Serialize};

use super::config::{ContainerConfig, PodSandboxConfig};
use super::{Extras, ImageConfig};

/// A container that is to be made.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Order {
    /// The pod.
    pub pod: PodSandboxConfig,
    /// The container.
    pub config: ContainerConfig,
    /// What CRI has no word for.
    pub extras: Extras,
    /// What the image says.
    pub image: ImageConfig,
    /// The container's name at the agent, if it is not to be made up.
    pub id: Option<String>,
}

impl Order {
    /// The container's name within its pod.
    pub fn name(&self) -> &str {
        match self.config.metadata.name.as_str() {
            "" => "container",
            name => name,
        }
    }

    /// The program and its arguments as far as the order says them.
    pub fn args(&self) -> Vec<String> {
        self.config.command.iter().chain(&self.config.args).cloned().collect()
    }
}
