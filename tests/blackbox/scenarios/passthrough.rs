//! Disks behind every kind of bridge, PCI functions that the host has passed through to the machine, for a container or
//! for the guest, and devices that a specification in the guest describes.

use nakai_ctl::qmp::Qmp;
use nakai_ctl::{SpecBuilder, sandbox};
use nakai_protocols::agent::Device;
use nakai_protocols::oci;
use serde_json::{Value, json};
use ttrpc::Code;

use crate::harness::expect::{refused, succeeded};
use crate::harness::own_vm::HOOK_LOG;
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(disks_behind_every_kind_of_bridge_are_found)
            .machine(|config, _| {
                (config.pci_bridge, config.scsi) = (true, true);
                // A root complex of its own, with a port to plug into.
                let parts =
                    ["pxb-pcie,id=pxb,bus_nr=32,bus=pcie.0", "pcie-root-port,id=far,bus=pxb,chassis=32"];
                config
                    .qemu_args
                    .extend(parts.iter().flat_map(|part| ["-device".to_owned(), (*part).to_owned()]));
                Ok(())
            })
            .kernel_parameter("agent.hotplug_timeout=60"),
        scenario!(passed_through_functions_are_the_containers_or_the_guests)
            .machine(|config, _| {
                config.qemu_args.extend(["-device".to_owned(), "intel-iommu,intremap=off".to_owned()]);
                config.cmdline.push("intel_iommu=on".to_owned());
                Ok(())
            })
            .kernel_parameter("agent.hotplug_timeout=60"),
        scenario!(devices_have_names_too).machine(|config, _| {
            let words = ["agent.cdi_timeout=1", "agent.visible_cdi_devices=true"];
            config.cmdline.extend(words.map(str::to_owned));
            Ok(())
        }),
    ]
}

/// Where a port or bridge of the machine's is, as a part of a PCI path.
async fn slot(qmp: &mut Qmp, id: &str) -> Fallible<String> {
    Ok(format!("{:02x}", qmp.pci_slot(id).await?))
}

pub(super) fn node(path: &str, kind: &str, major: i64, minor: i64) -> oci::LinuxDevice {
    oci::LinuxDevice {
        Path: path.into(),
        Type: kind.into(),
        Major: major,
        Minor: minor,
        FileMode: 0o600,
        ..Default::default()
    }
}

/// Creates and starts a container with these devices.
async fn with_devices(ctx: &Ctx, container: &Container, devices: Vec<Device>) -> Outcome {
    let mut request = container.request();
    request.devices = devices;
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    Ok(())
}

async fn disks_behind_every_kind_of_bridge_are_found(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("bridges", "bridges", true)).await?;
    let mut qmp = ctx.qmp().await?;
    let (port, bridge) = (slot(&mut qmp, "rp0").await?, slot(&mut qmp, "rpbr").await?);
    let far = slot(&mut qmp, "far").await?;
    let blk = "virtio-blk-pci";
    let disks: [(&str, &str, Value, &str, String); 4] = [
        ("port", blk, json!({"bus": "rp0"}), "blk", format!("{port}/00")),
        ("bridge", blk, json!({"bus": "br0", "addr": "3"}), "blk", format!("{bridge}/00/03")),
        ("beyond", blk, json!({"bus": "far"}), "blk", format!("20/{far}/00")),
        ("scsi", "scsi-hd", json!({"bus": "scsi0.0", "scsi-id": 2, "lun": 1}), "scsi", "2:1".to_owned()),
    ];
    let mut container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let mut devices = Vec::new();
    for (minor, (name, driver, place, kind, id)) in (0..).zip(disks) {
        let image = ctx.files()?.join(name);
        let mut content = vec![b'-'; 1 << 20];
        content[..name.len()].copy_from_slice(name.as_bytes());
        std::fs::write(&image, content)?;
        qmp.plug_disk(name, &image, driver, place).await?;
        let path = format!("/dev/disk-{name}");
        // The host's number is nobody's here.
        container = container.edit(|spec| spec.add_device(node(&path, "b", 250, minor)));
        devices.push(Device { type_: kind.into(), id, container_path: path, ..Default::default() });
    }
    with_devices(&ctx, &container, devices).await?;
    for name in ["port", "bridge", "beyond", "scsi"] {
        let read = container.sh(&format!("head -c {} /dev/disk-{name}", name.len())).await?;
        assert_eq!(read, name);
    }
    let other = ctx.idle(|spec| spec).await?;
    let numbers =
        container.sh("echo $((0x$(stat -c %t /dev/disk-port))) $((0x$(stat -c %T /dev/disk-port)))").await?;
    let script = format!("mknod /tmp/d b {numbers} && head -c 1 /tmp/d 2>&1 | grep -c 'not permitted'");
    assert_eq!(other.sh(&script).await?, "1", "another container can't open it");
    container.remove().await?;
    Ok(())
}

