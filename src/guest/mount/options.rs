//! Mount options: words become flags of mount(2), and what is no flag becomes data for the file system.

use nix::mount::MsFlags;
use nix::unistd::{SysconfVar, sysconf};

/// The page size where the system doesn't say.
const USUAL_PAGE: usize = 4096;

/// `MS_NOSYMFOLLOW` of linux/mount.h, since Linux 5.10.
pub(super) const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// What a word does to the flags.
#[derive(Debug, Clone, Copy)]
enum Effect {
    Set(MsFlags),
    Clear(MsFlags),
    Propagation(MsFlags),
    Nothing,
}

/// The words of mount(8) that the kernel takes as flags.
fn effect(word: &str) -> Option<Effect> {
    use Effect::{Clear, Nothing, Propagation, Set};
    Some(match word {
        "defaults" => Nothing,
        "ro" => Set(MsFlags::MS_RDONLY),
        "rw" => Clear(MsFlags::MS_RDONLY),
        "nosuid" => Set(MsFlags::MS_NOSUID),
        "suid" => Clear(MsFlags::MS_NOSUID),
        "nodev" => Set(MsFlags::MS_NODEV),
        "dev" => Clear(MsFlags::MS_NODEV),
        "noexec" => Set(MsFlags::MS_NOEXEC),
        "exec" => Clear(MsFlags::MS_NOEXEC),
        "sync" => Set(MsFlags::MS_SYNCHRONOUS),
        "async" => Clear(MsFlags::MS_SYNCHRONOUS),
        "dirsync" => Set(MsFlags::MS_DIRSYNC),
        "mand" => Set(MsFlags::MS_MANDLOCK),
        "nomand" => Clear(MsFlags::MS_MANDLOCK),
        "noatime" => Set(MsFlags::MS_NOATIME),
        "atime" => Clear(MsFlags::MS_NOATIME),
        "nodiratime" => Set(MsFlags::MS_NODIRATIME),
        "diratime" => Clear(MsFlags::MS_NODIRATIME),
        "relatime" => Set(MsFlags::MS_RELATIME),
        "norelatime" => Clear(MsFlags::MS_RELATIME),
        "strictatime" => Set(MsFlags::MS_STRICTATIME),
        "nostrictatime" => Clear(MsFlags::MS_STRICTATIME),
        "lazytime" => Set(MsFlags::MS_LAZYTIME),
        "nolazytime" => Clear(MsFlags::MS_LAZYTIME),
        "iversion" => Set(MsFlags::MS_I_VERSION),
        "noiversion" => Clear(MsFlags::MS_I_VERSION),
        "silent" => Set(MsFlags::MS_SILENT),
        "loud" => Clear(MsFlags::MS_SILENT),
        "nosymfollow" => Set(NOSYMFOLLOW),
        "symfollow" => Clear(NOSYMFOLLOW),
        "remount" => Set(MsFlags::MS_REMOUNT),
        "bind" => Set(MsFlags::MS_BIND),
        "rbind" => Set(MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "shared" => Propagation(MsFlags::MS_SHARED),
        "rshared" => Propagation(MsFlags::MS_SHARED.union(MsFlags::MS_REC)),
        "slave" => Propagation(MsFlags::MS_SLAVE),
        "rslave" => Propagation(MsFlags::MS_SLAVE.union(MsFlags::MS_REC)),
        "private" => Propagation(MsFlags::MS_PRIVATE),
        "rprivate" => Propagation(MsFlags::MS_PRIVATE.union(MsFlags::MS_REC)),
        "unbindable" => Propagation(MsFlags::MS_UNBINDABLE),
        "runbindable" => Propagation(MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC)),
        _ => return None,
    })
}

/// When the time of the last access is written: one of these, or none.
pub(super) const ATIME: MsFlags =
    MsFlags::MS_NOATIME.union(MsFlags::MS_RELATIME).union(MsFlags::MS_STRICTATIME);

