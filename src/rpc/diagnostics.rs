//! GetDiagnosticData.

use nakai_protocols::agent::{GetDiagnosticDataRequest, GetDiagnosticDataResponse};

use super::{Agent, Answer, RpcError};

const TERMINATION_LOG: &str = "termination_log";

pub(super) async fn get(
    agent: &Agent,
    request: GetDiagnosticDataRequest,
) -> Answer<GetDiagnosticDataResponse> {
    if request.log_type != TERMINATION_LOG {
        return Err(RpcError::LogType { given: request.log_type, known: TERMINATION_LOG });
    }
    let sandbox = agent.sandbox().await?;
    let container = sandbox.container(&request.container_id)?;
    let environment = sandbox.environment();
    let data = container.read_termination_log(&environment.config.kata_dir, &environment.bulkhead).await?;
    Ok(GetDiagnosticDataResponse { data, ..Default::default() })
}
