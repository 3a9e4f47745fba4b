//! What the server asks of a worker, and what comes back. Both travel as JSON; see [`crate::supervisor`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::spec::{
    CgroupMount, LateProcess, MountPropagation, OutsideNode, OwnInit, OwnMounts, WorkingDirectory,
};

/// One piece of work that needs a single-threaded process of its own.
#[derive(Debug, Serialize, Deserialize)]
pub enum Job {
    /// Make a container and hold its init before exec.
    Create(Box<CreateJob>),
    /// Start another process in a running container.
    Exec(Box<ExecJob>),
    /// Make the namespaces that the containers of a sandbox share, and pin them in the filesystem.
    ShareNamespaces(ShareNamespacesJob),
    /// Run hooks in the guest's namespaces.
    RunHooks(RunHooksJob),
    /// Let a container see a mount of another one.
    ShareMount(ShareMountJob),
    /// Make a program for the kernel of a seccomp profile. The reply brings it in a memory file.
    CompileFilter(crate::spec::SeccompProfile),
    /// Compact the guest's free memory.
    Compact(CompactJob),
    /// Start a shell in the guest's own namespaces.
    Shell(ShellJob),
    /// Start a program of the guest in the guest's own namespaces.
    RunProgram(ProgramJob),
}

/// How a process is connected to the world.
///
/// Descriptors behind the job: with pipes stdin, stdout, stderr; with a terminal none, and the reply brings
/// the master behind the pidfd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessIo {
    /// A terminal instead of three pipes.
    pub terminal: bool,
    /// Rows and columns of the terminal, when the host named them.
    pub window: Option<(u16, u16)>,
    /// Whom the pipes or the terminal belong to: uid and gid of the process, in the guest's numbers.
    pub owner: (u32, u32),
    /// How many of the last descriptors are the server's ends: only for the supervisor, to be held.
    pub held: usize,
}

/// Make a container, from `own_init` or by libcontainer from `bundle`, whose `config.json` has been prepared for it.
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateJob {
    /// The container's id, and the name of its state directory.
    pub id: String,
    /// Where libcontainer keeps a directory a container; without it, init's gate is there under the container's id.
    pub state_root: PathBuf,
    /// Holds `config.json`; the working directory of the hooks that the worker runs.
    pub bundle: PathBuf,
    /// The container's root in the guest.
    pub rootfs: PathBuf,
    /// The working directory of the container's init.
    pub cwd: PathBuf,
    /// Where the working directory of the container's init is made if it is missing.
    pub working_directory: WorkingDirectory,
    /// Directories beneath `/dev` that libcontainer makes for the others.
    pub device_directories: Vec<PathBuf>,
    /// Device nodes that libcontainer does not make.
    pub outside_nodes: Vec<OutsideNode>,
    /// How init is connected.
    pub io: ProcessIo,
    /// What is done to the process after libcontainer has finished with it.
    pub late: LateProcess,
    /// Flags for seccomp(2), if the last descriptor is a compiled filter.
    pub filter_flags: Option<u32>,
    /// Its cgroups on v1, if the worker makes them, and where the container sees them. Else libcontainer makes them.
    pub cgroups: Option<(CgroupTrees, Option<CgroupMount>)>,
    /// Its cgroup on v2, if it is not systemd's: the worker makes it, and libcontainer puts init there.
    pub unified: Option<UnifiedCgroup>,
    /// The mounts that the worker makes; libcontainer makes those of `config.json`.
    pub mounts: Option<OwnMounts>,
    /// The rest of the specification, if init is made without libcontainer: then there is no `config.json`.
    pub own_init: Option<Box<OwnInit>>,
    /// Memory filesystems to fill with what they hide of the image.
    pub copy_up: Vec<PathBuf>,
    /// Propagation of mounts, set in the container before it starts.
    pub propagation: Vec<MountPropagation>,
    /// Whether its `/dev` is read-only then.
    pub read_only_dev: bool,
    /// What init runs before its program; then libcontainer makes it.
    pub start_hooks: Vec<oci_spec::runtime::Hook>,
    /// What hooks are told.
    pub annotations: HashMap<String, String>,
}

/// The fifo in which init says what is wrong with its `start_hooks`; `state_root` as in [`CreateJob`].
pub fn start_words(state_root: &Path, container: &str) -> PathBuf {
    state_root.with_file_name(format!("start-{container}"))
}

/// A cgroup on the same path in each v1 tree.
#[derive(Debug, Serialize, Deserialize)]
pub struct CgroupTrees {
    /// Where the trees are mounted.
    pub roots: Vec<PathBuf>,
    /// Below them.
    pub path: PathBuf,
    /// What libcontainer takes for it, see [`super::stand_in`].
    pub stand_in: PathBuf,
}

