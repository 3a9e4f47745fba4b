//! CDI devices in files.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::json;
use slog::{Discard, o};

use super::*;

#[test]
fn names_are_checked() {
    for good in ["nvidia.com/gpu=0", "vendor.com/class-a=GPU-4f:1.2", "v/c=all", "vendor1.com/a_b=x"] {
        assert_eq!(good.parse::<CdiName>().unwrap().to_string(), good);
    }
    for bad in [
        "",
        "gpu",
        "gpu=0",
        "nvidia.com/gpu",
        "nvidia.com/gpu=",
        "/gpu=0",
        "nvidia.com/=0",
        "1vendor/gpu=0",
        "vendor/1gpu=0",
        "vendor./gpu=0",
        "vendor/gpu=-0",
        "vendor/gpu=a b",
        "vendor/a/b=0",
        "v/c=../x",
    ] {
        assert!(bad.parse::<CdiName>().is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn requests_are_gathered_once_each() {
    let annotations = HashMap::from([
        ("cdi.k8s.io/b".to_owned(), "v.com/c=1, v.com/c=2".to_owned()),
        ("cdi.k8s.io/a".to_owned(), "v.com/c=1".to_owned()),
        ("other".to_owned(), "x".to_owned()),
    ]);
    let text = |request: CdiRequest| join(request.names.iter());
    let variables =
        |value: &str| vec!["VISIBLE_CDI_DEVICES=old".to_owned(), format!("VISIBLE_CDI_DEVICES={value}")];
    let gather = |value: &str, visible| CdiRequest::gather(&annotations, &variables(value), visible);
    assert_eq!(text(gather("w/c=all", false).unwrap()), "v.com/c=1, v.com/c=2");
    let all = "v.com/c=1, v.com/c=2, w/c=all, x/c=0, x/c=1";
    assert_eq!(text(gather("w/c=all:x/c=0,1", true).unwrap()), all);
    assert_eq!(text(gather("none", true).unwrap()), "v.com/c=1, v.com/c=2");
    for bad in ["w/c", "w/c=", "=all", "w/c=0:"] {
        gather(bad, true).unwrap_err();
    }
}

fn resolve(directory: &Path, names: &[&str], timeout: Duration) -> Result<Vec<Value>, String> {
    let request = CdiRequest { names: names.iter().map(|name| name.parse().unwrap()).collect() };
    let (places, log) = (vec![directory.join("a"), directory.join("b")], Logger::root(Discard, o!()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(request.resolve_in(places, timeout, &log)).map_err(|error| error.to_string())
}

const SHORT: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(60);

const FILE: &str = r#"{"cdiVersion": "0.6.0", "kind": "v.com/c", "containerEdits": {"env": ["ALL=1"]}, "devices": [
    {"name": "0", "containerEdits": {"env": ["ZERO=1"]}}, {"name": "1", "containerEdits": {"env": ["ONE=1"]}}]}"#;

#[test]
fn what_the_files_say_is_found() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("b")).unwrap();
    fs::write(dir.path().join("b/v.json"), FILE).unwrap();
    let variables = |names: &[&str]| {
        let edits = resolve(dir.path(), names, SHORT).unwrap();
        edits.into_iter().map(|edit| edit["env"][0].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(variables(&["v.com/c=1", "v.com/c=0"]), ["ALL=1", "ONE=1", "ZERO=1"]);
    assert_eq!(variables(&["v.com/c=0"]), ["ALL=1", "ZERO=1"]);
    let error = resolve(dir.path(), &["v.com/c=2"], LONG).unwrap_err();
    assert_eq!(error, "CDI device v.com/c=2 is not among those of its kind: 0, 1");
    fs::write(dir.path().join("b/w.json"), "{").unwrap();
    let error = resolve(dir.path(), &["v.com/c=0", "w/c=0"], SHORT).unwrap_err();
    assert!(
        error.starts_with(
            "no specification for the CDI devices w/c=0 within 10ms; there are those of v.com/c; "
        )
    );
    assert!(error.contains("b/w.json: "), "{error}");
}

#[test]
fn a_file_that_comes_later_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let writer = std::thread::spawn(move || {
        fs::create_dir(root.join("a")).unwrap();
        fs::write(
            root.join("a/v.yaml"),
            "kind: v.com/c\ndevices:\n- name: 0\n  containerEdits:\n    env: [A=1]\n",
        )
        .unwrap();
    });
    let edits = resolve(dir.path(), &["v.com/c=0"], LONG).unwrap();
    assert_eq!(edits, [json!({"env": ["A=1"]})]);
    writer.join().unwrap();
}

#[test]
fn yaml_as_programs_write_it() {
    let text = r#"---
# made by a program
cdiVersion: "0.5.0"
kind: nvidia.com/gpu
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl   # the control device
    major: 195
    fileMode: 0666
  - path: '/dev/it''s'
  - path: 'C:\' # a backslash
  hooks:
    - args:
        - nvidia-ctk
        - --flag=a:b
        - "tab\t"
      hookName: createContainer
      path: /usr/bin/nvidia-ctk
  env: []
  mounts:
devices:
-
  name: "0"
  containerEdits: {}
- name: all
  annotations:
    "a: b": ~
    empty: true
"#;
    let expected = json!({
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "containerEdits": {
            "deviceNodes": [
                {"path": "/dev/nvidiactl", "major": 195, "fileMode": 438},
                {"path": "/dev/it's"},
                {"path": "C:\\"},
            ],
            "hooks": [{
                "args": ["nvidia-ctk", "--flag=a:b", "tab\t"],
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-ctk",
            }],
            "env": [],
            "mounts": null,
        },
        "devices": [
            {"name": "0", "containerEdits": {}},
            {"name": "all", "annotations": {"a: b": null, "empty": true}},
        ],
    });
    assert_eq!(yaml::parse(text).unwrap(), expected);
}

#[test]
fn yaml_that_is_not_read_is_refused_with_its_line() {
    for (text, line) in [
        ("a: 1\nb: &x 2\n", 2),
        ("a: |\n  text\n", 1),
        ("a: {b: 1}\n", 1),
        ("a: 1\n  b: 2\n", 2),
        ("a:\n    b: 1\n  c: 2\n", 3),
        ("a: 1\na: 2\n", 2),
        ("a: \"x\n", 1),
        ("a: [\"x\", 1]\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("\ta: 1\n", 1),
    ] {
        let error = yaml::parse(text).expect_err(text).to_string();
        assert!(error.starts_with(&format!("line {line}: ")), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
    fn no_yaml_makes_it_panic(text in "[a\\-:# \n\"'\\[\\]{}0~é]{0,60}") {
        let _ = yaml::parse(&text);
    }

    #[test]
    fn every_kind_and_name_is_read_back(
        vendor in "[a-z]([a-z0-9_.-]{0,8}[a-z0-9])?", class in "[A-Za-z]([a-z0-9_-]{0,8}[a-z0-9])?",
        devices in prop::collection::vec("[a-z0-9]([a-zA-Z0-9_.:-]{0,6}[a-z0-9])?", 1..4),
    ) {
        let kind = format!("{vendor}/{class}");
        prop_assert_eq!(name::check_kind(&kind), Ok(()));
        let names: Vec<CdiName> =
            devices.iter().map(|device| CdiName { kind: kind.clone(), device: Some(device.clone()) }).collect();
        for name in &names {
            prop_assert_eq!(&name.to_string().parse::<CdiName>().unwrap(), name);
        }
        // In the variable a colon begins the next kind.
        if !devices.iter().any(|device| device.contains(':') || device == "all") {
            let list = format!("{kind}={}:{kind}=all", devices.join(","));
            let all = CdiName { kind: kind.clone(), device: None };
            prop_assert_eq!(name::visible(&list).unwrap(), [names, vec![all]].concat());
        }
    }

    #[test]
    fn no_kind_has_other_letters_or_parts(
        kind in "[a-z]{1,4}/[a-z]{1,4}", at in 0_usize..9, wrong in "[ =:,/\\\\é]",
    ) {
        let at = at.min(kind.len());
        let mut other = kind.clone();
        other.insert_str(at, &wrong);
        prop_assert!(name::check_kind(&other).is_err(), "{}", other);
        prop_assert!(name::check_kind(&kind).is_ok());
    }

    #[test]
    fn no_name_makes_it_panic(text in "[a1/=:.,-]{0,24}") {
        if let Ok(name) = text.parse::<CdiName>() {
            prop_assert_eq!(name.to_string(), text.clone());
        }
        let _ = name::visible(&text);
    }
}
