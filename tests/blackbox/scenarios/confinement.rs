//! What a container may not do and see: capabilities, read-only and masked paths, devices, kernel parameters.

use nakai_ctl::SpecBuilder;
use nakai_protocols::oci;

use crate::harness::expect::succeeded;
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(capabilities_are_exactly_the_given_ones),
        scenario!(capabilities_that_do_not_exist_are_not_given),
        scenario!(ambient_capabilities_reach_a_user),
        scenario!(no_new_privileges_holds),
        scenario!(masked_paths_are_empty),
        scenario!(readonly_paths_are_readonly),
        scenario!(a_readonly_root_is_readonly),
        scenario!(kernel_parameters_are_set),
        scenario!(ordinary_devices_are_there),
        scenario!(other_devices_are_out_of_reach),
        scenario!(without_rules_devices_that_are_mounted_can_be_opened),
        scenario!(without_rules_a_privileged_container_opens_any_device),
        scenario!(a_device_of_the_spec_is_made),
        scenario!(mounts_are_as_asked_for),
        scenario!(recursive_options_reach_what_is_below),
        scenario!(a_tmpfs_begins_with_what_it_hides),
    ]
}

const CAPABILITIES: &str = "grep -E '^Cap' /proc/self/status | cut -f 2";

fn sets(inheritable: u64, permitted: u64, effective: u64, bounding: u64, ambient: u64) -> String {
    [inheritable, permitted, effective, bounding, ambient].map(|set| format!("{set:016x}")).join("\n")
}

/// CAP_CHOWN and CAP_KILL (capability.h).
const CHOWN_KILL: u64 = 1 | 1 << 5;

async fn capabilities_are_exactly_the_given_ones(ctx: Ctx) -> Outcome {
    let given = |spec: SpecBuilder| spec.capabilities(["CAP_CHOWN", "CAP_KILL"]);
    let expected = sets(0, CHOWN_KILL, CHOWN_KILL, CHOWN_KILL, 0);
    let container = ctx.idle(given).await?;
    assert_eq!(ctx.output(CAPABILITIES, given).await?, expected);
    assert_eq!(container.sh(CAPABILITIES).await?, expected, "exec");
    // Left out, an exec has the container's, and a container has none. Empty, both have none.
    let none = sets(0, 0, 0, 0, 0);
    let exec = |capabilities: Option<oci::LinuxCapabilities>| {
        let mut process = container.process(["sh", "-c", CAPABILITIES]);
        process.Capabilities = capabilities.into();
        container.exec_process(process)
    };
    assert_eq!(succeeded(exec(None).await?), expected, "exec, left out");
    assert_eq!(succeeded(exec(Some(oci::LinuxCapabilities::new())).await?), none, "exec, empty");
    let left_out =
        |spec: SpecBuilder| spec.edit(|spec| spec.Process.mut_or_insert_default().Capabilities = None.into());
    assert_eq!(ctx.output(CAPABILITIES, left_out).await?, none, "left out");
    assert_eq!(ctx.output(CAPABILITIES, |spec| spec.capabilities([""; 0])).await?, none, "empty");
    Ok(())
}

/// A warning and no failure (runtime specification): a newer host may name what this guest has never heard of.
async fn capabilities_that_do_not_exist_are_not_given(ctx: Ctx) -> Outcome {
    let names = ["CAP_CHOWN", "CAP_FLY", "CAP_KILL"];
    let expected = sets(0, CHOWN_KILL, CHOWN_KILL, CHOWN_KILL, 0);
    let container = ctx.idle(|spec| spec.capabilities(names)).await?;
    assert_eq!(container.sh("grep -E '^Cap' /proc/1/status | cut -f 2").await?, expected);
    let mut process = container.process(["sh", "-c", CAPABILITIES]);
    process.Capabilities.mut_or_insert_default().Bounding = names.map(str::to_owned).to_vec();
    assert_eq!(succeeded(container.exec_process(process).await?), expected, "exec");
    Ok(())
}

