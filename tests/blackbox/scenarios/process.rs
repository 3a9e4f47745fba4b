//! What a program finds when it starts: arguments, environment, user, directory, limits; and which programs start.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use nakai_ctl::SpecBuilder;
use ttrpc::Code;

use crate::harness::expect::{refused, succeeded};
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(arguments_arrive_as_they_are),
        scenario!(the_environment_keeps_its_order),
        scenario!(an_exec_has_its_own_environment),
        scenario!(an_environment_without_a_path_will_do),
        scenario!(home_comes_from_the_passwd_file_alone),
        scenario!(each_container_has_a_session_keyring),
        scenario!(user_and_groups_are_set),
        scenario!(a_user_can_open_its_standard_streams),
        scenario!(the_umask_is_022),
        scenario!(the_working_directory_is_made),
        scenario!(a_working_directory_that_may_not_be_entered_is_named),
        scenario!(the_working_directory_is_made_in_what_is_mounted_there),
        scenario!(resource_limits_are_set),
        scenario!(the_oom_score_is_not_the_agents),
        scenario!(signals_are_as_after_boot),
        scenario!(only_standard_streams_are_open),
        scenario!(no_descriptor_leads_out_of_a_container),
        scenario!(a_program_for_its_owner_alone_runs),
        scenario!(a_missing_program_is_told),
        scenario!(a_file_that_is_no_program_is_told),
        scenario!(a_script_without_interpreter_is_told),
        scenario!(a_program_of_no_known_format_does_not_run),
        scenario!(programs_come_from_the_shared_root),
    ]
}

async fn arguments_arrive_as_they_are(ctx: Ctx) -> Outcome {
    let args = ["printf", "%s|", "", " a b ", "$HOME", "\"quoted\"", "ä\n", "-x"];
    let expected = "| a b |$HOME|\"quoted\"|ä\n|-x|";
    assert_eq!(succeeded(ctx.run(|spec| spec.args(args)).await?), expected);
    let container = ctx.idle(|spec| spec).await?;
    assert_eq!(succeeded(container.exec(args).await?), expected);
    Ok(())
}

async fn the_environment_keeps_its_order(ctx: Ctx) -> Outcome {
    let path = "PATH=/bin:/usr/bin";
    let given = [path, "B=2", "A=1", "EMPTY=", "SPACES= x y ", "EQUALS=a=b", "LAST=ä"];
    let environ = |spec: nakai_ctl::SpecBuilder| spec.environment(given).args(["cat", "/proc/self/environ"]);
    let finished = ctx.run(environ).await?;
    let seen = String::from_utf8(finished.stdout)?;
    let expected: Vec<&str> = given.into_iter().chain(["HOME=/root", ""]).collect();
    assert_eq!(seen.split('\0').collect::<Vec<_>>(), expected);
    Ok(())
}

async fn an_exec_has_its_own_environment(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.env("INIT", "1")).await?;
    let mut process = container.process(["env"]);
    process.Env = vec!["PATH=/bin:/usr/bin".to_owned(), "EXEC=2".to_owned(), "HOME=/given".to_owned()];
    let seen = succeeded(container.exec_process(process).await?);
    assert_eq!(seen, "PATH=/bin:/usr/bin\nEXEC=2\nHOME=/given");
    Ok(())
}

/// A path that is named in full needs none. Of a name that is there twice the last value counts.
async fn an_environment_without_a_path_will_do(ctx: Ctx) -> Outcome {
    let given = ["TWICE=1", "TWICE=2", "HOME=/here"];
    let show_file = ["/bin/busybox", "cat", "/proc/self/environ"];
    let expected = "TWICE=2\0HOME=/here\0";
    let shown = ctx.run(|spec| spec.environment(given).args(show_file)).await?;
    assert_eq!(succeeded(shown), expected);
    let container = ctx.idle(|spec| spec).await?;
    let mut process = container.process(show_file);
    process.Env = given.map(str::to_owned).to_vec();
    assert_eq!(succeeded(container.exec_process(process).await?), expected, "exec");
    Ok(())
}

