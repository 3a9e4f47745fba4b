//! Filesystems on block devices that the machine has from the start, or is given later.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use nakai_ctl::qmp::Qmp;
use nakai_ctl::sandbox;
use nakai_ctl::vm::VmConfig;
use nakai_protocols::agent::{Device, FSGroup, Storage};
use serde_json::json;
use ttrpc::Code;

use super::recovery::crash;
use crate::harness::expect::refused;
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(disks_of_every_kind_are_mounted).machine(with_disks),
        scenario!(disks_that_were_there_are_devices).machine(with_plain_disks),
        scenario!(disks_that_are_pulled_out_while_they_are_used_keep_nobody).machine(with_scsi),
        scenario!(disks_that_are_plugged_in_are_mounted).machine(with_scsi),
    ]
}

/// The guest's memory block, of which an nvdimm has to be a multiple.
const PMEM_SIZE: &str = "128M";

fn with_disks(config: &mut VmConfig, files: &Path) -> Outcome {
    config.disks = vec![
        disk(files, "first", "16M")?,
        disk(files, "second", "16M")?,
        partitioned(files, &[layer(files, "top")?, layer(files, "middle")?])?,
        layer(files, "bottom")?,
        disk(files, "upper", "16M")?,
        checked(files)?,
        empty(files, "blank")?,
    ];
    config.pmem = Some(disk(files, "pmem", PMEM_SIZE)?);
    Ok(())
}

/// An image with an ext4 filesystem, in which the file `name` says its own name.
pub(crate) fn disk(files: &Path, name: &str, size: &str) -> Fallible<PathBuf> {
    let (content, image) = (files.join(format!("{name}.d")), files.join(format!("{name}.img")));
    std::fs::create_dir(&content)?;
    std::fs::write(content.join("name"), name)?;
    let mut mkfs = Command::new(program("mkfs.ext4"));
    succeed(mkfs.args(["-q", "-F", "-d"]).args([&content, &image]).arg(size))?;
    Ok(image)
}

/// An image with nothing in it.
pub(super) fn empty(files: &Path, name: &str) -> Fallible<PathBuf> {
    let image = files.join(format!("{name}.img"));
    File::create(&image)?.set_len(64 << 20)?;
    Ok(image)
}

/// An image with an EROFS filesystem: the file `name` says its own name, and so does a file of that name.
fn layer(files: &Path, name: &str) -> Fallible<PathBuf> {
    let (content, image) = (files.join(format!("{name}.d")), files.join(format!("{name}.img")));
    std::fs::create_dir(&content)?;
    for file in ["name", name] {
        std::fs::write(content.join(file), format!("{name} "))?;
    }
    // Enough for more than one level of hashes.
    std::fs::write(content.join("filler"), vec![b'x'; 1 << 20])?;
    succeed(Command::new("mkfs.erofs").arg(&image).arg(&content))?;
    Ok(image)
}

/// A layer with its hash tree behind it. The root hash is in the file `hash`.
fn checked(files: &Path) -> Fallible<PathBuf> {
    let image = layer(files, "checked")?;
    let offset = std::fs::metadata(&image)?.len().to_string();
    let mut setup = Command::new(program("veritysetup"));
    setup.args(["format", "--hash-offset", &offset]).args([&image, &image]);
    setup.arg("--root-hash-file").arg(files.join("hash"));
    succeed(&mut setup)?;
    std::fs::write(files.join("offset"), offset)?;
    Ok(image)
}

