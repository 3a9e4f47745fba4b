//! What each source does, and which wins.

use std::io;
use std::path::Path;
use std::time::Duration;

use slog::Level;

use super::table::OPTIONS;
use super::*;

struct Given<'a> {
    kernel: Option<&'a str>,
    env: &'a [(&'a str, &'a str)],
    args: &'a [&'a str],
    file: Option<&'a str>,
}

const NOTHING: Given<'_> = Given { kernel: None, env: &[], args: &[], file: None };

fn load(given: &Given<'_>) -> Result<(Config, Vec<String>), ConfigError> {
    let args = given.args.iter().map(|&a| a.to_owned());
    let Command::Run(overrides) = parse_args(args, given.kernel.is_some())? else { panic!("not a run") };
    let env: Vec<_> = given.env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    let read_file = |_: &Path| given.file.map(str::to_owned).ok_or_else(|| io::ErrorKind::NotFound.into());
    let sources = Sources { kernel: given.kernel, env: &env, overrides: &overrides, read_file: &read_file };
    let (config, warnings) = Config::load(&sources)?;
    Ok((config, warnings.iter().map(Warning::to_string).collect()))
}

#[test]
fn every_default_is_taken_by_its_own_parser() {
    let mut config = Config::default();
    for option in OPTIONS {
        assert_eq!((option.set)(&mut config, option.default), Ok(()), "{}", option.key);
    }
    assert_eq!(config, Config::default());
}

#[test]
fn names_are_unique() {
    let names =
        OPTIONS.iter().flat_map(|o| o.kernel.iter().copied().chain([o.key]).chain(o.env).chain(o.argument));
    let mut seen = std::collections::HashSet::new();
    for name in names {
        assert!(seen.insert(name), "{name} is there twice");
    }
}

