//! The server's side of a process that the supervisor forks into a container without a worker (see [`super::entry`]).
//!
//! The job goes into a socket of which the process gets the other end. There it says what goes wrong; when the socket
//! closes without a word, it has become its program, or has ended, of which the supervisor tells. A caller that goes
//! away before that has the process killed.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::client::{AtEnd, LaunchError, Launched, Launcher, StartedProcess};
use super::dispatcher::Command;
use super::entry::{HELD, HELD_COUNT, IN_CGROUP, OWN_PIDS};
use crate::worker::job::{Failure, Job, Outcome};

/// The longest job that goes into a socket; one that is longer goes to a worker, in a file.
const MAX_JOB: usize = 64 << 10;
/// Room for what a process says, which is a [`Failure`] that is brief.
const MAX_WORDS: usize = 16 << 10;

/// Where a process is born.
#[derive(Debug)]
pub struct Place {
    /// Whether the container has a PID namespace of its own.
    pub own_pids: bool,
    /// The container's cgroup, on v2.
    pub cgroup: Option<OwnedFd>,
    /// Whether the last descriptors are the server's ends of three streams.
    pub held: bool,
}

/// What the dispatcher is asked to send.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: u64,
    /// What it says of the process.
    pub(super) status: i32,
    pub(super) job_len: i32,
    /// As [`super::entry`] has them.
    pub(super) fds: Vec<OwnedFd>,
    /// Whether the third of them is the cgroup.
    in_cgroup: bool,
}

impl Asked {
    /// What a worker is given of it.
    fn for_worker(mut self) -> Vec<OwnedFd> {
        if self.in_cgroup {
            drop(self.fds.remove(2));
        }
        drop(self.fds.remove(0));
        self.fds
    }
}

/// A process that has been forked and has not been looked after yet: dropped, it is killed.
pub(super) struct Entering {
    process: Option<StartedProcess>,
    pidfd: Option<OwnedFd>,
    /// Dropped when the process has come to its program, or to its end.
    end: Option<AtEnd>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Entering {
    pub(super) fn new(
        process: StartedProcess,
        pidfd: Option<OwnedFd>,
        end: Option<AtEnd>,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Self { process: Some(process), pidfd, end, commands }
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let _ = self.commands.send(Command::Discard { key: process.hold.key() });
        if let (Some(end), Ok(runtime)) = (self.end.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let _ = process.exit.wait_for(Option::is_some).await;
                drop(end);
            });
        }
    }
}

/// The supervisor's answer.
pub(super) type EnterAnswer = Result<Entering, NotEntered>;

/// Why there is no process.
pub(super) enum NotEntered {
    /// What was sent, and the right to a process, for another try.
    Refused(Asked, Option<AtEnd>),
    /// There was none to take its handle with. It is killed.
    NoDescriptors,
}

impl Launcher {
    /// Starts the process of `job`, with descriptors as it documents. Where there is a `place`, without a worker if that
    /// can be. `end` is dropped when whoever starts it has ended.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub async fn launch_process(
        &self,
        place: Option<Place>,
        job: &Job,
        fds: Vec<OwnedFd>,
        end: AtEnd,
    ) -> Result<Launched, LaunchError> {
        let waiting = |place| {
            let text = serde_json::to_vec(job).ok()?;
            Some((place, text.len(), socket_with(&text)?))
        };
        let Some((place, len, (ours, theirs))) = place.and_then(waiting) else {
            return self.launch_watched(job, fds, Some(end)).await;
        };
        let asked = ask(self.next_request(), place, len, theirs, fds);
        let (answer, answered) = oneshot::channel();
        self.send(Command::Enter { asked, answer, end: Some(end) })?;
        match answered.await.map_err(|_| LaunchError::SupervisorGone)? {
            Ok(entering) => wait_for(entering, ours).await,
            Err(NotEntered::Refused(asked, end)) => self.launch_watched(job, asked.for_worker(), end).await,
            Err(NotEntered::NoDescriptors) => Err(LaunchError::NoDescriptors),
        }
    }
}