/// A disk with a partition for each image.
fn partitioned(files: &Path, images: &[PathBuf]) -> Fallible<PathBuf> {
    const MIB: u64 = 1 << 20;
    let disk = files.join("partitioned.img");
    let mut file = File::create(&disk)?;
    file.set_len(2 * MIB * (u64::try_from(images.len())? + 1))?;
    let mut table = "label: gpt\n".to_owned();
    for (start, image) in (1..).zip(images) {
        table.push_str(&format!("start={}, size=4096\n", (start * 2 - 1) * 2048));
        file.seek(SeekFrom::Start((start * 2 - 1) * MIB))?;
        std::io::copy(&mut File::open(image)?, &mut file)?;
    }
    std::fs::write(files.join("table"), table)?;
    let table = File::open(files.join("table"))?;
    succeed(
        Command::new(program("sfdisk"))
            .args(["--quiet", "--no-reread", "--no-tell-kernel"])
            .arg(&disk)
            .stdin(table),
    )?;
    Ok(disk)
}

/// Debian keeps some programs out of a user's PATH.
pub(crate) fn program(name: &str) -> PathBuf {
    let beside = ["/sbin", "/usr/sbin"].map(|directory| Path::new(directory).join(name));
    beside.into_iter().find(|path| path.exists()).unwrap_or_else(|| name.into())
}

pub(crate) fn succeed(command: &mut Command) -> Outcome {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Where a storage is mounted in the guest.
fn place(name: &str) -> String {
    format!("/run/kata-containers/sandbox/storage/{name}")
}

pub(super) fn ext4(driver: &str, source: &str, name: &str) -> Storage {
    Storage {
        driver: driver.into(),
        source: source.into(),
        fstype: "ext4".into(),
        mount_point: place(name),
        ..Default::default()
    }
}

/// Creates and starts a container that sees each storage at `/<last part of its mount point>`.
pub(super) async fn with_storages(ctx: &Ctx, storages: &[Storage]) -> Fallible<Container> {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let container = container.edit(|spec| {
        storages.iter().fold(spec, |spec, storage| {
            let name = storage.mount_point.rsplit('/').next().unwrap_or_default();
            spec.mount(&format!("/{name}"), &storage.mount_point, "bind", &["bind", "rw"])
        })
    });
    let mut request = container.request();
    request.storages = storages.to_vec();
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    Ok(container)
}

/// By node, by PCI path, by what the platform calls it; and given to a group, with or without its files.
async fn disks_of_every_kind_are_mounted(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("disks", "disks", true)).await?;
    let second = format!("{:02x}", ctx.qmp().await?.pci_slot("disk1").await?);
    let group = FSGroup { group_id: 4242, ..Default::default() };
    let storages = [
        Storage { fs_group: Some(group).into(), ..ext4("blk", "/dev/vda", "first") },
        Storage { options: vec!["ro".into()], ..ext4("blk", &second, "second") },
        Storage { options: vec!["ro,noexec".into()], ..ext4("nvdimm", "/dev/pmem0", "pmem") },
    ];
    let container = with_storages(&ctx, &storages).await?;
    assert_eq!(container.sh("cat /first/name /second/name /pmem/name").await?, "firstsecondpmem");
    assert_eq!(container.sh("stat -c '%g %a' /first /first/name").await?, "4242 2775\n4242 664");
    assert_eq!(container.sh("stat -c %g /second/name").await?, "0");
    assert_eq!(container.sh("(: > /second/new) 2>&1 | grep -c 'Read-only'").await?, "1");
    assert_eq!(container.sh("grep ' /pmem ' /proc/mounts | grep -c noexec").await?, "1");
    // A second container finds it mounted, a third something else than it asks for.
    let again = with_storages(&ctx, &storages[..1]).await?;
    assert_eq!(again.sh("echo kept > /first/kept; cat /first/name").await?, "first");
    let taken = with_storages(&ctx, &[ext4("blk", &second, "first")]).await.map(drop).unwrap_err();
    assert!(taken.to_string().contains("/dev/vda"), "{taken}");
    container.remove().await?;
    assert_eq!(again.sh("cat /first/kept").await?, "kept");
    again.remove().await?;
    assert_eq!(ctx.guest_sh("grep -c sandbox/storage $PROC/1/mountinfo; true").await?, "0");
    // What a volume needs that is to be made or encrypted is not in this guest: it is refused, never mounted in the
    // clear.
    let blank = ["create_filesystem", "encryption_key=ephemeral"].map(str::to_owned);
    for (options, words) in
        [(&blank[..1], "the guest has no mkfs.ext4"), (&blank[..], "no confidential data hub")]
    {
        let storage = Storage { driver_options: options.to_vec(), ..ext4("blk", "/dev/vdg", "blank") };
        let mut request = ctx.container(|spec| spec)?.request();
        request.storages = vec![storage];
        let asked = ctx.client().create_container_with(&request).await;
        refused(asked, Code::FAILED_PRECONDITION, &["storage/blank", words]);
    }
    assert_eq!(ctx.guest_sh("ls $PROC/$SERVER/root/run/kata-containers/sandbox/storage; true").await?, "");
    let mmio = with_storages(&ctx, &[ext4("mmioblk", "/dev/vda", "mmio")]).await?;
    assert_eq!(mmio.sh("cat /mmio/kept").await?, "kept");
    mmio.remove().await?;
    layers_make_a_root(&ctx).await?;
    huge_pages_come_and_go(&ctx).await
}