/// The agent is static: a C library that looks users up would load modules that the image names.
async fn home_comes_from_the_passwd_file_alone(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.user(1000, 1000, []).args(["sh", "-c", "echo $HOME"]))?;
    std::fs::write(container.file("/etc/nsswitch.conf"), "passwd: evil files\ngroup: evil files\n")?;
    let library = container.file("/libnss_evil.so.2");
    build_evil_library(&library)?;
    for directory in
        ["lib", "lib64", "usr/lib", "usr/lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
    {
        std::fs::create_dir_all(container.file(directory))?;
        std::fs::copy(&library, container.file(directory).join("libnss_evil.so.2"))?;
    }
    std::fs::set_permissions(&container.root, std::fs::Permissions::from_mode(0o777))?;
    container.create().await?;
    container.start().await?;
    assert_eq!(succeeded(container.finish(b"").await?), "/home/app");
    assert!(!container.file("/evil-was-here").exists(), "the image's library ran in the agent's process");
    // A user without an entry has the root directory.
    assert_eq!(ctx.output("echo $HOME", |spec| spec.user(4711, 4711, [])).await?, "/");
    Ok(())
}

/// A name service that leaves a file when it is loaded. It needs no C library, so that any process can load it.
fn build_evil_library(target: &Path) -> Outcome {
    const SOURCE: &str = "
        static long call(long number, long a, long b, long c) {
            long result;
            __asm__ volatile (\"syscall\" : \"=a\"(result) : \"a\"(number), \"D\"(a), \"S\"(b), \"d\"(c)
                : \"rcx\", \"r11\", \"memory\");
            return result;
        }
        __attribute__((constructor)) static void loaded(void) {
            /* open(path, O_CREAT, 0666) */
            call(2, (long)\"/evil-was-here\", 0100, 0666);
        }";
    let source = target.with_extension("c");
    std::fs::write(&source, SOURCE)?;
    let cc =
        Command::new("cc").args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(target).arg(&source).output();
    let cc = cc.map_err(|error| format!("cc (of gcc): {error}"))?;
    if cc.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&cc.stderr).into()) }
}

/// One for each container, so that none finds the keys of another.
async fn each_container_has_a_session_keyring(ctx: Ctx) -> Outcome {
    let see = |spec: nakai_ctl::SpecBuilder| spec.masked_paths([""; 0]);
    let (one, other) = (ctx.idle(see).await?, ctx.idle(see).await?);
    let keyring = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let mut seen = Vec::new();
    for container in [&one, &other] {
        let first = container.sh(&format!("grep ' _ses.{}:' /proc/keys", container.id)).await?;
        let second = container.sh(&format!("grep ' _ses.{}:' /proc/keys", container.id)).await?;
        assert_eq!(keyring(&first), keyring(&second), "all execs have the same");
        seen.push(keyring(&first));
    }
    assert_ne!(seen[0], seen[1]);
    Ok(())
}

const IDS: &str = "grep -E '^(Uid|Gid|Groups):' /proc/self/status | tr -s '\\t ' ' '";

async fn user_and_groups_are_set(ctx: Ctx) -> Outcome {
    assert_eq!(ctx.output(IDS, |spec| spec).await?, "Uid: 0 0 0 0\nGid: 0 0 0 0\nGroups: ");
    let container = ctx.idle(|spec| spec.user(1000, 100, [5, 27])).await?;
    let init = "cat /proc/1/status | grep -E '^(Uid|Gid|Groups):' | tr -s '\\t ' ' '";
    let expected = "Uid: 1000 1000 1000 1000\nGid: 100 100 100 100\nGroups: 5 27 ";
    assert_eq!(container.sh(init).await?, expected);
    assert_eq!(container.sh(IDS).await?, expected);
    let mut other = container.process(["sh", "-c", IDS]);
    other.User = Some(nakai_protocols::oci::User { UID: 65534, GID: 1, ..Default::default() }).into();
    let seen = succeeded(container.exec_process(other).await?);
    assert_eq!(seen, "Uid: 65534 65534 65534 65534\nGid: 1 1 1 1\nGroups: ");
    Ok(())
}

async fn a_user_can_open_its_standard_streams(ctx: Ctx) -> Outcome {
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin";
    let container = ctx.started(|spec| spec.user(1000, 1000, []).args(["sh", "-c", script])).await?;
    let finished = container.finish(b"in").await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!((text(&finished.stdout), text(&finished.stderr)), ("out\nin".into(), "err\n".into()));
    Ok(())
}

async fn the_umask_is_022(ctx: Ctx) -> Outcome {
    assert_eq!(ctx.output("umask", |spec| spec).await?, "0022");
    let container = ctx.idle(|spec| spec).await?;
    assert_eq!(container.sh("umask; touch /file; stat -c %a /file").await?, "0022\n644");
    Ok(())
}

