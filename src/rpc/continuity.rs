//! What there is of what an earlier server was asked for.

use async_trait::async_trait;

use super::Agent;
use super::connection::{Effect, Effects};
use crate::sandbox::{Container, Status};

#[async_trait]
impl Effects for Agent {
    async fn settled(&self) {
        // A boot that fails ends the server.
        let _ = self.sandbox().await;
    }

    async fn is_there(&self, effect: Effect) -> bool {
        let Ok(sandbox) = self.sandbox().await else { return false };
        let container = |id: &str| sandbox.container(id).ok();
        let is =
            |id: &str, test: fn(&Container) -> bool| container(id).is_some_and(|container| test(&container));
        match effect {
            Effect::Sandbox => sandbox.is_running(),
            Effect::Container(id) => container(&id).is_some(),
            Effect::Started(id) => is(&id, |container| container.status() != Status::Created),
            Effect::Paused(id) => is(&id, |container| container.status() == Status::Paused),
            Effect::Resumed(id) => is(&id, |container| container.status() != Status::Paused),
            Effect::Exec(id, exec) => {
                container(&id).is_some_and(|container| container.process(&exec).is_ok())
            }
        }
    }
}
