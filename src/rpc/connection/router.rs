//! From a request to the method that serves it, and back with its answer.

use std::collections::HashMap;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use nakai_protocols::agent::{ReadStreamRequest, WriteStreamRequest, WriteStreamResponse};
use nakai_protocols::agent_ttrpc::{AgentService, create_agent_service};
use nakai_protocols::health_ttrpc::{Health, create_health};
use protobuf::Message as _;
use tokio::sync::Notify;
use ttrpc::r#async::{Service, TtrpcContext};
use ttrpc::proto::{MESSAGE_LENGTH_MAX, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, MessageHeader};
use ttrpc::{Code, Request, Response, context};

use super::around::{
    AGENT_SERVICE, REQUEST_PAYLOAD, WRITE, WRITE_DATA, cut, find, parse_around, parse_write,
};
use super::frame::{Body, Frame};
use super::reply::Reply;
use super::resume::Effects;
use super::room::Room;
use crate::journal::Call as Noted;

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
    /// Told of each call that has been answered, or waits.
    pub(in crate::rpc) called: Arc<Notify>,
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
        Self { services, agent, effects, panic, called: Arc::default() }
    }

    /// Serves a frame. What is no request may have no answer.
    pub(super) async fn serve(&self, frame: Frame, noted: &Noted, room: &Room) -> Option<Reply> {
        let (limit, mut answering) = match self.begin(frame, noted, room) {
            Begun::Call(limit, answering) => (limit, answering),
            Begun::Replied(reply) => return reply,
        };
        let Some(limit) = limit else { return Some(answering.await) };
        // What is answered at once needs no clock.
        if let Poll::Ready(reply) = poll_fn(|context| Poll::Ready(answering.as_mut().poll(context))).await {
            return Some(reply);
        }
        noted.limit(limit);
        let reply = tokio::time::timeout(limit, answering).await;
        Some(reply.unwrap_or_else(|_| Reply::refusal(Code::DEADLINE_EXCEEDED, "timeout")))
    }

    /// Finds out what a frame asks for, and who answers it. Not async: nested futures are moved by value, which was
    /// half of the cost of a short call.
    fn begin<'a>(&'a self, frame: Frame, noted: &'a Noted, room: &'a Room) -> Begun<'a> {
        let body = match frame.body {
            Body::TooLong => {
                let text =
                    format!("the message is longer than the {MESSAGE_LENGTH_MAX} bytes that one may have");
                return Begun::refused(Code::INVALID_ARGUMENT, text);
            }
            body => body,
        };
        if frame.header.stream_id & 1 == 0 {
            return Begun::refused(Code::INVALID_ARGUMENT, "stream id must be odd");
        }
        match frame.header.type_ {
            MESSAGE_TYPE_REQUEST => match Call::of(body) {
                Ok(call) => self.call(frame.header, call, noted, room),
                Err(error) => Begun::refused(Code::INVALID_ARGUMENT, error.to_string()),
            },
            // The protocol has no streaming calls.
            MESSAGE_TYPE_DATA => Begun::refused(Code::INVALID_ARGUMENT, "stream is no longer active"),
            _ => Begun::Replied(None),
        }
    }

    fn call<'a>(&'a self, header: MessageHeader, call: Call, noted: &'a Noted, room: &'a Room) -> Begun<'a> {
        if room.is_crowded_for(&call.request.method) {
            return Begun::refused(
                Code::RESOURCE_EXHAUSTED,
                "too many calls of this connection are under way",
            );
        }
        let nanoseconds = u64::try_from(call.request.timeout_nano).ok().filter(|limit| *limit > 0);
        let limit = nanoseconds.map(Duration::from_nanos);
        let context = TtrpcContext {
            mh: header,
            metadata: context::from_pb(&call.request.metadata),
            timeout_nano: call.request.timeout_nano,
            ..Default::default()
        };
        if call.request.service == AGENT_SERVICE {
            match call.request.method.as_str() {
                "ReadStdout" | "ReadStderr" => {
                    return Begun::Call(limit, Box::pin(room.go_on_with(self.read(context, call, noted))));
                }
                WRITE => return Begun::Call(limit, Box::pin(self.write(context, call))),
                _ => {}
            }
        }
        let request = call.into_request();
        let Some(service) = self.services.get(&request.service) else {
            let text = format!("{} service does not exist", request.service);
            return Begun::refused(Code::INVALID_ARGUMENT, text);
        };
        let Some(method) = service.methods.get(&request.method) else {
            return Begun::refused(Code::UNIMPLEMENTED, format!("{} method", request.method));
        };
        let response = method.handler(context, request);
        Begun::Call(limit, Box::pin(reply_of(response)))
    }

    /// ReadStdout and ReadStderr, past the copies that the generated stub makes of the data.
    async fn read(&self, context: TtrpcContext, call: Call, noted: &Noted) -> Reply {
        self.read_or_fail(context, call, noted).await.unwrap_or_else(Reply::failure)
    }

    async fn read_or_fail(&self, context: TtrpcContext, call: Call, noted: &Noted) -> ttrpc::Result<Reply> {
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
    async fn write(&self, context: TtrpcContext, call: Call) -> Reply {
        self.write_or_fail(context, call).await.unwrap_or_else(Reply::failure)
    }

    async fn write_or_fail(&self, context: TtrpcContext, call: Call) -> ttrpc::Result<Reply> {
        let response = self.agent.write_stdin(&context, call.into_write().map_err(unreadable)?).await?;
        Self::written(&response)
    }

    /// Writes what an earlier server has not written of a request whose data had `len` bytes.
    pub(super) async fn write_rest(&self, write: WriteStreamRequest, len: usize) -> Reply {
        let context = TtrpcContext {
            mh: MessageHeader::default(),
            metadata: HashMap::new(),
            timeout_nano: 0,
            ..Default::default()
        };
        let written = self.agent.write_stdin(&context, write).await.and_then(|mut response| {
            response.len = u32::try_from(len).unwrap_or(u32::MAX);
            Self::written(&response)
        });
        written.unwrap_or_else(Reply::failure)
    }

    fn written(response: &WriteStreamResponse) -> ttrpc::Result<Reply> {
        let payload = response.write_to_bytes().map_err(|error| ttrpc::Error::Others(error.to_string()))?;
        let status = Some(ttrpc::get_status(Code::OK, "")).into();
        Ok(Reply::Message(Response { status, payload, ..Default::default() }))
    }
}