async fn ambient_capabilities_reach_a_user(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| {
        spec.user(1000, 1000, []).capabilities(["CAP_CHOWN", "CAP_KILL"]).edit(|spec| {
            let capabilities = spec.Process.mut_or_insert_default().Capabilities.mut_or_insert_default();
            capabilities.Inheritable = vec!["CAP_KILL".to_owned()];
            capabilities.Ambient = vec!["CAP_KILL".to_owned()];
        })
    };
    let kill = 1 << 5;
    assert_eq!(ctx.output(CAPABILITIES, edit).await?, sets(kill, kill, kill, CHOWN_KILL, kill));
    // A user without ambient ones keeps none over execve(2).
    let user = |spec: SpecBuilder| spec.user(1000, 1000, []).capabilities(["CAP_KILL"]);
    assert_eq!(ctx.output(CAPABILITIES, user).await?, sets(0, 0, 0, kill, 0));
    Ok(())
}

async fn no_new_privileges_holds(ctx: Ctx) -> Outcome {
    let show = "grep NoNewPrivs /proc/self/status | cut -f 2";
    assert_eq!(ctx.output(show, |spec| spec.no_new_privileges(false)).await?, "0");
    let container = ctx.idle(|spec| spec.no_new_privileges(true)).await?;
    assert_eq!(container.sh(show).await?, "1");
    let process = container.spec().clone().no_new_privileges(false).args(["sh", "-c", show]).process();
    assert_eq!(succeeded(container.exec_process(process).await?), "1", "an exec can't take it back");
    Ok(())
}

async fn masked_paths_are_empty(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| {
        spec.masked_paths(["/etc/passwd", "/secret", "/not/there", "/proc/uptime"]).args(["sleep", "1000000"])
    })?;
    std::fs::create_dir(container.file("/secret"))?;
    std::fs::write(container.file("/secret/key"), "secret")?;
    container.create().await?;
    container.start().await?;
    let script = "cat /etc/passwd /proc/uptime | wc -c; ls -A /secret | wc -l; touch /secret/x 2>&1; :";
    let seen = container.sh(script).await?;
    assert!(seen.starts_with("0\n0\n"), "{seen}");
    assert!(seen.contains("Read-only file system"), "{seen}");
    assert!(container.file("/etc/passwd").metadata()?.len() > 0, "the file itself is untouched");
    Ok(())
}

async fn readonly_paths_are_readonly(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.readonly_paths(["/etc", "/proc/sys", "/not/there"])).await?;
    for path in ["/etc/new", "/etc/passwd", "/proc/sys/kernel/shmmni"] {
        let finished = container.exec(["sh", "-c", &format!("echo 1 > {path}")]).await?;
        let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
        assert!(finished.status != 0 && stderr.contains("Read-only file system"), "{path}: {stderr}");
    }
    assert_eq!(container.sh("touch /tmp/x && wc -l < /etc/group").await?, "4");
    // Nothing else is changed: what is there may be executed.
    let container = ctx.idle(|spec| spec.readonly_paths(["/bin"])).await?;
    let look = "for at in / /bin; do grep \" $at \" /proc/mounts | cut -d ' ' -f 4; done";
    let found = container.sh(look).await?;
    let (root, bin) = found.split_once('\n').ok_or("no two mounts")?;
    assert_eq!((root.replacen("rw,", "ro,", 1).as_str(), bin.starts_with("ro,")), (bin, true));
    // A working directory is no way around, whoever makes init: with tmpcopyup libcontainer does.
    let copied = |spec: SpecBuilder| spec.mount("/copied", "tmpfs", "tmpfs", &["tmpcopyup"]);
    for edit in [(|spec| spec) as fn(SpecBuilder) -> SpecBuilder, copied] {
        let write = "(echo 4097 > kernel/shmmni) 2> /dev/null && echo written || echo refused";
        let seen =
            ctx.output(write, |spec| edit(spec.readonly_paths(["/proc/sys"]).cwd("/proc/sys"))).await?;
        assert_eq!(seen, "refused");
    }
    Ok(())
}

async fn a_readonly_root_is_readonly(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.readonly_rootfs(true)).await?;
    let finished = container.exec(["touch", "/file"]).await?;
    let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert!(finished.status == 1 && stderr.contains("Read-only file system"), "{stderr}");
    assert_eq!(container.sh("touch /dev/shm/file && echo x > /dev/null && echo written").await?, "written");
    Ok(())
}

