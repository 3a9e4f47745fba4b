//! One connection of a host: requests in, answers out.
//!
//! It speaks ttrpc as `ttrpc::asynchronous::Server` does, over the same generated services, and is here because of what
//! that costs: a task, two channels and two copies of the data for each answer. Here
//! - a call that can be answered at once is: it gets a task of its own only when it has to wait for something, be it
//!   room in the socket, so no call holds up another;
//! - the data of a stream is sent from the buffer that it was read into, and written from the one that it came in.
//!
//! A call is dropped when its time-out passes or the connection ends. Its answer is not: half a frame would be the end
//! of the connection.

mod around;
mod frame;
mod reply;
mod router;
mod socket;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use self::frame::{Frame, Frames};
pub(super) use self::router::Router;
use self::socket::Socket;

/// What the calls of a connection share.
struct Connection {
    socket: Socket,
    router: Arc<Router>,
    /// Held while a frame is written.
    writing: Mutex<()>,
}

/// Serves a connected socket until the peer has closed it, or until `stop` says true and the calls under way have been
/// answered.
pub(super) async fn serve(fd: OwnedFd, router: Arc<Router>, mut stop: watch::Receiver<bool>) {
    let Ok(socket) = Socket::new(fd) else { return };
    let connection = Arc::new(Connection { socket, router, writing: Mutex::new(()) });
    let mut frames = Frames::new();
    let mut calls = JoinSet::new();
    loop {
        let frame = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = calls.join_next(), if !calls.is_empty() => continue,
            frame = frames.next(&connection.socket) => frame,
        };
        // Nobody waits for the calls any more: they are dropped with their set.
        let Ok(Some(frame)) = frame else { return };
        let mut call = Box::pin(connection.clone().answer(frame));
        if poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await.is_pending() {
            calls.spawn(call);
        }
    }
    while calls.join_next().await.is_some() {}
}

impl Connection {
    async fn answer(self: Arc<Self>, frame: Frame) {
        let stream = frame.header.stream_id;
        let Some(reply) = self.router.serve(frame).await else { return };
        let (head, body) = reply.into_frame(stream);
        let _turn = self.writing.lock().await;
        if self.socket.write_all(&head, &body).await.is_err() {
            self.socket.hang_up();
        }
    }
}
