//! The packet filter, by the guest's own iptables-save and iptables-restore.
//!
//! Invariant: rules that the tool can't read change nothing. iptables-restore changes one table after the other, each
//! as a whole, so rules for several tables are read once for a trial before (`--test`). Where the kernel alone refuses a
//! table, those before it get back what they had.

use std::path::Path;
use std::time::Duration;

use super::NetworkError;
use crate::supervisor::client::Launcher;
use crate::supervisor::tool::{self, MAX_TEXT, ToolError};

/// How long a tool may take. Shims wait for a minute.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// How long it may wait for another one who changes the tables, in seconds.
const WAIT: [&str; 2] = ["--wait", "5"];

/// The tables of one address family. The plain program name is the distribution's choice of backend (nft or legacy).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketFilter {
    /// The tables for IPv4.
    V4,
    /// The tables for IPv6.
    V6,
}

impl PacketFilter {
    /// The names of the program that prints the rules.
    fn save(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &["iptables-save", "iptables-nft-save", "iptables-legacy-save"],
            Self::V6 => &["ip6tables-save", "ip6tables-nft-save", "ip6tables-legacy-save"],
        }
    }

    /// The names of the program that takes rules.
    fn restore(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &["iptables-restore", "iptables-nft-restore", "iptables-legacy-restore"],
            Self::V6 => &["ip6tables-restore", "ip6tables-nft-restore", "ip6tables-legacy-restore"],
        }
    }

    /// All rules, as iptables-save prints them.
    ///
    /// # Errors
    ///
    /// The guest has no such program, or it fails.
    pub async fn rules(self, launcher: &Launcher) -> Result<Vec<u8>, NetworkError> {
        Ok(run(launcher, &tool::find(self.save()).await?, &[], b"").await?)
    }

    /// Gives `rules` to iptables-restore: each table that they name gets them instead of those it has. What the program
    /// prints is given back.
    ///
    /// # Errors
    ///
    /// The rules are too long, the guest has no such program, or it refuses them.
    pub async fn replace(self, launcher: &Launcher, rules: &[u8]) -> Result<Vec<u8>, NetworkError> {
        if rules.len() > MAX_TEXT {
            return Err(NetworkError::Field {
                object: "SetIPTables".to_owned(),
                field: "data",
                given: format!("{} bytes", rules.len()),
                reason: "there may be 3 MiB at most",
            });
        }
        let restore = tool::find(self.restore()).await?;
        let named = tables(rules);
        if named.len() < 2 {
            return Ok(run(launcher, &restore, &WAIT, rules).await?);
        }
        let [wait, seconds] = WAIT;
        run(launcher, &restore, &[wait, seconds, "--test"], rules).await?;
        let before = sections(&self.rules(launcher).await?, &named);
        let (launcher, rules) = (launcher.clone(), rules.to_vec());
        // A task of its own: it goes on to a good end when the caller is gone.
        let replaced = tokio::spawn(async move {
            let refusal = match run(&launcher, &restore, &WAIT, &rules).await {
                Ok(said) => return Ok(said),
                Err(refusal) => NetworkError::from(refusal),
            };
            match run(&launcher, &restore, &WAIT, &before).await {
                Ok(_) => Err(refusal),
                Err(cause) => {
                    let (refusal, cause) = (Box::new(refusal), Box::new(cause.into()));
                    Err(NetworkError::NotTakenBack { refusal, cause })
                }
            }
        });
        replaced.await.map_err(|_| NetworkError::Task)?
    }
}

async fn run(launcher: &Launcher, program: &Path, args: &[&str], rules: &[u8]) -> Result<Vec<u8>, ToolError> {
    tool::run(launcher, program, args, rules, TIME_LIMIT).await
}

/// The tables that the rules name: each begins with a line `*name`.
fn tables(rules: &[u8]) -> Vec<Vec<u8>> {
    lines(rules).filter_map(|line| line.trim_ascii().strip_prefix(b"*").map(<[u8]>::to_vec)).collect()
}

fn lines(rules: &[u8]) -> impl Iterator<Item = &[u8]> {
    rules.split(|&byte| byte == b'\n')
}

/// What gives the tables back what they have in `saved`. One that is not there has no rules.
fn sections(saved: &[u8], named: &[Vec<u8>]) -> Vec<u8> {
    let mut text = Vec::new();
    for name in named {
        let is_other = |line: &&[u8]| line.trim_ascii().strip_prefix(b"*") != Some(name.as_slice());
        let mut section: Vec<&[u8]> = lines(saved).skip_while(is_other).collect();
        let end = section.iter().position(|line| line.trim_ascii() == b"COMMIT");
        section.truncate(end.unwrap_or_default());
        if section.is_empty() {
            text.extend([b"*".as_slice(), name, b"\n"].concat());
            let chains = built_in(name).iter().map(|chain| format!(":{chain} ACCEPT [0:0]\n"));
            text.extend(chains.collect::<String>().into_bytes());
        }
        text.extend(section.into_iter().flat_map(|line| [line, b"\n"].concat()));
        text.extend(b"COMMIT\n");
    }
    text
}

/// The chains that a table always has.
fn built_in(table: &[u8]) -> &'static [&'static str] {
    match table {
        b"filter" | b"security" => &["INPUT", "FORWARD", "OUTPUT"],
        b"nat" => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        b"mangle" => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
        b"raw" => &["PREROUTING", "OUTPUT"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_their_printer_are_of_the_same_kind() {
        for filter in [PacketFilter::V4, PacketFilter::V6] {
            let kind = |names: &[&str], end| names.iter().map(|n| n.replace(end, "")).collect::<Vec<_>>();
            assert_eq!(kind(filter.save(), "-save"), kind(filter.restore(), "-restore"));
        }
    }

    #[test]
    fn tables_are_named() {
        assert!(tables(b"").is_empty());
        assert_eq!(tables(b"# *nat\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"), [b"filter"]);
        assert_eq!(tables(b"*filter\r\nCOMMIT\r\n *nat\nCOMMIT"), [b"filter".to_vec(), b"nat".to_vec()]);
    }

    #[test]
    fn what_tables_had_is_their_section_of_what_was_saved() {
        let saved = b"# by hand\n*nat\n:OUTPUT ACCEPT [1:2]\n-A OUTPUT -j RETURN\nCOMMIT\n# ended\n*filter\n\
            :INPUT DROP [0:0]\nCOMMIT\n";
        let of = |names: &[&[u8]]| {
            let names: Vec<_> = names.iter().map(|name| name.to_vec()).collect();
            String::from_utf8(sections(saved, &names)).unwrap()
        };
        let (nat, filter) = (
            "*nat\n:OUTPUT ACCEPT [1:2]\n-A OUTPUT -j RETURN\nCOMMIT\n",
            "*filter\n:INPUT DROP [0:0]\nCOMMIT\n",
        );
        assert_eq!(of(&[b"nat"]), nat);
        assert_eq!(of(&[b"filter", b"nat"]), format!("{filter}{nat}"));
        assert_eq!(of(&[b"raw"]), "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n");
        assert_eq!(of(&[]), "");
    }
}