/// An answer under way.
type Answering<'a> = Pin<Box<dyn Future<Output = Reply> + Send + 'a>>;

/// What a frame has become.
enum Begun<'a> {
    /// It has its answer, or gets none.
    Replied(Option<Reply>),
    /// It is to be answered within so much time.
    Call(Option<Duration>, Answering<'a>),
}

impl Begun<'_> {
    fn refused(code: Code, message: impl Into<String>) -> Self {
        Self::Replied(Some(Reply::refusal(code, message)))
    }
}

async fn reply_of(response: impl Future<Output = ttrpc::Result<Response>>) -> Reply {
    match response.await {
        Ok(response) => Reply::Message(response),
        Err(error) => Reply::refusal(Code::UNKNOWN, error.to_string()),
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
    payload: Payload,
}

enum Payload {
    /// Where in the buffer it is.
    Within(Vec<u8>, Range<usize>),
    /// It has been parsed.
    Write(WriteStreamRequest),
}

impl Call {
    fn of(body: Body) -> protobuf::Result<Self> {
        match body {
            Body::Bytes(buffer) => Self::parse(buffer),
            Body::Write(mut head, mut rest) => match parse_write(&head, &mut rest) {
                Some(parsed) => {
                    let (request, write) = parsed?;
                    Ok(Self { request, payload: Payload::Write(write) })
                }
                None => {
                    head.extend(rest);
                    Self::parse(head)
                }
            },
            Body::TooLong => Self::parse(Vec::new()),
        }
    }

    fn parse(buffer: Vec<u8>) -> protobuf::Result<Self> {
        if let Some(payload) = find(&buffer, REQUEST_PAYLOAD) {
            let request = parse_around(&buffer, &payload)?;
            return Ok(Self { request, payload: Payload::Within(buffer, payload.bytes_at(0)) });
        }
        let mut request = Request::parse_from_bytes(&buffer)?;
        let buffer = std::mem::take(&mut request.payload);
        let all = 0..buffer.len();
        Ok(Self { request, payload: Payload::Within(buffer, all) })
    }

    fn payload(&self) -> &[u8] {
        match &self.payload {
            Payload::Within(buffer, range) => buffer.get(range.clone()).unwrap_or_default(),
            Payload::Write(_) => &[],
        }
    }

    fn into_request(mut self) -> Request {
        if let Payload::Within(buffer, range) = self.payload {
            self.request.payload = cut(buffer, range);
        }
        self.request
    }

    fn into_write(self) -> protobuf::Result<WriteStreamRequest> {
        let (buffer, range) = match self.payload {
            Payload::Within(buffer, range) => (buffer, range),
            Payload::Write(write) => return Ok(write),
        };
        let message = buffer.get(range.clone()).unwrap_or_default();
        let Some(data) = find(message, WRITE_DATA) else {
            return WriteStreamRequest::parse_from_bytes(message);
        };
        let mut write: WriteStreamRequest = parse_around(message, &data)?;
        write.data = cut(buffer, data.bytes_at(range.start));
        Ok(write)
    }
}