#[test]
fn nothing_said_gives_the_defaults() {
    let (config, warnings) = load(&NOTHING).unwrap();
    assert_eq!(config.server_addr.to_string(), "vsock://-1:1024");
    assert_eq!(config.log_level, Level::Info);
    assert_eq!(config.hotplug_timeout, Duration::from_secs(3));
    assert_eq!(config.cgroup_version, CgroupVersion::V2);
    assert_eq!(config.kata_dir, Path::new("/run/kata-containers"));
    assert_eq!(config.stream_quiet_time, Duration::from_millis(200));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_later_source_wins() {
    let file =
        "log_level = 'critical'\nhotplug_timeout = { secs = 6, nanos = 500000000 }\ndebug_console = true\n";
    let mut given = Given { args: &["--config", "/c.toml"], file: Some(file), ..NOTHING };
    let (config, _) = load(&given).unwrap();
    assert_eq!((config.log_level, config.hotplug_timeout), (Level::Critical, Duration::from_secs(7)));
    assert!(config.debug_console);

    given.kernel = Some("quiet agent.log=error agent.log=warn");
    assert_eq!(load(&given).unwrap().0.log_level, Level::Warning);
    given.env = &[("KATA_AGENT_LOG_LEVEL", "debug")];
    assert_eq!(load(&given).unwrap().0.log_level, Level::Debug);
    given.args = &["--log-level=trace", "-c", "/c.toml"];
    assert_eq!(load(&given).unwrap().0.log_level, Level::Trace);
}

#[test]
fn kernel_parameters_set_options() {
    let line = "console=ttyS0 agent.debug_console agent.debug_console_vport=1026 agent.hotplug_timeout=9 \
                agent.server_addr=vsock://-1:2048 agent.container_pipe_size=4096 root=/dev/vda1\n";
    let (config, warnings) = load(&Given { kernel: Some(line), ..NOTHING }).unwrap();
    assert!(config.debug_console);
    assert_eq!(config.debug_console_vport, Some(1026));
    assert_eq!(config.hotplug_timeout, Duration::from_secs(9));
    assert_eq!(config.server_addr.to_string(), "vsock://-1:2048");
    assert_eq!(config.container_pipe_size, Some(4096));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn the_cgroup_version_is_chosen_as_systemd_does() {
    for (line, version) in [
        ("", CgroupVersion::V2),
        ("systemd.unified_cgroup_hierarchy=0", CgroupVersion::V1),
        ("agent.unified_cgroup_hierarchy=0", CgroupVersion::V1),
        ("systemd.unified_cgroup_hierarchy=false", CgroupVersion::V1),
        ("agent.unified_cgroup_hierarchy=0 cgroup_no_v1=all", CgroupVersion::V2),
        ("agent.unified_cgroup_hierarchy=0 cgroup_no_v1=memory", CgroupVersion::V1),
        ("systemd.unified_cgroup_hierarchy", CgroupVersion::V2),
    ] {
        let (config, _) = load(&Given { kernel: Some(line), ..NOTHING }).unwrap();
        assert_eq!(config.cgroup_version, version, "{line}");
    }
}

#[test]
fn a_typo_from_afar_is_a_warning_and_changes_nothing() {
    let kernel = Some("agent.log=loud agent.hotplug_timeout=0 agent.hotplug=3 agent.devmode");
    let env: &[_] = &[("KATA_AGENT_SERVER_ADDR", "tcp://x")];
    let (config, warnings) = load(&Given { kernel, env, args: &["single"], ..NOTHING }).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(
        warnings,
        [
            "kernel parameter agent.log=\"loud\" ignored: expected critical, error, warning, info, debug or trace",
            "kernel parameter agent.hotplug_timeout=\"0\" ignored: expected a number of seconds above 0",
            "kernel parameter agent.hotplug ignored: unknown",
            "kernel parameter agent.devmode has no effect in this agent",
            "environment variable KATA_AGENT_SERVER_ADDR=\"tcp://x\" ignored: expected unix://PATH, unix://@NAME \
             or vsock://CID:PORT",
            "argument \"single\" ignored: unknown",
        ]
    );
}

#[test]
fn what_was_asked_for_by_hand_is_refused_when_wrong() {
    for (args, file, message) in [
        (
            ["--log-level", "loud"],
            "",
            "option --log-level: \"loud\": expected critical, error, warning, info, debug or trace",
        ),
        (
            ["--server-addr", "tcp://x"],
            "",
            "option --server-addr: \"tcp://x\": expected unix://PATH, unix://@NAME or vsock://CID:PORT",
        ),
        (["--what", "x"], "", "unknown argument \"--what\", see --help"),
        (["--log-level=info", "-c"], "", "option -c needs a value"),
        (
            ["-c", "/c"],
            "log_vport = -1",
            "configuration key log_vport: \"-1\": expected a port, or 0 for none",
        ),
        (["-c", "/c"], "log_vport = [1]", "configuration key log_vport: \"array\": expected a single value"),
    ] {
        let error = load(&Given { args: &args, file: Some(file), ..NOTHING }).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let error = load(&Given { args: &["--config=/c"], ..NOTHING }).unwrap_err().to_string();
    assert!(error.starts_with("configuration file /c: "), "{error}");
    let error =
        load(&Given { args: &["-c", "/c"], file: Some("a = 1\nb = \n"), ..NOTHING }).unwrap_err().to_string();
    assert!(error.starts_with("configuration file /c: line 2: ") && !error.contains('\n'), "{error}");
}

#[test]
fn a_wrong_file_named_by_the_kernel_is_ignored_as_a_whole() {
    let kernel = Some("agent.config_file=/etc/agent.toml agent.log=debug");
    let file = Some("debug_console = true\nlog_vport = 'x'\n");
    let (config, warnings) = load(&Given { kernel, file, ..NOTHING }).unwrap();
    assert!(!config.debug_console);
    assert_eq!(config.log_level, Level::Debug);
    assert_eq!(warnings.len(), 1, "{warnings:?}");

    let file = Some("debug_console = true\nlog_vport = 1025\nfoo = 1\ndev_mode = true\n");
    let (config, warnings) = load(&Given { kernel, file, ..NOTHING }).unwrap();
    assert!(config.debug_console && config.log_vport == Some(1025));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

#[test]
fn the_kernel_command_line_of_a_developers_host_is_not_ours() {
    let given = Given { args: &["--server-addr", "unix:///run/a.sock"], ..NOTHING };
    assert_eq!(load(&given).unwrap().0.server_addr, ServerAddress::Unix("/run/a.sock".into()));
}

#[test]
fn help_and_version_are_asked_for() {
    for (args, command) in [("--help", Command::Help), ("-h", Command::Help), ("-v", Command::Version)] {
        assert_eq!(parse_args([args.to_owned()], false).unwrap(), command);
    }
}
