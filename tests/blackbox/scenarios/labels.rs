//! Security modules that the guest really has: AppArmor, which Debian's kernel runs unless it is told otherwise, and
//! SELinux, for which it has to be asked.
//!
//! The policies are made here, by the modules' own compilers, and loaded into the guest by a container that sees the
//! kernel's files for that.

use std::path::{Path, PathBuf};
use std::process::Command;

use nakai_ctl::SpecBuilder;
use nakai_protocols::oci;
use ttrpc::Code;

use crate::harness::expect::{refused, succeeded};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(an_apparmor_profile_confines_init_and_exec).vm_only(),
        scenario!(an_selinux_label_confines_init_and_exec)
            .own_agent()
            .vm_only()
            .kernel_parameter("security=selinux"),
    ]
}

/// What the guest's kernel understands of AppArmor; the compiler would ask the host's.
const FEATURES: &str = "file {mask {create read write exec append mmap_exec link lock\n}\n}\n\
     capability {0xffffff\n}\nsignal {mask {hup int quit kill term\n}\n}\n";

const PROFILE: &str = "profile blackbox-box flags=(attach_disconnected) {\n\
     file,\ncapability,\nnetwork,\nsignal,\nmount,\ndeny /denied/** w,\n}\n";

/// A policy of as little as a kernel takes. Contexts have a level; `box_t` may not write files of the guest, and those of
/// `content_t` it may. What is not mentioned is allowed.
const POLICY: &str = "(handleunknown allow) (mls true) (policycap nnp_nosuid_transition)
(class process (transition dyntransition)) (class file (write)) (classorder (process file))
(sid kernel) (sid security) (sid unlabeled) (sid fs) (sid file)
(sidorder (kernel security unlabeled fs file))
(sensitivity s0) (sensitivityorder (s0))
(category c0) (category c1) (category c2) (categoryorder (c0 c1 c2))
(sensitivitycategory s0 (range c0 c2))
(user box_u) (role box_r) (role object_r) (type guest_t) (type box_t) (type content_t)
(roletype box_r guest_t) (roletype box_r box_t) (roletype object_r content_t)
(userrole box_u box_r) (userrole box_u object_r)
(level low (s0)) (level high (s0 (range c0 c2))) (levelrange all (low high))
(userlevel box_u low) (userrange box_u all)
(context guest (box_u box_r guest_t all))
(sidcontext kernel guest) (sidcontext security guest) (sidcontext unlabeled guest)
(sidcontext fs guest) (sidcontext file guest)
(allow guest_t guest_t (process (transition dyntransition))) (allow guest_t box_t (process (transition)))
(allow guest_t guest_t (file (write))) (allow guest_t box_t (file (write)))
(allow guest_t content_t (file (write))) (allow box_t box_t (file (write)))
(allow box_t content_t (file (write)))
";

/// The newest version of the policy's format that the guest's kernel reads.
const POLICY_VERSION: &str = "33";

/// Runs a policy's compiler, which Debian keeps out of a user's path.
fn compile(program: &str, args: &[&str], output: &Path) -> Fallible<Vec<u8>> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let compiled = Command::new(program).args(args).env("PATH", path).output()?;
    let words = String::from_utf8_lossy(&compiled.stderr).into_owned();
    assert!(compiled.status.success(), "{program}: {words}");
    Ok(std::fs::read(output)?)
}

/// A container that may change the guest's policies, whose kernel's files are bound into it.
async fn loader(ctx: &Ctx, files: &[&str]) -> Fallible<Container> {
    ctx.idle(|spec| {
        let spec = spec.capabilities(["CAP_MAC_ADMIN", "CAP_DAC_OVERRIDE"]);
        files
            .iter()
            .fold(spec, |spec, path| spec.mount(&format!("/guest{path}"), path, "bind", &["bind", "rw"]))
    })
    .await
}

/// A policy is one write(2).
async fn load(loader: &Container, policy: &[u8], file: &str) -> Outcome {
    std::fs::write(loader.file("/policy"), policy)?;
    loader.sh(&format!("dd if=/policy of=/guest{file} bs=1M 2>&1")).await?;
    Ok(())
}

fn process(spec: SpecBuilder, edit: impl FnOnce(&mut oci::Process)) -> SpecBuilder {
    spec.edit(|spec| edit(spec.Process.mut_or_insert_default()))
}

fn directory() -> Fallible<(tempfile::TempDir, PathBuf, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let (source, output) = (directory.path().join("source"), directory.path().join("policy"));
    Ok((directory, source, output))
}

fn text(path: &Path) -> Fallible<&str> {
    Ok(path.to_str().ok_or("a path that is not UTF-8")?)
}

