//! A connection as its peer sees it: ttrpc's own client for what is right, bare frames for what is not.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use nakai_protocols::agent::*;
use nakai_protocols::agent_ttrpc::{AgentService, AgentServiceClient};
use nakai_protocols::empty::Empty;
use nakai_protocols::health::CheckRequest;
use nakai_protocols::health_ttrpc::HealthClient;
use nix::fcntl::{FcntlArg, fcntl};
use protobuf::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use ttrpc::r#async::transport::Socket as TtrpcSocket;
use ttrpc::r#async::{Client, TtrpcContext};
use ttrpc::{Code, context};

use super::*;
use crate::journal::{Data, Keeper, Line, Passage, hand_over, passage_of_current_call};
use crate::rpc::HealthService;

/// Answers reads with as many bytes as were asked for, and waits until it is told to go on. Reads of the process "late"
/// wait as those of a process that has not written yet.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) go_on: Notify,
    /// Calls that have begun to wait and have not gone on.
    waiting: AtomicUsize,
    changed: Notify,
    /// How often ReadStdout has been answered.
    pub(super) reads: AtomicUsize,
    /// Told when the process "late" writes.
    pub(super) written: Notify,
}

/// Bytes of which each tells its place, as far as a prime goes.
pub(super) fn numbered(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

struct Waiting<'a>(&'a Fake);

impl<'a> Waiting<'a> {
    fn new(fake: &'a Fake) -> Self {
        fake.waiting.fetch_add(1, Ordering::SeqCst);
        fake.changed.notify_waiters();
        Self(fake)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Fake {
    pub(super) async fn until_waiting(&self, count: usize) {
        loop {
            let changed = self.changed.notified();
            if self.waiting.load(Ordering::SeqCst) == count {
                return;
            }
            changed.await;
        }
    }
}

/// What a process has written, if the pipe for it is free and takes so much.
fn taken_by_passage(data: &[u8]) -> Option<Passage> {
    let mut passage = passage_of_current_call()?;
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let room = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
    if data.len() > usize::try_from(room).unwrap() {
        return None;
    }
    std::fs::File::from(writer).write_all(data).unwrap();
    assert_eq!(passage.fill(reader.as_fd(), data.len()), Ok(data.len()));
    Some(passage)
}

struct Shared(Arc<Fake>);

#[async_trait]
impl AgentService for Shared {
    async fn read_stdout(&self, _: &TtrpcContext, r: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        if r.exec_id == "late" {
            let written = self.0.written.notified();
            let _waiting = Waiting::new(&self.0);
            written.await;
        }
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        let data = numbered(usize::try_from(r.len).unwrap());
        if data.len() > 4096
            && let Some(passage) = taken_by_passage(&data)
        {
            hand_over(Data::Passage(passage));
            return Ok(ReadStreamResponse::new());
        }
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn read_stderr(&self, _: &TtrpcContext, _: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(Code::NOT_FOUND, "no such process")))
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        r: WriteStreamRequest,
    ) -> ttrpc::Result<WriteStreamResponse> {
        if r.container_id == "stuck" {
            // The process takes some of it, and nothing more until it is told to.
            let taken = if r.data.len() == 300 { 100 } else { 0 };
            let mut rest = Keeper::of_current_call().keep(&r.data).unwrap();
            rest.advance(|_| Ok(taken)).unwrap();
            let _waiting = Waiting::new(&self.0);
            self.0.go_on.notified().await;
            let len = if rest.data() == &numbered(300)[100..] { rest.data().len() } else { 0 };
            return Ok(WriteStreamResponse { len: u32::try_from(len).unwrap(), ..Default::default() });
        }
        let len = if r.data == numbered(r.data.len()) { r.data.len() } else { 0 };
        Ok(WriteStreamResponse { len: u32::try_from(len).unwrap(), ..Default::default() })
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        _: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let _waiting = Waiting::new(&self.0);
        self.0.go_on.notified().await;
        Ok(WaitProcessResponse { status: 7, ..Default::default() })
    }

    async fn signal_process(&self, _: &TtrpcContext, _: SignalProcessRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, _: CreateContainerRequest) -> ttrpc::Result<Empty> {
        std::future::pending().await
    }

    async fn add_swap(&self, _: &TtrpcContext, _: AddSwapRequest) -> ttrpc::Result<Empty> {
        std::future::pending().await
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        _: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        std::future::pending().await
    }

    async fn start_container(&self, _: &TtrpcContext, _: StartContainerRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }
}

pub(super) struct Peer {
    pub(super) fake: Arc<Fake>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

pub(super) fn router(fake: &Arc<Fake>, panic: Option<String>) -> Arc<Router> {
    let agent = Arc::new(Shared(fake.clone()));
    Arc::new(Router::new(Arc::new(HealthService), agent.clone(), agent, panic))
}

#[async_trait]
impl Effects for Shared {
    async fn settled(&self) {}