fn ask(request: u64, place: Place, job_len: usize, socket: OwnedFd, mut fds: Vec<OwnedFd>) -> Asked {
    let mut status = 0;
    for (flag, set) in [(OWN_PIDS, place.own_pids), (IN_CGROUP, place.cgroup.is_some()), (HELD, place.held)] {
        status |= if set { flag } else { 0 };
    }
    debug_assert!(!place.held || fds.len() > HELD_COUNT);
    let in_cgroup = place.cgroup.is_some();
    if let Some(cgroup) = place.cgroup {
        // Behind the handle of init.
        fds.insert(fds.len().min(1), cgroup);
    }
    fds.insert(0, socket);
    Asked { request, status, job_len: i32::try_from(job_len).unwrap_or(0), fds, in_cgroup }
}

/// Both ends of a socket in which `job` waits for who has the second one.
fn socket_with(job: &[u8]) -> Option<(OwnedFd, OwnedFd)> {
    if job.len() > MAX_JOB {
        return None;
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).ok()?;
    let sent = send(ours.as_raw_fd(), job, MsgFlags::MSG_NOSIGNAL).ok()?;
    (sent == job.len()).then_some((ours, theirs))
}

/// Waits until the process is its program, or says why it can't be.
async fn wait_for(mut entering: Entering, socket: OwnedFd) -> Result<Launched, LaunchError> {
    let words = listen(socket).await;
    let process = entering.process.take();
    let said = match words {
        Ok(words) if words.is_empty() => {
            let fds = entering.pidfd.take().into_iter().collect();
            return Ok(Launched { outcome: Outcome::Started(Vec::new()), fds, process });
        }
        Ok(words) => serde_json::from_slice::<Failure>(&words).map_err(LaunchError::Garbled),
        Err(source) => Err(LaunchError::HandOver { step: "hear of the process", source }),
    };
    // It ends by itself, but for one that nobody has heard of.
    if said.is_err() {
        entering.process = process;
    }
    Err(said.map_or_else(|error| error, LaunchError::Failed))
}

