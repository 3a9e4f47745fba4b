//! `docs/coverage.md`: which scenario shows each method of the wire, each storage driver and each type of device.
//!
//! A method of the services without a line, a line without a scenario in a virtual machine, and a scenario that is not
//! there are failures.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use libtest_mimic::Failed;
use nakai::storage::Storages;
use nakai_protocols::{agent, health};

use super::all;
use crate::harness::Scenario;

const HEAD: &str = "\
# What is tested in a virtual machine

<!-- Written by `NAKAI_WRITE_DOCS=1 cargo test --test blackbox -- docs::`. Change tests/blackbox/scenarios/coverage.rs. -->

Scenarios over the wire that show what each method, driver and type of device does; most of them are run with an agent
on the test's host (`host::`), too. It is not all that meets them. A method is only refused by name there: SetPolicy
(`make test` builds the agent with the feature `policy`, too, and tries that one on its host: `host::policy`). Of
`image_guest_pull` the pause image of a pod is tried there; for other images the guest has no confidential data hub,
which `host::hub` plays.
";

/// Scenarios by their names, parted by blanks.
type Lines = &'static [(&'static str, &'static str)];

const METHODS: Lines = &[
    ("AddARPNeighbors", "cards::packets_pass_over_cards_that_are_plugged_in"),
    ("AddSwap", "hotplug::plugged_disks_become_swap"),
    ("AddSwapPath", "hotplug::plugged_disks_become_swap"),
    ("Check", "errors::the_agent_says_what_it_is fire::what_hangs_keeps_nobody_waiting"),
    ("CloseStdin", "stdio::the_end_of_the_input_is_passed_on"),
    ("CopyFile", "files::a_volume_arrives_file_by_file files::copies_that_cannot_be_are_refused"),
    (
        "CreateContainer",
        "lifecycle::a_container_runs_from_create_to_remove failures::a_create_that_fails_leaves_nothing",
    ),
    ("CreateSandbox", "sandbox::a_sandbox_lives_from_create_to_destroy"),
    ("DestroySandbox", "sandbox::a_sandbox_lives_from_create_to_destroy"),
    ("ExecProcess", "process::an_exec_has_its_own_environment errors::bad_execs_are_refused_by_name"),
    (
        "GetDiagnosticData",
        "diagnostics::a_termination_log_is_read diagnostics::only_the_log_of_the_shared_directory_is_read",
    ),
    ("GetGuestDetails", "errors::the_agent_says_what_it_is"),
    ("GetIPTables", "network::the_packet_filter_of_a_guest network::iptables_is_missed_by_name"),
    ("GetMetrics", "metrics::metrics_have_the_names_that_dashboards_know"),
    ("GetOOMEvent", "oom::a_container_that_is_killed_for_its_memory_is_named"),
    ("GetVolumeStats", "guest::a_volume_tells_how_full_it_is"),
    ("ListInterfaces", "cards::packets_pass_over_cards_that_are_plugged_in"),
    ("ListRoutes", "cards::packets_pass_over_cards_that_are_plugged_in"),
    ("MemAgentCompactSet", "guest::free_memory_is_compacted"),
    ("MemAgentMemcgSet", "guest::free_memory_is_compacted"),
    ("MemHotplugByProbe", "hotplug::cpus_and_memory_that_are_plugged_in_reach_containers"),
    (
        "OnlineCPUMem",
        "hotplug::cpus_and_memory_that_are_plugged_in_reach_containers hotplug::on_cgroup_v1_too",
    ),
    ("PauseContainer", "pause::a_paused_container_stands_still_until_it_is_resumed"),
    ("ReadStderr", "stdio::both_outputs_keep_their_order"),
    ("ReadStdout", "stdio::every_byte_of_a_long_output_arrives"),
    (
        "RemoveContainer",
        "lifecycle::a_running_container_can_be_removed fire::a_removal_takes_those_that_got_away",
    ),
    ("RemoveStaleVirtiofsShareMounts", "mounts::a_look_at_the_shares_always_succeeds"),
    ("ReseedRandomDev", "guest::random_numbers_are_renewed"),
    ("ResizeVolume", "guest::a_volume_grows_while_it_is_used guest::an_xfs_volume_grows_while_it_is_used"),
    ("ResumeContainer", "pause::a_paused_container_stands_still_until_it_is_resumed"),
    ("SetGuestDateTime", "guest::the_clock_follows_the_host"),
    ("SetIPTables", "network::the_packet_filter_of_a_guest network::iptables_is_missed_by_name"),
    ("SetPolicy", "policy::an_agent_without_policies_refuses_one"),
    ("SignalProcess", "signals::init_can_be_killed signals::a_signal_reaches_one_process_only"),
    ("StartContainer", "lifecycle::init_waits_for_start"),
    (
        "StatsContainer",
        "cgroups::statistics_are_plausible diagnostics::network_counters_are_the_sandboxs_own",
    ),
    ("TtyWinResize", "tty::a_resize_is_seen_by_the_program"),
    ("UpdateContainer", "update::limits_are_those_of_the_last_update"),
    ("UpdateEphemeralMounts", "mounts::an_ephemeral_mount_gets_another_size"),
    (
        "UpdateInterface",
        "cards::packets_pass_over_cards_that_are_plugged_in network::a_link_that_is_not_there_is_not_found",
    ),
    ("UpdateRoutes", "cards::packets_pass_over_cards_that_are_plugged_in"),
    ("Version", "errors::the_agent_says_what_it_is"),
    ("WaitProcess", "lifecycle::the_exit_code_is_told signals::an_end_by_signal_is_128_and_its_number"),
    ("WriteStdin", "stdio::every_byte_of_the_input_comes_back"),
];