fn with_plain_disks(config: &mut VmConfig, files: &Path) -> Outcome {
    let plain = |name: &str, size| -> Fallible<PathBuf> {
        let path = files.join(name);
        std::fs::write(&path, name)?;
        OpenOptions::new().write(true).open(&path)?.set_len(size)?;
        Ok(path)
    };
    config.disks = vec![plain("one", 1 << 20)?, plain("two", 1 << 20)?];
    config.pmem = Some(plain("memory", 128 << 20)?);
    Ok(())
}

/// Named by the nodes that they have in the guest, they are nodes of the container: with the guest's numbers, to be read
/// and written, and nobody else's.
async fn disks_that_were_there_are_devices(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("nodes", "nodes", true)).await?;
    let mut container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let mut devices = Vec::new();
    let disks =
        [("blk", "/dev/vda", "one"), ("mmioblk", "/dev/vdb", "two"), ("nvdimm", "/dev/pmem0", "memory")];
    for (minor, (kind, node, name)) in (0..).zip(disks) {
        let path = format!("/dev/disk-{name}");
        // The host's number is nobody's here.
        container = container.edit(|spec| spec.add_device(super::passthrough::node(&path, "b", 250, minor)));
        devices.push(Device {
            type_: kind.into(),
            vm_path: node.into(),
            container_path: path,
            ..Default::default()
        });
    }
    let mut request = container.request();
    request.devices.clone_from(&devices);
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    let other = ctx.idle(|spec| spec).await?;
    for (_, node, name) in disks {
        let numbers = format!("stat -c '%t %T' {}", node.replace("/dev/", "$PROC/$SERVER/root/dev/"));
        let numbers = ctx.guest_sh(&numbers).await?;
        let disk = format!("/dev/disk-{name}");
        assert_eq!(container.sh(&format!("stat -c '%t %T' {disk}")).await?, numbers.trim(), "{name}");
        assert_eq!(container.sh(&format!("head -c {} {disk}", name.len())).await?, name);
        container.sh(&format!("printf ! | dd of={disk} bs=1 conv=notrunc,fsync 2> /dev/null")).await?;
        let [major, minor] =
            [0, 1].map(|part| format!("$((0x{}))", numbers.trim().split(' ').nth(part).unwrap_or_default()));
        let own = format!(
            "mknod /tmp/{name} b {major} {minor}; head -c 1 /tmp/{name} 2>&1 | grep -c 'not permitted'"
        );
        assert_eq!(other.sh(&own).await?, "1", "another container can't open {name}");
    }
    container.remove().await?;
    disks_are_files(&ctx).await?;
    // What is written is on the disk. Another container finds it there, by the device's other name.
    let blk = Device { type_: "mmioblk".into(), vm_path: "/dev/vda".into(), ..devices[0].clone() };
    let again = ctx.container(|spec| {
        let node = super::passthrough::node("/dev/disk-one", "b", 250, 0);
        spec.args(["sleep", "1000000"]).add_device(node)
    })?;
    let mut request = again.request();
    request.devices = vec![blk];
    ctx.client().create_container_with(&request).await?;
    again.start().await?;
    assert_eq!(again.sh("head -c 3 /dev/disk-one").await?, "!ne");
    again.remove().await?;
    // One that is not there is waited for, and named.
    for (kind, path) in [("mmioblk", "/dev/vdq"), ("nvdimm", "/dev/pmem7")] {
        let absent = Device { type_: kind.into(), vm_path: path.into(), ..devices[0].clone() };
        let mut request = again.request();
        request.devices = vec![absent];
        refused(ctx.client().create_container_with(&request).await, Code::DEADLINE_EXCEEDED, &[path]);
    }
    Ok(())
}

