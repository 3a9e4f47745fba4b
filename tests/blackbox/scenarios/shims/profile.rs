//! A system call filter like the one that container engines have by default: what is not on the list is refused.

use nakai_protocols::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};

/// What an unprivileged program may call.
const ALLOWED: &str = "accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown \
    clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup \
    dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve \
    execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat \
    fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs \
    fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list \
    get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername \
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid \
    getsockname getsockopt gettid gettimeofday getuid getxattr inotify_add_watch inotify_init inotify_init1 \
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get \
    ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat \
    listen listxattr llistxattr lremovexattr lseek lsetxattr lstat madvise membarrier memfd_create memfd_secret \
    mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedsend mq_unlink mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 \
    pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 \
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages \
    removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask \
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget \
    semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid \
    setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid \
    setsockopt setuid setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice \
    stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create \
    timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times \
    tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid waitpid write \
    writev arch_prctl modify_ldt process_vm_readv process_vm_writev ptrace chroot a_call_of_a_later_kernel";

/// The namespaces that clone(2) can make, as its flags.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// The profile.
pub(super) fn runtime_default() -> LinuxSeccomp {
    let rule = |names: &str, args: Vec<LinuxSeccompArg>| LinuxSyscall {
        Names: names.split_whitespace().map(str::to_owned).collect(),
        Action: "SCMP_ACT_ALLOW".to_owned(),
        Args: args,
        ..Default::default()
    };
    let compare = |op: &str, value: u64, value_two: u64| {
        vec![LinuxSeccompArg { Value: value, ValueTwo: value_two, Op: op.to_owned(), ..Default::default() }]
    };
    let mut syscalls = vec![
        rule(ALLOWED, Vec::new()),
        // Any family but AF_VSOCK: nobody talks to the host past the agent.
        rule("socket", compare("SCMP_CMP_NE", 40, 0)),
        rule("clone", compare("SCMP_CMP_MASKED_EQ", NEW_NAMESPACES, 0)),
    ];
    for personality in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        syscalls.push(rule("personality", compare("SCMP_CMP_EQ", personality, 0)));
    }
    syscalls.push(LinuxSyscall {
        Names: vec!["clone3".to_owned()],
        Action: "SCMP_ACT_ERRNO".to_owned(),
        errnoret: libc::ENOSYS.unsigned_abs(),
        ..Default::default()
    });
    LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ERRNO".to_owned(),
        Architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec(),
        Syscalls: syscalls,
        ..Default::default()
    }
}
