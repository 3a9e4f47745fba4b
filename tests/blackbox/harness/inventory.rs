//! What an agent holds at a moment: to see that something left nothing behind.
//!
//! It is a list of lines, each with how often it is there: the descriptors of supervisor and server, the mounts of
//! the server, the cgroups of the scenario's containers, the files below `/run`, the processes below the supervisor.
//! Numbers that change by themselves (inodes, mount ids) are left out.

use std::collections::BTreeMap;
use std::fmt;

/// Prints an agent's belongings; runs where the variables of [`super::guest_view`] are set.
pub(crate) const SCRIPT: &str = r#"
# What goes away while it is looked at is no fault.
exec 2> /dev/null
ls -l $PROC/$SUPERVISOR/fd | sed -n "s/.* -> /fd supervisor /p"
ls -l $PROC/$SERVER/fd | sed -n "s/.* -> /fd server /p"
cut -d ' ' -f 4- $PROC/$SERVER/mountinfo | sed 's/ shared:[0-9]*//; s/ master:[0-9]*//; s/^/mount /'
find $CGROUP -type d -path "*$PREFIX-*" | sed 's/^/cgroup /'
(cd $RUN && find . -xdev | sed 's/^/file /')
for child in $(cat $PROC/$SUPERVISOR/task/*/children); do
    echo "child $(cat $PROC/$child/comm)"
done
:
"#;

/// What is in the paths of mounts that clients of other scenarios make.
const OF_OTHERS: [&str; 4] = ["/share-", "/nakai-vm-", "/nakai-bench-", "/.tmp"];

/// The lines, and how often each was there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Inventory(BTreeMap<String, u32>);

impl Inventory {
    /// Reads what [`SCRIPT`] printed.
    pub(crate) fn parse(text: &str) -> Self {
        let mut lines = BTreeMap::new();
        // The look itself is an exec, with a socket that has its name by chance. And that a container was killed for its
        // memory is on record until somebody asks, as shims do all the time, and few scenarios.
        let passing = ["/observer/tenant-", "/execs/observer", "/records/oom/"];
        let is_passing = |line: &str| passing.iter().any(|name| line.contains(name));
        for line in text.lines().filter(|line| !is_passing(line)) {
            *lines.entry(without_inodes(line)).or_default() += 1;
        }
        Self(lines)
    }

    /// What `now` has more or less, a line each; nothing if they are the same.
    pub(crate) fn difference(&self, now: &Self) -> Difference {
        let keys = self.0.keys().chain(now.0.keys().filter(|key| !self.0.contains_key(*key)));
        let count = |inventory: &Self, key| i64::from(inventory.0.get(key).copied().unwrap_or(0));
        let changed = keys.map(|key| (count(now, key) - count(self, key), key.clone()));
        // Descriptors of an earlier scenario, such as those of a connection that its client has closed, may go now. So
        // may mounts that other scenarios had on the host when this one's agent got a copy of all: they go with their
        // directories. Everything else has to stay, and nothing may be more.
        let may_go = |line: &str| {
            line.starts_with("fd ")
                || line.starts_with("mount ") && OF_OTHERS.iter().any(|name| line.contains(name))
        };
        let matters = |change: i64, line: &str| change > 0 || (change < 0 && !may_go(line));
        Difference(changed.filter(|(change, line)| matters(*change, line)).collect())
    }
}

/// `pipe:[4711]` is any pipe.
fn without_inodes(line: &str) -> String {
    match line.split_once(":[") {
        Some((before, after))
            if line.starts_with("fd ") && after.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            format!("{before}:[]")
        }
        _ => line.to_owned(),
    }
}

/// Lines with how many more there are.
pub(crate) struct Difference(Vec<(i64, String)>);

impl Difference {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(change, line)| writeln!(f, "{change:+} {line}"))
    }
}
