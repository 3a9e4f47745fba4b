//! The process of a container, or a further one: checked, completed, and divided between libcontainer and the
//! worker's executor.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxCapabilities, Process};

use super::{CapabilitySets, ConsoleSize, ExecFacts, LateProcess, SpecError};
use super::{capabilities, labels, pci_env, rlimits};

/// The umask when the spec gives none: else it would be the agent's.
const UMASK: u32 = 0o022;

/// What a process becomes.
pub(super) struct Edited {
    /// For libcontainer.
    pub(super) process: Process,
    /// For the executor.
    pub(super) late: LateProcess,
    /// The process's capabilities, complete.
    pub(super) capabilities: LinuxCapabilities,
    pub(super) terminal: bool,
    pub(super) console_size: Option<ConsoleSize>,
}

/// Edits `process`; what it leaves out comes from `container`.
pub(super) fn prepare(
    mut process: Process,
    container: &ExecFacts,
    warnings: &mut Vec<String>,
) -> Result<Edited, SpecError> {
    args(&mut process)?;
    cwd(&mut process)?;
    user(&mut process, warnings)?;
    let mut env = environment(process.env().as_deref().unwrap_or_default())?;
    pci_env::apply(&mut env, &container.pci_map, warnings);
    let find_home = add_home(&mut env);
    process.set_env(Some(env)).set_command_line(None);
    oom_score_adj(&mut process, container.oom_score_adj)?;
    let rlimits = rlimits::take(&mut process, &container.rlimits)?;
    let selinux_label = labels::selinux(&mut process, container.selinux_label.as_deref(), container.selinux)?;
    labels::apparmor(&mut process, container.apparmor_profile.as_deref(), &container.apparmor, warnings)?;

    let no_new_privileges = container.no_new_privileges || process.no_new_privileges() == Some(true);
    // Some(false) makes libcontainer load a filter when it may no longer do so.
    process.set_no_new_privileges(no_new_privileges.then_some(true));
    let given = process.capabilities().as_ref().or(container.capabilities.as_ref());
    let capabilities = capabilities::complete(given, warnings);
    let privileged_load = container.seccomp.is_some() && !no_new_privileges;
    let real = CapabilitySets::from(&capabilities);
    let early =
        if privileged_load { (&capabilities::with_seccomp_loader(&capabilities)).into() } else { real };
    process.set_capabilities(None);

    let terminal = process.terminal().unwrap_or(false);
    let console_size = console_size(&process).filter(|_| terminal);
    process.set_terminal(Some(terminal)).set_console_size(None);
    let user = process.user();
    let owner = match &container.users {
        Some(users) => users.owner(user)?,
        None => (user.uid(), user.gid()),
    };
    let late = LateProcess {
        uid: user.uid(),
        owner,
        cwd: None,
        session_keyring: format!("_ses.{}", container.container_id),
        selinux_label,
        rlimits,
        find_home,
        no_new_privileges,
        seccomp: container.seccomp.clone(),
        namespaces: container.namespaces.clone(),
        early_capabilities: early,
        capabilities: privileged_load.then_some(real),
    };
    Ok(Edited { process, late, capabilities, terminal, console_size })
}

fn invalid(field: &'static str, value: &str, reason: &'static str) -> SpecError {
    // A message is one short line, whatever the host sent.
    SpecError::Invalid { field, value: value.chars().take(80).collect(), reason }
}

/// Without any it is a shell, as hosts of this protocol know it.
fn args(process: &mut Process) -> Result<(), SpecError> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        process.set_args(Some(vec!["sh".to_owned()]));
    }
    let args = process.args().as_deref().unwrap_or_default();
    if let Some(program) = args.first().filter(|program| program.is_empty()) {
        return Err(invalid("process.args", program, "the first one names the program"));
    }
    match args.iter().find(|arg| arg.contains('\0')) {
        Some(arg) => Err(invalid("process.args", arg, "it has a NUL byte")),
        None => Ok(()),
    }
}

