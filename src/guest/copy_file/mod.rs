//! CopyFile: files, directories and symbolic links that the host puts into the shared directory, when it has
//! no file system to share. There are two of them, as shims differ in where they want their files.
//!
//! Guarantees:
//!
//! - Nothing is made, changed or removed outside of the shared directory that a path names: it is opened beneath it
//!   (`beneath`), a link in the last place is replaced and not followed.
//! - A file has its old contents or all of the new: it arrives under a temporary name (`.nakai-…`, in the same
//!   directory) and is renamed when every byte is there. Chunks may come in any order, beside each other, and
//!   twice.
//! - Sizes and offsets that can't be, devices, sockets and pipes are refused.
//! - A copy that nobody goes on with is taken away: after [`IDLE_LIMIT`], sooner when there are too many, and at the
//!   end of the sandbox. One that somebody goes on with never is: one more than there may be is refused.
//!
//! Everything blocks. A call that was begun is finished, also when its caller has gone.

mod error;
mod place;
mod ranges;
mod request;
#[cfg(test)]
mod tests;
mod upload;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use error::CopyError;
pub use request::CopyRequest;

use self::place::Place;
use self::request::{Chunk, Kind};
use self::upload::Upload;

/// How long a copy waits for its next chunk. It is looked at when another chunk comes.
pub const IDLE_LIMIT: Duration = Duration::from_secs(600);
/// How long, when there are too many.
const SHORT_IDLE_LIMIT: Duration = Duration::from_secs(60);
/// The most copies at a time: each holds two descriptors.
const COPIES_LIMIT: usize = 64;

/// The copies under way.
#[derive(Debug)]
pub struct Copies {
    bases: Vec<PathBuf>,
    under_way: Mutex<HashMap<PathBuf, UnderWay>>,
}

#[derive(Debug)]
struct UnderWay {
    last: Instant,
    /// Held while a chunk of this file is written. `None` before its first.
    upload: Arc<Mutex<Option<Upload>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole between any two operations.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Copies {
    /// Copies to beneath one of `bases`, which is made when the first one comes.
    pub fn new(bases: Vec<PathBuf>) -> Self {
        Self { bases, under_way: Mutex::default() }
    }

    /// The shared directories.
    pub fn bases(&self) -> &[PathBuf] {
        &self.bases
    }

    /// Copies a file, a piece of one, a directory or a symbolic link.
    ///
    /// # Errors
    ///
    /// Those of [`CopyError`] that are about the system. A file whose copy failed has to be sent anew.
    pub fn copy(&self, request: &CopyRequest) -> Result<(), CopyError> {
        let place = || Place::prepare(request);
        match &request.kind {
            Kind::Directory => place()?.directory(request.owner, request.mode),
            Kind::Link { target } => place()?.link(target, request.owner),
            Kind::Chunk(chunk) => self.copy_chunk(request, chunk),
        }
    }

    /// Takes away what has arrived of files that are not whole.
    pub fn give_up(&self) {
        let under_way = std::mem::take(&mut *lock(&self.under_way));
        drop(under_way);
    }

    fn copy_chunk(&self, request: &CopyRequest, chunk: &Chunk) -> Result<(), CopyError> {
        let file = request.base.join(&request.path);
        let shared = self.upload(&file, request)?;
        let mut upload = lock(&shared);
        let outcome = write(&mut upload, request, chunk);
        if !matches!(outcome, Ok(false)) {
            *upload = None;
            drop(upload);
            self.forget(&file, &shared);
        }
        outcome.map(drop)
    }

    /// What has arrived of a file. Makes room for it first.
    fn upload(&self, path: &Path, request: &CopyRequest) -> Result<Arc<Mutex<Option<Upload>>>, CopyError> {
        let mut under_way = lock(&self.under_way);
        let now = Instant::now();
        if let Some(known) = under_way.get_mut(path) {
            known.last = now;
            return Ok(known.upload.clone());
        }
        for limit in [IDLE_LIMIT, SHORT_IDLE_LIMIT] {
            if limit == IDLE_LIMIT || under_way.len() >= COPIES_LIMIT {
                under_way.retain(|_, other| now.saturating_duration_since(other.last) < limit);
            }
        }
        if under_way.len() >= COPIES_LIMIT {
            return Err(CopyError::TooMany { path: request.path.clone(), limit: COPIES_LIMIT });
        }
        let upload = Arc::default();
        under_way.insert(path.to_owned(), UnderWay { last: now, upload: Arc::clone(&upload) });
        Ok(upload)
    }

    fn forget(&self, path: &Path, upload: &Arc<Mutex<Option<Upload>>>) {
        let mut under_way = lock(&self.under_way);
        if under_way.get(path).is_some_and(|known| Arc::ptr_eq(&known.upload, upload)) {
            under_way.remove(path);
        }
    }
}

/// Writes a chunk. Says whether the file is whole.
fn write(slot: &mut Option<Upload>, request: &CopyRequest, chunk: &Chunk) -> Result<bool, CopyError> {
    let upload = match slot.take().filter(|upload| upload.goes_on_with(chunk)) {
        Some(upload) => upload,
        None => Upload::begin(Place::prepare(request)?, chunk.size)?,
    };
    let upload = slot.insert(upload);
    if !upload.write(chunk)? {
        return Ok(false);
    }
    upload.finish(request.owner, request.mode)?;
    Ok(true)
}
