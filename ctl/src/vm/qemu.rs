//! QEMU's command line, from a configuration and the sockets of the daemons. Pure.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::config::VmConfig;
use crate::sandbox::SHARE_TAG;

/// How the guest's vsock reaches the host.
#[derive(Clone, Debug)]
pub(crate) enum Vsock {
    /// The host kernel's device, with the guest's context id.
    Kernel(u32),
    /// A vhost-user daemon at this socket.
    User(PathBuf),
}

/// The files of a VM in its run directory.
#[derive(Debug)]
pub(crate) struct Sockets<'a> {
    pub(crate) qmp: &'a Path,
    pub(crate) fs: &'a Path,
    pub(crate) vsock: &'a Vsock,
}

/// The arguments for `config`.
pub(crate) fn arguments(config: &VmConfig, kvm: bool, sockets: &Sockets<'_>) -> Vec<OsString> {
    let mut args = Arguments(Vec::new());
    machine(&mut args, config, kvm);
    args.pair("-qmp", format!("unix:{},server=on,wait=off", escaped(sockets.qmp)));
    match sockets.vsock {
        Vsock::Kernel(cid) => args.pair("-device", format!("vhost-vsock-pci,guest-cid={cid}")),
        Vsock::User(path) => {
            args.pair("-chardev", format!("socket,id=vs,path={}", escaped(path)));
            args.pair("-device", "vhost-user-vsock-pci,chardev=vs");
        }
    }
    args.pair("-chardev", format!("socket,id=fs,path={}", escaped(sockets.fs)));
    args.pair("-device", format!("vhost-user-fs-pci,chardev=fs,tag={SHARE_TAG}"));
    for (n, disk) in config.disks.iter().enumerate() {
        args.pair("-drive", format!("if=none,id=d{n},file={},format=raw", escaped(disk)));
        args.pair("-device", format!("virtio-blk-pci,drive=d{n},id=disk{n}"));
    }
    slots(&mut args, config);
    args.0.extend(config.qemu_args.iter().map(OsString::from));
    args.0
}

fn machine(args: &mut Arguments, config: &VmConfig, kvm: bool) {
    // Emulated, `rep movsb` goes byte by byte: without the flag the guest copies by words.
    let (accel, cpu) = if kvm { ("kvm", "host") } else { ("tcg", "max,-erms") };
    let (memory, cpus) = (config.memory, config.cpus);
    let (max_memory, max_cpus) = (config.max_memory.max(memory), config.max_cpus.max(cpus));
    let nvdimm = if config.pmem.is_some() { ",nvdimm=on" } else { "" };
    args.pair("-machine", format!("q35,accel={accel}{nvdimm}"));
    args.pair("-cpu", cpu);
    args.pair("-smp", format!("{cpus},maxcpus={max_cpus}"));
    let room = if max_memory > memory { format!(",slots=4,maxmem={max_memory}M") } else { String::new() };
    args.pair("-m", format!("{memory}M{room}"));
    // The daemons of vhost-user devices map the guest's memory.
    args.pair("-object", format!("memory-backend-memfd,id=m0,size={memory}M,share=on"));
    args.pair("-numa", "node,memdev=m0");
    args.file("-kernel", &config.kernel);
    args.file("-initrd", &config.initrd);
    args.pair("-append", command_line(config, kvm));
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        args.0.push(flag.into());
    }
    args.pair("-display", "none");
    args.pair("-serial", "stdio");
}

/// With `-no-reboot`, `panic=-1` turns a guest's panic into QEMU's exit instead of a hang. An emulated timer may be late
/// on a busy machine, for which the kernel's check of it would panic.
fn command_line(config: &VmConfig, kvm: bool) -> String {
    let mut line = "console=ttyS0 quiet panic=-1".to_owned();
    if !kvm {
        line.push_str(" no_timer_check");
    }
    for word in &config.cmdline {
        line.push(' ');
        line.push_str(word);
    }
    line
}

/// Where tests plug things in. All of them come behind the fixed devices, whose PCI addresses so
/// do not depend on them.
fn slots(args: &mut Arguments, config: &VmConfig) {
    for n in 0..config.hotplug_ports {
        let number = n.saturating_add(1);
        args.pair("-device", format!("pcie-root-port,id=rp{n},slot={number},chassis={number}"));
    }
    if config.pci_bridge {
        let number = config.hotplug_ports.saturating_add(1);
        args.pair("-device", format!("pcie-root-port,id=rpbr,slot={number},chassis={number}"));
        args.pair("-device", "pcie-pci-bridge,id=br0,bus=rpbr");
    }
    if config.scsi {
        args.pair("-device", "virtio-scsi-pci,id=scsi0");
    }
    if config.network {
        args.pair("-netdev", "user,id=n0,restrict=on");
        args.pair("-device", "virtio-net-pci,netdev=n0");
    }
    if let Some(image) = &config.pmem {
        let size = std::fs::metadata(image).map_or(0, |metadata| metadata.len());
        let image = escaped(image);
        args.pair("-object", format!("memory-backend-file,id=nv0,mem-path={image},size={size},share=on"));
        args.pair("-device", "nvdimm,id=pmem0,memdev=nv0");
    }
}

/// A path inside a QEMU option list: a comma is doubled.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.into());
        self.0.push(value.into().into());
    }

    fn file(&mut self, option: &str, path: &Path) {
        self.0.push(option.into());
        self.0.push(path.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(config: &VmConfig, kvm: bool, vsock: &Vsock) -> String {
        let sockets = Sockets { qmp: Path::new("/r/qmp"), fs: Path::new("/r/f,s"), vsock };
        let args = arguments(config, kvm, &sockets);
        args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn vhost_user_devices_share_the_memory() {
        let mut config = VmConfig::new("/k", "/i");
        config.cmdline.push("agent.log=debug".to_owned());
        let line = line(&config, false, &Vsock::User("/r/vs".into()));
        assert!(line.contains("-machine q35,accel=tcg -cpu max,-erms"), "{line}");
        assert!(line.contains("memory-backend-memfd,id=m0,size=512M,share=on -numa node,memdev=m0"));
        assert!(line.contains("socket,id=vs,path=/r/vs -device vhost-user-vsock-pci,chardev=vs"));
        assert!(line.contains("socket,id=fs,path=/r/f,,s "));
        assert!(
            line.contains("-append console=ttyS0 quiet panic=-1 no_timer_check agent.log=debug -nodefaults")
        );
        assert_eq!(line.matches("pcie-root-port").count(), 4);
    }

    #[test]
    fn options_add_their_devices() {
        let mut config = VmConfig::new("/k", "/i");
        config.disks = vec!["/a.img".into(), "/b.img".into()];
        (config.hotplug_ports, config.pci_bridge, config.scsi, config.network) = (1, true, true, true);
        let line = line(&config, true, &Vsock::Kernel(77));
        assert!(line.contains("accel=kvm -cpu host"));
        assert!(line.contains("vhost-vsock-pci,guest-cid=77"));
        assert!(line.contains("file=/b.img,format=raw -device virtio-blk-pci,drive=d1"));
        assert!(
            line.contains("pcie-root-port,id=rpbr,slot=2,chassis=2 -device pcie-pci-bridge,id=br0,bus=rpbr")
        );
        assert!(line.contains("virtio-scsi-pci,id=scsi0 -netdev user,id=n0,restrict=on"));
    }
}