/// A disk that its user has mounted as a file is the container's device: shims hand its node over as a storage, whose
/// options are the mount's.
async fn disks_are_files(ctx: &Ctx) -> Outcome {
    let node = |disk: &str, name: &str, option: &str| Storage {
        fstype: "bind".into(),
        options: ["rbind", "rprivate", option].map(str::to_owned).to_vec(),
        ..ext4("blk", disk, name)
    };
    let storages = [node("/dev/vda", "first-file", "rw"), node("/dev/vdb", "second-file", "ro")];
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let container = container.edit(|spec| {
        spec.mount("/dev/first", &storages[0].mount_point, "bind", &["rbind", "rprivate", "rw"]).mount(
            "/second",
            &storages[1].mount_point,
            "bind",
            &["rbind", "rprivate", "ro"],
        )
    });
    let mut request = container.request();
    request.storages = storages.to_vec();
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    assert_eq!(container.sh("head -c 3 /dev/first; head -c 3 /second").await?, "!ne!wo");
    container.sh("printf '?' | dd of=/dev/first bs=1 conv=notrunc,fsync 2> /dev/null").await?;
    assert_eq!(container.sh("head -c 3 /dev/first").await?, "?ne");
    assert_eq!(container.sh("(: > /second) 2>&1 | grep -c 'not permitted'").await?, "1");
    container.sh("printf '!' | dd of=/dev/first bs=1 conv=notrunc,fsync 2> /dev/null").await?;
    container.remove().await?;
    assert_eq!(ctx.guest_sh("grep -c sandbox/storage $PROC/1/mountinfo; true").await?, "0");
    Ok(())
}

