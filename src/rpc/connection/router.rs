//! From a request to the method that serves it, and back with its answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nakai_protocols::agent::ReadStreamRequest;
use nakai_protocols::agent_ttrpc::{AgentService, create_agent_service};
use nakai_protocols::health_ttrpc::{Health, create_health};
use protobuf::Message as _;
use ttrpc::r#async::{Service, TtrpcContext};
use ttrpc::proto::{MESSAGE_LENGTH_MAX, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, MessageHeader};
use ttrpc::{Code, Request, context};

use super::frame::{Body, Frame};
use super::reply::Reply;

/// The service whose reads move bulk data.
const AGENT_SERVICE: &str = "grpc.AgentService";

/// What vsock lets a peer have under way with most hosts, the most that a packet of it carries, and what many a shim
/// reads at a time. An answer that is some bytes longer waits for the host to take what it has, only to send those.
const WINDOW: u32 = 64 << 10;
/// More than an answer has in front of its data.
const FRAME_HEAD: u32 = 64;

/// The services of a server.
pub(in crate::rpc) struct Router {
    services: HashMap<String, Service>,
    agent: Arc<dyn AgentService + Send + Sync>,
}

impl Router {
    pub(in crate::rpc) fn new(
        health: Arc<dyn Health + Send + Sync>,
        agent: Arc<dyn AgentService + Send + Sync>,
    ) -> Self {
        let mut services = create_health(health);
        services.extend(create_agent_service(agent.clone()));
        Self { services, agent }
    }

    /// Serves a frame. What is no request may have no answer.
    pub(super) async fn serve(&self, frame: Frame) -> Option<Reply> {
        let Body::Bytes(body) = frame.body else {
            let text = format!("the message is longer than the {MESSAGE_LENGTH_MAX} bytes that one may have");
            return Some(Reply::refusal(Code::INVALID_ARGUMENT, text));
        };
        if frame.header.stream_id & 1 == 0 {
            return Some(Reply::refusal(Code::INVALID_ARGUMENT, "stream id must be odd"));
        }
        match frame.header.type_ {
            MESSAGE_TYPE_REQUEST => match Request::parse_from_bytes(&body) {
                Ok(request) => {
                    drop(body);
                    Some(self.call(frame.header, request).await)
                }
                Err(error) => Some(Reply::refusal(Code::INVALID_ARGUMENT, error.to_string())),
            },
            // The protocol has no streaming calls.
            MESSAGE_TYPE_DATA => Some(Reply::refusal(Code::INVALID_ARGUMENT, "stream is no longer active")),
            _ => None,
        }
    }

    async fn call(&self, header: MessageHeader, request: Request) -> Reply {
        let context = TtrpcContext {
            mh: header,
            metadata: context::from_pb(&request.metadata),
            timeout_nano: request.timeout_nano,
            ..Default::default()
        };
        match u64::try_from(request.timeout_nano) {
            Ok(nanoseconds) if nanoseconds > 0 => {
                let limit = Duration::from_nanos(nanoseconds);
                let answer = tokio::time::timeout(limit, self.dispatch(context, request));
                answer.await.unwrap_or_else(|_| Reply::refusal(Code::DEADLINE_EXCEEDED, "timeout"))
            }
            _ => self.dispatch(context, request).await,
        }
    }

    async fn dispatch(&self, context: TtrpcContext, request: Request) -> Reply {
        if request.service == AGENT_SERVICE && matches!(request.method.as_str(), "ReadStdout" | "ReadStderr")
        {
            return self.read(context, &request).await.unwrap_or_else(Reply::failure);
        }
        let Some(service) = self.services.get(&request.service) else {
            let text = format!("{} service does not exist", request.service);
            return Reply::refusal(Code::INVALID_ARGUMENT, text);
        };
        let Some(method) = service.methods.get(&request.method) else {
            return Reply::refusal(Code::UNIMPLEMENTED, format!("{} method", request.method));
        };
        match method.handler(context, request).await {
            Ok(response) => Reply::Message(response),
            Err(error) => Reply::refusal(Code::UNKNOWN, error.to_string()),
        }
    }

    /// ReadStdout and ReadStderr, past the copies that the generated stub makes of the data.
    async fn read(&self, context: TtrpcContext, request: &Request) -> ttrpc::Result<Reply> {
        let unreadable = |error| {
            ttrpc::Error::RpcStatus(ttrpc::get_status(Code::UNKNOWN, format!("Unpack request error {error}")))
        };
        let mut read = ReadStreamRequest::parse_from_bytes(&request.payload).map_err(unreadable)?;
        if read.len == WINDOW {
            read.len = WINDOW - FRAME_HEAD;
        }
        let response = match request.method.as_str() {
            "ReadStdout" => self.agent.read_stdout(&context, read).await?,
            _ => self.agent.read_stderr(&context, read).await?,
        };
        Ok(Reply::Data(response.data))
    }
}
