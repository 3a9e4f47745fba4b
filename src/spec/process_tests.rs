//! Tests of the process edits.

use serde_json::{Value, json};

use super::super::tests::facts;
use super::*;

fn container(seccomp: bool) -> ExecFacts {
    ExecFacts::of_guest(&facts(), seccomp.then(|| r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#.into()))
}

fn edit(extra: Value, container: &ExecFacts) -> Result<(Edited, Vec<String>), SpecError> {
    let mut value = json!({"user": {}, "cwd": "/", "args": ["sh"], "env": ["HOME=/root"]});
    value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let mut warnings = Vec::new();
    let edited = prepare(serde_json::from_value(value).unwrap(), container, &mut warnings)?;
    Ok((edited, warnings))
}

fn ok(extra: Value) -> Edited {
    edit(extra, &container(false)).unwrap().0
}

#[test]
fn every_inheritable_property_is_explicit() {
    let edited = ok(json!({"noNewPrivileges": false, "commandLine": "x"}));
    assert_eq!(
        serde_json::to_value(&edited.process).unwrap(),
        json!({"terminal": false, "user": {"uid": 0, "gid": 0, "umask": 0o022}, "args": ["sh"], "env": ["HOME=/root"],
            "cwd": "/", "oomScoreAdj": 0})
    );
    assert_eq!(edited.late.early_capabilities, CapabilitySets::default());
    assert_eq!(edited.late.session_keyring, "_ses.c1");
    assert_eq!(edited.late.capabilities, None);
}

#[test]
fn the_environment_keeps_its_order_and_each_variables_last_value() {
    let env = |env: Value| ok(json!({ "env": env })).process.env().clone().unwrap();
    assert_eq!(env(json!(["A=1", "B=2", "A=3", "HOME=/h", "E="])), ["B=2", "A=3", "HOME=/h", "E="]);
    assert_eq!(env(json!(["X= spaced =v"]))[0], "X= spaced =v");
    for bad in ["A", "=x", "A=\0"] {
        let error = edit(json!({"env": ["OK=1", bad]}), &container(false)).err().unwrap();
        assert!(error.to_string().contains("process.env"), "{error}");
    }
    let error = edit(json!({"env": ["swordfish"]}), &container(false)).err().unwrap().to_string();
    assert!(!error.contains("swordfish"), "a secret in an error: {error}");
}

#[test]
fn home_gets_a_stand_in_where_it_is_missing() {
    for (env, expected, find) in [
        (json!(["HOME=/h"]), vec!["HOME=/h"], false),
        (json!(["A=1"]), vec!["A=1", "HOME=/"], true),
        (json!(["HOME=", "A=1"]), vec!["HOME=/", "A=1"], true),
        (json!([]), vec!["HOME=/"], true),
    ] {
        let edited = ok(json!({ "env": env }));
        assert_eq!(edited.process.env().clone().unwrap(), expected);
        assert_eq!(edited.late.find_home, find);
    }
    let mut env = vec!["HOME=/".to_owned(), "A=1".to_owned()];
    set_home(&mut env, "/home/u");
    assert_eq!(env, ["HOME=/home/u", "A=1"]);
}

#[test]
fn malformed_processes_are_refused_by_name() {
    for (extra, named) in [
        (json!({"args": [""]}), "process.args"),
        (json!({"args": ["sh", "\0"]}), "process.args"),
        (json!({"cwd": "tmp"}), "process.cwd"),
        (json!({"cwd": "/a\0"}), "process.cwd"),
        (json!({"oomScoreAdj": 1001}), "process.oomScoreAdj"),
        (json!({"user": {"umask": 0o1000}}), "process.user.umask"),
    ] {
        let error = edit(extra, &container(false)).err().unwrap().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn an_empty_working_directory_is_the_root() {
    let climbs = Path::new("/a/../../b/./c");
    assert_eq!(without_climbs(climbs), PathBuf::from("/b/c"));
    assert_eq!(without_climbs(Path::new("")), PathBuf::from("/"));
    assert_eq!(ok(json!({"cwd": climbs})).process.cwd(), climbs, "the kernel knows the links");
    let edited = ok(json!({"cwd": ""}));
    assert_eq!(edited.process.cwd(), &PathBuf::from("/"));
}

#[test]
fn a_user_name_is_left_out_with_a_warning() {
    let (edited, warnings) =
        edit(json!({"user": {"uid": 7, "gid": 8, "username": "web"}}), &container(false)).unwrap();
    assert_eq!((edited.late.uid, edited.late.owner), (7, (7, 8)));
    assert!(warnings[0].contains("web"));
}

#[test]
fn a_filter_without_no_new_privileges_is_loaded_with_capabilities_that_are_then_dropped() {
    let caps = json!({"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]});
    let (edited, _) = edit(json!({ "capabilities": caps }), &container(true)).unwrap();
    assert_eq!(edited.late.early_capabilities.effective.count_ones(), 3);
    let real = edited.late.capabilities.unwrap();
    assert_eq!(real.effective, 1 << 5, "CAP_KILL");
    assert_eq!(CapabilitySets::from(&edited.capabilities), real);
    assert!(edited.late.seccomp.is_some());

    let (edited, _) = edit(json!({"capabilities": caps, "noNewPrivileges": true}), &container(true)).unwrap();
    assert_eq!(edited.late.early_capabilities, CapabilitySets::from(&edited.capabilities));
    assert_eq!(edited.late.capabilities, None);
    assert_eq!(edited.process.no_new_privileges(), Some(true));
}

#[test]
fn a_terminals_size_is_taken_out_and_fits_the_ioctl() {
    let size = |terminal: bool, height: u64, width: u64| {
        let edited = ok(json!({"terminal": terminal, "consoleSize": {"height": height, "width": width}}));
        assert_eq!(edited.terminal, terminal);
        assert!(edited.process.console_size().is_none());
        edited.console_size
    };
    assert_eq!(size(true, 24, 80), Some(ConsoleSize { rows: 24, cols: 80 }));
    assert_eq!(size(true, 1 << 40, 80), Some(ConsoleSize { rows: u16::MAX, cols: 80 }));
    assert_eq!(size(true, 0, 80), None);
    assert_eq!(size(false, 24, 80), None);
}