/// Why options can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// A loop device would have to be set up, which the agent doesn't do.
    #[error("mount option {word:?} is not supported: attach the image as a block device")]
    Loop {
        /// The word.
        word: String,
    },
    /// A word with a NUL byte.
    #[error("mount option {word:?} holds a NUL byte")]
    Nul {
        /// The word.
        word: String,
    },
    /// The kernel would cut the data off.
    #[error("mount options for the file system have {len} bytes, the kernel takes {limit}")]
    TooLong {
        /// How long they are.
        len: usize,
        /// How long they may be.
        limit: usize,
    },
}

/// Parsed mount options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// The flags to set, `MS_BIND`, `MS_REC` and `MS_REMOUNT` among them.
    pub flags: MsFlags,
    /// The flags that a word clears by name (`rw`, `exec`, ...). A bind mount keeps its source's flags but
    /// for these.
    pub cleared: MsFlags,
    /// How the mount passes others on; set after the mount. Empty: as the kernel has it.
    pub propagation: MsFlags,
    /// What the file system itself is told, parted by commas.
    pub data: String,
}

impl Default for MountOptions {
    fn default() -> Self {
        let none = MsFlags::empty();
        Self { flags: none, cleared: none, propagation: none, data: String::new() }
    }
}

impl MountOptions {
    /// Sorts `words` into flags and data. A later word wins over an earlier one.
    ///
    /// Each word is one option: a comma in it stays, as file systems have their own rules for them.
    ///
    /// # Errors
    ///
    /// [`OptionsError`].
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        let mut data: Vec<&str> = Vec::new();
        for word in words.iter().map(AsRef::as_ref).filter(|word| !word.is_empty()) {
            if word == "loop" || word.starts_with("loop=") {
                return Err(OptionsError::Loop { word: word.to_owned() });
            }
            if word.contains('\0') {
                return Err(OptionsError::Nul { word: word.to_owned() });
            }
            match effect(word) {
                Some(Effect::Set(flags)) => {
                    if flags.intersects(ATIME) {
                        options.flags.remove(ATIME);
                    }
                    options.flags.insert(flags);
                    options.cleared.remove(flags);
                }
                Some(Effect::Clear(flags)) => {
                    options.flags.remove(flags);
                    options.cleared.insert(flags);
                }
                Some(Effect::Propagation(flags)) => options.propagation = flags,
                Some(Effect::Nothing) => {}
                None => data.push(word),
            }
        }
        options.data = data.join(",");
        let limit = longest_data();
        if options.data.len() > limit {
            return Err(OptionsError::TooLong { len: options.data.len(), limit });
        }
        Ok(options)
    }

    /// Whether another place of the file tree is mounted, rather than a file system.
    pub fn is_bind(&self) -> bool {
        self.flags.contains(MsFlags::MS_BIND)
    }

    /// Whether an existing mount is changed.
    pub fn is_remount(&self) -> bool {
        self.flags.contains(MsFlags::MS_REMOUNT)
    }
}

