//! A connection of the host's that carries one stream of a process.
//!
//! Between a pipe and the connection bytes are moved by splice(2): whenever the server is killed, each byte is on the one
//! side or on the other, and who is given both goes on without a loss. A terminal's are moved through a pipe between
//! the two ([`Stage`]), 4 KiB at a time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::source::prepare;
use super::stage::Stage;
use super::sys::register;
use super::{InputStream, OutputStream};
use crate::journal::Pipe;

/// How much of a terminal is moved at a time: what one read finds. When the host hangs up, what is under way is lost.
const TERMINAL: usize = 4 << 10;

/// The most that is moved at a time: what a pipe holds.
const MOST: usize = 64 << 10;
/// What is moved at a time where memory is short or in pieces: with all that goes with it, it fits into a page.
const LITTLE: usize = 2 << 10;
/// How long to wait when there is no memory for that either: nobody tells when there is some again.
const RECOVERY: Duration = Duration::from_millis(20);

/// How much to move at a time, and the most of that.
pub(super) struct Piece(pub(super) usize, usize);

impl Piece {
    pub(super) fn new() -> Self {
        Self(MOST, MOST)
    }

    /// Of a terminal.
    pub(super) fn of_terminal() -> Self {
        Self(TERMINAL, TERMINAL)
    }

    /// Some has been moved.
    pub(super) fn moved(&mut self) {
        self.0 = self.0.saturating_mul(2).min(self.1);
    }

    /// There was no memory for so much.
    pub(super) async fn refused(&mut self) {
        if self.0 > LITTLE {
            self.0 = LITTLE;
        } else {
            // No event tells of memory.
            tokio::time::sleep(RECOVERY).await;
        }
    }
}

/// Whether memory is short, which passes. The end of a stream would not.
pub(super) fn is_memory_short(errno: Errno) -> bool {
    matches!(errno, Errno::ENOMEM | Errno::ENOBUFS)
}

/// What became of an attempt to move bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// Some, or none, but there may be some at once.
    Bytes,
    /// None, because of the connection: it has none, or takes none.
    NotNow,
    /// None: the kernel had no memory for so much.
    NoMemory,
    /// There are no more.
    End,
}

/// See the module. The host sees the end when it is dropped, whoever else has the connection.
#[derive(Debug)]
pub struct Link {
    connection: AsyncFd<Arc<OwnedFd>>,
    /// For a terminal's stream.
    stage: Option<Stage>,
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = shutdown(self.fd().as_raw_fd(), Shutdown::Both);
    }
}

impl Link {
    /// Over a connection, which is made non-blocking.
    ///
    /// # Errors
    /// When it can't be put into the event loop, or there are no descriptors left.
    pub fn new(connection: OwnedFd, is_terminal: bool) -> io::Result<Self> {
        Self::with(connection, if is_terminal { Some(Stage(Pipe::create()?)) } else { None })
    }

    /// One of an earlier server's, by its [`Link::duplicates`].
    pub fn held(fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let connection = fds.next()?;
        Self::with(connection, Pipe::held(fds.next(), fds.next()).map(Stage)).ok()
    }

    fn with(connection: OwnedFd, stage: Option<Stage>) -> io::Result<Self> {
        prepare(&connection)?;
        let connection = register(Arc::new(connection), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { connection, stage })
    }

    /// What the next server needs to go on with it.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        let of_stage = self.stage.iter().flat_map(|stage| stage.0.ends());
        std::iter::once(self.fd()).chain(of_stage).map(|fd| fd.try_clone_to_owned()).collect()
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.connection.get_ref().as_fd()
    }

    pub(super) fn connection(&self) -> &AsyncFd<Arc<OwnedFd>> {
        &self.connection
    }

    /// Moves what a process writes, until its end or the host's. `exited` and `quiet` as in [`OutputStream::take`].
    pub async fn carry_output<T>(
        &self,
        stream: &OutputStream,
        exited: &watch::Receiver<Option<T>>,
        quiet: Duration,
    ) {
        match &self.stage {
            Some(stage) => stage.carry_output(self, stream, exited, quiet).await,
            None => self.carry_pipe(stream, exited, quiet).await,
        }
        let _ = shutdown(self.fd().as_raw_fd(), Shutdown::Write);
    }

    async fn carry_pipe<T>(
        &self,
        stream: &OutputStream,
        exited: &watch::Receiver<Option<T>>,
        quiet: Duration,
    ) {
        let mut piece = Piece::new();
        while let Ok(mut room) = self.connection.writable().await {
            match stream.move_to(self.fd(), piece.0, exited, quiet).await {
                Ok(Moved::Bytes) => piece.moved(),
                Ok(Moved::NoMemory) => piece.refused().await,
                Ok(Moved::NotNow) => room.clear_ready(),
                Ok(Moved::End) | Err(_) => break,
            }
            tokio::task::consume_budget().await;
        }
    }

    /// Moves what the host writes, until its end or the process's. What the process does not read holds up nobody but
    /// the host.
    pub async fn carry_input(&self, stream: &InputStream) {
        if let Some(stage) = &self.stage {
            return stage.carry_input(self, stream).await;
        }
        let mut piece = Piece::new();
        while let Ok(mut ready) = self.connection.readable().await {
            match stream.move_from(self.fd(), piece.0).await {
                Ok(Moved::Bytes) => piece.moved(),
                Ok(Moved::NoMemory) => piece.refused().await,
                Ok(Moved::NotNow) => ready.clear_ready(),
                Ok(Moved::End) | Err(_) => break,
            }
            tokio::task::consume_budget().await;
        }
    }
}

