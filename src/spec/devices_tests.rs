//! Tests of the device edits.

use oci_spec::runtime::{LinuxBlockIo, LinuxDeviceCgroup as Rule};
use serde_json::{Value, json};

use super::super::tests::facts;
use super::super::{CgroupVersion, default_rules};
use super::*;

fn update(path: &str, kind: DeviceKind, major: u64, minor: u64) -> DeviceUpdate {
    DeviceUpdate {
        container_path: path.into(),
        final_path: None,
        kind,
        number: DeviceNumber { major, minor },
    }
}

fn run(linux: Value, facts: &Facts) -> Result<Linux, SpecError> {
    let mut linux: Linux = serde_json::from_value(linux).unwrap();
    apply(&mut linux, false, facts)?;
    Ok(linux)
}

/// The rules without the leading denial and the defaults, as `+b 8:0 rwm`.
fn rules(linux: &Linux) -> Vec<String> {
    let all = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    let text = |rule: &Rule| format!("{}{rule}", if rule.allow() { '+' } else { '-' });
    assert_eq!(text(&all[0]), "-a *:* rwm", "the list must begin with a denial of everything");
    let defaults: Vec<String> = default_rules().iter().map(text).collect();
    all.iter().skip(1).map(text).filter(|rule| !defaults.contains(rule)).collect()
}

fn nodes(linux: &Linux) -> Vec<(String, &'static str, i64, i64)> {
    let kind = |typ| match typ {
        Type::B => "b",
        Type::C => "c",
        _ => "?",
    };
    let nodes = linux.devices().iter().flatten();
    nodes.map(|n| (n.path().display().to_string(), kind(n.typ()), n.major(), n.minor())).collect()
}

fn node(path: &str, kind: &str, major: i64, minor: i64) -> Value {
    json!({"path": path, "type": kind, "major": major, "minor": minor})
}

fn allow(kind: &str, major: i64, minor: i64, access: &str) -> Value {
    json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access})
}

#[test]
fn nodes_and_their_rules_get_the_guests_numbers_and_keep_their_permissions() {
    let mut facts = facts();
    facts.devices = vec![update("/dev/sda", DeviceKind::Block, 254, 16)];
    let linux = run(
        json!({
            "devices": [node("/dev/sda", "b", 8, 0), node("/dev/fuse", "c", 10, 229)],
            "resources": {"devices": [{"allow": false, "access": "rwm"}, allow("b", 8, 0, "r"), allow("c", 10, 229, "rw")]}
        }),
        &facts,
    )
    .unwrap();
    assert_eq!(nodes(&linux), [("/dev/sda".into(), "b", 254, 16), ("/dev/fuse".into(), "c", 10, 229)]);
    assert_eq!(rules(&linux), ["-a *:* rwm", "+b 254:16 r", "+c 10:229 rw"]);
}

#[test]
fn a_device_that_no_rule_names_is_allowed() {
    let mut facts = facts();
    facts.devices = vec![update("/dev/x", DeviceKind::Block, 254, 16)];
    let other = json!({"devices": [node("/dev/x", "b", 8, 0)],
        "resources": {"devices": [allow("c", 8, 0, "r")]}});
    assert_eq!(rules(&run(other, &facts).unwrap()), ["+c 8:0 r", "+b 254:16 rwm"]);
}

#[test]
fn without_any_rule_the_listed_nodes_are_allowed() {
    let mut facts = facts();
    facts.devices = vec![update("/dev/x", DeviceKind::Block, 254, 16)];
    let spec = json!({"devices": [node("/dev/x", "b", 8, 0), node("/dev/fuse", "c", 10, 229)]});
    assert_eq!(rules(&run(spec, &facts).unwrap()), ["+b 254:16 rwm", "+c 10:229 rwm"]);
    assert_eq!(rules(&run(json!({}), &super::super::tests::facts()).unwrap()), [""; 0]);
    let kmsg = AddedDevice {
        path: "/dev/kmsg".into(),
        kind: DeviceKind::Char,
        number: DeviceNumber { major: 1, minor: 11 },
    };
    facts = Facts { bound_devices: vec![kmsg], ..super::super::tests::facts() };
    assert_eq!(rules(&run(json!({}), &facts).unwrap()), ["+c 1:11 rwm"], "mounted");
    let deny = json!({"resources": {"devices": [{"allow": false, "access": "rwm"}]}});
    assert_eq!(rules(&run(deny, &facts).unwrap()), ["-a *:* rwm"], "the host has its say");
}

