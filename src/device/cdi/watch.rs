//! Being told when specification files change: inotify(7) on the directories, or on what is above them where they are
//! not there yet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::AsFd as _;

/// Watches; without inotify it only lets time pass.
#[derive(Debug)]
pub(super) struct Watch(Option<Inotify>);

impl Watch {
    /// Watches the directories. What is watched already stays so.
    pub(super) fn renew(watch: Option<Self>, directories: &[PathBuf]) -> Self {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let watch = watch.unwrap_or_else(|| Self(Inotify::init(flags).ok()));
        let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        if let Some(inotify) = &watch.0 {
            for directory in directories {
                let there =
                    directory.ancestors().find(|above| above.is_dir()).unwrap_or_else(|| Path::new("/"));
                // One that has gone meanwhile is looked for again with the next change.
                let _ = inotify.add_watch(there, events);
            }
        }
        watch
    }

    /// Blocks until something has changed, or the time is over.
    pub(super) fn wait(self, limit: Duration) -> Self {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        match &self.0 {
            Some(inotify) => {
                let _ = poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout);
                while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
            }
            None => drop(poll(&mut [], timeout)),
        }
        self
    }
}
