//! What happens to the containers of one agent, as a file of JSON lines that any client appends to and any can follow.
//!
//! A line is written by one write(2) to a file opened for appending, so lines of several clients don't mix. A follower
//! is woken by the kernel (inotify(7)) and ends when the file is removed, which is the end of the sandbox.
//!
//! A file that has grown long becomes `<file>.1`, and a new one takes its place, so that a machine that lives long keeps
//! a bounded journal.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::lock::Lock;
use crate::time;

/// What happened.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// An image is read and unpacked.
    Image,
    /// A volume is waited for and attached.
    Volume,
    /// PCI functions of the host are claimed.
    Claim,
    /// PCI functions and network cards are plugged in.
    Network,
    /// A container is created.
    Create,
    /// Its program is let go.
    Start,
    /// A further process.
    Exec,
    /// It is frozen.
    Pause,
    /// It is thawed.
    Resume,
    /// Its limits are changed.
    Update,
    /// A signal is sent.
    Kill,
    /// Its program has ended.
    Die,
    /// The kernel has killed one of its processes for want of memory.
    Oom,
    /// The state of its health has changed.
    Health,
    /// What it prints can't be kept in its log, and is lost.
    Log,
    /// It is started again.
    Restart,
    /// It is removed.
    Remove,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It begins.
    Begin,
    /// It has ended well.
    Done,
    /// It has failed, and what it had done is undone.
    Failed,
}

/// A line of the journal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Event {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// The container.
    pub container: String,
    /// What happened.
    pub action: Action,
    /// Where a step is; none for what has no duration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The exit status of what has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// More, in words: a failure's cause, a state of health, the name of a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Event {
    /// Something that happens now.
    pub fn new(container: &str, action: Action) -> Self {
        let container = container.to_owned();
        Self { time: time::now(), container, action, phase: None, exit_code: None, detail: None }
    }

    /// With the place in a step.
    #[must_use]
    pub fn phase(self, phase: Phase) -> Self {
        Self { phase: Some(phase), ..self }
    }

    /// With an exit status.
    #[must_use]
    pub fn exit_code(self, code: i32) -> Self {
        Self { exit_code: Some(code), ..self }
    }

    /// With words.
    #[must_use]
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }
}

/// How long a file may get: some thousands of containers' lives.
const LIMIT: u64 = 4 << 20;

/// The journal of one agent.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
    limit: u64,
}

impl Journal {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, limit: LIMIT }
    }

    /// Appends a line. It is news for others, and nothing fails for want of it: an error is dropped.
    pub fn note(&self, event: &Event) {
        let _ = self.append(event);
    }

    fn append(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut file = self.open(File::options().append(true))?;
        if file.metadata()?.len() >= self.limit && self.begin_anew()? {
            file = self.open(File::options().append(true))?;
        }
        file.write_all(&line)
    }

    /// Puts a new file in the place of one that is too long; whether there is one now. There is always one, or a
    /// follower would take it for the end.
    fn begin_anew(&self) -> io::Result<bool> {
        let Ok(turn) = Lock::try_take(&self.path.with_extension("lock")) else { return Ok(false) };
        // Another may have done it.
        if fs::metadata(&self.path)?.len() >= self.limit {
            let (before, new) = (self.before(), self.path.with_extension("new"));
            // There is none the first time.
            let _ = fs::remove_file(&before);
            fs::hard_link(&self.path, &before)?;
            File::create(&new)?;
            fs::rename(&new, &self.path)?;
        }
        turn.remove();
        Ok(true)
    }

    fn before(&self) -> PathBuf {
        self.path.with_extension("1")
    }

    fn open(&self, options: &mut fs::OpenOptions) -> io::Result<File> {
        if let Some(parent) = self.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        options.create(true).open(&self.path)
    }

    /// Notes the begin of a step, does it, and notes its end.
    ///
    /// # Errors
    ///
    /// The step's own.
    pub async fn step<T, E: std::fmt::Display>(
        &self,
        container: &str,
        action: Action,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.note(&Event::new(container, action).phase(Phase::Begin));
        let result = step.await;
        self.note(&match &result {
            Ok(_) => Event::new(container, action).phase(Phase::Done),
            Err(error) => Event::new(container, action).phase(Phase::Failed).detail(error.to_string()),
        });
        result
    }

    /// Whether a container of this name has been taken away since `time`: removed, or not made. Looks at the newest
    /// events only.
    pub fn was_taken_away_since(&self, time: SystemTime, container: &str) -> bool {
        let time = time::rfc3339(time);
        let text = [self.before(), self.path.clone()].map(|path| newest(&path).unwrap_or_default()).concat();
        // The first line may be a part of one.
        let events =
            text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice::<Event>(line).ok());
        let is_away = |event: &Event| {
            matches!(
                (event.action, event.phase),
                (Action::Remove, Some(Phase::Done)) | (Action::Create, Some(Phase::Failed))
            )
        };
        // All have the same number of digits.
        events.into_iter().any(|event| event.container == container && event.time >= time && is_away(&event))
    }

    /// The lines that have been written to the file, or none but with `from_start`, and those that will be.
    /// The channel ends with the file.
    ///
    /// # Errors
    ///
    /// The file can't be watched.
    pub fn follow(&self, from_start: bool) -> io::Result<mpsc::Receiver<String>> {
        // For writing, because it may be missing and is made then.
        let mut file = self.open(File::options().read(true).append(true))?;
        let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
        watch.add_watch(&self.path, WATCHED)?;
        if !from_start {
            file.seek(SeekFrom::End(0))?;
        }
        let (sender, receiver) = mpsc::channel(64);
        let tail = Tail { path: self.path.clone(), file, watch, sender };
        std::thread::Builder::new().name("events".to_owned()).spawn(move || tail.run())?;
        Ok(receiver)
    }
}

