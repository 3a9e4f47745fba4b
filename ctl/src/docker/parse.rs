//! The small languages of flags: sizes, times, mounts, limits.

use std::path::{Component, Path};
use std::time::Duration;

use crate::cri::config::{Mount, MountPropagation};
use crate::cri::extras::{Tmpfs, Ulimit};

/// A number of bytes with an optional suffix: b, k, m, g, t, as powers of 1024, in either case; `Mi` as Kubernetes
/// has it.
pub fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let unit = ["ib", "b", "i"].iter().find_map(|unit| lower.strip_suffix(unit));
    let lower = unit.unwrap_or(&lower);
    let shifts = [('k', 10), ('m', 20), ('g', 30), ('t', 40)];
    let (digits, shift) = match shifts.iter().find_map(|&(c, shift)| Some((lower.strip_suffix(c)?, shift))) {
        Some((digits, shift)) => (digits, shift),
        None => (lower, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|&bytes| i64::try_from(bytes).is_ok())
}

/// The same for a flag, where nothing is no limit.
pub(super) fn bytes_argument(text: &str) -> Result<u64, String> {
    bytes(text).filter(|&bytes| bytes > 0).ok_or_else(|| "not a number of bytes".to_owned())
}

pub(super) fn cpus(text: &str) -> Result<f64, String> {
    let cpus = text.parse::<f64>().ok().filter(|cpus| cpus.is_finite() && *cpus > 0.0);
    cpus.ok_or_else(|| "not a positive number".to_owned())
}

/// A time as Go writes it: `1m30s`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a time such as 30s, 1m30s or 500ms".to_owned();
    let units = [("ms", 1e-3), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at_checked(end).ok_or_else(wrong)?;
        let (tail, unit) =
            units.iter().find_map(|(name, unit)| Some((tail.strip_prefix(name)?, unit))).ok_or_else(wrong)?;
        total += number.parse::<f64>().map_err(|_| wrong())? * unit;
        rest = tail;
    }
    if total > 0.0 { Duration::try_from_secs_f64(total).map_err(|_| wrong()) } else { Err(wrong()) }
}

/// `NAME=VALUE`, or a name with nothing.
pub(super) fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// `NAME=SOFT[:HARD]`
pub fn ulimit(text: &str) -> Result<Ulimit, String> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let wrong = || format!("{text:?} is not NAME=SOFT[:HARD] with one of {}", NAMES.join(", "));
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    if !NAMES.contains(&name) {
        return Err(wrong());
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        digits => digits.parse().map_err(|_| wrong()),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(format!("{text:?}: the soft limit is above the hard one"));
    }
    Ok(Ulimit { kind: format!("RLIMIT_{}", name.to_ascii_uppercase()), soft, hard })
}

/// `PATH[:OPTION,...]`
pub fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    if !path.starts_with('/') {
        return Err(format!("{path:?} is not an absolute path"));
    }
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    Ok(Tmpfs { path: path.to_owned(), options })
}

/// `HOST:CONTAINER[:OPTION,...]`
pub fn volume(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, options) = match *parts.as_slice() {
        [host, container] => (host, container, ""),
        [host, container, options] => (host, container, options),
        _ => return Err(format!("{text:?} is not HOST:CONTAINER[:OPTIONS]")),
    };
    let is_path =
        matches!(Path::new(host).components().next(), Some(first) if !matches!(first, Component::Normal(_)));
    if !is_path {
        let reason =
            "volumes have no names here, give a directory of this host, with / or ./ at its beginning";
        return Err(format!("{host:?}: {reason}"));
    }
    if !container.starts_with('/') {
        return Err(format!("{container:?}: the path in the container is not absolute"));
    }
    let host = std::path::absolute(host).map_err(|error| format!("{host:?}: {error}"))?;
    let host = host.to_str().ok_or_else(|| format!("{}: not UTF-8", host.display()))?;
    let mut mount =
        Mount { host_path: host.to_owned(), container_path: container.to_owned(), ..Mount::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.readonly = true,
            "rw" => mount.readonly = false,
            "z" | "Z" => mount.selinux_relabel = true,
            other => mount.propagation = propagation(other)?,
        }
    }
    Ok(mount)
}

