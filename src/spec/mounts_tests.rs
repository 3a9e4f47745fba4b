//! Tests of the mount edits.

use serde_json::{Value, json};

use super::super::Propagation;
use super::*;

struct Out {
    mounts: Value,
    root: Value,
    left: Vec<MountPropagation>,
    warnings: Vec<String>,
}

/// Runs the edit on `mounts` with a `/dev` before them, and takes that out again.
fn run_with(mounts: Value, root: Value) -> Result<Out, SpecError> {
    let mut list = vec![json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"})];
    list.extend(mounts.as_array().unwrap().iter().cloned());
    let mut spec: Spec = serde_json::from_value(json!({ "mounts": list })).unwrap();
    let mut linux: Linux = serde_json::from_value(json!({ "rootfsPropagation": root })).unwrap();
    let mut warnings = Vec::new();
    let left = apply(&mut spec, &mut linux, &mut warnings)?;
    let mut mounts = serde_json::to_value(spec.mounts()).unwrap();
    mounts.as_array_mut().unwrap().remove(0);
    Ok(Out { mounts, root: serde_json::to_value(linux.rootfs_propagation()).unwrap(), left, warnings })
}

fn run(mounts: Value) -> Result<Out, SpecError> {
    run_with(mounts, json!(null))
}

fn bind(destination: &str, options: Value) -> Value {
    json!({"destination": destination, "type": "bind", "source": "/src", "options": options})
}

#[test]
fn what_a_shim_sends_stays_but_for_the_propagation_words() {
    let out = run(json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        bind("/etc/hosts", json!(["rbind", "rprivate", "ro"])),
        {"destination": "/dev/shm", "type": "bind", "source": "/run/shm", "options": ["rbind"]},
    ]))
    .unwrap();
    assert_eq!(
        out.mounts,
        json!([
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            bind("/etc/hosts", json!(["rbind", "ro"])),
            {"destination": "/dev/shm", "type": "bind", "source": "/run/shm", "options": ["rbind"]},
        ])
    );
    assert!(out.warnings.is_empty());
}

#[test]
fn private_mounts_cost_nothing() {
    for (mounts, root) in [
        (
            json!([bind("/a", json!(["rbind", "rprivate"])), bind("/b", json!(["bind", "private"]))]),
            json!(null),
        ),
        (json!([]), json!("rslave")),
        (json!([bind("/a", json!(["rprivate"]))]), json!("private")),
    ] {
        let out = run_with(mounts, root).unwrap();
        assert_eq!(out.root, "private");
        assert!(out.left.is_empty());
    }
}

#[test]
fn other_propagation_is_left_for_the_worker() {
    let set = |destination: &str, propagation, recursive| MountPropagation {
        destination: destination.into(),
        propagation,
        recursive,
    };
    let slave = json!([bind("/a", json!(["rbind", "rslave"])), bind("/b", json!(["rbind"]))]);
    let out = run_with(slave, json!("rslave")).unwrap();
    assert_eq!(out.root, "slave");
    assert_eq!(out.left, [set("/a", Propagation::Slave, true)]);

    let out = run_with(json!([bind("/a", json!(["slave"]))]), json!("rprivate")).unwrap();
    assert_eq!(out.root, "slave", "below a private root it would be private");

    let shared = json!([bind("/a", json!(["rshared"])), bind("/b", json!([])), bind("/c", json!(["slave"]))]);
    let out = run(shared).unwrap();
    assert_eq!(out.root, "shared", "a shared mount needs a shared root");
    let expected = [
        set("/a", Propagation::Shared, true),
        set("/b", Propagation::Private, true),
        set("/c", Propagation::Slave, false),
    ];
    assert_eq!(out.left, expected);
}

#[test]
fn a_read_only_dev_is_read_only_once_it_is_furnished() {
    let take = |kind: &str, options: Value| {
        let dev = json!({"destination": "/dev", "type": kind, "source": "/dev", "options": options});
        let mut spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": [dev]})).unwrap();
        (take_read_only_dev(&mut spec), spec.mounts().as_ref().unwrap()[0].options().clone().unwrap())
    };
    assert_eq!(
        take("tmpfs", json!(["nosuid", "ro", "mode=755"])),
        (true, ["nosuid", "mode=755"].map(str::to_owned).to_vec())
    );
    assert_eq!(take("tmpfs", json!(["ro", "rw"])), (false, Vec::new()));
    assert_eq!(take("tmpfs", json!(["rw", "rro"])), (true, Vec::new()));
    assert_eq!(take("bind", json!(["ro"])), (false, vec!["ro".to_owned()]));
}

#[test]
fn the_roots_propagation_is_said_in_libcontainers_words() {
    for (given, expected) in
        [("rshared", "shared"), ("shared", "shared"), ("runbindable", "unbindable"), ("", "private")]
    {
        assert_eq!(run_with(json!([]), json!(given)).unwrap().root, expected, "{given}");
    }
    assert!(run_with(json!([]), json!("sideways")).is_err());
}

