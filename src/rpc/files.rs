//! CopyFile.

use nakai_protocols::agent::CopyFileRequest;
use nakai_protocols::empty::Empty;

use super::{Agent, Answer, RpcError};
use crate::guest::copy_file::CopyRequest;

/// A host that shares no file system sends files before it makes containers, and may do so before it makes the
/// sandbox.
pub(super) async fn copy(agent: &Agent, request: CopyFileRequest) -> Answer<Empty> {
    let sandbox = agent.sandbox().await?;
    let copies = sandbox.environment().copies.clone();
    let request = CopyRequest::new(request, copies.bases())?;
    let base = request.base().to_owned();
    let copied = sandbox.environment().bulkhead.run(&base, move || copies.copy(&request)).await;
    copied.map_err(|_| RpcError::Task("copying a file"))??;
    Ok(Empty::new())
}