/// mount(2) copies one page of data, its final NUL included.
fn longest_data() -> usize {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| usize::try_from(size).ok());
    page.unwrap_or(USUAL_PAGE).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> MountOptions {
        MountOptions::parse(&words.split(' ').collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn words_become_flags_or_data() {
        for (words, flags, propagation, data) in [
            ("", MsFlags::empty(), MsFlags::empty(), ""),
            ("defaults", MsFlags::empty(), MsFlags::empty(), ""),
            ("ro nosuid size=1k", MsFlags::MS_RDONLY | MsFlags::MS_NOSUID, MsFlags::empty(), "size=1k"),
            ("ro rw", MsFlags::empty(), MsFlags::empty(), ""),
            ("nosymfollow", NOSYMFOLLOW, MsFlags::empty(), ""),
            ("nosymfollow symfollow", MsFlags::empty(), MsFlags::empty(), ""),
            ("noatime relatime", MsFlags::MS_RELATIME, MsFlags::empty(), ""),
            ("strictatime noatime", MsFlags::MS_NOATIME, MsFlags::empty(), ""),
            ("rbind rslave", MsFlags::MS_BIND | MsFlags::MS_REC, MsFlags::MS_SLAVE | MsFlags::MS_REC, ""),
            ("remount size=2m mode=700", MsFlags::MS_REMOUNT, MsFlags::empty(), "size=2m,mode=700"),
            (
                "lowerdir=/a:/b,userxattr dax",
                MsFlags::empty(),
                MsFlags::empty(),
                "lowerdir=/a:/b,userxattr,dax",
            ),
            ("RO loopback", MsFlags::empty(), MsFlags::empty(), "RO,loopback"),
        ] {
            let options = parse(words);
            let found = (options.flags, options.propagation, options.data.as_str());
            assert_eq!(found, (flags, propagation, data), "{words}");
        }
    }

    #[test]
    fn what_is_cleared_by_name_is_known() {
        assert_eq!(parse("bind rw exec").cleared, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC);
        assert_eq!(parse("bind rw ro").cleared, MsFlags::empty());
    }

    #[test]
    fn options_that_cannot_be_honoured_are_refused() {
        for word in ["loop", "loop=/dev/loop0"] {
            let error = MountOptions::parse(&["ro", word]).unwrap_err();
            assert_eq!(error, OptionsError::Loop { word: word.to_owned() });
        }
        assert!(matches!(MountOptions::parse(&["a\0b"]), Err(OptionsError::Nul { .. })));
        let limit = longest_data();
        assert!(MountOptions::parse(&["x".repeat(limit)]).is_ok());
        assert_eq!(
            MountOptions::parse(&["x".repeat(limit), String::new(), "y".to_owned()]),
            Err(OptionsError::TooLong { len: limit + 2, limit })
        );
    }

    /// The words for one flag: that sets it, and that clears it.
    const PAIRS: [(&str, &str, MsFlags); 6] = [
        ("ro", "rw", MsFlags::MS_RDONLY),
        ("nosuid", "suid", MsFlags::MS_NOSUID),
        ("nodev", "dev", MsFlags::MS_NODEV),
        ("noexec", "exec", MsFlags::MS_NOEXEC),
        ("noatime", "atime", MsFlags::MS_NOATIME),
        ("sync", "async", MsFlags::MS_SYNCHRONOUS),
    ];

    fn any_words() -> impl proptest::strategy::Strategy<Value = Vec<&'static str>> {
        let known = PAIRS.iter().flat_map(|(set, clear, _)| [*set, *clear]);
        let words = known.chain(["rslave", "private", "size=1k", "mode=700", "defaults", "bind", ""]);
        proptest::collection::vec(proptest::sample::select(words.collect::<Vec<_>>()), 0..12)
    }

    proptest::proptest! {
        #[test]
        fn of_words_for_one_flag_the_last_counts(words in any_words()) {
            let options = MountOptions::parse(&words).unwrap();
            for (set, clear, flag) in PAIRS {
                let last = words.iter().rev().find(|word| [set, clear].contains(*word));
                proptest::prop_assert_eq!(options.flags.contains(flag), last == Some(&set), "{}", set);
                proptest::prop_assert_eq!(options.cleared.contains(flag), last == Some(&clear), "{}", clear);
            }
            let data: Vec<_> = words.iter().filter(|word| word.contains('=')).copied().collect();
            proptest::prop_assert_eq!(&options.data, &data.join(","));
            // What it has understood, in words again, means the same.
            let flags = PAIRS.iter().filter(|(_, _, flag)| options.flags.contains(*flag)).map(|(set, ..)| *set);
            let cleared = PAIRS.iter().filter(|(_, _, flag)| options.cleared.contains(*flag)).map(|(_, clear, _)| *clear);
            let others = words.iter().copied().filter(|word| ["rslave", "private", "bind"].contains(word));
            let again: Vec<_> = data.iter().copied().chain(flags).chain(others).chain(cleared).collect();
            proptest::prop_assert_eq!(MountOptions::parse(&again).unwrap(), options);
        }

        #[test]
        fn no_word_is_lost_or_panics(words: Vec<String>) {
            if let Ok(options) = MountOptions::parse(&words) {
                for word in words.iter().filter(|word| effect(word).is_none()) {
                    proptest::prop_assert!(options.data.contains(word.as_str()));
                }
            }
        }
    }
}
