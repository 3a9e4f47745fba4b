//! A bulkhead: what works on a file system that hangs takes no threads from anybody else.
//!
//! A share whose host does not answer holds each thread that looks at it, for as long as it likes, and the blocking pool
//! has only so many. So whatever touches files that are not the agent's own takes a turn here first, and waits for it
//! without a thread: all such work has three quarters of the pool, and once a quarter of the pool is at it, one mount
//! has an eighth. The agent's own files, cgroups and `/proc` need no turn, and always find a thread.
//!
//! Invariant: the thread holds its turns and not the caller, who may go away before it does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, spawn_blocking};

use super::mountinfo::{self, MountInfo};

/// The turns. Clones share them.
#[derive(Debug, Clone)]
pub struct Bulkhead {
    /// For all work.
    all: Arc<Semaphore>,
    /// While no more than so many of those are left, mounts are told apart.
    crowded: usize,
    /// For the work on one mount.
    on_one: usize,
    mounts: Arc<Mutex<HashMap<PathBuf, Arc<Semaphore>>>>,
}

impl Bulkhead {
    /// For a blocking pool of so many threads.
    pub fn of_pool(threads: usize) -> Self {
        let quarter = threads.div_ceil(4);
        Self {
            all: Arc::new(Semaphore::new(threads.saturating_sub(quarter).max(1))),
            crowded: threads.saturating_sub(quarter).saturating_sub(quarter),
            on_one: threads.div_ceil(8),
            mounts: Arc::default(),
        }
    }

    /// Runs `work` where it may block, when it is its turn. It touches what is at `path`, or a device or tag of that
    /// name.
    ///
    /// # Errors
    /// When it panicked or the agent is ending.
    pub async fn run<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turns = self.turns(path).await;
        spawn_blocking(move || {
            let _turns = turns;
            work()
        })
        .await
    }

    /// Neither semaphore is ever closed: there is always a turn in the end.
    async fn turns(&self, path: &Path) -> [Option<OwnedSemaphorePermit>; 2] {
        let on_mount = if self.all.available_permits() <= self.crowded {
            let path = path.to_owned();
            let mount = spawn_blocking(move || mount_of(&path, &mountinfo::read().unwrap_or_default()));
            let mount = mount.await.unwrap_or_default();
            self.mount(mount).acquire_owned().await.ok()
        } else {
            None
        };
        [on_mount, Arc::clone(&self.all).acquire_owned().await.ok()]
    }

    fn mount(&self, mount: PathBuf) -> Arc<Semaphore> {
        // Whole between any two operations.
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        // Turns that are taken or waited for hold their semaphore.
        mounts.retain(|_, turns| Arc::strong_count(turns) > 1);
        mounts.entry(mount).or_insert_with(|| Arc::new(Semaphore::new(self.on_one))).clone()
    }
}

/// The mount that `path` is on, as far as its text tells: nothing is looked up, because that may hang. A device is for
/// itself, and so is what is no path.
fn mount_of(path: &Path, mounts: &[MountInfo]) -> PathBuf {
    if !path.is_absolute() || path.starts_with("/dev") {
        return path.to_owned();
    }
    let above = mounts.iter().map(|mount| &mount.mount_point).filter(|point| path.starts_with(point));
    above.max_by_key(|point| point.components().count()).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// A pool of as many threads, and work in it that hangs until its sender is gone.
    struct Pool {
        // Dropped first, because the runtime waits for its threads.
        hung: Option<mpsc::Sender<()>>,
        runtime: tokio::runtime::Runtime,
        bulkhead: Bulkhead,
        gate: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    const THREADS: usize = 32;

    impl Pool {
        fn new() -> Self {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.max_blocking_threads(THREADS).enable_all().build().unwrap();
            let (sender, gate) = mpsc::channel();
            let (hung, gate) = (Some(sender), Arc::new(Mutex::new(gate)));
            Self { runtime, bulkhead: Bulkhead::of_pool(THREADS), hung, gate }
        }

        fn hang(&self, on: &str, times: usize) -> Vec<tokio::task::JoinHandle<()>> {
            let hang = |_| {
                let (bulkhead, on, gate) = (self.bulkhead.clone(), PathBuf::from(on), Arc::clone(&self.gate));
                self.runtime.spawn(async move {
                    let work = move || drop(gate.lock().map(|gate| gate.recv()));
                    bulkhead.run(&on, work).await.unwrap();
                })
            };
            (0..times).map(hang).collect()
        }

        /// Whether work on `on` is done, while everything else that can has taken its thread.
        fn works(&self, on: Option<&str>) -> bool {
            self.runtime.block_on(async {
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
                let work = async {
                    match on {
                        Some(on) => self.bulkhead.run(Path::new(on), || true).await.unwrap(),
                        None => spawn_blocking(|| true).await.unwrap(),
                    }
                };
                // Long enough for what has a thread; what has none would wait for ever.
                let limit =
                    if on == Some("hung") { Duration::from_millis(100) } else { Duration::from_secs(60) };
                tokio::time::timeout(limit, work).await.unwrap_or(false)
            })
        }
    }

    #[test]
    fn who_waits_for_a_hung_file_system_takes_no_turn_of_others() {
        let mut pool = Pool::new();
        let hanging = pool.hang("hung", 10 * THREADS);
        assert!(pool.works(None), "the agent's own work");
        assert!(pool.works(Some("well")), "work on another file system");
        assert!(!pool.works(Some("hung")));
        pool.hung = None;
        pool.runtime.block_on(async {
            for task in hanging {
                task.await.unwrap();
            }
        });
        assert!(pool.works(Some("hung")));
    }

    #[test]
    fn however_many_hang_the_agents_own_work_goes_on() {
        let mut pool = Pool::new();
        for name in 0..THREADS {
            pool.hang(&format!("tag-{name}"), THREADS);
        }
        assert!(pool.works(None));
        pool.hung = None;
    }

    #[test]
    fn a_path_is_on_the_mount_that_is_nearest_above_it() {
        let mounts = mountinfo::parse(
            b"1 0 0:1 / / rw - tmpfs a rw\n2 1 0:2 / /run/share rw - virtiofs b rw\n\
              3 1 0:3 / /run/share/x rw - tmpfs c rw\n4 1 0:4 / /dev rw - devtmpfs d rw\n",
        );
        for (path, mount) in [
            ("/run/share/x/y", "/run/share/x"),
            ("/run/share/xy", "/run/share"),
            ("/run/shared", "/"),
            ("/dev/vda", "/dev/vda"),
            ("kataShared", "kataShared"),
        ] {
            assert_eq!(mount_of(Path::new(path), &mounts), Path::new(mount), "{path}");
        }
    }
}