/// As `workingDir` beneath an emptyDir: in the volume, and not in the image below it.
async fn the_working_directory_is_made_in_what_is_mounted_there(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.cwd("/work/src/deep").args(["pwd"]))?;
    let (volume, guest) = ctx.directory(&container, "volume")?;
    let container = container.edit(|spec| spec.mount("/work", &guest, "bind", &["rbind", "rw"]));
    container.create().await?;
    container.start().await?;
    assert_eq!(succeeded(container.finish(b"").await?), "/work/src/deep");
    assert!(volume.join("src/deep").is_dir());
    assert!(!container.file("/work/src").exists(), "it is in the image");
    container.remove().await?;

    let memory = |spec: SpecBuilder| {
        spec.mount("/scratch", "scratch", "tmpfs", &["size=16k", "mode=755"])
            .cwd("/scratch/a/b")
            .user(1000, 1000, [])
            .args(["sh", "-c", "pwd; stat -c %u:%a /scratch/a/b"])
    };
    let container = ctx.started(memory).await?;
    assert_eq!(succeeded(container.finish(b"").await?), "/scratch/a/b\n0:755");
    assert!(!container.file("/scratch/a").exists(), "it is in the image");
    container.remove().await?;
    // One that is there is a directory, or the container is refused.
    let (volume, guest) = (volume.join("file"), format!("{guest}/file"));
    std::fs::write(volume, "")?;
    let blocked = ctx.container(|spec| spec.mount("/file", &guest, "bind", &["bind"]).cwd("/file/x"))?;
    refused(blocked.create().await, Code::INVALID_ARGUMENT, &["/file/x"]);
    Ok(())
}

async fn the_working_directory_is_made(ctx: Ctx) -> Outcome {
    let container = ctx.started(|spec| spec.cwd("/new/deep").args(["pwd"])).await?;
    assert_eq!(succeeded(container.finish(b"").await?), "/new/deep");
    let made = std::fs::metadata(container.file("/new/deep"))?;
    assert_eq!((made.mode() & 0o7777, made.uid()), (0o755, 0));
    // A link that leads out of the container leads nowhere.
    let outside = ctx.container(|spec| spec.cwd("/link/dir").args(["pwd"]))?;
    std::os::unix::fs::symlink("/../../../etc", outside.file("/link"))?;
    outside.create().await?;
    assert!(outside.file("/etc/dir").is_dir(), "not made in the container's own /etc");
    // A file in its place.
    let blocked = ctx.container(|spec| spec.cwd("/etc/passwd/x").args(["pwd"]))?;
    refused(blocked.create().await, Code::INVALID_ARGUMENT, &["/etc/passwd/x"]);
    let relative = ctx.container(|spec| spec.cwd("tmp").args(["pwd"]))?;
    refused(relative.create().await, Code::INVALID_ARGUMENT, &["cwd", "tmp"]);
    Ok(())
}

/// It is another user's file system, which keeps root out, too. Of root's own directories none does.
async fn a_working_directory_that_may_not_be_entered_is_named(ctx: Ctx) -> Outcome {
    let capable = |spec: nakai_ctl::SpecBuilder| spec.capabilities(["CAP_SYS_ADMIN", "CAP_MKNOD"]);
    let container = ctx.idle(|spec| capable(spec).add_device_rule(true, "c", 10, 229, "rwm")).await?;
    let mount = "mkdir /tmp/theirs && mkdir -m 700 /tmp/roots && mknod /tmp/fuse c 10 229 && exec 9<>/tmp/fuse && \
         mount -t fuse -o fd=9,rootmode=40000,user_id=1000,group_id=1000 theirs /tmp/theirs";
    container.sh(mount).await?;
    let outsider = container.spec().clone().args(["true"]).user(2000, 2000, []);
    let exec =
        |name, cwd| ctx.client().exec_process(&container.id, name, outsider.clone().cwd(cwd).process());
    refused(exec("a", "/tmp/theirs").await, Code::INVALID_ARGUMENT, &["/tmp/theirs", "ermission denied"]);
    exec("b", "/tmp/roots").await?;
    assert_eq!(ctx.client().wait_process(&container.id, "b").await?, 0);
    Ok(())
}