/// Images on each other: partitions of one disk under a layer in memory; a disk under one that keeps what is written.
async fn layers_make_a_root(ctx: &Ctx) -> Outcome {
    let member = |source: &str, fstype: &str, options: &[&str]| {
        let options =
            options.iter().chain(&["X-kata.multi-layer=true"]).map(|option| (*option).to_owned()).collect();
        Storage { fstype: fstype.into(), options, ..ext4("blk", source, "layers") }
    };
    let partition = |number: &str| {
        let number = format!("X-kata.partition-number={number}");
        member("/dev/vdc", "erofs", &["X-kata.overlay-lower", "X-kata.gpt-partitioned=true", &number])
    };
    let container = with_storages(ctx, &[partition("2"), partition("1")]).await?;
    let seen = "cat /layers/name /layers/top /layers/middle; echo new > /layers/new && cat /layers/new";
    assert_eq!(container.sh(seen).await?, "top top middle new");
    // The next server knows the layers, too.
    let mounted = "grep -c multi-layer $PROC/1/mountinfo; true";
    let before = ctx.guest_sh(mounted).await?;
    let ctx = &crash(ctx).await?;
    assert_eq!(ctx.guest_sh(mounted).await?, before);
    container.over(ctx).remove().await?;
    assert_eq!(ctx.guest_sh(mounted).await?, "0");
    let text = |name: &str| Fallible::Ok(std::fs::read_to_string(ctx.files()?.join(name))?.trim().to_owned());
    let checked = |hash: &str, offset: &str| {
        let (hash, offset) =
            (format!("X-kata.dmverity.roothash={hash}"), format!("X-kata.dmverity.hashoffset={offset}"));
        member("/dev/vdf", "erofs", &["X-kata.overlay-lower", "X-kata.dmverity-enabled=true", &hash, &offset])
    };
    let (hash, offset) = (text("hash")?, text("offset")?);
    // Two containers of one image: to the host it is one disk.
    let container = with_storages(ctx, &[checked(&hash, &offset)]).await?;
    let again = Storage { mount_point: place("again"), ..checked(&hash, &offset) };
    let beside = with_storages(ctx, &[again]).await?;
    assert_eq!(container.sh("cat /layers/name").await?, "checked ");
    container.remove().await?;
    assert_eq!(beside.sh("cat /again/name").await?, "checked ");
    beside.remove().await?;
    with_storages(ctx, &[checked(&"0".repeat(hash.len()), &offset)]).await.map(drop).unwrap_err();
    let upper =
        member("/dev/vde", "ext4", &["X-kata.overlay-upper", "X-kata.mkdir.path={{ mount 0 }}/made:0755"]);
    let container =
        with_storages(ctx, &[upper, member("/dev/vdd", "erofs", &["X-kata.overlay-lower"])]).await?;
    assert_eq!(container.sh("cat /layers/name; echo kept > /layers/kept").await?, "bottom ");
    container.remove().await?;
    assert_eq!(ctx.guest_sh("grep -c multi-layer $PROC/1/mountinfo; true").await?, "0");
    let container = with_storages(ctx, &[ext4("blk", "/dev/vde", "written")]).await?;
    assert_eq!(container.sh("cat /written/upper/kept; ls -d /written/made").await?, "kept\n/written/made");
    container.remove().await?;
    Ok(())
}

/// The pages are the volume's own, and the guest has its memory back when the volume does not come about.
async fn huge_pages_come_and_go(ctx: &Ctx) -> Outcome {
    let options = vec!["pagesize=2097152,size=8388608".into(), "fsgid=4242".into()];
    let huge = Storage {
        driver: "ephemeral".into(),
        source: "nodev".into(),
        fstype: "hugetlbfs".into(),
        options,
        mount_point: place("huge"),
        ..Default::default()
    };
    let absent = ext4("blk", "/dev/null", "absent");
    with_storages(ctx, &[huge.clone(), absent]).await.map(drop).unwrap_err();
    let pages = "sed -n 's/HugePages_Total: *//p' /proc/meminfo";
    assert_eq!(ctx.guest_sh(pages).await?, "0");
    let container = with_storages(ctx, std::slice::from_ref(&huge)).await?;
    let seen = format!("{pages}; grep ' /huge ' /proc/mounts | cut -d' ' -f3; stat -c '%g %A' /huge");
    assert_eq!(container.sh(&seen).await?, "4\nhugetlbfs\n4242 drwxr-sr-x");
    // The kernel gives such a file system no other size: it would say yes and do nothing.
    let larger = Storage { options: vec!["remount".into(), "size=16777216".into()], ..huge.clone() };
    refused(
        super::mounts::remount(ctx, larger).await,
        Code::INVALID_ARGUMENT,
        &["huge pages", "size=16777216"],
    );
    let same = Storage { options: vec!["remount".into(), "size=8M".into()], ..huge.clone() };
    super::mounts::remount(ctx, same).await?;
    assert_eq!(container.sh(&seen).await?, "4\nhugetlbfs\n4242 drwxr-sr-x");
    container.remove().await?;
    // More than the guest has, and pages that no machine has: the pool keeps what it had.
    for (options, code, words) in [
        ("pagesize=2M,size=1024G", Code::RESOURCE_EXHAUSTED, ["only ", "of 524288 huge pages"]),
        ("pagesize=8M,size=8M", Code::INVALID_ARGUMENT, ["no huge pages of 8192 kB", "2048kB"]),
    ] {
        let mut request = ctx.container(|spec| spec)?.request();
        let volume = Storage { options: vec![options.into()], mount_point: place("vast"), ..huge.clone() };
        request.storages = vec![volume];
        refused(ctx.client().create_container_with(&request).await, code, &words);
        assert_eq!(ctx.guest_sh(pages).await?, "4");
    }
    Ok(())
}

