//! A virtual machine for one scenario, which makes the sandbox itself.
//!
//! Its guest carries hooks at [`HOOKS`]: a second archive behind the initrd, which the kernel unpacks over the
//! first (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::Failed;
use nakai_ctl::vm::Vm;
use nakai_rootfs::cache::Cache;
use nakai_rootfs::initrd::MODULES;
use nakai_rootfs::modules::{self, Modules};
use nakai_rootfs::tree::Tree;
use nakai_rootfs::{cpio, kernel};

use super::guest_view::GuestView;
use super::shared_vm::{context, files, share};
use super::{Fallible, Images, Outcome, Scenario};

/// Where the guest's hooks are.
pub(crate) const HOOKS: &str = "/opt/blackbox/hooks";

/// Each of them appends its arguments and the container's state to this file.
pub(crate) const HOOK_LOG: &str = "/run/guest-hooks";

/// The hooks, by the place in the hook directory. One of them is not executable, and must not run; one fails.
pub(crate) const HOOK_FILES: [(&str, u32); 5] = [
    ("prestart/10-first", 0o755),
    ("prestart/15-fails", 0o755),
    ("prestart/20-second", 0o755),
    ("prestart/30-no", 0o644),
    ("poststop/10-end", 0o755),
];

/// A CDI specification in the guest: a device that any container can do without.
const CDI_FILE: (&str, &str) = (
    "etc/cdi/blackbox.yaml",
    "cdiVersion: 0.6.0\nkind: blackbox.test/fuse\ncontainerEdits:\n  env:\n  - CDI_KIND=fuse\ndevices:\n\
     - name: \"0\"\n  containerEdits:\n    additionalGids: [4321]\n    env:\n    - CDI_DEVICE=0\n\
     \x20   deviceNodes:\n    - path: /dev/cdi-fuse\n      hostPath: /dev/fuse\n\
     \x20   mounts:\n    - hostPath: /opt/blackbox\n      containerPath: /cdi\n      options: [ro, nosuid]\n\
     \x20   hooks:\n\
     \x20   - hookName: createRuntime\n      path: /opt/blackbox/hooks/prestart/10-first\n      args: [first, cdi-create]\n\
     \x20   - hookName: poststart\n      path: /bin/sh\n      args:\n      - sh\n      - -c\n\
     \x20     - \"echo $CDI_WORD >> /run/guest-hooks\"\n      env: [CDI_WORD=cdi-start]\n\
     \x20   - hookName: startContainer\n      path: /bin/sh\n      args: [sh, -c, id -u > /cdi-hook-inside]\n\
     \x20   - hookName: poststop\n      path: /opt/blackbox/hooks/poststop/10-end\n      args: [end, cdi-stop]\n      timeout: 60\n",
);

/// What is in each hook.
pub(crate) fn hook_script() -> String {
    format!(
        "#!/bin/sh\necho \"$0 $* $PWD $(cat)\" >> {HOOK_LOG}\ncase $0 in *fails) echo no card here >&2; exit 3; esac\n"
    )
}

/// How long a guest may take to power off.
const END_LIMIT: Duration = Duration::from_secs(120);

/// More than one such machine at a time would only keep each other from booting.
static TURN: Mutex<()> = Mutex::new(());

/// Boots a VM and runs a scenario with it.
pub(crate) fn run(images: &Images, scenario: &Scenario) -> Result<(), Failed> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    super::runtime().block_on(async {
        let share = share(images)?;
        let mut config = images.vm(share.path())?;
        config.initrd = initrd_with_hooks(images)?;
        config.cmdline.extend(scenario.kernel_parameter.map(str::to_owned));
        let files = files(images)?;
        if let Some(machine) = scenario.machine {
            machine(&mut config, files.path())?;
        }
        let vm = Vm::start(&config, |_| {}).await?;
        let client = vm.client().await?;
        let view = Arc::new(GuestView::of_vm());
        let ctx = context(images, &vm, client, [share.path(), files.path()], view, "own".to_owned());
        let mut outcome = super::drive(scenario, &ctx).await;
        if outcome.is_ok() && scenario.ends_its_agent {
            let ended = tokio::time::timeout(END_LIMIT, vm.ended()).await;
            outcome = ended.map_err(|_| "the guest has not powered off".into());
        }
        outcome.map_err(|error| super::failed(&error, &vm.console_tail()))
    })
}

/// Called by one thread at a time.
fn initrd_with_hooks(images: &Images) -> Fallible<PathBuf> {
    let path = images.directory()?.join("initrd-with-hooks");
    if !path.exists() {
        write_initrd(images.initrd()?, &path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(path)
}

/// Writes another initrd, whose guest can load one more of its kernel's modules.
pub(crate) fn add_module(initrd: &Path, name: &str, path: &Path) -> Fallible<()> {
    add_modules(initrd, &[name], Tree::new(), path)
}

/// Writes another initrd, whose guest can load more of its kernel's modules and has the files of `tree`.
pub(crate) fn add_modules(initrd: &Path, names: &[&str], mut tree: Tree, path: &Path) -> Fallible<()> {
    // `nakai-rootfs` has made the initrd of the same kernel.
    let kernel = kernel::fetch(&Cache::of_project()?, None)?;
    let directory = format!("lib/modules/{}", kernel.release);
    let modules = Modules::open(&kernel.modules)?;
    for module in modules.closure(names)? {
        tree.file(&format!("{directory}/{}", modules::plain(module)), 0o644, modules.read(module)?)?;
    }
    let names: Vec<_> = MODULES.iter().chain(names).copied().collect();
    let all = modules.closure(&names)?;
    tree.file(&format!("{directory}/modules.dep"), 0o644, modules.dependencies(&all))?;
    append(initrd, &tree, path)
}

/// Adds a program of this host with the libraries that it asks for, each where it is here.
pub(crate) fn add_program(tree: &mut Tree, program: &Path) -> Outcome {
    let asked = std::process::Command::new("ldd").arg(program).output()?;
    let words = String::from_utf8(asked.stdout)?;
    let libraries = words.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    for file in libraries.chain([program]) {
        add_file(tree, file)?;
    }
    Ok(())
}

/// Adds a file of this host where it is here.
pub(crate) fn add_file(tree: &mut Tree, file: &Path) -> Outcome {
    let place = file.to_str().ok_or("a name that is no text")?.trim_start_matches('/');
    if tree.get(place).is_none() {
        tree.file(place, 0o755, fs::read(file)?)?;
    }
    Ok(())
}

fn write_initrd(initrd: &Path, path: &Path) -> Fallible<()> {
    let mut tree = Tree::new();
    for (hook, mode) in HOOK_FILES {
        tree.file(&format!("{}/{hook}", HOOKS.trim_start_matches('/')), mode, hook_script())?;
    }
    tree.file(CDI_FILE.0, 0o644, CDI_FILE.1.to_owned())?;
    append(initrd, &tree, path)
}

/// A copy of an initrd with more files.
fn append(initrd: &Path, tree: &Tree, path: &Path) -> Fallible<()> {
    let unfinished = path.with_extension("part");
    let mut output = File::create(&unfinished)?;
    let length = io::copy(&mut File::open(initrd)?, &mut output)?;
    // An archive starts at a multiple of four bytes.
    let padding = length.next_multiple_of(4) - length;
    output.write_all(&vec![0; usize::try_from(padding)?])?;
    cpio::write(tree, &output)?;
    fs::rename(unfinished, path)?;
    Ok(())
}