    async fn is_there(&self, effect: Effect) -> bool {
        matches!(effect, Effect::Container(id) if id == "made")
    }
}

/// A connection that is served, and the other end of it.
pub(super) fn connect() -> (Peer, UnixStream) {
    let (ours, theirs) = StdStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let fake = Arc::new(Fake::default());
    let (stop, stopped) = watch::channel(false);
    let line = Line::open(&Journal::create().unwrap()).unwrap();
    let serving = tokio::spawn(serve(theirs.into(), LeftLine::new(line), router(&fake, None), stopped));
    (Peer { fake, stop, serving }, UnixStream::from_std(ours).unwrap())
}

pub(super) fn run<F: Future<Output = ()>>(body: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body);
}

fn client(stream: UnixStream) -> Client {
    Client::new(TtrpcSocket::from(stream))
}

fn code(error: ttrpc::Error) -> Code {
    match error {
        ttrpc::Error::RpcStatus(status) => status.code.enum_value().unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn read_request(len: usize) -> ReadStreamRequest {
    ReadStreamRequest { len: u32::try_from(len).unwrap(), ..Default::default() }
}

/// A frame with a request for `service`/`method`.
pub(super) fn frame(stream: u32, kind: u8, service: &str, method: &str, payload: Vec<u8>) -> Vec<u8> {
    frame_with_limit(stream, kind, (service, method), payload, Duration::ZERO)
}

/// A limit of zero is none.
pub(super) fn frame_with_limit(
    stream: u32,
    kind: u8,
    (service, method): (&str, &str),
    payload: Vec<u8>,
    limit: Duration,
) -> Vec<u8> {
    let request = ttrpc::Request {
        timeout_nano: i64::try_from(limit.as_nanos()).unwrap(),
        service: service.to_owned(),
        method: method.to_owned(),
        payload,
        ..Default::default()
    };
    let body = request.write_to_bytes().unwrap();
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend([kind, 0]);
    frame.extend(body);
    frame
}

pub(super) async fn answer(stream: &mut UnixStream) -> (u32, ttrpc::Response) {
    let mut header = [0; 10];
    stream.read_exact(&mut header).await.unwrap();
    let header = ttrpc::MessageHeader::from(header);
    let mut body = vec![0; usize::try_from(header.length).unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    (header.stream_id, ttrpc::Response::parse_from_bytes(&body).unwrap())
}

#[test]
fn data_arrives_as_it_was_whatever_its_size() {
    run(async {
        let (_peer, stream) = connect();
        let agent = AgentServiceClient::new(client(stream));
        // Around the lengths at which a length takes a byte more, and what a message may have.
        for len in [
            0,
            1,
            125,
            126,
            127,
            128,
            16_382,
            16_384,
            65_536,
            70_000,
            1 << 20,
            2_097_152,
            crate::stdio::MAX_READ,
        ] {
            let read = agent.read_stdout(context::with_timeout(0), &read_request(len)).await.unwrap();
            // With its head this one would just not fit into what vsock has under way.
            let expected = if len == 64 << 10 { len - 64 } else { len };
            assert!(read.data == numbered(expected), "{} bytes of {len}", read.data.len());
        }
        for len in [0, 1, 4000, 8100, 8192, 8300, 32 << 10, (4 << 20) - 100] {
            let request = WriteStreamRequest { data: numbered(len), ..Default::default() };
            let written = agent.write_stdin(context::with_timeout(0), &request).await.unwrap();
            assert_eq!(usize::try_from(written.len).unwrap(), len);
        }
    });
}

#[test]
fn an_error_and_an_answer_that_is_too_long_are_told() {
    run(async {
        let (_peer, stream) = connect();
        let client = client(stream);
        let agent = AgentServiceClient::new(client.clone());
        let refused = agent.read_stderr(context::with_timeout(0), &read_request(1)).await.unwrap_err();
        assert_eq!(code(refused), Code::NOT_FOUND);
        let refused =
            agent.read_stdout(context::with_timeout(0), &read_request((4 << 20) - 1)).await.unwrap_err();
        assert_eq!(code(refused), Code::INVALID_ARGUMENT);
        HealthClient::new(client).check(context::with_timeout(0), &CheckRequest::new()).await.unwrap();
    });
}

#[test]
fn a_call_that_waits_holds_up_no_other_and_ends_with_its_time_out() {
    run(async {
        let (peer, stream) = connect();
        let client = client(stream);
        let agent = AgentServiceClient::new(client.clone());
        let waiting = {
            let agent = agent.clone();
            tokio::spawn(async move {
                agent.wait_process(context::with_timeout(0), &WaitProcessRequest::new()).await
            })
        };
        peer.fake.until_waiting(1).await;
        HealthClient::new(client).check(context::with_timeout(0), &CheckRequest::new()).await.unwrap();
        let limit = context::with_timeout(20_000_000);
        agent.wait_process(limit, &WaitProcessRequest::new()).await.unwrap_err();
        peer.fake.until_waiting(1).await;
        peer.fake.go_on.notify_one();
        assert_eq!(waiting.await.unwrap().unwrap().status, 7);
    });
}

#[test]
fn calls_of_a_peer_that_hangs_up_are_dropped() {
    run(async {
        let (peer, mut stream) = connect();
        let request = frame(1, 1, "grpc.AgentService", "WaitProcess", Vec::new());
        stream.write_all(&request).await.unwrap();
        peer.fake.until_waiting(1).await;
        drop(stream);
        peer.serving.await.unwrap();
        peer.fake.until_waiting(0).await;
    });
}

#[test]
fn a_server_that_stops_answers_what_is_under_way_and_no_more() {
    run(async {
        let (peer, mut stream) = connect();
        let request = frame(1, 1, "grpc.AgentService", "WaitProcess", Vec::new());
        stream.write_all(&request).await.unwrap();
        peer.fake.until_waiting(1).await;
        peer.stop.send_replace(true);
        tokio::task::yield_now().await;
        stream.write_all(&frame(3, 1, "grpc.AgentService", "StartContainer", Vec::new())).await.unwrap();
        peer.fake.go_on.notify_one();
        assert_eq!(answer(&mut stream).await.0, 1);
        peer.serving.await.unwrap();
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    });
}

#[test]
fn frames_may_come_in_any_pieces() {
    run(async {
        // A large one makes room for the next, which may be as large, larger, smaller, or small.
        let writes = [(3, 20_000), (5, 20_000), (9, 30_000), (11, 3000), (13, 100_000), (17, 20_000)];
        let mut bytes = Vec::new();
        for stream in (1..=19).step_by(2) {
            let write = writes.iter().find(|(write, _)| *write == stream).map(|(_, len)| numbered(*len));
            bytes.extend(match write {
                Some(data) => {
                    let payload = WriteStreamRequest { data, ..Default::default() }.write_to_bytes().unwrap();
                    frame(stream, 1, "grpc.AgentService", "WriteStdin", payload)
                }
                None => frame(stream, 1, "grpc.AgentService", "StartContainer", Vec::new()),
            });
        }
        for piece in [1, 3, 9, 10, 11, 500, 8192, 20_000, 200_000] {
            let (_peer, mut stream) = connect();
            let (mut reading, mut writing) = stream.split();
            let write = async {
                for part in bytes.chunks(piece) {
                    writing.write_all(part).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let read = async {
                let mut seen = Vec::new();
                let mut header = [0; 10];
                while seen.len() < 10 {
                    reading.read_exact(&mut header).await.unwrap();
                    let header = ttrpc::MessageHeader::from(header);
                    let mut body = vec![0; usize::try_from(header.length).unwrap()];
                    reading.read_exact(&mut body).await.unwrap();
                    let response = ttrpc::Response::parse_from_bytes(&body).unwrap();
                    assert_eq!(response.status.code, Code::OK.into());
                    seen.push((header.stream_id, response.payload));
                }
                seen
            };
            let ((), seen) = tokio::join!(write, read);
            let streams: Vec<u32> = seen.iter().map(|(stream, _)| *stream).collect();
            assert_eq!(streams, (1..=19).step_by(2).collect::<Vec<u32>>());
            for (stream, len) in writes {
                let (_, payload) = seen.iter().find(|(seen, _)| *seen == stream).unwrap();
                let written = WriteStreamResponse::parse_from_bytes(payload).unwrap().len;
                assert_eq!(usize::try_from(written).unwrap(), len);
            }
        }
    });
}

#[test]
fn what_is_wrong_is_refused_and_the_next_call_is_served() {
    run(async {
        let (_peer, mut stream) = connect();
        let long = |stream: u32| {
            let mut bytes = ((4_u32 << 20) + 1).to_be_bytes().to_vec();
            bytes.extend(stream.to_be_bytes());
            bytes.extend([1, 0]);
            bytes.extend(vec![0; (4 << 20) + 1]);
            bytes
        };
        let agent = "grpc.AgentService";
        let wrong = [
            (frame(1, 1, "grpc.Nobody", "Check", Vec::new()), 1, Code::INVALID_ARGUMENT),
            (frame(3, 1, agent, "Nothing", Vec::new()), 3, Code::UNIMPLEMENTED),
            (frame(4, 1, agent, "StartContainer", Vec::new()), 4, Code::INVALID_ARGUMENT),
            (frame(5, 3, agent, "StartContainer", Vec::new()), 5, Code::INVALID_ARGUMENT),
            (frame(7, 1, agent, "ReadStdout", vec![0xff]), 7, Code::UNKNOWN),
            (frame(9, 1, agent, "StartContainer", vec![0xff]), 9, Code::UNKNOWN),
            (vec![0, 0, 0, 1, 0, 0, 0, 11, 1, 0, 0xff], 11, Code::INVALID_ARGUMENT),
            (long(13), 13, Code::INVALID_ARGUMENT),
        ];
        for (bytes, id, code) in wrong {
            stream.write_all(&bytes).await.unwrap();
            let (stream, response) = answer(&mut stream).await;
            assert_eq!((stream, response.status.code), (id, code.into()));
        }
        // A kind that is not known has no answer.
        stream.write_all(&frame(15, 9, agent, "StartContainer", Vec::new())).await.unwrap();
        stream.write_all(&frame(17, 1, agent, "StartContainer", Vec::new())).await.unwrap();
        let (id, response) = answer(&mut stream).await;
        assert_eq!((id, response.status.code), (17, Code::OK.into()));
    });
}