async fn an_apparmor_profile_confines_init_and_exec(ctx: Ctx) -> Outcome {
    let (directory, source, output) = directory()?;
    let features = directory.path().join("features");
    std::fs::write(&source, PROFILE)?;
    std::fs::write(&features, FEATURES)?;
    let (source, features) = (text(&source)?, text(&features)?);
    let args = ["-QK", "-M", features, "-o", text(&output)?, source];
    let policy = compile("apparmor_parser", &args, &output)?;

    let confined =
        |spec: SpecBuilder| process(spec, |process| process.ApparmorProfile = "blackbox-box".into());
    let before = ctx.container(confined)?;
    refused(before.create().await, Code::INVALID_ARGUMENT, &["process.apparmorProfile", "blackbox-box"]);
    let loader = loader(&ctx, &["/sys/kernel/security"]).await?;
    load(&loader, &policy, "/sys/kernel/security/apparmor/.load").await?;

    let script = "cat /proc/self/attr/current; mkdir -p /denied /allowed; echo x 2>&1 > /allowed/file && \
                  cat /allowed/file; (echo x > /denied/file) 2>&1; rm -r /allowed";
    let seen = "blackbox-box (enforce)\nx\nsh: can't create /denied/file: Permission denied";
    assert_eq!(ctx.output(script, confined).await?, seen);
    // Root with every capability is confined, too, and a user whose privileges can't grow.
    let container = ctx.idle(|spec| confined(spec).no_new_privileges(true)).await?;
    assert_eq!(container.sh(script).await?, seen, "exec");
    let mut other = container.process(["true"]);
    other.ApparmorProfile = "blackbox-none".into();
    let inventory = ctx.inventory().await?;
    let refusal = container.exec_process(other).await.unwrap_err().to_string();
    assert!(refusal.contains("process.apparmorProfile") && refusal.contains("blackbox-none"), "{refusal}");
    ctx.returns_to(&inventory).await?;
    let free = ctx.idle(|spec| spec).await?;
    let mut later = free.process(["sh", "-c", script]);
    assert!(free.sh(script).await?.starts_with("unconfined\nx"), "no profile");
    later.ApparmorProfile = "blackbox-box".into();
    assert_eq!(succeeded(free.exec_process(later).await?), seen, "an exec's own profile");
    Ok(())
}

async fn an_selinux_label_confines_init_and_exec(ctx: Ctx) -> Outcome {
    const LABEL: &str = "box_u:box_r:box_t:s0:c1,c2";
    ctx.client().create_sandbox(&nakai_ctl::sandbox::request("labels", "labels", true)).await?;
    let labelled = |label: &'static str| {
        move |spec: SpecBuilder| process(spec, |process| process.SelinuxLabel = label.to_owned())
    };
    // The kernel takes anything for a label then.
    let early = ctx.container(labelled(LABEL))?;
    refused(early.create().await, Code::INVALID_ARGUMENT, &["process.selinuxLabel", LABEL, "policy"]);

    let (_directory, source, output) = directory()?;
    std::fs::write(&source, POLICY)?;
    let args = ["-c", POLICY_VERSION, "-o", text(&output)?, "-f", "/dev/null", text(&source)?];
    let policy = compile("secilc", &args, &output)?;
    let loader = loader(&ctx, &["/sys/fs/selinux"]).await?;
    load(&loader, &policy, "/sys/fs/selinux/load").await?;
    loader.sh("echo 1 > /guest/sys/fs/selinux/enforce").await?;
    let inventory = ctx.inventory().await?;

    let unknown = ctx.container(labelled("box_u:box_r:nobody_t:s0"))?;
    let words = ["SELinux label", "box_u:box_r:nobody_t:s0", "Invalid argument"];
    refused(unknown.create().await, Code::INVALID_ARGUMENT, &words);
    ctx.returns_to(&inventory).await?;

    let script = "tr -d '\\0' < /proc/self/attr/current; echo; echo y > /content/file && cat /content/file; \
                  (echo x > /etc/passwd) 2>&1; :";
    let seen = format!("{LABEL}\ny\nsh: can't create /etc/passwd: Permission denied");
    for no_new_privileges in [false, true] {
        let confined = |spec: SpecBuilder| {
            let spec = labelled(LABEL)(spec).no_new_privileges(no_new_privileges);
            let spec = spec.mount("/content", "tmpfs", "tmpfs", &["nosuid", "size=64k"]);
            spec.edit(|spec| {
                spec.Linux.mut_or_insert_default().MountLabel =
                    "box_u:object_r:content_t:s0:c1,c2".to_owned();
            })
        };
        assert_eq!(ctx.output(script, confined).await?, seen);
        let container = ctx.idle(confined).await?;
        assert_eq!(container.sh(script).await?, seen, "exec");
        let mut other = container.process(["true"]);
        other.SelinuxLabel = "nobody_u:box_r:box_t:s0".to_owned();
        let refusal = container.exec_process(other).await.unwrap_err().to_string();
        assert!(refusal.contains("nobody_u:box_r:box_t:s0\": Invalid argument"), "{refusal}");
        container.remove().await?;
    }
    Ok(())
}