/// A removal changes the number of links, which is told as a change of attributes.
const WATCHED: AddWatchFlags = AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_ATTRIB);

/// The end of a file.
fn newest(path: &Path) -> io::Result<Vec<u8>> {
    const ENOUGH: u64 = 64 << 10;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
    let mut text = Vec::new();
    file.take(ENOUGH).read_to_end(&mut text)?;
    Ok(text)
}

/// A follower's thread.
struct Tail {
    path: PathBuf,
    file: File,
    watch: Inotify,
    sender: mpsc::Sender<String>,
}

impl Tail {
    /// Sends whole lines until the file is gone, or nobody listens when the next one comes.
    fn run(mut self) {
        let mut pending = Vec::new();
        // One that another has taken the place of is read to its end first.
        let mut next = None;
        while self.send(&mut pending) {
            if let Some(file) = next.take() {
                self.file = file;
                continue;
            }
            let Ok(mine) = self.file.metadata() else { return };
            let newer = File::open(&self.path).ok();
            next = newer.filter(|newer| newer.metadata().is_ok_and(|newer| newer.ino() != mine.ino()));
            let goes_on = match &next {
                Some(_) => self.watch.add_watch(&self.path, WATCHED).is_ok(),
                None => mine.nlink() > 0 && self.watch.read_events().is_ok(),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Sends what has been written since; false when that is over.
    fn send(&mut self, pending: &mut Vec<u8>) -> bool {
        if self.file.read_to_end(pending).is_err() {
            return false;
        }
        let whole = pending.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end.saturating_add(1));
        let lines: Vec<u8> = pending.drain(..whole).collect();
        let mut lines = lines.split_inclusive(|&byte| byte == b'\n');
        lines.all(|line| {
            let line = String::from_utf8_lossy(line).trim_end().to_owned();
            self.sender.blocking_send(line).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_was_taken_away_lately_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path().join("events"));
        let began = SystemTime::now();
        let lately = |name: &str| journal.was_taken_away_since(began, name);
        assert!(!lately("web"), "there are no events");
        journal.note(&Event::new("web", Action::Create).phase(Phase::Begin));
        journal.note(&Event::new("other", Action::Remove).phase(Phase::Done));
        let made = async { Ok::<_, String>(()) };
        journal.step("web", Action::Create, made).await.unwrap();
        assert!(!lately("web") && lately("other"));
        let removed = async { Ok::<_, String>(()) };
        journal.step("web", Action::Remove, removed).await.unwrap();
        journal.step("failed", Action::Create, async { Err::<(), _>("no") }).await.unwrap_err();
        assert!(lately("web") && lately("failed"));
        assert!(!journal.was_taken_away_since(SystemTime::now() + Duration::from_secs(9), "web"));
        // Of a long journal the end is enough.
        let long = Event::new("long", Action::Die).detail("x".repeat(70 << 10));
        journal.note(&long);
        journal.note(&Event::new("last", Action::Remove).phase(Phase::Done));
        assert!(lately("last") && !lately("web"));
    }

    #[tokio::test]
    async fn followers_see_old_and_new_lines_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path().join("a/events"));
        let parsed = |line: String| serde_json::from_str::<Event>(&line).unwrap();
        let failing = async { Err::<(), _>("no such image") };
        journal.step("web", Action::Create, failing).await.unwrap_err();
        let mut all = journal.follow(true).unwrap();
        let mut new = journal.follow(false).unwrap();
        let begin = all.recv().await.unwrap();
        assert!(begin.contains(r#""container":"web","action":"create","phase":"begin"}"#), "{begin}");
        let failed = parsed(all.recv().await.unwrap());
        assert_eq!((failed.phase, failed.detail.as_deref()), (Some(Phase::Failed), Some("no such image")));

        let died = Event::new("web", Action::Die).exit_code(137).detail("oom");
        journal.note(&died);
        assert_eq!(parsed(all.recv().await.unwrap()), died);
        assert_eq!(parsed(new.recv().await.unwrap()), died);
        std::fs::remove_file(dir.path().join("a/events")).unwrap();
        assert_eq!((all.recv().await, new.recv().await), (None, None));
    }

    #[tokio::test]
    async fn a_long_journal_is_begun_anew_and_who_follows_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal { path: dir.path().join("events"), limit: 2000 };
        let began = SystemTime::now();
        let mut lines = journal.follow(true).unwrap();
        for number in 0..100 {
            let name = format!("c{number}");
            journal.note(&Event::new(&name, Action::Remove).phase(Phase::Done));
            let line = lines.recv().await.unwrap();
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap().container, name);
        }
        assert!(journal.was_taken_away_since(began, "c99") && journal.was_taken_away_since(began, "c85"));
        assert!(!journal.was_taken_away_since(began, "c0"));
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["events", "events.1"]);
        assert!(fs::metadata(&journal.path).unwrap().len() < 2200);
        fs::remove_file(&journal.path).unwrap();
        assert_eq!(lines.recv().await, None);
    }
}
