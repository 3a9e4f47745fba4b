//! The files of a container's log: one that is written to, and those that it was before, `<log>.1` being the last.
//!
//! ```text
//! 0.log -> 0.log.1 -> 0.log.2 -> … -> gone
//! ```
//!
//! A file that has reached its size is renamed, as the kubelet and Docker do it. Whoever else renames it (a kubelet,
//! which asks for ReopenContainerLog then) finds a new one at its path.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How often it is looked whether the file is still at its path. Nobody tells.
const LOOK: Duration = Duration::from_millis(100);
/// How often files are looked at again that were renamed meanwhile, before it is left to the next time.
const LOOKS: u32 = 16;

/// How large a log may get.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LogLimits {
    /// Of one file, in bytes; none: without a limit.
    pub size: Option<u64>,
    /// How many files there are, with the one that is written to.
    pub files: u32,
}

impl Default for LogLimits {
    /// The kubelet's.
    fn default() -> Self {
        Self { size: Some(10 << 20), files: 5 }
    }
}

impl LogLimits {
    /// Docker's `max-size=` and `max-file=`.
    ///
    /// # Errors
    ///
    /// It is neither, or its value is none.
    pub fn set(&mut self, option: &str) -> Result<(), String> {
        match option.split_once('=') {
            Some(("max-size", "-1")) => self.size = None,
            Some(("max-size", size)) => {
                let bytes = crate::docker::parse::bytes(size).filter(|&bytes| bytes > 0);
                self.size = Some(bytes.ok_or_else(|| format!("{option:?}: not a number of bytes"))?);
            }
            Some(("max-file", count)) => {
                let count = count.parse().ok().filter(|&count| count > 0);
                self.files = count.ok_or_else(|| format!("{option:?}: not a count of files"))?;
            }
            _ => return Err(format!("{option:?} is neither max-size=BYTES nor max-file=COUNT")),
        }
        Ok(())
    }
}

/// The writer. What is written at once is in one file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limits: LogLimits,
    file: File,
    size: u64,
    looked: Instant,
}

