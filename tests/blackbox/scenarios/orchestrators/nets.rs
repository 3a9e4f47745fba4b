//! Network cards and PCI functions that the client plugs into the machine: seen from inside, and packets really pass.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};

use nakai_ctl::cri::Holdings;
use nakai_ctl::disk::{Access, RootDisk};
use nakai_ctl::state::{ContainerRecord, State, VmRecord};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::super::client::Client;
use super::{Group, Row, Section, group};
use crate::harness::context::SHELL_LIMIT;
use crate::harness::wire::{PEER_MAC, Wire};
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(super) fn groups() -> Vec<Group> {
    // One machine for all of them.
    let nets = || -> Scenario {
        scenario!(cards_and_functions)
            .machine(|config, _| {
                config.hotplug_ports = 6;
                Ok(())
            })
            .kernel_parameter("agent.hotplug_timeout=60")
    };
    vec![
        group(Section::Zun, nets(), &[], ZUN),
        group(Section::Docker, nets(), &[], DOCKER),
        group(Section::Pod, nets(), &[], POD),
        group(Section::Kubernetes, nets(), &[], KUBERNETES),
    ]
}

const ZUN: &[Row] = &[
    (
        "`nets` by `network`",
        "an interface with a MAC address and the address that `v4-fixed-ip` says or that is free; packets pass",
    ),
    ("`nets` by `port`", "the interface has the port's MAC address and addresses"),
    (
        "a network's gateway, routes, MTU, name servers and neighbours",
        "they are in the guest's tables and in `/etc/resolv.conf`",
    ),
    (
        "`pci_requests`",
        "the function is at the address that `PCIDEVICE_…` tells; claimed first: what another container has is refused",
    ),
    (
        "`nets` with a `pci_request_id` (SR-IOV ports)",
        "the function is the interface, with the port's MAC address and addresses",
    ),
    (
        "a container with `nets` that fails, or is removed",
        "its interfaces are gone, and its functions are free for the next",
    ),
];

const DOCKER: &[Row] = &[
    ("`--publish`", "a port of this host leads to the container's"),
    (
        "`--network user`, `--mac-address`",
        "an interface by which it reaches this host, and what this host reaches",
    ),
    (
        "`--device` of a block device",
        "a node with the guest's numbers, to read and, unless the permissions say otherwise, to write",
    ),
    ("`--network` of `--networks`, `--ip`", "an interface in that network with that address"),
];

const KUBERNETES: &[Row] = &[(
    "`CDI_devices`",
    "what the guest's specification of the device says: nodes, mounts, variables; an error where it says nothing",
)];

const POD: &[Row] = &[(
    "`port_mappings` with `host_port`, `host_ip`",
    "a port of this host leads to the pod's, for all its containers",
)];

/// What every command is told.
struct Front<'a> {
    client: Client,
    ctx: &'a Ctx,
    image: String,
    address: String,
}

