//! Volumes that are made on blank disks.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use nakai_ctl::sandbox;
use nakai_ctl::vm::VmConfig;
use nakai_protocols::agent::{FSGroup, Storage};
use nakai_rootfs::tree::Tree;
use ttrpc::Code;

use super::disks::{disk, empty, ext4, program, with_storages};
use crate::harness::expect::refused;
use crate::harness::{Ctx, Outcome, Scenario, own_vm, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(blank_disks_get_a_file_system).machine(with_blank_disks)]
}

/// The guest that `make image` builds has no mkfs.ext4: this one gets the host's.
fn with_blank_disks(config: &mut VmConfig, files: &Path) -> Outcome {
    let other = empty(files, "other")?;
    OpenOptions::new().write(true).open(&other)?.write_all(b"somebody's")?;
    config.disks = vec![empty(files, "blank")?, disk(files, "used", "16M")?, other];
    let file = program("mkfs.ext4").canonicalize()?;
    let mut tree = Tree::new();
    own_vm::add_program(&mut tree, &file)?;
    tree.symlink("usr/sbin/mkfs.ext4", file.to_str().ok_or("a name that is no text")?)?;
    let initrd = files.join("initrd-with-mkfs");
    own_vm::add_modules(&config.initrd, &[], tree, &initrd)?;
    config.initrd = initrd;
    Ok(())
}

/// The host asks for a volume of a blank disk. Once it is made it keeps what is in it, whoever asks; what is on any other
/// disk stays.
async fn blank_disks_get_a_file_system(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("blank", "blank", true)).await?;
    let made = |source: &str, name: &str| {
        let driver_options = vec!["create_filesystem".to_owned()];
        Storage { driver_options, options: vec!["nodev,noexec".into()], ..ext4("blk", source, name) }
    };
    let group = FSGroup { group_id: 4242, ..Default::default() };
    let volume = Storage { fs_group: Some(group).into(), ..made("/dev/vda", "made") };
    let volumes = [volume];
    let (one, other) = tokio::join!(with_storages(&ctx, &volumes), with_storages(&ctx, &volumes));
    let (one, other) = (one?, other?);
    assert_eq!(one.sh("grep ' /made ' /proc/mounts | grep -c 'ext4 .*nodev,noexec'").await?, "1");
    assert_eq!(one.sh("stat -c '%g %a' /made; ls /made").await?, "4242 2775\nlost+found");
    // More than any limit of the program that made it.
    one.sh("dd if=/dev/zero of=/made/large bs=1M count=40 2> /dev/null; echo kept > /made/kept; sync")
        .await?;
    assert_eq!(other.sh("cat /made/kept").await?, "kept");
    // A link that a container has left leads the guest nowhere when the volume is given to another group.
    one.sh("mkdir /made/own; ln -s /run /made/own/out; ln -s /run/kata-containers /made/out").await?;
    one.remove().await?;
    other.remove().await?;
    let groups = "stat -c '%g %a' $PROC/$SERVER/root/run $PROC/$SERVER/root/run/kata-containers";
    let before = ctx.guest_sh(groups).await?;
    let [volume] = volumes;
    let group = FSGroup { group_id: 4343, ..Default::default() };
    let again = with_storages(&ctx, &[Storage { fs_group: Some(group).into(), ..volume }]).await?;
    assert_eq!(again.sh("cat /made/kept; stat -c %s /made/large").await?, "kept\n41943040");
    assert_eq!(again.sh("stat -c %g /made/kept /made/own").await?, "4343\n4343");
    assert_eq!(ctx.guest_sh(groups).await?, before);
    again.remove().await?;
    let seen = Command::new(program("dumpe2fs")).arg("-h").arg(ctx.files()?.join("blank.img")).output()?;
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.contains("Filesystem features:") && !seen.contains("has_journal"), "{seen}");

    let used = with_storages(&ctx, &[made("/dev/vdb", "used")]).await?;
    assert_eq!(used.sh("cat /used/name").await?, "used");
    used.remove().await?;
    for (storage, code, words) in [
        (made("/dev/vdc", "no"), Code::FAILED_PRECONDITION, ["/dev/vdc", "not blank"]),
        (
            Storage { fstype: "xfs".into(), ..made("/dev/vdb", "no") },
            Code::INVALID_ARGUMENT,
            ["fstype", "xfs"],
        ),
        (made("/dev/null", "no"), Code::INVALID_ARGUMENT, ["/dev/null", "not a block device"]),
    ] {
        let mut request = ctx.container(|spec| spec)?.request();
        request.storages = vec![storage];
        refused(ctx.client().create_container_with(&request).await, code, &words);
    }
    let mut bytes = [0; 12];
    File::open(ctx.files()?.join("other.img"))?.read_exact(&mut bytes)?;
    assert_eq!(&bytes, b"somebody's\0\0");
    assert_eq!(ctx.guest_sh("grep -c sandbox/storage $PROC/1/mountinfo; true").await?, "0");
    Ok(())
}
