//! The bodies with broken pieces of good input, the same each time, or with `NAKAI_FUZZ` as many others as it says; and
//! that each has its target.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

/// How many broken inputs each body gets.
const CASES: u32 = 2000;

/// Runs a body with pieces of good input, some bytes of which are others.
fn throw(target: &str, body: fn(&[u8]), good: &[&[u8]]) {
    let more = std::env::var("NAKAI_FUZZ").ok().map(|number| number.parse().unwrap());
    let config = Config { cases: more.unwrap_or(CASES), failure_persistence: None, ..Config::default() };
    let mut runner = match more {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let good: Vec<Vec<u8>> = good.iter().map(|bytes| bytes.to_vec()).collect();
    for bytes in &good {
        body(bytes);
    }
    if std::env::var_os("NAKAI_WRITE_SEEDS").is_some() {
        let corpus = Path::new("fuzz/corpus").join(target);
        std::fs::create_dir_all(&corpus).unwrap();
        for (number, bytes) in good.iter().enumerate() {
            std::fs::write(corpus.join(format!("good-{number}")), bytes).unwrap();
        }
    }
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let junk = prop::collection::vec(any::<u8>(), 0..64);
    let input = (prop::sample::select(good), changes, any::<prop::sample::Index>(), junk, any::<bool>());
    let thrown = runner.run(&input, |(mut bytes, changes, cut, junk, only_junk)| {
        for (place, byte) in changes {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
        }
        bytes.truncate(cut.index(bytes.len() + 1).max(bytes.len() / 2));
        body(if only_junk { &junk } else { &bytes });
        Ok(())
    });
    thrown.unwrap();
}

fn spec_bytes() -> Vec<u8> {
    let process = oci::Process {
        Args: vec!["sh".into(), "-c".into()],
        Cwd: "/".into(),
        Env: vec!["PATH=/bin".into()],
        User: Some(oci::User { UID: 1000, ..Default::default() }).into(),
        ..Default::default()
    };
    let mount = oci::Mount {
        destination: "/proc".into(),
        type_: "proc".into(),
        source: "proc".into(),
        options: vec!["nosuid".into(), "ro".into()],
        ..Default::default()
    };
    let spec = oci::Spec {
        Version: "1.0.2".into(),
        Process: Some(process).into(),
        Root: Some(oci::Root { Path: "/root".into(), ..Default::default() }).into(),
        Mounts: vec![mount],
        Linux: Some(oci::Linux::default()).into(),
        ..Default::default()
    };
    spec.write_to_bytes().unwrap()
}

/// `fuzz/` has no other check that costs as little as this.
#[test]
fn each_body_has_a_target_and_each_target_its_binary() {
    let manifest = include_str!("../../fuzz/Cargo.toml");
    for (source, of) in
        [(include_str!("mod.rs"), "nakai"), (include_str!("../../ctl/src/fuzz.rs"), "nakai_ctl")]
    {
        let bodies = source.lines().filter_map(|line| line.strip_prefix("pub fn ")?.split('(').next());
        let bodies: Vec<_> = bodies.collect();
        assert!(bodies.len() > 2, "{bodies:?}");
        for body in bodies {
            let path = format!("targets/{body}.rs");
            assert!(manifest.contains(&format!("name = \"{body}\"\npath = \"{path}\"\n")), "{body}");
            let target = std::fs::read_to_string(Path::new("fuzz").join(&path)).unwrap();
            assert!(target.contains(&format!("{of}::fuzz::{body}(bytes)")), "{target}");
        }
    }
}

#[test]
fn specifications() {
    throw("wire_spec", wire_spec, &[&spec_bytes()]);
}

#[test]
fn frames_of_a_connection() {
    let frame = [&[3, 0, 0, 0, 3, 0, 0, 0, 1, 1, 0][..], b"abc", &[0, 0, 0, 0, 0, 0, 0, 3, 2, 0]].concat();
    let too_long = [7, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, b'x'];
    let request = ttrpc::Request { payload: vec![7; 3000], ..Default::default() }.write_to_bytes().unwrap();
    let large = [&[200, 0, 0], &request.len().to_be_bytes()[6..], &[0, 0, 0, 5, 1, 0], &request, &frame[1..]]
        .concat();
    throw("frames", frames, &[&frame, &too_long, &large]);
}

#[test]
fn files_of_cdi_devices() {
    let yaml = b"cdiVersion: \"0.6.0\"\nkind: \"v.com/net\"\ndevices:\n  - name: a\n    containerEdits:\n      env:\n      - A=1\n\
                 \x20     deviceNodes:\n      - path: /dev/x\n        type: c\ncontainerEdits:\n  hooks: []\n";
    let json = br#"{"kind": "v.com/net", "devices": [{"name": "a", "containerEdits": {"mounts":
                    [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"]}]}}]}"#;
    throw("cdi_file", cdi_file, &[yaml, json]);
}

#[test]
fn options_of_the_guest() {
    throw(
        "options",
        options,
        &[
            b"agent.log=debug agent.hotplug_timeout=3 x=\"a b\"",
            b"log_level = \"debug\"\nhotplug_timeout = { secs = 3 }\n",
        ],
    );
}

#[test]
fn lists_of_cpus() {
    throw("cpu_list", cpu_list, &[b"0-3,7\n", b"0-8191,0-8191,5,8191"]);
    // As many large ranges as a message can hold.
    cpu_list("0-8191,".repeat(600_000).trim_end_matches(',').as_bytes());
}

#[test]
fn events_of_devices() {
    let good = b"add@/devices/pci0000:00/0000:00:02.0\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=block\0\
                 DEVNAME=vda\0SEQNUM=7\0";
    throw("uevent", uevent, &[good]);
}

#[test]
fn lists_of_mounts() {
    let good = b"22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n23 1 8:1 /a\\040b /mnt ro - ext4 /dev/sda1 ro\n";
    throw("mount_list", mount_list, &[good]);
}

#[test]
fn options_of_mounts() {
    throw("mount_options", mount_options, &[b"ro,nosuid,size=1m,lowerdir=/a:/b,rbind,rslave"]);
}

#[test]
fn messages_between_processes() {
    let mut header = vec![0; 24];
    header[0] = 1;
    throw("channel_message", channel_message, &[&header]);
}

#[test]
fn addresses_of_devices() {
    throw("pci_path", pci_path, &[b"02/1f.7", b"0000:00:1f.2", b"0:1", b"/dev/vda", b"10000:02/03"]);
}

#[test]
fn requests_with_paths() {
    let base = "/run/kata-containers/shared/containers";
    let copy = CopyFileRequest {
        path: format!("{base}/a/../b"),
        file_mode: 0o100_644,
        file_size: 3,
        data: b"abc".to_vec(),
        ..Default::default()
    };
    let whole = CopyFileRequest { path: format!("{base}/a/b"), ..copy.clone() };
    let storage = Storage {
        driver: "blk".into(),
        source: "02/03".into(),
        fstype: "ext4".into(),
        mount_point: "/run/kata-containers/sandbox/storage/x".into(),
        ..Default::default()
    };
    let layer = |number: &str| Storage {
        fstype: "erofs".into(),
        options: vec!["X-kata.multi-layer=true".into(), format!("X-kata.partition-number={number}")],
        driver_options: vec!["encryption_key=ephemeral".into(), "create_filesystem".into()],
        ..storage.clone()
    };
    let create = CreateContainerRequest { storages: vec![layer("1"), layer("2")], ..Default::default() };
    let inputs =
        [copy.write_to_bytes(), whole.write_to_bytes(), storage.write_to_bytes(), create.write_to_bytes()];
    let inputs: Vec<Vec<u8>> = inputs.into_iter().map(Result::unwrap).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).chain([&b"/a/b"[..]]).collect();
    throw("requests", requests, &inputs);
}