#[test]
fn without_any_rule_a_process_that_may_load_modules_opens_what_it_likes() {
    let process = |names: &[&str]| {
        let sets = json!({"effective": names, "bounding": names});
        serde_json::from_value(json!({"user": {}, "cwd": "/", "capabilities": sets})).unwrap()
    };
    let all = ["CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_CHOWN"];
    assert!(device_rules::is_privileged(&process(&all)));
    assert!(!device_rules::is_privileged(&process(&all[1..])));
    for version in [CgroupVersion::V1, CgroupVersion::V2] {
        let facts = Facts {
            cgroup_version: version,
            root_devices: vec![DeviceNumber { major: 254, minor: 0 }],
            ..facts()
        };
        let mut linux = Linux::default();
        apply(linux.set_resources(None), true, &facts).unwrap();
        let expected = ["+a *:* rwm", "-b 254:0 rwm", "-c 1:1 rwm", "-c 1:2 rwm", "-c 1:4 rwm"];
        assert_eq!(rules(&linux), expected, "{version:?}");
    }
}

#[test]
fn swapped_numbers_do_not_meet() {
    let mut facts = facts();
    facts.devices =
        vec![update("/dev/a", DeviceKind::Block, 8, 16), update("/dev/b", DeviceKind::Block, 8, 0)];
    let linux = run(
        json!({"devices": [node("/dev/a", "b", 8, 0), node("/dev/b", "b", 8, 16)],
            "resources": {"devices": [allow("b", 8, 0, "r"), allow("b", 8, 16, "w")]}}),
        &facts,
    )
    .unwrap();
    assert_eq!(nodes(&linux), [("/dev/a".into(), "b", 8, 16), ("/dev/b".into(), "b", 8, 0)]);
    assert_eq!(rules(&linux), ["+b 8:16 r", "+b 8:0 w"]);
}

#[test]
fn a_final_path_moves_the_node_even_onto_another_ones_old_place() {
    let mut facts = facts();
    let mut first = update("/dev/vfio/1", DeviceKind::Char, 240, 0);
    first.final_path = Some("/dev/vfio/2".into());
    let mut second = update("/dev/vfio/2", DeviceKind::Char, 240, 1);
    second.final_path = Some("/dev/vfio/3".into());
    facts.devices = vec![first, second];
    let spec = json!({"devices": [node("/dev/vfio/1", "c", 9, 1), node("/dev/vfio/2", "c", 9, 2)]});
    let linux = run(spec, &facts).unwrap();
    assert_eq!(nodes(&linux), [("/dev/vfio/2".into(), "c", 240, 0), ("/dev/vfio/3".into(), "c", 240, 1)]);
}