async fn resource_limits_are_set(ctx: Ctx) -> Outcome {
    let limits = |spec: nakai_ctl::SpecBuilder| {
        spec.rlimit("RLIMIT_NOFILE", 5, 5).rlimit("RLIMIT_CORE", 0, 4096).rlimit("RLIMIT_CPU", 100, u64::MAX)
    };
    let show = ["grep", "-E", "^Max (open files|core|cpu)", "/proc/self/limits"];
    let squeeze = |text: String| {
        text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let expected =
        ["Max cpu time 100 unlimited seconds", "Max core file size 0 4096 bytes", "Max open files 5 5 files"];
    assert_eq!(squeeze(succeeded(ctx.run(|spec| limits(spec).args(show)).await?)), expected);
    let container = ctx.idle(limits).await?;
    assert_eq!(squeeze(succeeded(container.exec(show).await?)), expected);
    let beyond = ctx.container(|spec| spec.rlimit("RLIMIT_NOFILE", 5, 1 << 40))?;
    refused(beyond.create().await, Code::INVALID_ARGUMENT, &["RLIMIT_NOFILE", "1099511627776"]);
    if !ctx.is_host() {
        // What engines ask for where systemd runs; the kernel's own default is a million.
        let many = |spec: nakai_ctl::SpecBuilder| spec.rlimit("RLIMIT_NOFILE", 1_073_741_816, 1_073_741_816);
        assert_eq!(ctx.output("ulimit -n", many).await?, "1073741816");
    }
    Ok(())
}

/// The agent is protected from the OOM killer where it runs as a service; what it starts is not.
async fn the_oom_score_is_not_the_agents(ctx: Ctx) -> Outcome {
    let show = ["cat", "/proc/self/oom_score_adj"];
    let container = ctx.idle(|spec| spec).await?;
    assert_eq!(container.sh("cat /proc/1/oom_score_adj").await?, "0");
    assert_eq!(succeeded(container.exec(show).await?), "0");
    let container = ctx.idle(|spec| spec.oom_score_adj(500)).await?;
    assert_eq!(container.sh("cat /proc/1/oom_score_adj").await?, "500");
    assert_eq!(succeeded(container.exec(show).await?), "500");
    Ok(())
}

/// What the agent blocks and ignores stays its own.
async fn signals_are_as_after_boot(ctx: Ctx) -> Outcome {
    let show = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"];
    let none = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000";
    assert_eq!(succeeded(ctx.run(|spec| spec.args(show)).await?), none);
    let container = ctx.idle(|spec| spec).await?;
    assert_eq!(succeeded(container.exec(show).await?), none);
    Ok(())
}

async fn only_standard_streams_are_open(ctx: Ctx) -> Outcome {
    // 3 is ls's own, for the directory.
    assert_eq!(succeeded(ctx.run(|spec| spec.args(["ls", "/proc/self/fd"])).await?), "0\n1\n2\n3");
    let container = ctx.idle(|spec| spec).await?;
    assert_eq!(succeeded(container.exec(["ls", "/proc/self/fd"]).await?), "0\n1\n2\n3");
    Ok(())
}

/// A program and a working directory are looked up in the container before execve(2) has closed what was open: a path by
/// way of a descriptor must lead to none of the guest's directories, whatever its number.
async fn no_descriptor_leads_out_of_a_container(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    // A directory that the guest has mounted elsewhere, too: the container's own root.
    let beyond = |number: i32| format!("/proc/self/fd/{number}/..{}", ctx.guest_root(&container.id));
    let in_directory = |directory: &str| container.spec().clone().cwd(directory).args(["true"]);
    // In a VM few are open, and a creation takes long.
    let (execs, creations) = if ctx.is_host() { (3..32, 3..24) } else { (3..20, 3..9) };
    for number in execs {
        let exec =
            async |process| ctx.client().exec_process(&container.id, &ctx.fresh_exec_id(), process).await;
        let program = format!("/proc/self/fd/{number}/.");
        refused(exec(container.process([&program])).await, Code::NOT_FOUND, &[&program]);
        let directory = beyond(number);
        let refusal = exec(in_directory(&directory).process()).await;
        refused(refusal, Code::INVALID_ARGUMENT, &["working directory", &directory]);
    }
    for number in creations.clone() {
        let program = format!("/proc/self/fd/{number}/.");
        let init = ctx.container(|spec| spec.args([&program]))?;
        refused(init.create().await, Code::NOT_FOUND, &[&program]);
    }
    // The same whoever makes it: with tmpcopyup libcontainer does.
    let copied = |spec: nakai_ctl::SpecBuilder| spec.mount("/copied", "tmpfs", "tmpfs", &["tmpcopyup"]);
    for number in creations {
        for libcontainers in [false, true] {
            let init = ctx.container(|spec| spec.cwd(&beyond(number)).args(["true"]))?;
            let init = if libcontainers { init.edit(copied) } else { init };
            refused(init.create().await, Code::INVALID_ARGUMENT, &[&beyond(number)]);
        }
    }
    Ok(())
}

async fn a_program_for_its_owner_alone_runs(ctx: Ctx) -> Outcome {
    // CAP_DAC_OVERRIDE would let everybody in.
    let container = ctx.container(|spec| spec.capabilities(["CAP_KILL"]).args(["/mine"]))?;
    std::fs::write(container.file("/mine"), "#!/bin/sh\necho ran; exec sleep 1000000\n")?;
    std::fs::set_permissions(container.file("/mine"), std::fs::Permissions::from_mode(0o700))?;
    container.create().await?;
    container.start().await?;
    assert_eq!(ctx.client().read_stdout(&container.id, "", 100).await?, b"ran\n");
    let mut other = container.process(["/mine"]);
    other.User = Some(nakai_protocols::oci::User { UID: 1000, GID: 1000, ..Default::default() }).into();
    let exec = ctx.client().exec_process(&container.id, "other", other).await;
    refused(exec, Code::PERMISSION_DENIED, &["/mine"]);
    Ok(())
}

async fn a_missing_program_is_told(ctx: Ctx) -> Outcome {
    for program in ["no-such-program", "/no/such/program"] {
        let container = ctx.container(|spec| spec.args([program]))?;
        refused(container.create().await, Code::NOT_FOUND, &[&container.id, program]);
        refused(container.start().await, Code::NOT_FOUND, &[&container.id]);
    }
    let container = ctx.idle(|spec| spec).await?;
    let exec = ctx.client().exec_process(&container.id, "missing", container.process(["no-such"])).await;
    refused(exec, Code::NOT_FOUND, &["missing", &container.id, "no-such"]);
    refused(ctx.client().wait_process(&container.id, "missing").await, Code::NOT_FOUND, &["missing"]);
    assert_eq!(container.sh("echo alive").await?, "alive");
    Ok(())
}

async fn a_file_that_is_no_program_is_told(ctx: Ctx) -> Outcome {
    for program in ["/etc/passwd", "/etc"] {
        let container = ctx.container(|spec| spec.args([program]))?;
        refused(container.create().await, Code::PERMISSION_DENIED, &[&container.id, program]);
    }
    let container = ctx.idle(|spec| spec).await?;
    let exec = ctx.client().exec_process(&container.id, "file", container.process(["/etc/passwd"])).await;
    refused(exec, Code::PERMISSION_DENIED, &["file", "/etc/passwd"]);
    Ok(())
}

/// It only comes out when the program is to run: init ends as a shell's child would, an exec is refused.
async fn a_script_without_interpreter_is_told(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["/script"]))?;
    std::fs::write(container.file("/script"), "#!/no/interpreter\n")?;
    std::fs::set_permissions(container.file("/script"), std::fs::Permissions::from_mode(0o755))?;
    container.create().await?;
    container.start().await?;
    let finished = container.finish(b"").await?;
    let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert_eq!(finished.status, 127, "{stderr}");
    assert!(stderr.contains("/script"), "{stderr}");
    let other = ctx.idle(|spec| spec).await?;
    std::fs::copy(container.file("/script"), other.file("/script"))?;
    let exec = ctx.client().exec_process(&other.id, "script", other.process(["/script"])).await;
    refused(exec, Code::NOT_FOUND, &["/script"]);
    Ok(())
}

/// As by execve(2): no shell is tried instead.
async fn a_program_of_no_known_format_does_not_run(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    std::fs::write(container.file("/script"), "echo ran\n")?;
    std::fs::set_permissions(container.file("/script"), std::fs::Permissions::from_mode(0o755))?;
    let exec = ctx.client().exec_process(&container.id, "script", container.process(["/script"])).await;
    let error = exec.err().ok_or("a file without a format was run")?;
    assert!(error.message.contains("/script"), "{error}");
    assert_eq!(container.sh("echo alive").await?, "alive");
    Ok(())
}

/// Without the shortcut that the other scenarios take in a VM.
async fn programs_come_from_the_shared_root(ctx: Ctx) -> Outcome {
    let spec = |spec: nakai_ctl::SpecBuilder| spec.without_mount("/bin/busybox");
    assert_eq!(ctx.output("echo hello | cat", spec).await?, "hello");
    Ok(())
}