/// What the process says until it is its program.
async fn listen(socket: OwnedFd) -> std::io::Result<Vec<u8>> {
    let socket = UnixStream::from_std(StdUnixStream::from(socket))?;
    let mut words = Vec::new();
    loop {
        socket.readable().await?;
        words.reserve(MAX_WORDS);
        match socket.try_read_buf(&mut words) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // It ends with a process that is killed before it has taken its job, too.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(words),
            Err(error) => return Err(error),
            Ok(_) => return Ok(words),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use nix::unistd::{pipe, read, write};
    use slog::{Discard, Logger, o};

    use super::super::channel::{Channel, Header, Kind, MAX_FDS, Message};
    use super::*;

    fn job() -> Job {
        Job::CompileFilter(crate::spec::SeccompProfile::from(""))
    }

    async fn next(supervisor: &Channel) -> Message {
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            match supervisor.receive(0, MsgFlags::MSG_DONTWAIT) {
                Ok(message) => return message,
                Err(_) => tokio::task::yield_now().await,
            }
        }
        panic!("the supervisor is told nothing")
    }

    /// A launch under way: of a process with two descriptors, the first of which is a pipe's, in a container with a
    /// cgroup.
    struct Launch {
        supervisor: Channel,
        _launcher: Launcher,
        launched: tokio::task::JoinHandle<Result<Launched, LaunchError>>,
        reader: OwnedFd,
        ended: oneshot::Receiver<()>,
    }

    fn launch() -> Launch {
        let (supervisor, server) = Channel::pair().unwrap();
        let launcher = Launcher::start(server, 0, Logger::root(Discard, o!())).unwrap();
        let (reader, writer) = pipe().unwrap();
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        let (end, ended) = oneshot::channel::<()>();
        let asked = launcher.clone();
        let launched = tokio::spawn(async move {
            let place = Place { own_pids: true, cgroup: Some(null()), held: false };
            asked.launch_process(Some(place), &job(), vec![writer, null()], Box::new(end)).await
        });
        Launch { supervisor, _launcher: launcher, launched, reader, ended }
    }

    fn answer(supervisor: &Channel, kind: Kind, request: u64, pid: i32) {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds: &[_] = if kind == Kind::Entered { &[null.as_fd()] } else { &[] };
        supervisor.send(Header { pid, ..Header::new(kind, request) }, b"", fds, MsgFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn what_the_supervisor_refuses_a_worker_is_asked_for() {
        let Launch { supervisor, reader, launched: _launched, _launcher, .. } = launch();
        let Message { header, fds, .. } = next(&supervisor).await;
        assert_eq!((header.kind, header.status, fds.len()), (Kind::Enter, OWN_PIDS | IN_CGROUP, 4));
        drop(fds);
        answer(&supervisor, Kind::ForkFailed, header.request, 0);
        let worker = next(&supervisor).await;
        assert_eq!((worker.header.kind, worker.fds.len()), (Kind::Launch, 3));
        write(&worker.fds[1], b"x").unwrap();
        assert_eq!(read(&reader, &mut [0; 2]), Ok(1), "it has the process's descriptors behind the job");
    }

    #[tokio::test]
    async fn a_process_is_there_when_its_socket_closes_and_what_it_says_is_why_not() {
        let failure = Failure::internal("no such thing");
        for said in [None, Some(failure)] {
            let Launch { supervisor, launched, ended, _launcher, .. } = launch();
            let Message { header, fds, .. } = next(&supervisor).await;
            let mut text = vec![0; usize::try_from(header.pid).unwrap()];
            read(&fds[0], &mut text).unwrap();
            assert_eq!(text, serde_json::to_vec(&job()).unwrap());
            answer(&supervisor, Kind::Entered, header.request, 4711);
            if let Some(failure) = &said {
                send(fds[0].as_raw_fd(), &serde_json::to_vec(failure).unwrap(), MsgFlags::empty()).unwrap();
            }
            drop(fds);
            match (launched.await.unwrap(), said) {
                (Ok(Launched { fds, process: Some(process), .. }), None) => {
                    assert_eq!((process.pid.as_raw(), fds.len()), (4711, 1));
                }
                (Err(LaunchError::Failed(told)), Some(failure)) => assert_eq!(told, failure),
                (other, _) => panic!("{other:?}"),
            }
            assert!(ended.await.is_err(), "it is dropped");
            assert_eq!(next(&supervisor).await.header.kind, Kind::Release, "and nothing is killed");
        }
    }

    #[tokio::test]
    async fn a_process_whose_handle_has_no_room_here_is_killed_and_its_caller_told() {
        let Launch { supervisor, launched, ended, _launcher, .. } = launch();
        let Message { header, .. } = next(&supervisor).await;
        // More than are ever taken come cut off, as any do where no file can be opened.
        let null = std::fs::File::open("/dev/null").unwrap();
        let entered = Header { pid: i32::MAX, ..Header::new(Kind::Entered, header.request) };
        supervisor.send(entered, b"", &[null.as_fd(); MAX_FDS * 2], MsgFlags::empty()).unwrap();
        let launched = tokio::time::timeout(Duration::from_secs(60), launched).await;
        assert!(matches!(launched.unwrap().unwrap(), Err(LaunchError::NoDescriptors)));
        assert_eq!(next(&supervisor).await.header, Header::new(Kind::Discard, header.request));
        assert!(ended.await.is_err(), "it is dropped");
    }

    #[tokio::test]
    async fn a_process_whose_caller_has_gone_is_killed_and_keeps_its_place_until_its_end() {
        for entered_before in [true, false] {
            let Launch { supervisor, launched, mut ended, _launcher, .. } = launch();
            let Message { header, fds, .. } = next(&supervisor).await;
            if entered_before {
                answer(&supervisor, Kind::Entered, header.request, i32::MAX);
                tokio::task::yield_now().await;
            }
            launched.abort();
            let _ = launched.await;
            if !entered_before {
                answer(&supervisor, Kind::Entered, header.request, i32::MAX);
            }
            assert_eq!(next(&supervisor).await.header, Header::new(Kind::Discard, header.request));
            assert_eq!(ended.try_recv(), Err(oneshot::error::TryRecvError::Empty));
            answer(&supervisor, Kind::Exited, 0, i32::MAX);
            assert!(ended.await.is_err(), "it is dropped");
            drop(fds);
        }
    }
}
