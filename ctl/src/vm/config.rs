//! What a VM is made of.

use std::path::PathBuf;
use std::time::Duration;

/// How the guest's processor is run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Accel {
    /// KVM if a probe has seen a guest boot with it, else TCG. `NAKAI_ACCEL=kvm|tcg` decides instead.
    #[default]
    Auto,
    /// KVM.
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

/// The parts of a VM. [`VmConfig::new`] gives one that boots; change what should differ.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initramfs whose `/init` starts the agent.
    pub initrd: PathBuf,
    /// Memory in MiB.
    pub memory: u32,
    /// The memory up to which modules can be plugged in, in MiB.
    pub max_memory: u32,
    /// CPUs.
    pub cpus: u32,
    /// The number up to which CPUs can be plugged in.
    pub max_cpus: u32,
    /// The directory that the guest sees under the virtio-fs tag
    /// [`SHARE_TAG`](crate::sandbox::SHARE_TAG). None: an empty one that goes with the VM.
    pub share: Option<PathBuf>,
    /// More words for the kernel's command line, such as `agent.log=debug`.
    pub cmdline: Vec<String>,
    /// Raw disk images, `/dev/vda` and on.
    pub disks: Vec<PathBuf>,
    /// Free PCIe root ports `rp0`, `rp1`, …, to plug devices into.
    pub hotplug_ports: u8,
    /// A PCIe-to-PCI bridge `br0`, as Kata has one for its hot-plugged devices.
    pub pci_bridge: bool,
    /// A SCSI controller `scsi0`.
    pub scsi: bool,
    /// A network card on a network that leads nowhere.
    pub network: bool,
    /// An image that is `/dev/pmem0`. Its size must be a multiple of 128 MiB, the guest's memory
    /// block, or no memory can be plugged in behind it.
    pub pmem: Option<PathBuf>,
    /// More arguments for QEMU.
    pub qemu_args: Vec<String>,
    /// How the processor is run.
    pub accel: Accel,
    /// The port that the agent serves on.
    pub port: u32,
    /// The agent does not say on the console that it serves, as another than nakai: it is taken to serve after
    /// this time.
    pub unannounced: Option<Duration>,
    /// How long the guest may take until its agent serves. Emulated and on a busy machine it needs
    /// ten times what it needs alone.
    pub boot_timeout: Duration,
    /// Where the console's text is kept. None: in the run directory, which goes with the VM.
    pub console: Option<PathBuf>,
}

impl VmConfig {
    /// A VM with 512 MiB, one CPU, a share and four free slots.
    pub fn new(kernel: impl Into<PathBuf>, initrd: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: initrd.into(),
            memory: 512,
            max_memory: 4096,
            cpus: 1,
            max_cpus: 4,
            share: None,
            cmdline: Vec::new(),
            disks: Vec::new(),
            hotplug_ports: 4,
            pci_bridge: false,
            scsi: false,
            network: false,
            pmem: None,
            qemu_args: Vec::new(),
            accel: Accel::Auto,
            port: 1024,
            unannounced: None,
            boot_timeout: Duration::from_secs(300),
            console: None,
        }
    }
}