fn cwd(process: &mut Process) -> Result<(), SpecError> {
    if process.cwd().as_os_str().is_empty() {
        process.set_cwd("/".into());
    }
    let cwd = process.cwd().clone();
    if !cwd.is_absolute() {
        return Err(SpecError::RelativePath { field: "process.cwd", path: cwd });
    }
    if cwd.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(invalid("process.cwd", &cwd.to_string_lossy(), "it has a NUL byte"));
    }
    Ok(())
}

/// The path with `..` resolved by text; the root's own parent is the root.
pub(super) fn without_climbs(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

/// What setresuid(2) takes for "as it is": such a process would stay root.
const NO_ID: u32 = u32::MAX;

fn user(process: &mut Process, warnings: &mut Vec<String>) -> Result<(), SpecError> {
    let user = process.user_mut();
    for (field, id) in [("process.user.uid", user.uid()), ("process.user.gid", user.gid())] {
        if id == NO_ID {
            return Err(invalid(field, &id.to_string(), "it is nobody's number"));
        }
    }
    if let Some(name) = user.username().clone().filter(|name| !name.is_empty()) {
        warnings
            .push(format!("process.user.username {name:?} left out: it is for other systems, uid counts"));
    }
    user.set_username(None);
    match user.umask() {
        None => {
            user.set_umask(Some(UMASK));
        }
        Some(umask) if umask > 0o777 => {
            return Err(invalid("process.user.umask", &format!("{umask:#o}"), "above 0o777"));
        }
        Some(_) => {}
    }
    Ok(())
}

/// The variables in their order, each once: the last value counts, as with runc.
fn environment(given: &[String]) -> Result<Vec<String>, SpecError> {
    let mut env: Vec<String> = Vec::with_capacity(given.len().saturating_add(1));
    let mut seen = std::collections::HashSet::new();
    for entry in given.iter().rev() {
        let name = match entry.split_once('=') {
            Some(("", _)) => return Err(invalid("process.env", entry, "a variable without a name")),
            Some((name, _)) => name,
            // The value may be a secret that lost its name: it is not shown.
            None => return Err(invalid("process.env", "an entry", "it has no '='")),
        };
        if entry.contains('\0') {
            return Err(invalid("process.env", name, "it has a NUL byte"));
        }
        if seen.insert(name) {
            env.push(entry.clone());
        }
    }
    env.reverse();
    Ok(env)
}

/// Adds a stand-in for HOME where it is missing or empty; tells whether it did.
fn add_home(env: &mut Vec<String>) -> bool {
    if env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        return false;
    }
    set_home(env, "/");
    true
}

/// Sets HOME in an environment, in its place or at the end: for the executor, see [`LateProcess::find_home`].
pub fn set_home(env: &mut Vec<String>, home: &str) {
    let entry = format!("HOME={home}");
    match env.iter_mut().find(|entry| entry.starts_with("HOME=")) {
        Some(slot) => *slot = entry,
        None => env.push(entry),
    }
}

/// Always explicit: what is not set would be inherited from the agent, whom the kernel shall spare. 0 is the wire's
/// way to say nothing, which for a further process means its container's.
fn oom_score_adj(process: &mut Process, inherited: Option<i32>) -> Result<(), SpecError> {
    let score = process.oom_score_adj().filter(|score| *score != 0).or(inherited).unwrap_or(0);
    if !(-1000..=1000).contains(&score) {
        return Err(invalid("process.oomScoreAdj", &score.to_string(), "not within -1000 to 1000"));
    }
    process.set_oom_score_adj(Some(score));
    Ok(())
}

fn console_size(process: &Process) -> Option<ConsoleSize> {
    let size = process.console_size()?;
    let clamp = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
    let (rows, cols) = (clamp(size.height()), clamp(size.width()));
    (rows > 0 && cols > 0).then_some(ConsoleSize { rows, cols })
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