async fn kernel_parameters_are_set(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| spec.sysctl("kernel.msgmax", "4097").sysctl("net.ipv4.ip_forward", "1");
    let show = "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward";
    assert_eq!(ctx.output(show, edit).await?, "4097\n1");
    // Both belong to the sandbox.
    assert_eq!(ctx.output(show, |spec| spec).await?, "4097\n1");
    Ok(())
}

async fn ordinary_devices_are_there(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let list = "cd /dev; stat -c '%n %F %t:%T %a %u' null zero full random urandom tty";
    let expected = [
        "null character special file 1:3 666 0",
        "zero character special file 1:5 666 0",
        "full character special file 1:7 666 0",
        "random character special file 1:8 666 0",
        "urandom character special file 1:9 666 0",
        "tty character special file 5:0 666 0",
    ];
    assert_eq!(container.sh(list).await?, expected.join("\n"));
    let links = "cd /dev; for link in fd stdin stdout stderr ptmx; do readlink $link; done";
    let expected = ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"];
    assert_eq!(container.sh(links).await?, expected.join("\n"));
    assert_eq!(container.sh("echo x > /dev/null; head -c 3 /dev/urandom | wc -c").await?, "3");
    Ok(())
}

/// Tries to open a device that it makes for itself.
async fn opens_device(container: &Container, number: &str) -> Fallible<bool> {
    let script = format!("rm -f /dev/own; mknod /dev/own c {number} && : < /dev/own");
    let finished = container.exec(["sh", "-c", &script]).await?;
    let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert!(finished.status == 0 || stderr.contains("Operation not permitted"), "{stderr}");
    Ok(finished.status == 0)
}

async fn other_devices_are_out_of_reach(ctx: Ctx) -> Outcome {
    let capable = |spec: SpecBuilder| spec.capabilities(["CAP_MKNOD", "CAP_SYSLOG", "CAP_SYS_RAWIO"]);
    let container = ctx.idle(capable).await?;
    assert!(opens_device(&container, "1 5").await?, "/dev/zero");
    assert!(!opens_device(&container, "1 11").await?, "/dev/kmsg");
    assert!(!opens_device(&container, "1 1").await?, "/dev/mem");
    let container = ctx.idle(|spec| capable(spec).add_device_rule(true, "c", 1, 11, "r")).await?;
    assert!(opens_device(&container, "1 11").await?, "/dev/kmsg, with a rule for it");
    assert!(!opens_device(&container, "1 1").await?, "/dev/mem still");
    Ok(())
}

/// What shims make of the rules.
fn without_rules(spec: SpecBuilder) -> SpecBuilder {
    spec.edit(|spec| {
        spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default().Devices.clear();
    })
}

/// As a pod of Kubernetes has it by `hostPath`: the path is the guest's. Opened for writing, as reading wants a
/// capability.
async fn without_rules_devices_that_are_mounted_can_be_opened(ctx: Ctx) -> Outcome {
    let open = "(: > /dev/kmsg) 2> /dev/null && echo opened || echo refused";
    let edit = |spec: SpecBuilder| spec.mount("/dev/kmsg", "/dev/kmsg", "bind", &["rbind", "rw"]);
    assert_eq!(ctx.output(open, edit).await?, "refused", "with a rule that denies all");
    assert_eq!(ctx.output(open, |spec| without_rules(edit(spec))).await?, "opened");
    Ok(())
}

/// Whoever may load modules into the guest's kernel is kept from nothing by a rule; its memory stays closed all the same.
async fn without_rules_a_privileged_container_opens_any_device(ctx: Ctx) -> Outcome {
    let names = ["CAP_MKNOD", "CAP_SYSLOG", "CAP_SYS_RAWIO", "CAP_SYS_MODULE", "CAP_SYS_ADMIN"];
    let container = ctx.idle(|spec| without_rules(spec.capabilities(names))).await?;
    assert!(opens_device(&container, "1 11").await?, "/dev/kmsg");
    assert!(!opens_device(&container, "1 1").await?, "/dev/mem");
    container.remove().await?;
    let container = ctx.idle(|spec| without_rules(spec.capabilities(names[..4].iter().copied()))).await?;
    assert!(!opens_device(&container, "1 11").await?, "/dev/kmsg, of a lesser one");
    Ok(())
}

