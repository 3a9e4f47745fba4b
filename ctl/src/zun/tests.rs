//! Zun's requests, as configurations.

use super::*;

fn order(text: &str) -> Result<Order, String> {
    let host = Host { volumes: Some("/volumes".into()), volume_seconds: VOLUME_SECONDS, ..Host::default() };
    let request = Request::read("request", text).map_err(|error| error.to_string())?;
    request.order("made-up", &host).map_err(|error| error.to_string())
}

#[test]
fn a_request_becomes_a_container() {
    let order = order(
        r#"{"name": "web", "image": "/i", "command": "sh -c 'echo hi'", "environment": {"A": "1"}, "workdir": "/srv",
        "labels": {"l": "v"}, "hostname": "h", "interactive": "True", "memory": "64", "cpu": 0.5, "disk": 1,
        "cpu_policy": "dedicated", "cpuset": {"cpus": "0", "mems": ""}, "privileged": null, "hints": {}, "nets": [],
        "mounts": [{"source": "data", "destination": "/data", "size": "1"}],
        "healthcheck": {"cmd": "true", "interval": 2, "retries": "4", "timeout": 1},
        "restart_policy": {"Name": "on-failure", "MaximumRetryCount": "2"}, "exposed_ports": {"80/tcp": {}}}"#,
    )
    .unwrap();
    let config = &order.config;
    assert_eq!(config.args, ["sh", "-c", "echo hi"]);
    assert!(config.tty && config.stdin && !config.linux.security_context.privileged);
    let resources = &config.linux.resources;
    assert_eq!((resources.memory_limit_in_bytes, resources.cpu_quota), (64 << 20, 50_000));
    assert_eq!(&*resources.cpuset_cpus, "0");
    assert_eq!((&*config.mounts[0].host_path, &*config.mounts[0].container_path), ("/volumes/data", "/data"));
    let extras = &order.extras;
    assert_eq!((extras.disk, extras.restart), (Some(1 << 30), RestartPolicy::OnFailure(2)));
    let health = extras.health.as_ref().unwrap();
    assert_eq!((health.interval.as_secs(), health.retries, health.timeout.as_secs()), (2, 4, 1));
    assert_eq!((extras.volumes[0].seconds, &*extras.exposed_ports[0]), (60, "80/tcp"));
    assert_eq!((&*order.pod.hostname, order.id.as_deref()), ("h", Some("web")));
}

#[test]
fn booleans_are_strict() {
    for (value, expected) in [
        ("true", Some(true)),
        ("\"Yes\"", Some(true)),
        ("\"off\"", Some(false)),
        ("\"0\"", Some(false)),
        ("null", Some(false)),
    ] {
        let order = order(&format!(r#"{{"image": "/i", "privileged": {value}}}"#)).unwrap();
        assert_eq!(Some(order.config.linux.security_context.privileged), expected, "{value}");
    }
    for value in ["\"maybe\"", "1", "\"\"", "[]"] {
        let error = order(&format!(r#"{{"image": "/i", "privileged": {value}}}"#)).unwrap_err();
        assert!(error.contains("acceptable values are") && error.contains("off"), "{error}");
    }
}

#[test]
fn what_is_not_the_agents_is_refused_by_name() {
    for (fields, words) in [
        (r#""hints": {"a": "b"}"#, "hints: control plane only"),
        (r#""availability_zone": "nova""#, "availability_zone: control plane only"),
        (r#""host": "a""#, "host: control plane only"),
        (r#""security_groups": ["a"]"#, "security_groups: control plane only"),
        (r#""registry": "r""#, "registry: control plane only"),
        (r#""auto_heal": true"#, "auto_heal: control plane only"),
        (r#""nets": [{"network": "n"}]"#, "nets[0].network: no network \"n\""),
        (r#""nets": [{"network": "user", "tag": "t"}]"#, "nets[0].tag: unknown field"),
        (r#""nets": [{"network": "user", "pci_request_id": "r"}]"#, "nets[0].pci_request_id: \"r\""),
        (r#""pci_requests": [1]"#, "pci_requests[0]: invalid type"),
        (r#""pci_requests": [{"spec": [{"color": "red"}]}]"#, "pci_requests[0].spec: \"color\""),
        (r#""pci_requests": [{"count": 2}]"#, "pci_requests[0]: 2 wanted, and 0 of the 0"),
        (r#""workdir": 7"#, "request: workdir: invalid type"),
        (r#""colour": "red""#, "colour: no such field"),
        (r#""command": "a 'b""#, "command: a single quote"),
        (r#""memory": "lots""#, "memory: \"lots\""),
        (r#""memory": 5"#, "memory: 5242880 bytes"),
        (r#""cpu": 0"#, "cpu: "),
        (r#""cpu_policy": "dedicated""#, "cpuset.cpus"),
        (r#""auto_remove": true, "restart_policy": {"Name": "always"}"#, "auto_remove: "),
        (r#""restart_policy": {"Name": "always", "MaximumRetryCount": 3}"#, "restart_policy: "),
        (r#""restart_policy": {"Name": "sometimes"}"#, "unless-stopped"),
        (r#""mounts": [{"source": "../x", "destination": "/y"}]"#, "mounts[0].source"),
        (r#""mounts": [{"source": "x", "destination": "/y", "type": "bind"}]"#, "mounts[0].type"),
        (r#""image_pull_policy": "rarely""#, "image_pull_policy: "),
        (r#""image_driver": "glance""#, "image_driver: "),
    ] {
        let error = order(&format!(r#"{{"image": "/i", {fields}}}"#)).unwrap_err();
        assert!(error.contains(words), "{fields}: {error}");
    }
}