impl Front<'_> {
    fn words(&self, words: &[&str]) -> Vec<String> {
        ["--address", &*self.address].iter().chain(words).map(|word| (*word).to_owned()).collect()
    }

    async fn run(&self, words: &[&str]) -> Fallible<String> {
        let words = self.words(words);
        self.client.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// What a command that has to fail says.
    async fn fail(&self, words: &[&str]) -> Fallible<String> {
        let words = self.words(words);
        let output = self.client.try_run(&words.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        assert!(!output.status.success(), "{words:?} succeeds");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    async fn sh(&self, id: &str, script: &str) -> Fallible<String> {
        self.run(&["exec", id, "sh", "-c", script]).await
    }

    async fn zun(&self, fields: Value) -> Fallible<Vec<String>> {
        let mut request = json!({"image": self.image, "command": "sleep 1000000", "run": true});
        request.as_object_mut().ok_or("no object")?.extend(fields.as_object().cloned().unwrap_or_default());
        let path = self.client.write("request.json", &request)?;
        let networks = self.client.path().join("networks.json").display().to_string();
        Ok(["zun", "create", &path, "--networks", &networks].map(str::to_owned).to_vec())
    }

    /// The interfaces of the guest beside the loopback's.
    async fn cards(&self) -> Fallible<usize> {
        Ok(self.ctx.client().list_interfaces().await?.iter().filter(|card| card.name != "lo").count())
    }
}

fn texts(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// What a port of this host says in the end: QEMU takes the connection before the guest does.
async fn said_at(port: u16) -> Fallible<String> {
    let asked = async {
        loop {
            let mut text = String::new();
            let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
            // The guest may refuse what QEMU has taken.
            if stream.read_to_string(&mut text).await.is_ok() && !text.is_empty() {
                return Ok(text);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SHELL_LIMIT, asked).await?
}

async fn cards_and_functions(ctx: Ctx) -> Outcome {
    let client = Client::new()?;
    let root = ctx.make_root("image")?;
    let (image, address) = (root.display().to_string(), ctx.address().to_string());
    let machine = ctx.machine()?;
    let state = State::in_directory(&client.path().join("nakai"), ctx.address());
    let (qmp, run) = (Some(machine.qmp.clone()), Some(machine.run.clone()));
    state.note_vm(&VmRecord { share: ctx.share().to_owned(), qmp, run, keeper: None })?;
    let front = Front { client, ctx: &ctx, image, address };
    zun(&front).await?;
    docker(&front).await?;
    pod(&front).await?;
    block(&front).await?;
    named(&front).await?;
    // A client that was killed has noted only that it was about to plug something in.
    let file = machine.image("root", "killed", "ext4");
    std::fs::write(&file, vec![0; 1 << 20])?;
    RootDisk::plug(&machine, "killed", file.clone(), Access::Own).await?;
    let holdings = Holdings { plugging: Some(machine), ..Holdings::default() };
    state.note_container(&ContainerRecord { holdings, ..ContainerRecord::new("killed") })?;
    let has_disk = async || -> Fallible<bool> {
        let devices = ctx.qmp().await?.execute("qom-list", json!({"path": "/machine/peripheral"})).await?;
        let mut names = devices.as_array().into_iter().flatten().filter_map(|device| device["name"].as_str());
        Ok(names.any(|name| name.starts_with("root")))
    };
    assert!(has_disk().await? && file.exists());
    front.run(&["rm", "killed"]).await?;
    assert!(!has_disk().await? && !file.exists());
    Ok(())
}

async fn zun(front: &Front<'_>) -> Outcome {
    let (private, physical) =
        (Wire::new(Ipv4Addr::new(10, 9, 0, 1))?, Wire::new(Ipv4Addr::new(10, 8, 0, 1))?);
    let networks = json!({
        "networks": {
            "private": {
                "netdev": {"type": "socket", "connect": private.address}, "mtu": 1400,
                "subnets": [{"cidr": "10.9.0.0/24", "gateway_ip": "10.9.0.1", "dns_nameservers": ["10.9.0.53"],
                    "host_routes": [{"destination": "10.7.0.0/16", "nexthop": "10.9.0.1"}]}],
                "neighbors": [{"ip_address": "10.9.0.7", "mac_address": PEER_MAC}],
            },
            "physical": {"subnets": [{"cidr": "10.8.0.0/24"}]},
        },
        "ports": {"vf": {"network_id": "physical", "mac_address": "02:00:ca:fe:00:08",
            "fixed_ips": [{"ip_address": "10.8.0.5"}]}},
        "pci_devices": [
            {"address": "0000:3b:02.0", "physical_network": "physnet",
                "device": {"driver": "virtio-net-pci", "netdev": {"type": "socket", "connect": physical.address}}},
            {"address": "0000:3b:02.1", "product_id": "1005", "device": {"driver": "virtio-rng-pci"}},
        ],
    });
    front.client.write("networks.json", &networks)?;
    let pci = json!([
        {"request_id": "r1", "spec": [{"physical_network": "physnet"}]},
        {"request_id": "r2", "alias_name": "entropy", "spec": [{"product_id": "1005"}]},
    ]);
    let nets = json!([
        {"network": "private", "v4-fixed-ip": "10.9.0.5"},
        {"network": "private"},
        {"port": "vf", "pci_request_id": "r1"},
    ]);
    // Two cards in one network would answer for each other.
    let nets = json!([nets[0], nets[2]]);
    let request =
        front.zun(json!({"name": "web", "hostname": "web", "nets": nets, "pci_requests": pci})).await?;
    front.run(&texts(&request)).await?;
    let of = async |name: &str| {
        let script = format!(
            "cat /sys/class/net/{name}/address /sys/class/net/{name}/mtu; \
             ip -o -4 addr show {name} | grep -o 'inet [0-9./]*'"
        );
        front.sh("web", &script).await
    };
    let first = of("eth0").await?;
    assert!(first.starts_with("02:") && first.ends_with("1400\ninet 10.9.0.5/24"), "{first}");
    assert_eq!(of("eth1").await?, "02:00:ca:fe:00:08\n1500\ninet 10.8.0.5/24");
    let routes = front.sh("web", "ip route").await?;
    for route in ["default via 10.9.0.1 dev eth0", "10.7.0.0/16 via 10.9.0.1 dev eth0"] {
        assert!(routes.contains(route), "{routes}");
    }
    assert_eq!(front.sh("web", "cat /etc/resolv.conf").await?, "nameserver 10.9.0.53");
    for target in ["10.9.0.1", "10.9.0.7", "192.0.2.7", "10.8.0.1"] {
        let ping = format!("ping -c 1 -W 30 {target} | grep -o '1 packets received'");
        assert_eq!(front.sh("web", &ping).await?, "1 packets received", "{target}");
    }
    assert_eq!(private.pinged(), ["10.9.0.1", "10.9.0.7", "192.0.2.7"]);
    assert_eq!(physical.pinged(), ["10.8.0.1"]);
    let function = "cd /sys/bus/pci/devices/$PCIDEVICE_ENTROPY && cat vendor device; tr '\\0' '\\n' < /proc/1/environ | \
                    grep -c PCIDEVICE";
    assert_eq!(front.sh("web", function).await?, "0x1af4\n0x1044\n2");

    // What it has, nobody else gets; that is found out before anything is plugged in.
    let taken = front.zun(json!({"name": "late", "pci_requests": [pci[1]]})).await?;
    let words = front.fail(&texts(&taken)).await?;
    assert!(words.contains("pci_requests[0]: 1 wanted, and of the 1 that would do"), "{words}");
    let inspected = front.run(&["inspect", "late"]).await?;
    assert!(inspected.contains("\"status\": \"error\"") && inspected.contains("would do"), "{inspected}");
    front.run(&["rm", "late", "web"]).await?;
    assert_eq!(front.cards().await?, 0);
    front.run(&texts(&taken)).await?;
    assert_eq!(front.sh("late", "cat /sys/bus/pci/devices/$PCIDEVICE_ENTROPY/vendor").await?, "0x1af4");
    front.run(&["rm", "late"]).await?;
    let failing = json!({"name": "failing", "command": "/no/such", "nets": [{"network": "private"}]});
    let words = front.fail(&texts(&front.zun(failing).await?)).await?;
    assert!(words.contains("/no/such"), "{words}");
    assert_eq!(front.cards().await?, 0);
    front.run(&["rm", "failing"]).await?;
    let events = front.client.events(&front.address, "failing remove done").await?;
    for expected in ["web claim done", "web network done", "late claim failed", "failing network done"] {
        assert!(events.iter().any(|event| event == expected), "{expected}: {events:#?}");
    }
    Ok(())
}

/// Says a word to everybody who connects.
const SERVER: &str = "while :; do echo served | nc -l -p 80; done";

async fn docker(front: &Front<'_>) -> Outcome {
    // A name of before, at once: the guest may still take its directory in the share for the one that is gone.
    let publish = ["run", "-d", "--name", "web", "-p", "127.0.0.1::80", &front.image, "sh", "-c", SERVER];
    front.run(&publish).await?;
    let inspected: Value = serde_json::from_str(&front.run(&["inspect", "web"]).await?)?;
    let port = inspected["holdings"]["cards"][0]["forwards"][0]["host_port"].as_u64().ok_or("no port")?;
    assert_eq!(said_at(u16::try_from(port)?).await?, "served\n");
    // The other way: the gateway is this host's loopback interface.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let greet = async {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"greeting\n").await?;
        Fallible::Ok(())
    };
    let ask = format!("nc $(ip route | sed -n 's/default via \\([0-9.]*\\) .*/\\1/p') {port}");
    let (greeted, asked) = tokio::join!(greet, front.sh("web", &ask));
    greeted?;
    assert_eq!(asked?, "greeting");
    let words = front
        .fail(&["run", "--name", "two", "-p", &format!("127.0.0.1:{port}:80"), &front.image, "true"])
        .await?;
    assert!(words.contains("--publish: ") && words.contains(&port.to_string()), "{words}");
    front.run(&["rm", "web"]).await?;

    let networks = front.client.path().join("networks.json").display().to_string();
    let mac = ["--network", "user", "--mac-address", "02:00:ca:fe:00:0A"];
    let address = "cat /sys/class/net/eth0/address";
    let run = [&["run"], &mac[..], &[&front.image, "sh", "-c", address]].concat();
    assert_eq!(front.run(&run).await?, "02:00:ca:fe:00:0a");
    // Nobody is at the other end any more.
    let wire = Wire::new(Ipv4Addr::new(10, 9, 0, 1))?;
    let file = json!({"networks": {"mine": {"netdev": {"type": "socket", "connect": wire.address},
        "subnets": [{"cidr": "10.9.0.0/24"}]}}});
    front.client.write("networks.json", &file)?;
    let flags = ["--networks", &*networks, "--network", "mine", "--ip", "10.9.0.77"];
    let ping =
        "ip -o -4 addr show eth0 | grep -o 'inet [0-9./]*'; ping -c 1 -W 30 10.9.0.1 | grep -o '1 packets r'";
    let run = [&["run"], &flags[..], &[&front.image, "sh", "-c", ping]].concat();
    assert_eq!(front.run(&run).await?, "inet 10.9.0.77/24\n1 packets r");
    assert_eq!(front.cards().await?, 0);
    for (flags, words) in [
        (&["--network", "none", "-p", "80:80"] as &[_], "--publish: not together with --network none"),
        (&["--network", "other"], "--network: no network \"other\" on this host (there are: user)"),
        (&["--ip", "10.9.0.1"], "--ip: it is for one card"),
    ] {
        let said = front.fail(&[&["run"], flags, &[&front.image, "true"]].concat()).await?;
        assert!(said.contains(words), "{words}: {said}");
    }
    Ok(())
}

async fn pod(front: &Front<'_>) -> Outcome {
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let pod = |port: u16| {
        json!({"metadata": {"name": "pod", "uid": "pod"},
            "port_mappings": [{"container_port": 80, "host_port": port, "host_ip": "127.0.0.1"}]})
    };
    let create = async |id: &str, pod: Value, command: &str| -> Fallible<Vec<String>> {
        let container = json!({"metadata": {"name": id}, "image": {"image": front.image}, "command": ["sh", "-c", command],
            "linux": {"security_context": {"namespace_options": {"pid": "CONTAINER"}}}});
        let (pod, container) =
            (front.client.write("pod.json", &pod)?, front.client.write("container.json", &container)?);
        Ok(["cri", "run", "-d", "--id", id, &pod, &container].map(str::to_owned).to_vec())
    };
    front.run(&texts(&create("one", pod(free), "sleep 1000000").await?)).await?;
    front.run(&texts(&create("two", pod(free), SERVER).await?)).await?;
    assert_eq!(said_at(free).await?, "served\n");
    assert_eq!(front.cards().await?, 1);
    let words = front.fail(&texts(&create("three", pod(free.wrapping_add(1).max(1)), "true").await?)).await?;
    assert!(words.contains("port_mappings[0].host_port: the pod's network was made"), "{words}");
    front.run(&["rm", "one", "two"]).await?;
    // It is the pod's, beside which there is room for others.
    assert_eq!(front.cards().await?, 1);
    let both = ["run", "-p", "127.0.0.1::80", "--root-disk=32M", &front.image, "sh", "-c"];
    let script = "ip -o -4 addr | grep -c eth; grep -c '^/dev/vda / ext4' /proc/mounts";
    assert_eq!(front.run(&[&both[..], &[script]].concat()).await?, "2\n1");
    Ok(())
}

/// A loop device stands for any block device; where there are none, a disk of this host's does, to be read.
async fn block(front: &Front<'_>) -> Outcome {
    let file = front.client.path().join("disk");
    std::fs::write(&file, [&b"of the host"[..], &[b'-'; 1 << 20]].concat())?;
    let attached = std::process::Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
    let device = match attached {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout)?.trim().to_owned(),
        _ => return disk_to_read(front).await,
    };
    let seen = async {
        let sleep = ["sleep", "1000000"];
        let own = ["run", "-d", "--name", "own", "--device", &format!("{device}:/dev/xvda"), &front.image];
        front.run(&[&own[..], &sleep].concat()).await?;
        let script =
            "stat -c %F /dev/xvda; head -c 11 /dev/xvda; printf 'of a guest' > /dev/xvda && sync; echo";
        assert_eq!(front.sh("own", script).await?, "block special file\nof the host");
        front.run(&["rm", "own"]).await?;
        let read = ["run", "--device", &format!("{device}:/dev/xvda:r"), &front.image, "sh", "-c"];
        let script = "head -c 10 /dev/xvda; (: > /dev/xvda) 2>&1 | grep -o 'not permitted'";
        assert_eq!(front.run(&[&read[..], &[script]].concat()).await?, "of a guestnot permitted");
        Fallible::Ok(())
    };
    let seen = seen.await;
    std::process::Command::new("losetup").arg("--detach").arg(&device).status()?;
    seen
}

/// A device by its name: the specification is in the guest (`harness/own_vm.rs`).
async fn named(front: &Front<'_>) -> Outcome {
    let pod =
        front.client.write("named-pod.json", &json!({"metadata": {"name": "named", "uid": "named"}}))?;
    let asked = |name: &str| {
        let container = json!({
            "metadata": {"name": "named"},
            "image": {"image": front.image},
            "CDI_devices": [{"name": name}],
            "command": ["sh", "-c", "echo $CDI_KIND $CDI_DEVICE; ls /cdi; : <>/dev/cdi-fuse && echo opened"],
        });
        front.client.write("named.json", &container)
    };
    let path = asked("blackbox.test/fuse=0")?;
    assert_eq!(front.run(&["cri", "run", &pod, &path]).await?, "fuse 0\nhooks\nopened");
    let path = asked("blackbox.test/fuse=7")?;
    let error = front.fail(&["cri", "run", &pod, &path]).await?;
    assert!(error.contains("blackbox.test/fuse=7 is not among"), "{error}");
    Ok(())
}

async fn disk_to_read(front: &Front<'_>) -> Outcome {
    let disks = std::fs::read_dir("/sys/class/block")?.flatten().map(|entry| entry.file_name());
    let beginning = |name: std::ffi::OsString| {
        let (device, mut bytes) = (std::path::Path::new("/dev").join(name), [0; 512]);
        std::fs::File::open(&device).and_then(|mut disk| disk.read_exact(&mut bytes)).ok()?;
        Some((device, bytes))
    };
    let (device, bytes) =
        disks.filter_map(beginning).next().ok_or("neither loop devices nor a disk that can be read")?;
    let read = ["run", "--device", &format!("{}:/dev/xvda:r", device.display()), &front.image, "sh", "-c"];
    let script = "head -c 512 /dev/xvda | od -An -v -tx1 | tr -d ' \\n'; (: > /dev/xvda) 2>&1 | grep -o 'not permitted'";
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(front.run(&[&read[..], &[script]].concat()).await?, format!("{hex}not permitted"));
    Ok(())
}