async fn a_device_of_the_spec_is_made(ctx: Ctx) -> Outcome {
    let device = oci::LinuxDevice {
        Path: "/dev/deep/mine".to_owned(),
        Type: "c".to_owned(),
        Major: 1,
        Minor: 5,
        FileMode: 0o640,
        UID: 1000,
        GID: 5,
        ..Default::default()
    };
    let edit = |spec: SpecBuilder| spec.add_device(device.clone()).add_device_rule(true, "c", 1, 5, "rwm");
    let script = "stat -c '%t:%T %a %u %g' /dev/deep/mine; head -c 2 /dev/deep/mine | od -An -tx1";
    assert_eq!(ctx.output(script, edit).await?, "1:5 640 1000 5\n 00 00");
    Ok(())
}

async fn mounts_are_as_asked_for(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (host, guest) = ctx.directory(&container, "volume")?;
    std::fs::write(host.join("file"), "of the volume")?;
    let container = container.edit(|spec| {
        spec.mount("/new/rw", &guest, "bind", &["rbind", "rw"])
            .mount("/new/ro", &guest, "bind", &["rbind", "ro", "nosuid"])
            .mount("/etc/passwd", &format!("{guest}/file"), "bind", &["bind", "ro"])
            .mount("/scratch", "tmpfs", "tmpfs", &["size=64k", "mode=700", "noexec"])
    });
    container.create().await?;
    container.start().await?;
    assert_eq!(
        container.sh("cat /new/ro/file; echo; cat /etc/passwd").await?,
        "of the volume\nof the volume"
    );
    assert_eq!(container.sh("echo more > /new/rw/other; cat /new/ro/other").await?, "more");
    assert_eq!(std::fs::read_to_string(host.join("other"))?, "more\n");
    for path in ["/new/ro/x", "/etc/passwd"] {
        assert_ne!(container.exec(["sh", "-c", &format!("echo x > {path}")]).await?.status, 0, "{path}");
    }
    let scratch =
        container.sh("stat -c %a /scratch; grep ' /scratch ' /proc/mounts | cut -d ' ' -f 4").await?;
    assert!(scratch.starts_with("700\nrw,") && scratch.contains("noexec"), "{scratch}");
    assert!(scratch.contains("size=64k"), "{scratch}");
    Ok(())
}

async fn recursive_options_reach_what_is_below(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| {
        spec.mount("/all", "/sys", "bind", &["rbind", "rro", "rnosuid"])
            .mount("/top", "/sys", "bind", &["rbind", "ro"])
            .mount("/plain", "/sys", "bind", &["rbind", "nosymfollow"])
            .capabilities(["CAP_SYS_ADMIN"])
    };
    let options = |at: &str| {
        format!("grep -E ' {at}(/[^ ]*)? ' /proc/mounts | cut -d ' ' -f 4 | cut -d , -f 1 | sort -u")
    };
    let container = ctx.idle(edit).await?;
    assert_eq!(container.sh(&options("/all")).await?, "ro");
    assert_eq!(container.sh(&options("/top")).await?, "ro\nrw", "there is something below");
    // As mount(8) has it.
    let at_plain = "grep -E ' /plain(/[^ ]*)? ' /proc/mounts | grep nosymfollow | cut -d ' ' -f 2";
    assert_eq!(container.sh(at_plain).await?, "/plain");
    Ok(())
}

async fn a_tmpfs_begins_with_what_it_hides(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| {
        spec.mount("/data", "tmpfs", "tmpfs", &["rw", "nosuid", "tmpcopyup", "size=64k"])
            .args(["sleep", "1000000"])
    })?;
    std::fs::create_dir_all(container.file("/data/deep"))?;
    std::fs::write(container.file("/data/deep/file"), "of the image\n")?;
    std::os::unix::fs::symlink("deep/file", container.file("/data/link"))?;
    container.create().await?;
    container.start().await?;
    assert_eq!(container.sh("cat /data/link; readlink /data/link").await?, "of the image\ndeep/file");
    container.sh("echo changed > /data/deep/file").await?;
    assert_eq!(std::fs::read_to_string(container.file("/data/deep/file"))?, "of the image\n");
    Ok(())
}
