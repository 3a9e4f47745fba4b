//! One connection of a host: requests in, answers out.
//!
//! It speaks ttrpc as `ttrpc::asynchronous::Server` does, over the same generated services, and is here because of what
//! that costs: a task, two channels and two copies of the data for each answer. Here
//! - a call that can be answered at once is: it gets a task of its own only when it has to wait for something, be it
//!   room in the socket, so no call holds up another;
//! - the data of a stream is sent from the buffer that it was read into, and written from the one that it came in.
//!
//! A peer that does not take its answers is not read from any more when they come to some MiB, and reads of streams that
//! wait take nothing (`room`): all that it asks for then waits in the kernel, and with its other connections nothing
//! is the matter.
//!
//! A call is dropped when its time-out passes or the connection ends. Its answer is not: half a frame would be the end
//! of the connection.
//!
//! Connections outlive their server: what it needs to know of them the next one finds in the [`crate::journal`], and
//! `resume` says what becomes of the calls.

mod around;
mod asked;
#[cfg(test)]
mod flood_tests;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
mod reply;
mod resume;
mod room;
mod router;
mod socket;
#[cfg(test)]
mod takeover_tests;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;

use self::frame::{Frame, Frames};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::fuzz::{read_frames, read_request};
pub(super) use self::resume::{Effect, Effects};
use self::room::Room;
pub(super) use self::router::Router;
use self::socket::Socket;
use crate::journal::{Answer, Call, Journal, LeftCall, LeftLine, Sender};

/// What the calls of a connection share.
struct Connection {
    socket: Socket,
    router: Arc<Router>,
    journal: Arc<Journal>,
    sender: Sender,
    /// Held while a frame is written.
    writing: Mutex<()>,
    /// For the answers that wait for their turn.
    room: Room,
}

/// Serves a connected socket until the peer has closed it, or until `stop` says true and the calls under way have been
/// answered. With what an earlier server has left on its line.
pub(super) async fn serve(fd: OwnedFd, left: LeftLine, router: Arc<Router>, mut stop: watch::Receiver<bool>) {
    let Ok(socket) = Socket::new(fd) else { return };
    let LeftLine { line, sending, calls: left } = left;
    if socket.takes_pages() {
        line.takes_pages();
    }
    let (journal, sender) = (line.journal().clone(), line.sender());
    let (writing, room) = (Mutex::new(()), Room::default());
    let connection = Arc::new(Connection { socket, router, journal, sender, writing, room });
    let mut frames = Frames::new(line);
    frames.pass_over(|stream| left.iter().any(|call| call.stream == stream));
    if let Some((call, answer)) = sending {
        connection.write(&call, &answer).await;
    }
    let mut calls = JoinSet::new();
    for left in left {
        calls.spawn(connection.clone().go_on(left));
    }
    let mut stopped = pin!(stop.wait_for(|stop| *stop));
    loop {
        // Frames that have no answer take nothing of the task's budget, and a peer could send only such.
        consume_budget().await;
        let next = tokio::select! {
            biased;
            _ = &mut stopped => break,
            Some(_) = calls.join_next(), if !calls.is_empty() => continue,
            // When too many answers are unsent, no further request is read until one of them has been.
            next = frames.next(&connection.socket), if connection.room.is_left() || calls.is_empty() => next,
        };
        let Ok(Some((frame, call))) = next else {
            // Nobody waits for the calls any more: they are dropped with their set.
            connection.socket.hang_up();
            return;
        };
        connection.room.note_calls(calls.len());
        let mut call = Box::pin(connection.clone().answer(frame, call));
        if poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await.is_pending() {
            calls.spawn(call);
        }
        connection.router.called.notify_one();
    }
    while calls.join_next().await.is_some() {}
    connection.socket.hang_up();
}

impl Connection {
    async fn answer(self: Arc<Self>, frame: Frame, call: Call) {
        let stream = frame.header.stream_id;
        let Some(reply) = call.run(self.router.serve(frame, &call, &self.room)).await else { return };
        self.send(&call, reply.into_answer(stream, &self.journal)).await;
    }

    /// Goes on with a call of an earlier server's.
    async fn go_on(self: Arc<Self>, mut left: LeftCall) {
        let (call, stream) = (left.call.clone(), left.stream);
        let answer = match left.answer.take() {
            Some(answer) => answer,
            None => {
                let Some(reply) = call.run(self.router.go_on(left, &self.room)).await else { return };
                reply.into_answer(stream, &self.journal)
            }
        };
        self.send(&call, answer).await;
    }

    async fn send(&self, call: &Call, answer: Answer) {
        call.answered(&answer);
        let _turn = match self.writing.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                let _counted = self.room.count(&answer);
                self.writing.lock().await
            }
        };
        self.sender.begin(call);
        self.write(call, &answer).await;
    }

    async fn write(&self, call: &Call, answer: &Answer) {
        match self.socket.write(&self.sender, answer).await {
            Ok(()) => self.sender.end(call),
            Err(_) => self.socket.hang_up(),
        }
    }
}
