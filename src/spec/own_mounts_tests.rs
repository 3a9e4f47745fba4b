//! Which mounts are the worker's, and what becomes of their options.

use serde_json::{Value, json};

use super::*;

fn run(mounts: Value, linux: Value, more: Value) -> (Option<OwnMounts>, Vec<PathBuf>) {
    let mut spec = json!({"ociVersion": "1.2.0", "mounts": mounts});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut spec: Spec = serde_json::from_value(spec).unwrap();
    let linux: Linux = serde_json::from_value(linux).unwrap();
    let own = take(&mut spec, &linux, true, false);
    let left = spec.mounts().iter().flatten().map(|mount| mount.destination().clone()).collect();
    (own, left)
}

fn linux() -> Value {
    json!({
        "namespaces": [{"type": "ipc", "path": "/run/ns/ipc"}, {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
        "rootfsPropagation": "private",
    })
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": kind, "options": options})
}

fn destinations(own: &OwnMounts) -> Vec<&str> {
    own.mounts.iter().map(|mount| mount.destination.to_str().unwrap()).collect()
}

fn usual() -> Value {
    json!([
        mount("/proc", "proc", &["nosuid"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755"]),
        mount("/dev/pts", "devpts", &["newinstance", "gid=5"]),
        mount("/dev/mqueue", "mqueue", &[]),
        mount("/sys", "sysfs", &["ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid"]),
        {"destination": "/data", "source": "/run/data", "options": ["rbind", "rro"]},
    ])
}

#[test]
fn an_init_makes_all() {
    let mut spec: Spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": usual()})).unwrap();
    let linux: Linux =
        serde_json::from_value(json!({"namespaces": [{"type": "network"}, {"type": "cgroup"}]})).unwrap();
    let own = take_all(&mut spec, &linux, true, &[]).unwrap();
    let places = ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/data"];
    assert_eq!(destinations(&own), places);
    assert_eq!(own.left, [Path::new("/proc"), Path::new("/sys")], "no link may lead there");
    assert!(spec.mounts().is_none());
    let mut odd = usual();
    odd.as_array_mut().unwrap().push(mount("/b", "bpf", &[]));
    let mut spec: Spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": odd})).unwrap();
    assert_eq!(take_all(&mut spec, &linux, true, &[]), None);
    assert_eq!(spec.mounts().as_ref().unwrap().len(), 8, "they are left as they are");
}

#[test]
fn all_but_procfs_are_the_workers() {
    let (own, left) = run(usual(), linux(), json!({}));
    let own = own.unwrap();
    assert_eq!(left, [Path::new("/proc")]);
    assert_eq!(own.left, left);
    assert_eq!(destinations(&own), ["/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/data"]);
    assert!(own.private);
    assert_eq!(own.ipc.as_deref(), Some(Path::new("/run/ns/ipc")));
    let dev = MountAttributes {
        set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME,
        clear: libc::MOUNT_ATTR__ATIME,
        ..MountAttributes::default()
    };
    assert_eq!(own.mounts[0].attributes, dev);
    let options = ["newinstance".to_owned(), "gid=5".to_owned()].to_vec();
    let pts = Mounted::Filesystem { kind: "devpts".to_owned(), source: "devpts".to_owned(), options };
    assert_eq!(own.mounts[1].what, pts);
    assert_eq!(own.mounts[4].what, Mounted::Cgroup);
    assert_eq!(own.mounts[5].what, Mounted::Bind { source: "/run/data".into(), recursive: true });
    assert_eq!(own.mounts[5].attributes.set_below, libc::MOUNT_ATTR_RDONLY);
}

#[test]
fn what_needs_the_container_is_left_with_what_lies_beneath() {
    let mut changed = linux();
    changed["namespaces"] = json!([{"type": "ipc"}, {"type": "network"}, {"type": "mount"}]);
    let (own, left) = run(usual(), changed, json!({}));
    let own = own.unwrap();
    assert_eq!(left, ["/proc", "/dev/mqueue", "/sys", "/sys/fs/cgroup"].map(PathBuf::from));
    assert_eq!(destinations(&own), ["/dev", "/dev/pts", "/data"]);
    assert_eq!(own.ipc, None);
    assert!(take_with(false).iter().any(|left| left == Path::new("/sys/fs/cgroup")), "not ours");
}

fn take_with(has_cgroup: bool) -> Vec<PathBuf> {
    let mut spec: Spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": usual()})).unwrap();
    take(&mut spec, &serde_json::from_value(linux()).unwrap(), has_cgroup, false).unwrap().left
}

#[test]
fn the_order_of_mounts_holds() {
    let bind = |destination: &str, source: &str| json!({"destination": destination, "source": source, "options": ["bind"]});
    let mounts = json!([
        bind("/proc/below/early", "/run/a"),
        mount("/proc", "proc", &[]),
        bind("/proc/meminfo", "/run/b"),
        mount("/a/b", "nfs", &[]),
        bind("/a", "/run/c"),
        bind("/ab", "/run/d"),
        bind("/e", "/proc/self/ns"),
        mount("/f", "tmpfs", &["silent"]),
        mount("/g", "tmpfs", &["rnoatime"]),
    ]);
    let (own, left) = run(mounts, linux(), json!({}));
    assert_eq!(destinations(&own.unwrap()), ["/proc/below/early", "/ab"]);
    let expected = ["/proc", "/proc/meminfo", "/a/b", "/a", "/e", "/f", "/g"];
    assert_eq!(left, expected.map(PathBuf::from));
}

#[test]
fn what_has_to_see_the_mounts_made_has_them_left_to_libcontainer() {
    let all = usual().as_array().unwrap().len();
    let plain = |linux: Value, more: Value| {
        let (own, left) = run(usual(), linux, more);
        assert_eq!((own, left.len()), (None, all));
    };
    plain(linux(), json!({"hooks": {"createRuntime": [{"path": "/bin/true"}]}}));
    for (member, value) in [
        ("rootfsPropagation", json!("shared")),
        ("rootfsPropagation", json!("unbindable")),
        ("namespaces", json!([{"type": "pid"}])),
    ] {
        let mut changed = linux();
        changed[member] = value;
        plain(changed, json!({}));
    }
    let mut spec: Spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": usual()})).unwrap();
    assert_eq!(take(&mut spec, &serde_json::from_value(linux()).unwrap(), true, true), None);
    assert_eq!(spec.mounts().as_ref().unwrap().len(), all);
}

#[test]
fn the_last_word_of_a_kind_counts() {
    let read = |options: &[&str]| {
        let mount: Mount = serde_json::from_value(mount("/x", "tmpfs", options)).unwrap();
        words(&mount).map(|(attributes, _)| (attributes.set, attributes.clear))
    };
    let (ro, atime) = (libc::MOUNT_ATTR_RDONLY, libc::MOUNT_ATTR__ATIME);
    assert_eq!(read(&["ro", "rw", "defaults"]), Some((0, ro)));
    assert_eq!(read(&["rw", "ro"]), Some((ro, 0)));
    let (exec, suid) = (libc::MOUNT_ATTR_NOEXEC, libc::MOUNT_ATTR_NOSUID);
    assert_eq!(read(&["exec", "suid", "nosuid"]), Some((suid, exec)));
    assert_eq!(read(&["noatime", "atime"]), Some((0, 0)));
    assert_eq!(read(&["relatime"]), Some((0, atime)));
    assert_eq!(read(&["relatime", "noatime"]), Some((libc::MOUNT_ATTR_NOATIME, atime)));
    assert_eq!(read(&["nodiratime"]), Some((libc::MOUNT_ATTR_NODIRATIME, 0)));
}

#[test]
fn below_a_shared_root_volumes_are_tied_by_their_own_words_alone() {
    let volume =
        |to: &str| json!({"destination": to, "type": "bind", "source": "/run/v", "options": ["rbind"]});
    let mounts =
        json!([volume("/shared"), volume("/slave"), volume("/private"), mount("/shared/own", "tmpfs", &[])]);
    let word =
        |to: &str, propagation| MountPropagation { destination: to.into(), propagation, recursive: true };
    let words = [
        word("/shared", Propagation::Shared),
        word("/slave", Propagation::Slave),
        word("/private", Propagation::Private),
        word("/shared/own", Propagation::Shared),
    ];
    let ties = |root: &str| {
        let mut spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": mounts})).unwrap();
        let mut linux = linux();
        linux["rootfsPropagation"] = json!(root);
        let own = take_all(&mut spec, &serde_json::from_value(linux).unwrap(), true, &words)?;
        Some((own.private, own.mounts.iter().map(|mount| mount.tie).collect::<Vec<_>>()))
    };
    assert_eq!(ties("shared"), Some((true, vec![Some(Tie::Peer), Some(Tie::Follower), None, None])));
    assert_eq!(ties("slave"), Some((false, vec![None; 4])));
    assert_eq!(ties("unbindable"), None);
}
