//! What becomes of the calls that an earlier server had under way when it died.
//!
//! | calls | |
//! |---|---|
//! | that have an answer, or bytes that were taken to be one | are answered |
//! | that wait or ask; that may be made twice | are begun again, with what is left of their time |
//! | that make something | are answered by whether it is there once the sandbox has been taken over; what was half made has been undone then |
//! | RemoveContainer | is begun again; that the container is gone is what was asked for |
//! | WriteStdin that waits for its process to read | goes on with what is left |
//! | WriteStdin else, and others that must not be done twice | UNAVAILABLE: whether it was done can't be told |
//! | whose request had not come in whole | UNAVAILABLE: nothing was done |
//! | that the server panicked at; that two servers died of | INTERNAL, with the panic's message |

use std::time::Duration;

use async_trait::async_trait;
use nakai_protocols::agent::WriteStreamRequest;
use ttrpc::Code;
use ttrpc::proto::MessageHeader;

use super::around::data_len;
use super::asked::Asked;
use super::frame::{Body, Frame};
use super::reply::Reply;
use super::room::Room;
use super::router::Router;
use crate::journal::LeftCall;

/// Something that a call was to bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rpc) enum Effect {
    Sandbox,
    Container(String),
    Started(String),
    Paused(String),
    Resumed(String),
    Exec(String, String),
}

/// Knows what is there of what earlier servers were asked for.
#[async_trait]
pub(in crate::rpc) trait Effects: Send + Sync {
    /// Waits until everything has been taken over, and what was half made is undone.
    async fn settled(&self);

    /// Looks at what there is then.
    async fn is_there(&self, effect: Effect) -> bool;
}

/// What to do with a call that was under way.
#[derive(Debug, PartialEq, Eq)]
enum Course {
    /// It may be begun again.
    Again,
    /// It is done if this is there. If not, it has been undone.
    Made(Effect),
    /// It is done if this is there. If not, it is begun again.
    Reached(Effect),
    /// It may be begun again, and is done if it is not found.
    Removed,
    /// Nobody knows.
    Unknown,
}

/// Calls that wait for something as long as they have to: how many servers they outlive says nothing about them.
fn waits(method: &str) -> bool {
    matches!(method, "WaitProcess" | "ReadStdout" | "ReadStderr" | "GetOOMEvent")
}

impl Course {
    fn of(asked: &Asked) -> Self {
        let container = || asked.container.clone();
        match asked.method.as_str() {
            "CreateSandbox" => Self::Made(Effect::Sandbox),
            "CreateContainer" => Self::Made(Effect::Container(container())),
            "ExecProcess" => Self::Made(Effect::Exec(container(), asked.exec.clone())),
            "StartContainer" => Self::Reached(Effect::Started(container())),
            "PauseContainer" => Self::Reached(Effect::Paused(container())),
            "ResumeContainer" => Self::Reached(Effect::Resumed(container())),
            "RemoveContainer" => Self::Removed,
            // Whoever is told twice to end is told the same. Other signals may mean something each time.
            "SignalProcess" if asked.signal == 0 || asked.signal == libc::SIGKILL as u64 => Self::Again,
            "SignalProcess" | "WriteStdin" | "CopyFile" | "AddSwap" | "AddSwapPath" | "ResizeVolume"
            | "MemHotplugByProbe" | "AddARPNeighbors" => Self::Unknown,
            _ => Self::Again,
        }
    }
}

impl Router {
    /// The answer to a call that has none yet.
    pub(super) async fn go_on(&self, mut left: LeftCall, room: &Room) -> Option<Reply> {
        if let Some(data) = left.data.take() {
            return Some(Reply::Kept(data));
        }
        let asked = Asked::of(&left.request);
        let what = asked.describe();
        let died = match &self.panic {
            Some(panic) => format!("the agent's server died ({panic})"),
            None => "the agent's server died".to_owned(),
        };
        if left.has_panicked {
            return Some(Reply::refusal(Code::INTERNAL, format!("{died} at {what}")));
        }
        if left.is_receiving {
            let text = format!("{died} before all of {what} had come: nothing was done");
            return Some(Reply::refusal(Code::UNAVAILABLE, text));
        }
        if left.strikes > 1 {
            return Some(Reply::refusal(Code::INTERNAL, format!("{died} at {what}, a second time")));
        }
        if let (Some(rest), Some(len)) = (left.rest.take(), data_len(&left.request)) {
            self.effects.settled().await;
            left.call.begun_again();
            let (container_id, exec_id, data) = (asked.container, asked.exec, rest.take());
            let write = WriteStreamRequest { container_id, exec_id, data, ..Default::default() };
            return Some(in_time(left.limit, self.write_rest(write, len)).await);
        }
        if !waits(&asked.method) {
            // A server that dies before it gets so far has not died of this.
            self.effects.settled().await;
            if left.runs > 0 && Course::of(&asked) != Course::Unknown {
                let text = format!("{died} at {what}, and again when that was begun again");
                return Some(Reply::refusal(Code::INTERNAL, text));
            }
        }
        let unknown = || format!("{died} at {what}: it may have been done, or in part");
        let done = || Some(Reply::Data(Vec::new()));
        match Course::of(&asked) {
            Course::Again => self.again(left, room, unknown).await,
            Course::Reached(effect) if self.effects.is_there(effect.clone()).await => done(),
            Course::Reached(_) => self.again(left, room, unknown).await,
            Course::Made(effect) if self.effects.is_there(effect.clone()).await => done(),
            Course::Made(_) => Some(Reply::refusal(
                Code::UNAVAILABLE,
                format!("{died} at {what}: what it had made was undone"),
            )),
            Course::Removed => match self.again(left, room, unknown).await {
                Some(reply) if reply.code() == Code::NOT_FOUND => done(),
                reply => reply,
            },
            Course::Unknown => Some(Reply::refusal(Code::UNAVAILABLE, unknown())),
        }
    }

    /// Begins a call again, if all of its request is there.
    async fn again(&self, left: LeftCall, room: &Room, unknown: impl FnOnce() -> String) -> Option<Reply> {
        let LeftCall { call, stream, kind, request, len, limit, .. } = left;
        if usize::try_from(len) != Ok(request.len()) {
            return Some(Reply::refusal(Code::UNAVAILABLE, unknown()));
        }
        call.begun_again();
        let header = MessageHeader { length: len, stream_id: stream, type_: kind, flags: 0 };
        let served = self.serve(Frame { header, body: Body::Bytes(request) }, &call, room);
        in_time(limit, served).await
    }
}

/// What is left of a call's time goes for it.
async fn in_time<R: From<Reply>>(limit: Option<Duration>, served: impl Future<Output = R>) -> R {
    match limit {
        None => served.await,
        Some(limit) => match tokio::time::timeout(limit, served).await {
            Ok(reply) => reply,
            Err(_) => Reply::refusal(Code::DEADLINE_EXCEEDED, "timeout").into(),
        },
    }
}