/// A cgroup on v2.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnifiedCgroup {
    /// Where the tree is mounted.
    pub root: PathBuf,
    /// Below it.
    pub path: PathBuf,
}

/// Where a further process has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecCgroups {
    /// The container's directory in each tree.
    V1(Vec<PathBuf>),
    /// The container's, or the one of its init if the container has divided its own.
    V2 {
        /// Where the tree is mounted.
        root: PathBuf,
        /// Below it.
        path: PathBuf,
        /// The pid of the container's init.
        init: i32,
    },
}

/// Start a process in a running container. Descriptors behind the job: a handle of the container's init, then those of
/// [`ProcessIo`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecJob {
    /// The OCI process, prepared.
    pub process: oci_spec::runtime::Process,
    /// Its cgroups.
    pub cgroups: ExecCgroups,
    /// How the process is connected.
    pub io: ProcessIo,
    /// What is done to the process last of all.
    pub late: LateProcess,
    /// Flags for seccomp(2), if the last descriptor is a compiled filter.
    pub filter_flags: Option<u32>,
}

/// Make UTS and IPC namespaces, and a PID namespace with a process that holds it if asked.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShareNamespacesJob {
    /// The host name of the UTS namespace; empty leaves the guest's.
    pub hostname: String,
    /// Where the UTS namespace is bound.
    pub uts: PathBuf,
    /// Where the IPC namespace is bound.
    pub ipc: PathBuf,
    /// Where the PID namespace is bound, if one is wanted. The reply then names the process that is its init.
    pub pid: Option<PathBuf>,
}

/// Run hooks one after the other, as the OCI runtime specification says for poststart and poststop.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunHooksJob {
    /// The hooks, in order.
    pub hooks: Vec<oci_spec::runtime::Hook>,
    /// The container's id, for the state on their standard input.
    pub id: String,
    /// Whether the container runs (poststart) or has stopped (poststop).
    pub running: bool,
    /// The pid of its init, while it has one.
    pub pid: Option<i32>,
    /// The container's annotations.
    pub annotations: std::collections::HashMap<String, String>,
    /// Where they run.
    pub bundle: PathBuf,
}

/// Let a container see a mount of another one. Descriptors behind the job: handles of the inits of the container that
/// gets it, and of the one that has it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShareMountJob {
    /// The name of the container that has it, for messages.
    pub source_name: String,
    /// The pid of its init.
    pub source_pid: i32,
    /// Where the mount is, in that container.
    pub source: PathBuf,
    /// Where it is to be, in the other one.
    pub target: PathBuf,
}

/// Compact the guest's free memory, which may take minutes.
#[derive(Debug, Serialize, Deserialize)]
pub struct CompactJob {
    /// Where the kernel is asked for it.
    pub trigger: PathBuf,
}

/// Start the first of some shells that is there. Descriptor behind the job: its terminal.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShellJob {
    /// Absolute paths.
    pub shells: Vec<String>,
}

/// Start a program. Descriptors behind the job: its standard input, output and error.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProgramJob {
    /// Its absolute path.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<String>,
    /// How large a file may become that it writes.
    pub max_file: u64,
}

/// What a job that worked has to say; the pid of a started process is in the message's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A process has been started. Descriptors: its pidfd, and with a terminal the master; none for a shell or program of
    /// the guest. With warnings: what has failed on the way without failing it.
    Started(Vec<String>),
    /// A seccomp filter has been compiled. Descriptor: its program.
    Filter {
        /// Flags for seccomp(2).
        flags: u32,
    },
    /// The work is done.
    Done,
}

/// What kind of thing went wrong, for callers that act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The program does not exist.
    ProgramNotFound,
    /// The program may not be executed.
    ProgramNotExecutable,
    /// The working directory does not exist or can't be entered.
    WorkingDirectory,
    /// The specification asks for something that can't be.
    InvalidSpec,
    /// No more processes are allowed, or the guest has no more files, terminals or memory.
    Exhausted,
    /// A hook failed.
    Hook,
    /// The container is not in a state for this.
    ContainerState,
    /// Anything else.
    Internal,
}

/// Why a job could not be done: one line, with the true cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of thing it was.
    pub kind: FailureKind,
    /// The object and the cause.
    pub message: String,
}

impl Failure {
    /// With the beginning of a message that is too long to be handed on: what the host sends may be of any length, and
    /// its names are in messages.
    pub fn brief(self) -> Self {
        const MAX_CAUSE: usize = 2000;
        match self.message.char_indices().nth(MAX_CAUSE) {
            Some((end, _)) => {
                Self { message: self.message.get(..end).unwrap_or_default().to_owned(), ..self }
            }
            None => self,
        }
    }

    /// A failure of no special kind.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Internal, message: message.into() }
    }
}
