//! ExecProcess, SignalProcess and WaitProcess.

use std::time::Duration;

use nakai_protocols::agent::{
    ExecProcessRequest, SignalProcessRequest, WaitProcessRequest, WaitProcessResponse,
};
use nakai_protocols::empty::Empty;

use super::{Agent, Answer, RpcError};
use crate::ids::ExecId;
use crate::sandbox::ExecRequest;
use crate::stdio::ports::StreamPorts;

/// How long what an exec'd process wrote can be read after its exit status has been fetched.
const LINGER: Duration = Duration::from_secs(10);

pub(super) async fn exec(agent: &Agent, request: ExecProcessRequest) -> Answer<Empty> {
    let container = agent.sandbox().await?.container(&request.container_id)?;
    let process = request.process.as_ref().ok_or(RpcError::Missing { field: "process" })?;
    agent.warn_of_unknown_capabilities(&request.container_id, process);
    let checked = ExecRequest {
        exec_id: ExecId::try_from(request.exec_id.as_str())?,
        process: nakai_protocols::spec::process_from_wire(process)?,
        ports: StreamPorts {
            stdin: request.stdin_port,
            stdout: request.stdout_port,
            stderr: request.stderr_port,
        },
    };
    container.exec(checked).await?;
    Ok(Empty::new())
}

pub(super) async fn signal(agent: &Agent, request: SignalProcessRequest) -> Answer<Empty> {
    let container = agent.sandbox().await?.container(&request.container_id)?;
    container.signal(&request.exec_id, request.signal).await?;
    Ok(Empty::new())
}

pub(super) async fn wait(agent: &Agent, request: WaitProcessRequest) -> Answer<WaitProcessResponse> {
    let container = agent.sandbox().await?.container(&request.container_id)?;
    let mut response = WaitProcessResponse::new();
    response.status = container.wait(&request.exec_id, LINGER).await?;
    Ok(response)
}