#[test]
fn updates_that_do_not_fit_are_refused() {
    let spec = json!({"devices": [node("/dev/a", "b", 8, 0), node("/dev/b", "b", 8, 0)]});
    for (updates, named) in [
        (vec![update("/dev/c", DeviceKind::Block, 1, 1)], "/dev/c"),
        (
            vec![update("/dev/a", DeviceKind::Block, 1, 1), update("/dev/a", DeviceKind::Block, 1, 1)],
            "/dev/a",
        ),
        (
            vec![update("/dev/a", DeviceKind::Block, 1, 1), update("/dev/b", DeviceKind::Block, 1, 2)],
            "host's 8:0",
        ),
    ] {
        let mut facts = facts();
        facts.devices = updates;
        let error = run(spec.clone(), &facts).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    let mut facts = facts();
    facts.devices =
        vec![update("/dev/a", DeviceKind::Block, 1, 1), update("/dev/b", DeviceKind::Block, 1, 1)];
    assert!(run(spec, &facts).is_ok(), "two nodes of one device");
}

#[test]
fn nodes_that_libcontainer_would_stumble_over_are_refused_by_name() {
    for bad in [
        node("/", "b", 8, 0),
        node("/dev/../etc/x", "b", 8, 0),
        node("/dev", "b", 8, 0),
        node("dev/x", "b", 8, 0),
        node("/dev/x", "a", 8, 0),
        node("/dev/x", "c", -1, 0),
    ] {
        let error = run(json!({"devices": [bad.clone()]}), &facts()).unwrap_err().to_string();
        assert!(error.contains(bad["path"].as_str().unwrap()), "{error}");
    }
    let twice = json!({"devices": [node("/dev/x", "c", 1, 3), node("/dev/x", "c", 1, 3)]});
    assert!(matches!(run(twice, &facts()), Err(SpecError::Duplicate { .. })));
    assert!(run(json!({"devices": [node("/dev/p", "p", 0, 0)]}), &facts()).is_ok());
}

#[test]
fn nodes_outside_of_dev_are_the_workers_and_have_their_rules() {
    let given = json!({"devices": [node("/opt/disk", "b", 8, 16), node("/dev/disk", "b", 8, 17)]});
    let mut linux: Linux = serde_json::from_value(given).unwrap();
    let outside = apply(&mut linux, false, &facts()).unwrap();
    assert_eq!(outside.iter().map(LinuxDevice::path).collect::<Vec<_>>(), [Path::new("/opt/disk")]);
    assert_eq!(nodes(&linux), [("/dev/disk".to_owned(), "b", 8, 17)]);
    assert_eq!(rules(&linux), ["+b 8:16 rwm", "+b 8:17 rwm"]);
}

#[test]
fn the_guests_root_disk_is_denied_last_and_never_given() {
    for version in [CgroupVersion::V1, CgroupVersion::V2] {
        let mut facts = facts();
        facts.cgroup_version = version;
        facts.root_devices = vec![DeviceNumber { major: 254, minor: 0 }];
        facts.system_chars = vec![DeviceNumber { major: 21, minor: 0 }];
        let all = json!({"resources": {"devices": [{"allow": true, "access": "rwm"}]}});
        let privileged = run(all, &facts).unwrap();
        let memory = ["-c 1:1 rwm", "-c 1:2 rwm", "-c 1:4 rwm", "-c 21:0 rwm"];
        let expected = [&["+a *:* rwm", "-b 254:0 rwm"], &memory[..]].concat();
        assert_eq!(rules(&privileged), expected);
        let last = privileged.resources().as_ref().unwrap().devices().as_ref().unwrap().last().cloned();
        assert_eq!(last.unwrap().to_string(), "c 21:0 rwm");
        let named = run(json!({"devices": [node("/dev/mem", "c", 1, 1)]}), &facts).unwrap();
        assert_eq!(rules(&named), ["+c 1:1 rwm", "-b 254:0 rwm", "-c 1:1 rwm"]);
        let asked = run(json!({"devices": [node("/dev/vda", "b", 254, 0)]}), &facts).unwrap_err();
        assert!(asked.to_string().contains("/dev/vda"), "{asked}");
        assert!(run(json!({"devices": [node("/dev/tty9", "c", 254, 0)]}), &facts).is_ok());
    }
}

/// Whether or not the host has rules of its own: it has handed the device over.
#[test]
fn a_disk_that_is_lent_as_a_file_can_be_opened_as_it_is_lent() {
    let mut facts = facts();
    let number = |minor| DeviceNumber { major: 254, minor };
    facts.lent_devices = [(0, true), (16, false), (32, false)]
        .map(|(minor, read_only)| LentDevice { number: number(minor), read_only })
        .to_vec();
    facts.root_devices = vec![number(32)];
    let given = json!({"resources": {"devices": [{"allow": false, "access": "rwm"}]}});
    for (linux, before) in [(json!({}), &[][..]), (given, &["-a *:* rwm"])] {
        let expected = [before, &["+b 254:0 rm", "+b 254:16 rwm", "+b 254:32 rwm", "-b 254:32 rwm"]].concat();
        assert_eq!(rules(&run(linux, &facts).unwrap()), expected);
    }
}

#[test]
fn a_range_over_the_root_disk_is_refused_where_it_could_not_be_denied() {
    let whole =
        json!({"resources": {"devices": [{"allow": true, "type": "b", "major": 254, "access": "rw"}]}});
    let mknod = json!({"resources": {"devices": [{"allow": true, "type": "b", "access": "m"}]}});
    let other = json!({"resources": {"devices": [{"allow": true, "type": "b", "major": 8, "access": "rw"}]}});
    let mut facts = facts();
    facts.root_devices = vec![DeviceNumber { major: 254, minor: 0 }];
    facts.cgroup_version = CgroupVersion::V1;
    assert!(matches!(run(whole.clone(), &facts), Err(SpecError::RootDevice { .. })));
    assert!(run(mknod, &facts).is_ok());
    assert!(run(other, &facts).is_ok());
    facts.cgroup_version = CgroupVersion::V2;
    assert_eq!(rules(&run(whole, &facts).unwrap()), ["+b 254:* rw", "-b 254:0 rwm"]);
}

#[test]
fn a_range_over_the_guests_memory_is_refused_where_it_could_not_be_denied() {
    let range = |kind, access: &str, major: i64| json!({"resources": {"devices": [{"allow": true, "type": kind, "major": major, "access": access}]}});
    let mut facts = facts();
    facts.cgroup_version = CgroupVersion::V1;
    let refused = run(range("c", "rw", 1), &facts).unwrap_err();
    assert!(refused.to_string().contains("1:1"), "{refused}");
    for fine in [range("c", "m", 1), range("c", "rw", 195), range("b", "rw", 1)] {
        run(fine, &facts).unwrap();
    }
    facts.cgroup_version = CgroupVersion::V2;
    let expected = ["+c 1:* rw", "-c 1:1 rwm", "-c 1:2 rwm", "-c 1:4 rwm"];
    assert_eq!(rules(&run(range("c", "rw", 1), &facts).unwrap()), expected);
}

#[test]
fn a_denial_that_v1_would_not_heed_is_refused_there() {
    let given = |denial: Value| {
        let major = json!({"allow": true, "type": "c", "major": 10, "access": "rwm"});
        json!({"resources": {"devices": [major, denial]}})
    };
    let narrower = given(json!({"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rw"}));
    let mut facts = facts();
    run(narrower.clone(), &facts).unwrap();
    facts.cgroup_version = CgroupVersion::V1;
    let refused = run(narrower, &facts).unwrap_err();
    assert!(refused.to_string().contains("c 10:229 rw"), "{refused}");
    for fine in [
        json!({"allow": false, "type": "c", "major": 10, "access": "w"}),
        json!({"allow": false, "type": "b", "major": 10, "minor": 229, "access": "rwm"}),
        json!({"allow": false, "type": "c", "major": 11, "minor": 229, "access": "rwm"}),
        json!({"allow": false, "type": "c", "major": 10, "minor": 229, "access": "m"}),
        json!({"allow": false, "access": "rwm"}),
    ] {
        run(given(fine), &facts).unwrap();
    }
}

#[test]
fn limits_of_a_device_are_those_of_the_guests() {
    let mut facts = facts();
    facts.devices = vec![update("/dev/sda", DeviceKind::Block, 254, 16)];
    let limits = |number: (i64, i64)| {
        let of = |value: Value| {
            let mut device = json!({"major": number.0, "minor": number.1});
            device.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
            json!([device, {"major": 9, "minor": 0, "rate": 5, "weight": 5}])
        };
        json!({
            "weight": 100,
            "weightDevice": of(json!({"weight": 10, "leafWeight": 20})),
            "throttleReadBpsDevice": of(json!({"rate": 1})), "throttleWriteBpsDevice": of(json!({"rate": 2})),
            "throttleReadIOPSDevice": of(json!({"rate": 3})), "throttleWriteIOPSDevice": of(json!({"rate": 4}))
        })
    };
    let given = json!({"devices": [node("/dev/sda", "b", 8, 0)], "resources": {"blockIO": limits((8, 0))}});
    let expected: LinuxBlockIo = serde_json::from_value(limits((254, 16))).unwrap();
    let linux = run(given, &facts).unwrap();
    assert_eq!(linux.resources().as_ref().unwrap().block_io().as_ref(), Some(&expected));
}

#[test]
fn nodes_that_are_no_devices_need_no_rule() {
    let nodes = json!({"devices": [node("/dev/fifo", "p", 0, 0), node("/dev/raw", "u", 9, 2)]});
    assert_eq!(rules(&run(nodes, &facts()).unwrap()), ["+c 9:2 rwm"]);
}

#[test]
fn rules_mean_on_v1_what_they_say() {
    let linux = run(
        json!({"resources": {"devices": [
            {"allow": true, "type": "a", "major": 9, "access": "r"},
            {"allow": false, "type": "b", "major": 9, "minor": 1},
            {"allow": true, "type": "u", "major": 9, "minor": -1, "access": "w"},
            {"allow": true, "type": "c", "major": 9, "minor": 0, "access": "r"},
            {"allow": true, "major": 0, "minor": 0, "access": "rwm"}
        ]}}),
        &facts(),
    )
    .unwrap();
    let expected = ["+c 9:* r", "+b 9:* r", "-b 9:1 rwm", "+c 9:* w", "+c 9:0 r", "+a *:* rwm"];
    assert_eq!(rules(&linux)[..6], expected);
}

#[test]
fn devices_of_the_guests_are_added_and_allowed() {
    let added = |path: &str| AddedDevice {
        path: path.into(),
        kind: DeviceKind::Char,
        number: DeviceNumber { major: 231, minor: 192 },
    };
    let added_devices = vec![added("/dev/infiniband/uverbs0"), added("/dev/there")];
    let facts = Facts { added_devices, ..facts() };
    let there = json!({"path": "/dev/there", "type": "c", "major": 9, "minor": 9});
    let one = json!({"allow": true, "type": "c", "major": 4, "minor": 3, "access": "r"});
    for (given, expected) in
        [(json!([]), ["+c 9:9 rwm", "+c 231:192 rwm"]), (json!([one]), ["+c 4:3 r", "+c 231:192 rwm"])]
    {
        let linux = json!({"devices": [there], "resources": {"devices": given}});
        let linux = run(linux, &facts).unwrap();
        let majors: Vec<_> = nodes(&linux).into_iter().map(|(_, _, major, _)| major).collect();
        assert_eq!(majors, [9, 231], "one that is there stays");
        assert_eq!(rules(&linux), expected);
    }
}
