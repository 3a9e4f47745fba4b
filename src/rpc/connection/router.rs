//! From a request to the method that serves it, and back with its answer.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use nakai_protocols::agent::{ReadStreamRequest, WriteStreamRequest};
use nakai_protocols::agent_ttrpc::{AgentService, create_agent_service};
use nakai_protocols::health_ttrpc::{Health, create_health};
use protobuf::Message as _;
use ttrpc::r#async::{Service, TtrpcContext};
use ttrpc::proto::{MESSAGE_LENGTH_MAX, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, MessageHeader};
use ttrpc::{Code, Request, Response, context};

use super::around::{cut, find, parse_around};
use super::frame::{Body, Frame};
use super::reply::Reply;
use super::resume::Effects;
use crate::journal::Call as Noted;

/// The service whose reads and writes move bulk data.
const AGENT_SERVICE: &str = "grpc.AgentService";

/// The fields that carry the bulk: of ttrpc's request, and of the request to write.
pub(super) const REQUEST_PAYLOAD: u64 = 3;
const WRITE_DATA: u64 = 3;

/// What vsock lets a peer have under way with most hosts, the most that a packet of it carries, and what many a shim
/// reads at a time. An answer that is some bytes longer waits for the host to take what it has, only to send those.
const WINDOW: u32 = 64 << 10;
/// More than an answer has in front of its data.
const FRAME_HEAD: u32 = 64;

/// The services of a server.
pub(in crate::rpc) struct Router {
    services: HashMap<String, Service>,
    agent: Arc<dyn AgentService + Send + Sync>,
    /// Knows what earlier servers have done.
    pub(super) effects: Arc<dyn Effects>,
    /// What the last one said when it panicked.
    pub(super) panic: Option<String>,
}

impl Router {
    pub(in crate::rpc) fn new(
        health: Arc<dyn Health + Send + Sync>,
        agent: Arc<dyn AgentService + Send + Sync>,
        effects: Arc<dyn Effects>,
        panic: Option<String>,
    ) -> Self {
        let mut services = create_health(health);
        services.extend(create_agent_service(agent.clone()));
        Self { services, agent, effects, panic }
    }

    /// Serves a frame. What is no request may have no answer.
    pub(super) async fn serve(&self, frame: Frame, noted: &Noted) -> Option<Reply> {
        let Body::Bytes(buffer) = frame.body else {
            let text = format!("the message is longer than the {MESSAGE_LENGTH_MAX} bytes that one may have");
            return Some(Reply::refusal(Code::INVALID_ARGUMENT, text));
        };
        if frame.header.stream_id & 1 == 0 {
            return Some(Reply::refusal(Code::INVALID_ARGUMENT, "stream id must be odd"));
        }
        match frame.header.type_ {
            MESSAGE_TYPE_REQUEST => match Call::parse(buffer, 0) {
                Ok(call) => Some(self.call(frame.header, call, noted).await),
                Err(error) => Some(Reply::refusal(Code::INVALID_ARGUMENT, error.to_string())),
            },
            // The protocol has no streaming calls.
            MESSAGE_TYPE_DATA => Some(Reply::refusal(Code::INVALID_ARGUMENT, "stream is no longer active")),
            _ => None,
        }
    }

    async fn call(&self, header: MessageHeader, call: Call, noted: &Noted) -> Reply {
        let context = TtrpcContext {
            mh: header,
            metadata: context::from_pb(&call.request.metadata),
            timeout_nano: call.request.timeout_nano,
            ..Default::default()
        };
        match u64::try_from(call.request.timeout_nano) {
            Ok(nanoseconds) if nanoseconds > 0 => {
                let limit = Duration::from_nanos(nanoseconds);
                noted.limit(limit);
                let answer = tokio::time::timeout(limit, self.dispatch(context, call, noted));
                answer.await.unwrap_or_else(|_| Reply::refusal(Code::DEADLINE_EXCEEDED, "timeout"))
            }
            _ => self.dispatch(context, call, noted).await,
        }
    }

    async fn dispatch(&self, context: TtrpcContext, call: Call, noted: &Noted) -> Reply {
        if call.request.service == AGENT_SERVICE {
            match call.request.method.as_str() {
                "ReadStdout" | "ReadStderr" => {
                    return self.read(context, call, noted).await.unwrap_or_else(Reply::failure);
                }
                "WriteStdin" => return self.write(context, call).await.unwrap_or_else(Reply::failure),
                _ => {}
            }
        }
        let request = call.into_request();
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
    async fn read(&self, context: TtrpcContext, call: Call, noted: &Noted) -> ttrpc::Result<Reply> {
        let mut read = ReadStreamRequest::parse_from_bytes(call.payload()).map_err(unreadable)?;
        if read.len == WINDOW {
            read.len = WINDOW - FRAME_HEAD;
        }
        let response = match call.request.method.as_str() {
            "ReadStdout" => self.agent.read_stdout(&context, read).await?,
            _ => self.agent.read_stderr(&context, read).await?,
        };
        Ok(noted.take_data().map_or_else(|| Reply::Data(response.data), Reply::Kept))
    }

    /// WriteStdin, likewise.
    async fn write(&self, context: TtrpcContext, call: Call) -> ttrpc::Result<Reply> {
        let response = self.agent.write_stdin(&context, call.into_write().map_err(unreadable)?).await?;
        let payload = response.write_to_bytes().map_err(|error| ttrpc::Error::Others(error.to_string()))?;
        let status = Some(ttrpc::get_status(Code::OK, "")).into();
        Ok(Reply::Message(Response { status, payload, ..Default::default() }))
    }
}

/// As the generated stub says it.
fn unreadable(error: protobuf::Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::UNKNOWN, format!("Unpack request error {error}")))
}

/// A request whose payload is still where it came in.
struct Call {
    /// All but the payload.
    request: Request,
    buffer: Vec<u8>,
    /// Where in the buffer the payload is.
    payload: Range<usize>,
}

impl Call {
    /// The request that `buffer` has from `start` on.
    fn parse(buffer: Vec<u8>, start: usize) -> protobuf::Result<Self> {
        let message = buffer.get(start..).unwrap_or_default();
        if let Some(payload) = find(message, REQUEST_PAYLOAD) {
            let request = parse_around(message, &payload)?;
            let payload = payload.bytes_at(start);
            return Ok(Self { request, buffer, payload });
        }
        let mut request = Request::parse_from_bytes(message)?;
        let buffer = std::mem::take(&mut request.payload);
        let payload = 0..buffer.len();
        Ok(Self { request, buffer, payload })
    }

    fn payload(&self) -> &[u8] {
        self.buffer.get(self.payload.clone()).unwrap_or_default()
    }

    fn into_request(mut self) -> Request {
        self.request.payload = cut(self.buffer, self.payload);
        self.request
    }

    fn into_write(self) -> protobuf::Result<WriteStreamRequest> {
        let message = self.payload();
        let Some(data) = find(message, WRITE_DATA) else {
            return WriteStreamRequest::parse_from_bytes(message);
        };
        let mut write: WriteStreamRequest = parse_around(message, &data)?;
        write.data = cut(self.buffer, data.bytes_at(self.payload.start));
        Ok(write)
    }
}
