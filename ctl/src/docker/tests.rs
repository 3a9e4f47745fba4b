//! Flags of Docker, as configurations.

use super::*;

fn order(line: &str) -> Result<Order, String> {
    CommandLine::read(line.split_whitespace())?.order("made-up").map_err(|error| error.to_string())
}

#[test]
fn flags_reach_the_fields_that_say_the_same() {
    let order = order(
        "-it -e A=1 -u web:www --group-add 5 -w /srv --name box --hostname h --entrypoint /bin/x --memory 64M \
         --cpus 0.5 --cpuset-cpus 0 --pids-limit 9 --read-only --cap-add NET_ADMIN --cap-drop ALL \
         --security-opt no-new-privileges --ulimit nofile=5 --sysctl kernel.msgmax=9 -v /a:/b:ro --tmpfs /t:size=1m \
         --shm-size 1m --device /dev/fuse:r --storage-opt size=1G --restart on-failure:3 --health-cmd true \
         --health-interval 1s --label a=b --dns 1.1.1.1 /image sh -c true --rm",
    )
    .unwrap();
    let config = &order.config;
    assert_eq!((&*config.command, &*config.args[3]), (&["/bin/x".to_owned()][..], "--rm"));
    assert_eq!((&*config.working_dir, &*config.envs[0].value, config.tty), ("/srv", "1", true));
    assert_eq!((&*config.metadata.name, &*order.pod.hostname), ("box", "h"));
    assert_eq!((&*config.mounts[0].host_path, config.mounts[0].readonly), ("/a", true));
    assert_eq!((&*config.devices[0].container_path, &*config.devices[0].permissions), ("/dev/fuse", "r"));
    assert_eq!(config.labels["a"], "b");
    let resources = &config.linux.resources;
    assert_eq!((resources.memory_limit_in_bytes, resources.cpu_quota), (64 << 20, 50_000));
    let security = &config.linux.security_context;
    assert!(security.readonly_rootfs && security.no_new_privs && !security.privileged);
    assert_eq!(security.capabilities.drop_capabilities, ["ALL"]);
    assert_eq!(security.seccomp, Some(SecurityProfile::default()));
    assert_eq!(security.namespace_options.pid, NamespaceMode::Container);
    let extras = &order.extras;
    assert_eq!((extras.user.as_deref(), &*extras.groups[0]), (Some("web:www"), "5"));
    assert_eq!((extras.disk, extras.shm_size, extras.pids_limit), (Some(1 << 30), Some(1 << 20), Some(9)));
    assert_eq!(extras.restart, RestartPolicy::OnFailure(3));
    let health = extras.health.as_ref().unwrap();
    assert_eq!((health.interval.as_secs(), health.retries, &*health.command[2]), (1, 3, "true"));
    assert_eq!(order.pod.linux.sysctls["kernel.msgmax"], "9");
    assert_eq!(order.pod.dns_config.servers, ["1.1.1.1"]);
}

#[test]
fn what_can_not_be_is_refused_by_its_flag() {
    for (line, words) in [
        ("-p 80-81:80-81 /image sh", "--publish"),
        ("-p 80:80/sctp /image sh", "--publish"),
        ("-p 80:80 --network host /image sh", "--publish: not together"),
        ("--network none --network user /image sh", "--network: \"none\""),
        ("--ip 10.0.0.1 --network user /image sh", "10.0.0.1 is in no subnet"),
        ("--mac-address x --network user /image sh", "--network: \"x\""),
        ("--mac-address 02:00:00:00:00:01 /image sh", "--mac-address: it is for one card"),
        ("--security-opt fly /image sh", "--security-opt"),
        ("--security-opt label=x:y /image sh", "label"),
        ("--restart sometimes /image sh", "unless-stopped"),
        ("--pid pod /image sh", "--pid"),
        ("--ipc other /image sh", "--ipc"),
        ("--pid container: /image sh", "--pid"),
        ("--pid container:a --ipc container:b /image sh", "--ipc: container:b beside container:a"),
        ("--network container:a -p 80:80 /image sh", "--publish: not together"),
        ("--network mine /image sh", "--network"),
        ("--device a:b:c:d /image sh", "--device"),
        ("--storage-opt speed=1 /image sh", "--storage-opt"),
        ("--sysctl a /image sh", "--sysctl"),
        ("-v data:/x /image sh", "--volume"),
        ("--mount type=volume,dst=/x /image sh", "--mount"),
        ("--mount type=bind,src=/no/such,dst=/x /image sh", "--mount: source /no/such: no such"),
        ("--memory 0 /image sh", "--memory"),
        ("--memory 6143k /image sh", "--memory: 6290432 bytes"),
        ("--cpus 0 /image sh", "--cpus"),
        ("--stop-signal HALT /image sh", "--stop-signal: \"HALT\" is no signal"),
        ("--pull sometimes /image sh", "--pull"),
        ("--env-file /no/such /image sh", "--env-file /no/such: No such file"),
        ("-e =b /image sh", "--env: \"=b\""),
    ] {
        let error = order(line).unwrap_err();
        assert!(error.contains(words), "{line}: {error}");
    }
    let flags = Flags { auto_remove: true, restart: "always".into(), ..Flags::default() };
    assert!(flags.order("/i", &[], "x").unwrap_err().to_string().contains("--rm"));
}

#[test]
fn an_empty_entry_point_is_none_and_errors_name_flags() {
    let flags = Flags { entrypoint: Some(String::new()), restart: "no".into(), ..Flags::default() };
    let order = flags.order("/i", &["ls".to_owned()], "x").unwrap();
    assert_eq!((order.config.command, order.config.args), (vec!["ls".to_owned()], Vec::new()));
    for (field, flag) in
        [("add_capabilities", "--cap-add"), ("devices[3].host_path", "--device"), ("--user", "--user")]
    {
        assert_eq!(by_flag(CriError::field(field, "why")).to_string(), format!("{flag}: why"));
    }
    let gone = CriError::io("devices[0].host_path /dev/x")(std::io::ErrorKind::NotFound.into());
    assert!(by_flag(gone).to_string().starts_with("--device /dev/x: "));
}

#[test]
fn variables_of_files_count_less_than_flags() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# of the file\n\nA=file\n  B=b = b \nNOT_SET_ANYWHERE\n").unwrap();
    let order =
        order(&format!("-e A=flag --env-file {} --pull always /image", file.path().display())).unwrap();
    let envs: Vec<_> = order.config.envs.iter().map(|env| format!("{}={}", env.key, env.value)).collect();
    assert_eq!(envs, ["A=file", "B=b = b ", "A=flag"]);
}