#[test]
fn options_that_would_be_ignored_are_said_another_way_or_told() {
    let out = run(json!([bind("/a", json!(["bind", "nosymfollow"]))])).unwrap();
    assert_eq!(out.mounts[0]["options"], json!(["bind", "rnosymfollow"]));
    let out = run(json!([bind("/a", json!(["rbind", "nosymfollow"]))])).unwrap();
    assert_eq!(out.mounts[0]["options"], json!(["rbind", "nosymfollow"]));
    let out = run(json!([bind("/a", json!(["bind", "size=5", ""]))])).unwrap();
    assert_eq!(out.mounts[0]["options"], json!(["bind"]));
    assert!(out.warnings[0].contains("size=5"), "{:?}", out.warnings);
    let tmpfs =
        json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=5", "rro"]});
    assert_eq!(run(json!([tmpfs.clone()])).unwrap().mounts[0], tmpfs);
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let id = json!([{"hostID": 0, "containerID": 0, "size": 1}]);
    for (mount, named) in [
        (json!({"destination": "/t", "type": "ext4", "source": "/dev/x", "options": ["sync"]}), "sync"),
        (bind("/t", json!(["remount"])), "remount"),
        (bind("/t", json!(["bind", "idmap"])), "id-mapped"),
        (
            json!({"destination": "/t", "type": "bind", "source": "/s", "uidMappings": id, "gidMappings": id}),
            "id-mapped",
        ),
        (bind("/", json!([])), "hide the root"),
        (bind("/a/../..", json!([])), "'..'"),
        (json!({"destination": "/t", "type": "bind"}), "source"),
        (json!({"destination": "/t", "type": "bind", "source": "rel"}), "source"),
        (json!({"destination": "/t", "source": "/s"}), "neither a type"),
    ] {
        let error = run(json!([mount])).err().unwrap().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn missing_parts_are_filled_in() {
    let out = run(json!([
        {"destination": "data/./x", "type": "none", "source": "/s", "options": ["bind"], "uidMappings": [], "gidMappings": []},
        {"destination": "/t", "type": "tmpfs"},
    ]))
    .unwrap();
    assert_eq!(
        out.mounts[0],
        json!({"destination": "/data/x", "type": "none", "source": "/s", "options": ["bind"]})
    );
    assert_eq!(out.mounts[1]["source"], "tmpfs");
}

#[test]
fn dev_is_a_tmpfs_of_the_containers_own_or_bound() {
    let destinations = |mounts: Value| {
        let mut spec: Spec = serde_json::from_value(json!({ "mounts": mounts })).unwrap();
        apply(&mut spec, &mut serde_json::from_value(json!({})).unwrap(), &mut Vec::new())?;
        let mounts = spec.mounts().clone().unwrap();
        Ok::<_, SpecError>(mounts.iter().map(|m| m.destination().display().to_string()).collect::<Vec<_>>())
    };
    assert_eq!(destinations(json!(null)).unwrap(), ["/dev"]);
    let proc = json!({"destination": "/proc", "type": "proc"});
    let pts = json!({"destination": "/dev/pts", "type": "devpts"});
    assert_eq!(destinations(json!([proc, pts])).unwrap(), ["/proc", "/dev", "/dev/pts"]);
    let bound = json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]});
    assert_eq!(destinations(json!([bound, pts])).unwrap(), ["/dev", "/dev/pts"]);
    let other = json!({"destination": "/dev/", "type": "devtmpfs"});
    assert!(destinations(json!([other])).unwrap_err().to_string().contains("/dev"));
}

#[test]
fn a_tmpfs_may_begin_with_what_it_hides() {
    let run = |options: Value, typ: &str| {
        let mount = json!({"destination": "var/t", "type": typ, "source": "/src", "options": options});
        let mut spec: Spec = serde_json::from_value(json!({ "mounts": [mount] })).unwrap();
        let destinations = take_copy_up(&mut spec)?;
        let left = spec.mounts().as_ref().unwrap()[0].options().clone().unwrap();
        Ok::<_, SpecError>((destinations, left))
    };
    let (destinations, left) = run(json!(["rw", "tmpcopyup", "mode=755"]), "tmpfs").unwrap();
    assert_eq!((destinations, left), (vec!["/var/t".into()], vec!["rw".to_owned(), "mode=755".to_owned()]));
    assert!(run(json!(["rw"]), "tmpfs").unwrap().0.is_empty());
    for (options, typ) in [(json!(["ro", "tmpcopyup"]), "tmpfs"), (json!(["rbind", "tmpcopyup"]), "bind")] {
        assert!(run(options, typ).unwrap_err().to_string().contains("tmpcopyup"));
    }
}

#[test]
fn options_joined_by_commas_are_several() {
    let options = json!(["size=1m,mode=700,", "nosuid,context=\"a,b\"", r"lowerdir=/a\,b"]);
    let out = run(json!([{"destination": "/v", "type": "tmpfs", "options": options}])).unwrap();
    let expected = json!(["size=1m", "mode=700", "nosuid", "context=\"a,b\"", r"lowerdir=/a\,b"]);
    assert_eq!(out.mounts[0]["options"], expected);
    let error = run(json!([{"destination": "/v", "type": "none", "source": "/s", "options": ["rbind,ro"]}]));
    assert!(error.is_err_and(|error| error.to_string().contains("by itself")));
}