async fn passed_through_functions_are_the_containers_or_the_guests(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("passed", "passed", true)).await?;
    let mut qmp = ctx.qmp().await?;
    for port in ["rp0", "rp1"] {
        qmp.plug(&format!("rng-{port}"), "virtio-rng-pci", json!({"bus": port})).await?;
    }
    let (first, second) = (slot(&mut qmp, "rp0").await?, slot(&mut qmp, "rp1").await?);
    let device = |kind: &str, option: String| Device {
        type_: kind.into(),
        id: "vfio0".into(),
        container_path: "/dev/vfio/300".into(),
        options: vec![option],
        ..Default::default()
    };
    let container = ctx.container(|spec| {
        spec.args(["sh", "-c", "echo $PCIDEVICE_A $PCIDEVICE_B; exec sleep 1000000"])
            .env("PCIDEVICE_A", "0000:1a:02.0")
            .env("PCIDEVICE_B", "0000:1b:00.1,0000:1a:02.0")
            .add_device(node("/dev/vfio/300", "c", 250, 7))
            .add_device(node("/dev/vfio/vfio", "c", 10, 196))
    })?;
    let devices = vec![
        device("vfio-pci", format!("0000:1a:02.0={first}/00")),
        device("vfio-pci-gk", format!("0000:1b:00.1={second}/00")),
    ];
    with_devices(&ctx, &container, devices).await?;
    let told = String::from_utf8(ctx.client().read_stdout(&container.id, "", 1000).await?)?;
    let addresses: Vec<_> = told.trim().split([' ', ',']).collect();
    let [first_address, second_address, again] = addresses[..] else { panic!("{told}") };
    assert_eq!(first_address, again);
    let driver = |address: &str| format!("basename $(readlink /sys/bus/pci/devices/{address}/driver)");
    assert_eq!(ctx.guest_sh(&driver(first_address)).await?.trim(), "vfio-pci", "{told}");
    assert_eq!(ctx.guest_sh(&driver(second_address)).await?.trim(), "virtio-pci", "{told}");
    let exec = container.exec(["sh", "-c", "echo $PCIDEVICE_A $PCIDEVICE_B"]).await?;
    assert_eq!(succeeded(exec), told.trim(), "an exec'd process is told the same");
    let group = format!("basename $(readlink /sys/bus/pci/devices/{first_address}/iommu_group)");
    let group = ctx.guest_sh(&group).await?.trim().to_owned();
    assert_eq!(container.sh("cd /dev/vfio; echo *").await?, format!("{group} vfio"));
    assert_eq!(container.sh(&format!(": <>/dev/vfio/{group} && echo opened")).await?, "opened");

    // Once more, as a container that is made again has it; and what can't be had.
    container.remove().await?;
    for kind in ["vfio-ap", "blk-ccw"] {
        let mut request = container.request();
        request.devices = vec![device(kind, String::new())];
        let made = ctx.client().create_container_with(&request).await;
        refused(made, Code::FAILED_PRECONDITION, &[kind, "s390x"]);
    }
    with_devices(&ctx, &container, vec![device("vfio-pci", format!("0000:1a:02.0={first}/00"))]).await?;
    assert_eq!(container.sh(&format!(": <>/dev/vfio/{group} && echo opened")).await?, "opened");
    container.remove().await?;
    Ok(())
}

fn asks_for(spec: SpecBuilder, device: &str) -> SpecBuilder {
    spec.annotation("cdi.k8s.io/one", device)
}

/// A specification in the guest says what such a device is: see `harness/own_vm.rs`.
async fn devices_have_names_too(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("names", "names", true)).await?;
    let container = ctx.idle(|spec| asks_for(spec, "blackbox.test/fuse=0")).await?;
    // Init becomes its program behind the hook that is its own.
    container.sh_until("cat /proc/1/comm", "sleep").await?;
    let init =
        container.sh("tr '\\0' '\\n' < /proc/1/environ | grep ^CDI; grep ^Groups /proc/1/status").await?;
    assert_eq!(
        init.split_whitespace().collect::<Vec<_>>(),
        ["CDI_KIND=fuse", "CDI_DEVICE=0", "Groups:", "4321"]
    );
    assert_eq!(container.sh("ls /cdi; grep ' /cdi ' /proc/mounts | grep -c nosuid").await?, "hooks\n1");
    assert_eq!(container.sh(": <>/dev/cdi-fuse && echo opened").await?, "opened");
    let numbers =
        container.sh("echo $((0x$(stat -c %t /dev/cdi-fuse))) $((0x$(stat -c %T /dev/cdi-fuse)))").await?;
    let other = ctx.idle(|spec| spec).await?;
    let script = format!("mknod /tmp/fuse c {numbers} && (: <>/tmp/fuse) 2>&1 | grep -c 'not permitted'");
    assert_eq!(other.sh(&script).await?, "1", "another container can't open it");
    let by_variable = ctx.idle(|spec| spec.env("VISIBLE_CDI_DEVICES", "blackbox.test/fuse=all")).await?;
    assert_eq!(by_variable.sh(": <>/dev/cdi-fuse && echo opened").await?, "opened");
    // Its hooks run like those of the container's own: in the guest but for the one that is the container's affair.
    assert_eq!(container.sh("cat /cdi-hook-inside").await?, "0");
    assert!(!other.file("/cdi-hook-inside").exists());
    let id = container.id.clone();
    container.remove().await?;
    by_variable.remove().await?;
    let log = ctx.guest_sh(&format!("cat $PROC/$SERVER/root{HOOK_LOG}")).await?;
    for word in ["cdi-create", "cdi-start", "cdi-stop"] {
        assert_eq!(log.lines().filter(|line| line.contains(word)).count(), 2, "{word}: {log}");
    }
    for (word, status) in [("cdi-create", "creating"), ("cdi-stop", "stopped")] {
        let told = |line: &&str| line.contains(word) && line.contains(&id) && line.contains(status);
        assert_eq!(log.lines().filter(told).count(), 1, "{word}: {log}");
    }
    for (asked, code, words) in [
        ("blackbox.test/fuse=1", Code::NOT_FOUND, ["blackbox.test/fuse=1", "kind: 0"]),
        ("blackbox.test/none=0", Code::DEADLINE_EXCEEDED, ["blackbox.test/none=0", "blackbox.test/fuse"]),
        ("fuse", Code::INVALID_ARGUMENT, ["\"fuse\"", "vendor/class=device"]),
    ] {
        refused(ctx.container(|spec| asks_for(spec, asked))?.create().await, code, &words);
    }
    Ok(())
}