fn with_scsi(config: &mut VmConfig, _: &Path) -> Outcome {
    config.scsi = true;
    // A busy host's guest may take long to hear of a device.
    config.cmdline.push("agent.hotplug_timeout=60".to_owned());
    Ok(())
}

/// What is on them is lost. Their containers and mounts go all the same, others notice nothing, and their places can be
/// used again.
async fn disks_that_are_pulled_out_while_they_are_used_keep_nobody(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("pulled", "pulled", true)).await?;
    let other = ctx.idle(|spec| spec).await?;
    let mut qmp = ctx.qmp().await?;
    let port = format!("{:02x}/00", qmp.pci_slot("rp0").await?);
    for name in ["one", "two"] {
        let (blk, scsi) = (format!("blk{name}"), format!("scsi{name}"));
        let images = [disk(ctx.files()?, &blk, "4M")?, disk(ctx.files()?, &scsi, "4M")?];
        qmp.plug_disk(&blk, &images[0], "virtio-blk-pci", json!({ "bus": "rp0" })).await?;
        plug_unit(&mut qmp, &scsi, &images[1]).await?;
        let storages = [ext4("blk", &port, "pci"), ext4("scsi", "1:2", "lun")];
        let container = with_storages(&ctx, &storages).await?;
        let seen = container.sh("cat /pci/name /lun/name; echo new > /pci/new; exec 9> /lun/new").await?;
        assert_eq!(seen, format!("{blk}{scsi}"));
        qmp.unplug_disk(&blk).await?;
        qmp.unplug_disk(&scsi).await?;
        assert_eq!(other.sh("echo alive").await?, "alive");
        container.remove().await?;
        assert_eq!(ctx.guest_sh("grep -c sandbox/storage $PROC/1/mountinfo; true").await?, "0");
    }
    Ok(())
}

/// Plugged in while the container is being created; and another at the same place when the first has left.
async fn disks_that_are_plugged_in_are_mounted(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("plugged", "plugged", true)).await?;
    let mut qmp = ctx.qmp().await?;
    let port = format!("{:02x}/00", qmp.pci_slot("rp0").await?);
    for name in ["one", "two", "three"] {
        let (blk, scsi) = (format!("blk{name}"), format!("scsi{name}"));
        let images = [disk(ctx.files()?, &blk, "4M")?, disk(ctx.files()?, &scsi, "4M")?];
        let storages = [ext4("blk", &port, "pci"), ext4("scsi", "1:2", "lun")];
        let plug = async {
            qmp.plug_disk(&blk, &images[0], "virtio-blk-pci", json!({ "bus": "rp0" })).await?;
            plug_unit(&mut qmp, &scsi, &images[1]).await
        };
        let (container, plugged) = tokio::join!(with_storages(&ctx, &storages), plug);
        plugged?;
        let container = container?;
        assert_eq!(container.sh("cat /pci/name /lun/name").await?, format!("{blk}{scsi}"));
        container.remove().await?;
        qmp.unplug_disk(&scsi).await?;
        qmp.unplug_disk(&blk).await?;
    }
    Ok(())
}

async fn plug_unit(qmp: &mut Qmp, id: &str, image: &Path) -> Outcome {
    Ok(qmp.plug_disk(id, image, "scsi-hd", json!({ "bus": "scsi0.0", "scsi-id": 1, "lun": 2 })).await?)
}
