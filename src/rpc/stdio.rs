//! WriteStdin, ReadStdout, ReadStderr, CloseStdin and TtyWinResize.

use nakai_protocols::agent::{
    CloseStdinRequest, ReadStreamRequest, ReadStreamResponse, TtyWinResizeRequest, WriteStreamRequest,
    WriteStreamResponse,
};
use nakai_protocols::empty::Empty;

use super::{Agent, Answer};
use crate::journal;
use crate::sandbox::Output;
use crate::stdio::Taken;

pub(super) async fn write(agent: &Agent, request: WriteStreamRequest) -> Answer<WriteStreamResponse> {
    let container = agent.sandbox().await?.container(&request.container_id)?;
    let mut response = WriteStreamResponse::new();
    response.len = container.write(&request.exec_id, request.data).await?;
    Ok(response)
}

/// The end of a stream is an answer without data.
pub(super) async fn read(
    agent: &Agent,
    request: ReadStreamRequest,
    output: Output,
) -> Answer<ReadStreamResponse> {
    let sandbox = agent.sandbox().await?;
    let quiet = sandbox.environment().config.stream_quiet_time;
    let container = sandbox.container(&request.container_id)?;
    let mut response = ReadStreamResponse::new();
    match container.read(&request.exec_id, output, request.len, quiet).await? {
        Taken::Own(data) => response.data = data,
        // It goes past the response, without being copied: see `connection`.
        Taken::Kept(data) => journal::hand_over(data),
    }
    Ok(response)
}

pub(super) async fn close(agent: &Agent, request: CloseStdinRequest) -> Answer<Empty> {
    agent.sandbox().await?.container(&request.container_id)?.close_stdin(&request.exec_id)?;
    Ok(Empty::new())
}

pub(super) async fn resize(agent: &Agent, request: TtyWinResizeRequest) -> Answer<Empty> {
    let container = agent.sandbox().await?.container(&request.container_id)?;
    container.resize(&request.exec_id, request.row, request.column)?;
    Ok(Empty::new())
}
