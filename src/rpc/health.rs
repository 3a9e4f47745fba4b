//! `grpc.Health`: the first thing that a shim asks.

use async_trait::async_trait;
use nakai_protocols::health::health_check_response::ServingStatus;
use nakai_protocols::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use nakai_protocols::health_ttrpc::Health;
use ttrpc::r#async::TtrpcContext;

/// The version of the protocol that peers of this agent report.
const PROTOCOL_VERSION: &str = "0.0.1";

/// Answers as soon as there is a socket, and whatever else goes on.
#[derive(Debug, Clone, Copy)]
pub struct HealthService;

#[async_trait]
impl Health for HealthService {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        let mut response = HealthCheckResponse::new();
        response.status = ServingStatus::SERVING.into();
        Ok(response)
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        let mut response = VersionCheckResponse::new();
        response.grpc_version = PROTOCOL_VERSION.to_owned();
        response.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(response)
    }
}