/// What was missing when splice(2) has moved nothing: it says EAGAIN for either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// There is nothing to be moved.
    Bytes,
    /// There is no room for it.
    Room,
    /// What was missing has come in the meantime, and its event may have been before that: nobody may wait for it.
    Nothing,
}

/// See [`Missing`].
pub(super) fn missing(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Missing {
    let is_ready =
        |fd, what| poll(&mut [PollFd::new(fd, what)], PollTimeout::ZERO).is_ok_and(|count| count > 0);
    if !is_ready(from, PollFlags::POLLIN) {
        Missing::Bytes
    } else if !is_ready(to, PollFlags::POLLOUT) {
        Missing::Room
    } else {
        Missing::Nothing
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

    use super::super::{StreamName, Streams};
    use super::*;

    /// More than all buffers on the way hold.
    const LEN: usize = 3 << 20;

    fn bytes() -> Vec<u8> {
        (0..=250).cycle().take(LEN).collect()
    }

    fn write_all(mut to: impl Write + Send + 'static) {
        thread::spawn(move || to.write_all(&bytes()).unwrap());
    }

    fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let mut all = Vec::new();
            from.read_to_end(&mut all).unwrap();
            all
        })
    }

    /// Servers that carry a stream, of which each but the last is killed: nothing that it had is dropped.
    fn carry(fd: &OwnedFd, name: StreamName, connection: &OwnedFd, carry: impl AsyncFn(&Link, &Streams)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let held = runtime.block_on(async {
            let first = Link::new(connection.try_clone().unwrap(), name == StreamName::Terminal).unwrap();
            let held = first.duplicates().unwrap();
            std::mem::forget(first);
            held
        });
        for life in 1.. {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let is_done = runtime.block_on(async {
                let streams = Streams::from_fds([(name, fd.try_clone().unwrap())]).unwrap();
                let fds = held.iter().map(|fd| fd.try_clone().unwrap()).collect();
                let link = Link::held(fds).unwrap();
                let killed = async {
                    for _ in 0..life * 2 {
                        tokio::task::yield_now().await;
                    }
                    if life > 20 {
                        std::future::pending::<()>().await;
                    }
                };
                let is_done = tokio::select! {
                    biased;
                    () = carry(&link, &streams) => true,
                    () = killed => false,
                };
                if !is_done {
                    std::mem::forget((link, streams));
                }
                is_done
            });
            if is_done {
                return;
            }
        }
    }

    #[test]
    fn output_arrives_once_however_often_its_server_is_killed() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (ours, peer) = UnixStream::pair().unwrap();
        write_all(File::from(writer));
        let all = read_all(peer);
        let (_process, exited) = watch::channel(None::<()>);
        carry(&reader, StreamName::Stdout, &ours.into(), async |link, streams| {
            link.carry_output(&streams.stdout, &exited, Duration::ZERO).await;
        });
        assert!(all.join().unwrap() == bytes());
    }

    /// As much as is sent, and not up to the end: those who were killed have their ends still.
    fn read_len(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let mut all = vec![0; LEN];
            from.read_exact(&mut all).unwrap();
            all
        })
    }

    #[test]
    fn input_arrives_once_however_often_its_server_is_killed() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (ours, peer) = UnixStream::pair().unwrap();
        write_all(peer);
        let all = read_len(File::from(reader));
        carry(&writer, StreamName::Stdin, &ours.into(), async |link, streams| {
            link.carry_input(&streams.stdin).await;
        });
        assert!(all.join().unwrap() == bytes());
    }

    /// A terminal that changes nothing, and whose process neither reads nor writes yet.
    fn terminal() -> (OwnedFd, File) {
        let nix::pty::OpenptyResult { master, slave } = nix::pty::openpty(None, None).unwrap();
        let mut raw = nix::sys::termios::tcgetattr(&slave).unwrap();
        nix::sys::termios::cfmakeraw(&mut raw);
        nix::sys::termios::tcsetattr(&slave, nix::sys::termios::SetArg::TCSANOW, &raw).unwrap();
        (master, slave.into())
    }

    #[test]
    fn what_a_terminal_shows_arrives_once_however_often_its_server_is_killed() {
        let (master, slave) = terminal();
        let (ours, peer) = UnixStream::pair().unwrap();
        write_all(slave);
        let all = read_all(peer);
        let (process, exited) = watch::channel(None::<()>);
        drop(process);
        carry(&master, StreamName::Terminal, &ours.into(), async |link, streams| {
            link.carry_output(&streams.stdout, &exited, Duration::from_secs(600)).await;
        });
        assert!(all.join().unwrap() == bytes());
    }

    #[test]
    fn what_is_typed_arrives_once_however_often_its_server_is_killed() {
        let (master, slave) = terminal();
        let (ours, peer) = UnixStream::pair().unwrap();
        write_all(peer);
        let all = read_len(slave);
        carry(&master, StreamName::Terminal, &ours.into(), async |link, streams| {
            link.carry_input(&streams.stdin).await;
        });
        assert!(all.join().unwrap() == bytes());
    }

    /// What it has not been given it finds by ReadStdout.
    #[tokio::test]
    async fn a_host_that_hangs_up_costs_a_terminal_one_read() {
        // A pipe in the terminal's place, which may have more than a terminal at once.
        let (shows, mut program) =
            nix::unistd::pipe().map(|(reader, writer)| (reader, File::from(writer))).unwrap();
        let (ours, host) = UnixStream::pair().unwrap();
        program.write_all(&[1; 50_000]).unwrap();
        drop(host);
        let streams = Streams::from_fds([(StreamName::Terminal, shows.try_clone().unwrap())]).unwrap();
        let (_process, exited) = watch::channel(None::<()>);
        Link::new(ours.into(), true).unwrap().carry_output(&streams.stdout, &exited, Duration::ZERO).await;
        let left = crate::journal::bytes_waiting(&shows).unwrap();
        assert!((50_000 - TERMINAL..50_000).contains(&left), "{left} bytes are left");
    }

    #[test]
    fn it_is_known_which_side_is_not_ready() {
        let (from, feeder) = nix::unistd::pipe().unwrap();
        let (drain, to) = nix::unistd::pipe().unwrap();
        prepare(&to).unwrap();
        let look = || missing(from.as_fd(), to.as_fd());
        assert_eq!(look(), Missing::Bytes);
        nix::unistd::write(&feeder, b"x").unwrap();
        assert_eq!(look(), Missing::Nothing, "it came after the attempt");
        while nix::unistd::write(&to, &[0; 4096]).is_ok() {}
        assert_eq!(look(), Missing::Room);
        nix::unistd::read(&drain, &mut [0; 1 << 16]).unwrap();
        assert_eq!(look(), Missing::Nothing, "there was none at the attempt");
    }

    #[tokio::test]
    async fn the_host_sees_the_end_although_another_has_the_connection() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (ours, peer) = UnixStream::pair().unwrap();
        let _another = ours.try_clone().unwrap();
        let link = Link::new(ours.into(), false).unwrap();
        let streams = Streams::from_fds([(StreamName::Stdout, reader)]).unwrap();
        File::from(writer).write_all(b"last words").unwrap();
        let (_process, exited) = watch::channel(None::<()>);
        link.carry_output(&streams.stdout, &exited, Duration::ZERO).await;
        assert_eq!(read_all(peer).join().unwrap(), b"last words");
        drop(link);
    }

    /// Runs in a thread whose kernel has memory for a little at a time only, as one has whose memory is in pieces.
    fn where_memory_is_in_pieces(body: impl Future<Output = ()> + Send + 'static) {
        let run = move || {
            let mut filter = ScmpFilterContext::new(ScmpAction::Allow).unwrap();
            for (name, length) in [("splice", 4), ("write", 2)] {
                let is_more = ScmpArgCompare::new(length, ScmpCompareOp::Greater, LITTLE as u64);
                let call = ScmpSyscall::from_name(name).unwrap();
                let refuse = ScmpAction::Errno(libc::ENOMEM);
                filter.add_rule_conditional(refuse, call, &[is_more]).unwrap();
            }
            filter.load().unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body);
        };
        thread::spawn(run).join().unwrap();
    }

    #[test]
    fn no_stream_ends_where_memory_is_in_pieces() {
        // Less than a pipe holds, with a page for each piece: nobody has to take it meanwhile.
        let sent: Vec<u8> = bytes().into_iter().take(20_000).collect();
        let (from, process_writes) = nix::unistd::pipe().unwrap();
        let (process_reads, to) = nix::unistd::pipe().unwrap();
        let [(output, host_reads), (input, mut host_writes)] = [(); 2].map(|()| UnixStream::pair().unwrap());
        File::from(process_writes).write_all(&sent).unwrap();
        host_writes.write_all(&sent).unwrap();
        drop(host_writes);
        where_memory_is_in_pieces(async move {
            let fds = [(StreamName::Stdout, from), (StreamName::Stdin, to)];
            let streams = Streams::from_fds(fds).unwrap();
            let (_process, exited) = watch::channel(None::<()>);
            let link = |connection: UnixStream| Link::new(connection.into(), false).unwrap();
            link(output).carry_output(&streams.stdout, &exited, Duration::ZERO).await;
            link(input).carry_input(&streams.stdin).await;
        });
        assert!(read_all(host_reads).join().unwrap() == sent, "output");
        assert!(read_all(File::from(process_reads)).join().unwrap() == sent, "input");
    }
}
