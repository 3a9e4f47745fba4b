//! Work that comes to its end although nobody waits for its result any more.
//!
//! Some steps can't be given up in the middle: a handshake with a VMM, whose device dies of a client that goes; a copy
//! on a thread; a call that the agent has got already. Whoever stops waiting for one leaves it to this module, and a
//! program that ends waits for what is under way.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How much is under way in this process.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static ENDED: Notify = Notify::const_new();

/// One piece of it.
struct Pending;

impl Pending {
    fn begin() -> Self {
        COUNT.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::SeqCst);
        ENDED.notify_waiters();
    }
}

/// Waits until nothing is under way.
pub async fn settled() {
    loop {
        let ended = ENDED.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if COUNT.load(Ordering::SeqCst) == 0 {
            return;
        }
        ended.await;
    }
}

/// Does `work`, whether or not this future is dropped on the way; what it gives is dropped then.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    let pending = Pending::begin();
    // A tuple's fields go in their order: nothing is under way only when the result is gone.
    result(tokio::spawn(async move { (work.await, pending) })).await
}

/// The same for work that blocks, on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let pending = Pending::begin();
    result(tokio::task::spawn_blocking(move || (work(), pending))).await
}

async fn result<T>(task: JoinHandle<(T, Pending)>) -> io::Result<T> {
    let (result, _pending) = task.await?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    /// Tells when it goes.
    struct Guard(Arc<Mutex<bool>>);

    impl Drop for Guard {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = true;
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_ends_and_is_waited_for() {
        let is_gone = Arc::new(Mutex::new(false));
        let guard = Guard(is_gone.clone());
        let (go, may) = std::sync::mpsc::channel::<()>();
        let work = blocking(move || {
            may.recv().unwrap();
            guard
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), work).await.is_err());
        let (answer, asked) = tokio::sync::oneshot::channel::<()>();
        let call = to_its_end(async move { asked.await.is_ok() });
        assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
        assert!(!*is_gone.lock().unwrap());
        go.send(()).unwrap();
        // Nobody has dropped it.
        answer.send(()).unwrap();
        settled().await;
        assert!(*is_gone.lock().unwrap());
    }
}
