//! CreateSandbox and DestroySandbox.

use nakai_protocols::agent::CreateSandboxRequest;
use nakai_protocols::empty::Empty;

use super::{Agent, Answer, RpcError};
use crate::ids::GuestPath;
use crate::sandbox::{CreateSandbox, SandboxError};
use crate::storage::StorageRequest;

pub(super) async fn create(agent: &Agent, request: CreateSandboxRequest) -> Answer<Empty> {
    let storages = request.storages.iter().map(StorageRequest::try_from).collect::<Result<_, _>>()?;
    let hook_directory = match request.guest_hook_path.as_str() {
        "" => None,
        path => Some(GuestPath::try_from(path)?),
    };
    let modules = request.kernel_modules.into_iter().map(|module| (module.name, module.parameters));
    let checked = CreateSandbox {
        id: request.sandbox_id,
        hostname: request.hostname,
        dns: request.dns,
        storages,
        shared_pid_namespace: request.sandbox_pidns,
        hook_directory,
        kernel_modules: modules.collect(),
    };
    agent.sandbox().await?.create(checked).await?;
    Ok(Empty::new())
}

pub(super) async fn destroy(agent: &Agent) -> Answer<Empty> {
    let (sandbox, told) = (agent.sandbox().await?, agent.destroyed.clone());
    // In a task of its own: the caller may go away meanwhile, and nobody would come to ask for the agent's end again.
    let work = tokio::spawn(async move {
        let destroyed = sandbox.end().await;
        // Whatever stayed behind, the host has no more use for this guest; unless another call is still at work on it.
        if !matches!(destroyed, Err(SandboxError::SandboxState { .. })) {
            told.notify_one();
        }
        destroyed
    });
    work.await.map_err(|_| RpcError::Task("destroying the sandbox"))??;
    Ok(Empty::new())
}