impl LogFile {
    /// Goes on at the end of what is there.
    ///
    /// # Errors
    ///
    /// It can't be opened.
    pub fn open(path: &Path, limits: LogLimits) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), limits, file, size, looked: Instant::now() })
    }

    fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path, self.limits)?;
        Ok(())
    }

    /// Takes a new file where this one is full, or is no longer at its path.
    fn renew(&mut self, more: usize) -> io::Result<()> {
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        let is_full = |limit: u64| self.size > 0 && self.size.saturating_add(more) > limit;
        let is_full = self.limits.size.is_some_and(is_full);
        if !is_full && self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        if inode(&self.path)? != Some(inode_of(&self.file)?) {
            return self.reopen();
        }
        if is_full {
            rotate(&self.path, self.limits.files)?;
            return self.reopen();
        }
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.renew(line.len())?;
        if let Err(error) = self.file.write_all(line) {
            // On a full disk there may be a part of it, which would be taken for the begin of the next.
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size = self.size.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Renames all files of a log by one; the last one goes.
fn rotate(path: &Path, files: u32) -> io::Result<()> {
    for number in (0..files.saturating_sub(1)).rev() {
        match fs::rename(numbered(path, number), numbered(path, number.saturating_add(1))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    if files <= 1 { fs::remove_file(path) } else { Ok(()) }
}

/// The log itself is the one with the number 0.
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

fn inode(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn inode_of(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A log as far as it has been read, over all of its files.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// The oldest first; the last one is written to, unless it has been renamed meanwhile.
    files: VecDeque<File>,
    /// The begin of a line.
    pending: Vec<u8>,
}

impl LogReader {
    /// From the oldest file on that there is.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), files: VecDeque::new(), pending: Vec::new() }
    }

    /// The whole lines that have been written since.
    ///
    /// # Errors
    ///
    /// A file can't be read.
    pub fn more(&mut self) -> io::Result<Vec<u8>> {
        self.find_newer()?;
        while let Some(file) = self.files.front_mut() {
            file.read_to_end(&mut self.pending)?;
            if self.files.len() == 1 {
                break;
            }
            self.files.pop_front();
        }
        let whole =
            self.pending.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end.saturating_add(1));
        let rest = self.pending.split_off(whole);
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    /// Opens what is newer than the newest that is open, and puts it behind that.
    fn find_newer(&mut self) -> io::Result<()> {
        for _ in 0..LOOKS {
            let before = inode(&self.path)?;
            let newer = self.look()?;
            if inode(&self.path)? == before {
                self.files.extend(newer.into_iter().rev());
                break;
            }
        }
        Ok(())
    }

    /// What is newer than the newest that is open, from the log itself backwards: what is renamed meanwhile is met again
    /// under its new name.
    fn look(&self) -> io::Result<Vec<File>> {
        let known = self.files.back().map(File::metadata).transpose()?;
        let is_known = |id| known.as_ref().is_some_and(|known| (known.dev(), known.ino()) == id);
        let (mut newer, mut seen, mut is_hole) = (Vec::new(), Vec::new(), false);
        for number in 0_u32.. {
            let file = match File::open(numbered(&self.path, number)) {
                Ok(file) => file,
                // While files are renamed, one after the other, one number is free.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !is_hole => {
                    is_hole = true;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            is_hole = false;
            let id = inode_of(&file)?;
            if is_known(id) {
                return Ok(newer);
            }
            if !seen.contains(&id) {
                seen.push(id);
                newer.push(file);
            }
        }
        // It is gone, and all files were after it; or it has a name that somebody else gave it.
        let Some(known) = known.filter(|known| known.nlink() > 0) else { return Ok(newer) };
        let mut after = Vec::new();
        for (place, file) in newer.into_iter().enumerate() {
            if place == 0 || file.metadata()?.modified()? >= known.modified()? {
                after.push(file);
            }
        }
        Ok(after)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_full_file_is_renamed_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, LogLimits { size: Some(8), files: 3 }).unwrap();
        let mut reader = LogReader::new(&path);
        let mut seen = Vec::new();
        for number in 0..8 {
            log.write_all(format!("li {number}\n").as_bytes()).unwrap();
            if number % 3 == 0 {
                seen.extend(reader.more().unwrap());
            }
        }
        seen.extend(reader.more().unwrap());
        // Who follows misses none.
        assert_eq!(String::from_utf8(seen).unwrap(), (0..8).map(|n| format!("li {n}\n")).collect::<String>());
        let files = [0, 1, 2].map(|number| text(&numbered(&path, number)));
        assert_eq!(files, ["li 7\n", "li 6\n", "li 5\n"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert_eq!(LogReader::new(&path).more().unwrap(), b"li 5\nli 6\nli 7\n");
        // What is larger than a file is in one all the same.
        log.write_all(b"a long line\n").unwrap();
        assert_eq!(text(&path), "a long line\n");
        let mut alone = LogFile::open(&path, LogLimits { size: Some(8), files: 1 }).unwrap();
        alone.write_all(b"new\n").unwrap();
        assert_eq!(text(&path), "new\n");
    }

    #[test]
    fn what_somebody_else_has_renamed_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, LogLimits { size: None, files: 5 }).unwrap();
        log.write_all(b"one\n").unwrap();
        fs::rename(&path, dir.path().join("0.log.20260131")).unwrap();
        log.looked = Instant::now().checked_sub(LOOK).unwrap();
        log.write_all(b"two\n").unwrap();
        assert_eq!((text(&path), text(&dir.path().join("0.log.20260131"))), ("two\n".into(), "one\n".into()));
        assert_eq!(log.size, 4);
    }

    #[test]
    fn who_follows_sees_the_files_behind_the_one_that_is_just_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let write = |number, text| fs::write(numbered(&path, number), text).unwrap();
        write(0, "1\n");
        let mut reader = LogReader::new(&path);
        assert_eq!(reader.more().unwrap(), b"1\n");
        // The first is in number 3 by now, and number 1 is about to become 2.
        for number in (0..3).rev() {
            fs::rename(numbered(&path, number), numbered(&path, number + 1)).unwrap_or_default();
        }
        fs::rename(numbered(&path, 1), numbered(&path, 4)).unwrap();
        write(3, "2\n");
        write(2, "3\n");
        write(0, "4\n");
        assert_eq!(String::from_utf8(reader.more().unwrap()).unwrap(), "2\n3\n4\n");
    }

    #[test]
    fn what_somebody_else_renames_brings_no_old_lines_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, LogLimits { size: Some(4), files: 5 }).unwrap();
        log.write_all(b"one\n").unwrap();
        let earlier = SystemTime::now().checked_sub(Duration::from_secs(1)).unwrap();
        log.file.set_modified(earlier).unwrap();
        log.write_all(b"two\n").unwrap();
        let mut reader = LogReader::new(&path);
        assert_eq!(reader.more().unwrap(), b"one\ntwo\n");
        fs::rename(&path, dir.path().join("0.log.20260131")).unwrap();
        log.write_all(b"three\n").unwrap();
        assert_eq!(String::from_utf8(reader.more().unwrap()).unwrap(), "three\n");
    }

    /// Nothing that is still there at the end is missed, however the looks and the renaming fall together.
    #[test]
    fn who_follows_a_hasty_writer_has_all_that_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for _ in 0..8 {
            let mut log = LogFile::open(&path, LogLimits { size: Some(200), files: 3 }).unwrap();
            let writer = std::thread::spawn(move || {
                (0..3000).for_each(|number| log.write_all(format!("line {number}\n").as_bytes()).unwrap());
            });
            let (mut reader, mut seen) = (LogReader::new(&path), Vec::new());
            while !writer.is_finished() {
                seen.extend(reader.more().unwrap());
            }
            writer.join().unwrap();
            seen.extend(reader.more().unwrap());
            let left = LogReader::new(&path).more().unwrap();
            assert!(seen.ends_with(&left), "{}", String::from_utf8_lossy(&seen[seen.len() - 900..]));
            (0..3).for_each(|number| fs::remove_file(numbered(&path, number)).unwrap());
        }
    }

    #[test]
    fn whole_lines_come_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogReader::new(&dir.path().join("log"));
        assert_eq!(log.more().unwrap(), b"");
        let mut file = File::create(&log.path).unwrap();
        for (written, seen) in [("one\ntw", "one\n"), ("o", ""), ("\n\nthree\n", "two\n\nthree\n"), ("", "")]
        {
            file.write_all(written.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(log.more().unwrap()).unwrap(), seen);
        }
    }

    #[test]
    fn limits_are_dockers_words() {
        let mut limits = LogLimits::default();
        for option in ["max-size=1m", "max-file=2"] {
            limits.set(option).unwrap();
        }
        assert_eq!(limits, LogLimits { size: Some(1 << 20), files: 2 });
        limits.set("max-size=-1").unwrap();
        assert_eq!(limits.size, None);
        for wrong in ["max-size=0", "max-size=x", "max-file=0", "max-file=-1", "mode=blocking", ""] {
            assert!(limits.set(wrong).is_err(), "{wrong}");
        }
    }
}