const DRIVERS: Lines = &[
    ("bind", "storages::a_directory_is_bound_and_laid_over"),
    (
        "blk",
        "disks::disks_of_every_kind_are_mounted disks::disks_that_are_plugged_in_are_mounted \
         formatting::blank_disks_get_a_file_system",
    ),
    ("ephemeral", "mounts::an_ephemeral_mount_gets_another_size disks::disks_of_every_kind_are_mounted"),
    ("erofs.multi-layer", "disks::disks_of_every_kind_are_mounted"),
    ("image_guest_pull", "storages::a_directory_is_bound_and_laid_over"),
    ("local", "storages::a_directory_is_bound_and_laid_over"),
    ("mmioblk", "disks::disks_of_every_kind_are_mounted"),
    ("nvdimm", "disks::disks_of_every_kind_are_mounted"),
    ("overlayfs", "storages::a_directory_is_bound_and_laid_over"),
    (
        "scsi",
        "disks::disks_that_are_plugged_in_are_mounted \
         disks::disks_that_are_pulled_out_while_they_are_used_keep_nobody",
    ),
    ("virtio-fs", "sandbox::a_sandbox_lives_from_create_to_destroy shims::a_pod_by_the_go_shim"),
    ("virtio-fs-nydus", "storages::a_directory_is_bound_and_laid_over"),
    (
        "watchable-bind",
        "watching::a_watched_volume_follows_the_host watching::any_number_of_keys_is_followed",
    ),
];

const DEVICES: Lines = &[
    (
        "blk",
        "passthrough::disks_behind_every_kind_of_bridge_are_found disks::disks_that_were_there_are_devices",
    ),
    ("mmioblk", "disks::disks_that_were_there_are_devices"),
    ("nvdimm", "disks::disks_that_were_there_are_devices"),
    ("scsi", "passthrough::disks_behind_every_kind_of_bridge_are_found"),
    ("vfio-pci", "passthrough::passed_through_functions_are_the_containers_or_the_guests"),
    ("vfio-pci-gk", "passthrough::passed_through_functions_are_the_containers_or_the_guests"),
    ("CDI", "passthrough::devices_have_names_too"),
];

fn methods() -> BTreeSet<&'static str> {
    let files = [agent::file_descriptor(), health::file_descriptor()];
    let services = files.into_iter().flat_map(|file| &file.proto().service);
    services.flat_map(|service| &service.method).map(|method| method.name()).collect()
}

/// The page; what is wrong with it goes to `faults`.
fn page(scenarios: &BTreeMap<String, Scenario>, faults: &mut Vec<String>) -> String {
    let mut page = HEAD.to_owned();
    for (title, lines) in [("Method", METHODS), ("Storage driver", DRIVERS), ("Device", DEVICES)] {
        let _ = writeln!(page, "\n| {title} | scenarios |\n|---|---|");
        for (what, names) in lines {
            let names: Vec<&str> = names.split_whitespace().collect();
            let in_vm = |name: &&str| scenarios.get(*name).is_some_and(|scenario| scenario.in_vm);
            faults.extend(
                names
                    .iter()
                    .filter(|name| !in_vm(name))
                    .map(|name| format!("{what}: vm::{name} is not there")),
            );
            let _ = writeln!(
                page,
                "| `{what}` | {} |",
                names.iter().map(|name| format!("`vm::{name}`")).collect::<Vec<_>>().join(", ")
            );
        }
    }
    let listed: BTreeSet<_> = METHODS.iter().map(|(method, _)| *method).collect();
    faults.extend(
        methods()
            .symmetric_difference(&listed)
            .map(|method| format!("{method}: a line is missing, or the method")),
    );
    // CDI is a way to name devices, and no type of its own.
    let types: Vec<_> = nakai::device::TYPES.iter().copied().chain(["CDI"]).collect();
    for (what, lines, known) in
        [("device type", DEVICES, types), ("storage driver", DRIVERS, Storages::drivers())]
    {
        let listed: BTreeSet<_> = lines.iter().map(|(name, _)| *name).collect();
        let known: BTreeSet<_> = known.into_iter().collect();
        let differing = listed.symmetric_difference(&known);
        faults.extend(differing.map(|name| format!("{what} {name}: a line is missing, or the {what}")));
    }
    page
}

/// The page says what is tested; with `NAKAI_WRITE_DOCS` it is made to.
pub(crate) fn check() -> Result<(), Failed> {
    let scenarios = all().into_iter().map(|scenario| (scenario.name.clone(), scenario)).collect();
    let mut faults = Vec::new();
    let page = page(&scenarios, &mut faults);
    if !faults.is_empty() {
        return Err(faults.join("\n").into());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/coverage.md");
    if std::env::var_os("NAKAI_WRITE_DOCS").is_some() {
        std::fs::write(&path, page)?;
        return Ok(());
    }
    if std::fs::read_to_string(&path).unwrap_or_default() == page {
        return Ok(());
    }
    Err("docs/coverage.md is not what is tested: NAKAI_WRITE_DOCS=1 cargo test --test blackbox -- docs::"
        .into())
}
