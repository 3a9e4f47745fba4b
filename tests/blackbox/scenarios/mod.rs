//! The scenarios, a file per subject.
//!
//! What libcontainer 0.7.0 does otherwise than a guest agent has to (docs/architecture.md, "Around libcontainer"), and
//! the scenario that fails when it comes through:
//!
//! | libcontainer | scenario |
//! |---|---|
//! | code of the image runs in the agent: name service modules | `process::home_comes_from_the_passwd_file_alone` |
//! | an exec has no seccomp filter; a filter without `noNewPrivileges` fails | `seccomp::a_filter_holds_for_init_and_exec` |
//! | `noNewPrivileges: false` with a filter fails | `seccomp::a_filter_holds_for_init_and_exec` |
//! | capabilities that are left out are all kept | `confinement::capabilities_are_exactly_the_given_ones` |
//! | an exec into a user namespace stays outside it | `user_namespaces::root_is_nobody_in_the_guest` |
//! | no session keyring | `process::each_container_has_a_session_keyring` |
//! | security labels are not applied | `labels::an_selinux_label_confines_init_and_exec` |
//! | programs without `o+x` are refused | `process::a_program_for_its_owner_alone_runs` |
//! | an environment without `PATH` is refused | `process::an_environment_without_a_path_will_do` |
//! | the environment loses its order | `process::the_environment_keeps_its_order` |
//! | files without a format go to a shell | `process::a_program_of_no_known_format_does_not_run` |
//! | signals stay ignored and blocked | `process::signals_are_as_after_boot` |
//! | resource limits hit its own setting up | `process::resource_limits_are_set` |
//! | cgroup paths: none, relative, systemd's | `cgroups::every_form_of_cgroup_path_works` |
//! | kernel parameters of namespaces that are shared are refused | `confinement::kernel_parameters_are_set` |
//! | a host name without a UTS namespace is refused | `namespaces::the_hostname_is_the_sandboxes` |
//! | the OOM score is inherited, by execs too | `process::the_oom_score_is_not_the_agents` |
//! | the working directory is not made | `process::the_working_directory_is_made` |
//! | `tmpcopyup` fails | `confinement::a_tmpfs_begins_with_what_it_hides` |
//! | propagation of single mounts is ignored | `cri::cri_mounts_and_devices` |
//! | id-mapped mounts are ignored | `errors::bad_specs_are_refused_by_name` |
//! | a root without a mount on `/dev` works once | `lifecycle::a_root_without_a_mount_for_devices_is_used_again` |
//! | swap equal to memory is unlimited on v2 | `cgroups::limits_are_in_the_guests_cgroup` |
//! | a spec without `linux` panics | `errors::bad_specs_are_refused_by_name` |
//! | start changes the working directory | `lifecycle::execs_and_starts_leave_no_trace` |
//! | start in parallel, with hooks | `failures::many_containers_are_made_at_once`, `hooks::hooks_run_in_their_order` |
//! | kill knows no real-time signals | `signals::an_end_by_signal_is_128_and_its_number` |
//! | kill of one process is a stopped container | `signals::a_signal_reaches_one_process_only` |
//! | statistics fail without pressure files | `cgroups::statistics_do_without_pressure` |
//! | a terminal has no size | `tty::a_size_can_come_with_the_process`, `tty::a_resize_is_seen_by_the_program` |
//! | a terminal is root's | `tty::the_terminal_belongs_to_its_user` |
//! | pipes are root's | `process::a_user_can_open_its_standard_streams` |
//! | errors have no cause | `failures::a_create_that_fails_leaves_nothing`, `failures::a_failing_hook_fails_the_create` |
//! | an exec where the container has divided its cgroup fails, and so does its removal | `cgroups::a_container_may_divide_its_cgroup` |
//! | each exec leaves a socket | `lifecycle::execs_and_starts_leave_no_trace` |
//! | exits are lost before the create has returned | `failures::an_init_that_dies_early_fails_the_create` |

mod cards;
mod cgroups;
mod client;
mod confinement;
mod console;
mod continuity;
mod coverage;
mod devices;
mod diagnostics;
mod disks;
mod errors;
mod failures;
mod faults;
mod files;
mod fire;
mod formatting;
mod guest;
mod hooks;
mod hotplug;
mod hub;
mod init;
mod inside;
mod labels;
mod lifecycle;
mod loopback;
mod metrics;
mod mounts;
mod namespaces;
mod network;
mod oom;
mod orchestrators;
mod passthrough;
mod pause;
mod policy;
mod ports;
mod process;
mod recovery;
mod sandbox;
mod seccomp;
mod shims;
mod signals;
mod stdio;
mod storages;
mod systemd;
mod terminals;
mod tty;
mod update;
mod user_namespaces;
mod watching;

pub(crate) use coverage::check as all_is_covered;
pub(crate) use faults::check as faults_are_tested;
pub(crate) use orchestrators::page_is_up_to_date;

use crate::harness::Scenario;

/// All of them.
pub(crate) fn all() -> Vec<Scenario> {
    [
        cards::scenarios(),
        cgroups::scenarios(),
        client::scenarios(),
        confinement::scenarios(),
        console::scenarios(),
        continuity::scenarios(),
        devices::scenarios(),
        diagnostics::scenarios(),
        disks::scenarios(),
        errors::scenarios(),
        failures::scenarios(),
        files::scenarios(),
        guest::scenarios(),
        fire::scenarios(),
        formatting::scenarios(),
        hooks::scenarios(),
        hotplug::scenarios(),
        hub::scenarios(),
        init::scenarios(),
        inside::scenarios(),
        labels::scenarios(),
        lifecycle::scenarios(),
        loopback::scenarios(),
        metrics::scenarios(),
        mounts::scenarios(),
        namespaces::scenarios(),
        network::scenarios(),
        oom::scenarios(),
        orchestrators::scenarios(),
        passthrough::scenarios(),
        pause::scenarios(),
        policy::scenarios(),
        ports::scenarios(),
        process::scenarios(),
        recovery::scenarios(),
        sandbox::scenarios(),
        seccomp::scenarios(),
        shims::scenarios(),
        signals::scenarios(),
        stdio::scenarios(),
        storages::scenarios(),
        systemd::scenarios(),
        terminals::scenarios(),
        tty::scenarios(),
        update::scenarios(),
        user_namespaces::scenarios(),
        watching::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