fn propagation(word: &str) -> Result<MountPropagation, String> {
    match word {
        "private" | "rprivate" => Ok(MountPropagation::Private),
        "slave" | "rslave" => Ok(MountPropagation::HostToContainer),
        "shared" | "rshared" => Ok(MountPropagation::Bidirectional),
        other => Err(format!("{other:?} is none of ro, rw, z, Z, rprivate, rslave, rshared")),
    }
}

/// What `--mount` asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Mounted {
    /// Of the host's.
    Bind(Mount),
    /// In memory.
    Tmpfs(Tmpfs),
}

/// `type=bind,source=…,target=…,readonly` and `type=tmpfs,target=…,tmpfs-size=…,tmpfs-mode=…`
pub fn mount(text: &str) -> Result<Mounted, String> {
    let (mut kind, mut mount, mut tmpfs) = ("volume", Mount::default(), Tmpfs::default());
    for word in text.split(',') {
        let (key, value) = word.split_once('=').unwrap_or((word, "true"));
        match key {
            "type" => kind = value,
            "source" | "src" => value.clone_into(&mut mount.host_path),
            "target" | "destination" | "dst" => value.clone_into(&mut mount.container_path),
            "readonly" | "ro" if value == "true" || value == "1" => mount.readonly = true,
            "readonly" | "ro" if value == "false" || value == "0" => mount.readonly = false,
            "bind-propagation" => mount.propagation = propagation(value)?,
            "bind-recursive" if value == "readonly" => mount.recursive_read_only = true,
            "tmpfs-size" => {
                let size =
                    bytes(value).ok_or_else(|| format!("tmpfs-size {value:?} is not a number of bytes"))?;
                tmpfs.options.push(format!("size={size}"));
            }
            "tmpfs-mode" => tmpfs.options.push(format!("mode={value}")),
            _ => return Err(format!("{word:?} is not known")),
        }
    }
    match kind {
        "bind" | "tmpfs" if mount.container_path.is_empty() => Err(format!("{text:?}: it has no target")),
        "bind" if mount.host_path.starts_with('/') => Ok(Mounted::Bind(mount)),
        "bind" => Err(format!("source {:?}: not an absolute path", mount.host_path)),
        "tmpfs" => Ok(Mounted::Tmpfs(Tmpfs { path: mount.container_path, ..tmpfs })),
        other => Err(format!("type {other:?} is none of bind, tmpfs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        for (text, expected) in [
            ("12", Some(12)),
            ("3k", Some(3072)),
            ("1GiB", Some(1 << 30)),
            ("10Mi", Some(10 << 20)),
            ("2Mb", Some(2 << 20)),
            ("M", None),
            ("-1", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
        assert!(bytes("99999999999T").is_none() && bytes_argument("0").is_err());
        for (text, expected) in
            [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("1.5s", 1500), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for wrong in ["", "30", "s", "1x", "0s", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_and_mounts_are_read_or_refused() {
        let limit = ulimit("nofile=5:9").unwrap();
        assert_eq!((&*limit.kind, limit.soft, limit.hard), ("RLIMIT_NOFILE", 5, 9));
        assert!(ulimit("nofile=9:5").is_err() && ulimit("files=1").is_err());
        let bind = volume("/a:/b:ro,rslave").unwrap();
        assert!(bind.readonly && bind.propagation == MountPropagation::HostToContainer);
        assert!(volume("data:/b").unwrap_err().contains("no names"));
        assert!(volume("data/more:/b").unwrap_err().contains("no names"));
        assert!(volume("/a:b").unwrap_err().contains("\"b\": the path in the container"));
        let here = std::env::current_dir().unwrap();
        for (text, path) in [("./a:/b", here.join("a")), (".:/b", here)] {
            assert_eq!(Path::new(&volume(text).unwrap().host_path), path, "{text}");
        }
        assert!(mount("type=bind,src=/a").unwrap_err().contains("no target"));
        let Ok(Mounted::Bind(bind)) = mount("type=bind,src=/a,dst=/b,readonly") else { panic!() };
        assert_eq!((&*bind.host_path, &*bind.container_path, bind.readonly), ("/a", "/b", true));
        let Ok(Mounted::Tmpfs(tmpfs)) = mount("type=tmpfs,target=/t,tmpfs-size=1m") else { panic!() };
        assert_eq!((&*tmpfs.path, &*tmpfs.options), ("/t", &["size=1048576".to_owned()][..]));
        assert!(mount("src=x,dst=/b").unwrap_err().contains("volume"));
    }
}
