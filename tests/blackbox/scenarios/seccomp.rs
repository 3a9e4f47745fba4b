//! System call filters: for init and for what is exec'd, with and without `noNewPrivileges`.

use std::os::unix::fs::PermissionsExt as _;

use nakai_ctl::SpecBuilder;
use nakai_protocols::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};

use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, elf, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_filter_holds_for_init_and_exec),
        scenario!(a_filter_answers_with_its_errno),
        scenario!(a_filter_can_kill),
        scenario!(a_filter_may_refuse_what_the_last_steps_need),
        scenario!(a_masked_comparison_is_the_right_way_round),
        scenario!(a_call_that_is_newer_than_the_filter_does_not_exist),
    ]
}

fn filter(names: &[&str], action: &str, errno: u32, args: Vec<LinuxSeccompArg>) -> LinuxSeccomp {
    let call = LinuxSyscall {
        Names: names.iter().map(|&name| name.to_owned()).collect(),
        Action: action.to_owned(),
        errnoret: errno,
        Args: args,
        ..Default::default()
    };
    LinuxSeccomp { DefaultAction: "SCMP_ACT_ALLOW".to_owned(), Syscalls: vec![call], ..Default::default() }
}

fn no_mkdir() -> LinuxSeccomp {
    filter(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO", 1, Vec::new())
}

/// What mkdir(1) says as an exec.
async fn mkdir(container: &Container) -> Fallible<String> {
    let finished = container.exec(["mkdir", "/made"]).await?;
    Ok(String::from_utf8(finished.stderr)?)
}

async fn a_filter_holds_for_init_and_exec(ctx: Ctx) -> Outcome {
    for no_new_privileges in [true, false] {
        for capable in [true, false] {
            let edit = |spec: SpecBuilder| {
                let spec = spec.seccomp(no_mkdir()).no_new_privileges(no_new_privileges);
                if capable { spec } else { spec.capabilities([""; 0]).user(1000, 1000, []) }
            };
            let case = format!("no_new_privileges {no_new_privileges}, capable {capable}");
            let script =
                "mkdir /tmp/made 2>&1; grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status | cut -f 2";
            let bounding = if capable { "00000000a80425fb" } else { "0000000000000000" };
            let expected = format!(
                "mkdir: can't create directory '/tmp/made': Operation not permitted\n{bounding}\n{}\n2",
                u8::from(no_new_privileges)
            );
            assert_eq!(ctx.output(script, edit).await?, expected, "{case}");
            let container = ctx.idle(edit).await?;
            assert_eq!(container.sh(script).await?, expected, "exec, {case}");
            container.remove().await?;
        }
    }
    let container = ctx.idle(|spec| spec).await?;
    assert_eq!(mkdir(&container).await?, "", "without a filter");
    Ok(())
}

async fn a_filter_answers_with_its_errno(ctx: Ctx) -> Outcome {
    let refuse =
        filter(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO", libc::ECONNREFUSED.unsigned_abs(), Vec::new());
    let container = ctx.idle(|spec| spec.seccomp(refuse)).await?;
    let stderr = mkdir(&container).await?;
    assert!(stderr.contains("Connection refused"), "{stderr}");
    Ok(())
}

async fn a_filter_can_kill(ctx: Ctx) -> Outcome {
    let kill = filter(&["mkdir", "mkdirat"], "SCMP_ACT_KILL_PROCESS", 0, Vec::new());
    let container = ctx.idle(|spec| spec.seccomp(kill)).await?;
    // 128 + SIGSYS.
    assert_eq!(container.exec(["mkdir", "/made"]).await?.status, 159);
    assert_eq!(container.sh("echo alive").await?, "alive");
    Ok(())
}

/// A process is put in its place before the filter holds: with `noNewPrivileges` by all that is needed for it.
async fn a_filter_may_refuse_what_the_last_steps_need(ctx: Ctx) -> Outcome {
    // The programs of the image ask prctl(2) for their name: they can do without the answer, but not be killed for it.
    let cases: [(&[&str], &str); 2] = [
        (&["prctl", "capset", "setuid", "setgid"], "SCMP_ACT_ERRNO"),
        (&["capset", "setuid", "setgid"], "SCMP_ACT_KILL_PROCESS"),
    ];
    for (calls, action) in cases {
        let refuse = filter(calls, action, 1, Vec::new());
        let edit = |spec: SpecBuilder| spec.seccomp(refuse).no_new_privileges(true);
        let container = ctx.idle(edit).await?;
        // Longer than the process that has started it.
        assert_eq!(container.sh("sleep 0.3; echo alive").await?, "alive", "{action}");
        container.remove().await?;
    }
    Ok(())
}

/// `value` is the mask and `valueTwo` what remains under it: here, a UTS namespace without an IPC namespace.
async fn a_masked_comparison_is_the_right_way_round(ctx: Ctx) -> Outcome {
    let (uts, ipc) = (0x0400_0000, 0x0800_0000);
    let arg = LinuxSeccompArg {
        Index: 0,
        Value: uts | ipc,
        ValueTwo: uts,
        Op: "SCMP_CMP_MASKED_EQ".to_owned(),
        ..Default::default()
    };
    let rule = filter(&["unshare"], "SCMP_ACT_ERRNO", 1, vec![arg]);
    let edit = |spec: SpecBuilder| spec.seccomp(rule).capabilities(["CAP_SYS_ADMIN"]);
    let container = ctx.idle(edit).await?;
    for (flags, allowed) in [("-u", false), ("-i", true), ("-ui", true), ("-m", true), ("-um", false)] {
        let finished = container.exec(["unshare", flags, "true"]).await?;
        let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
        assert_eq!(finished.status == 0, allowed, "unshare {flags}: {stderr}");
    }
    Ok(())
}

/// A program that makes that system call, without arguments, and ends with its error.
fn caller(number: u32) -> Vec<u8> {
    let [a, b, c, d] = number.to_le_bytes();
    elf::program(&[
        // mov eax, number; xor edi, edi; xor esi, esi; syscall
        0xb8, a, b, c, d, 0x31, 0xff, 0x31, 0xf6, 0x0f, 0x05,
        // neg eax; mov edi, eax; mov eax, 60 (exit); syscall
        0xf7, 0xd8, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05,
    ])
}

/// C libraries go on with an older call then, and with no other error. The newest that is named here is close_range
/// (436).
async fn a_call_that_is_newer_than_the_filter_does_not_exist(ctx: Ctx) -> Outcome {
    let allow = filter(&["execve", "exit", "close_range"], "SCMP_ACT_ALLOW", 0, Vec::new());
    let profile = LinuxSeccomp { DefaultAction: "SCMP_ACT_ERRNO".to_owned(), ..allow };
    for (number, expected) in [(435, libc::EPERM), (437, libc::ENOSYS), (100_000, libc::ENOSYS)] {
        let container = ctx.container(|spec| spec.args(["/call"]).seccomp(profile.clone()))?;
        let path = container.file("/call");
        std::fs::write(&path, caller(number))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        container.create().await?;
        container.start().await?;
        let finished = container.finish(b"").await?;
        assert_eq!(
            finished.status,
            expected,
            "call {number}: {:?}",
            String::from_utf8_lossy(&finished.stderr)
        );
    }
    Ok(())
}
