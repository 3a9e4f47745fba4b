//! RemoveContainer, and its repeat.
//! A removal goes on when its caller has gone, or has been told that it takes too long. Such a caller asks again,
//! perhaps when all is over, and must get success then: shims retry for ever on NOT_FOUND after a time-out. So an id
//! is remembered until somebody has been told of its end, or takes it for another container.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use super::{Sandbox, SandboxError, lock};

/// How many are remembered; of more, the last ones. Each is a removal that nobody has asked for again.
const MOST: usize = 1024;

/// The removals of whose end nobody has been told.
#[derive(Debug, Default)]
pub(super) struct Untold(Mutex<VecDeque<String>>);

impl Untold {
    fn note(&self, id: &str) {
        let mut ids = lock(&self.0);
        ids.retain(|known| known != id);
        if ids.len() >= MOST {
            ids.pop_front();
        }
        ids.push_back(id.to_owned());
    }

    /// Whether it was there.
    pub(super) fn forget(&self, id: &str) -> bool {
        let mut ids = lock(&self.0);
        let before = ids.len();
        ids.retain(|known| known != id);
        ids.len() < before
    }
}

impl Sandbox {
    /// Removes a container, whatever state it is in.
    ///
    /// # Errors
    ///
    /// [`SandboxError::NoContainer`], and [`SandboxError::RemovalTimeout`]: the removal goes on then, and can be
    /// waited for by asking again.
    pub async fn remove_container(&self, id: &str, timeout: Option<Duration>) -> Result<(), SandboxError> {
        let untold = &self.inner.untold;
        let container = match self.container(id) {
            Err(SandboxError::NoContainer(_)) if untold.forget(id) => return Ok(()),
            found => found?,
        };
        untold.note(id);
        container.remove(timeout).await?;
        untold.forget(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_once() {
        let untold = Untold::default();
        for number in 0..MOST + 1 {
            untold.note(&number.to_string());
            untold.note("7");
        }
        assert!(!untold.forget("0"), "the oldest");
        assert!(untold.forget("7") && !untold.forget("7"));
        assert!(untold.forget(&MOST.to_string()));
    }
}
