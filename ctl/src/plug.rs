//! Devices that a container has in its machine: plugged in behind the first free PCI root port, under a name that says
//! whose they are.
//!
//! A name is the kind, the port and a digest of the container's name: `root3-0123456789abcdef`. So what a client has
//! plugged in before it was killed is found without a note of it ([`Machine::sweep`]), and nobody pulls what is
//! another's.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::image::Digest;
use crate::qmp::{Qmp, QmpError};
use crate::removal;

/// The most root ports of a machine that are looked at.
const PORTS_MAX: u8 = u8::MAX;

/// A machine that devices can be plugged into.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Machine {
    /// QEMU's control socket.
    pub qmp: PathBuf,
    /// For the images of its disks.
    pub run: PathBuf,
}

/// Why nothing is plugged in.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// QEMU does not take or give it.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Every root port has a device.
    #[error("all {ports} ports of the machine are taken; vm start --ports gives more")]
    NoPort {
        /// The ports of the machine.
        ports: u8,
    },
}

/// A device that is plugged in. It is not a guard: who has plugged it may end before it is pulled.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Plugged {
    /// QEMU's name for it.
    pub device: String,
    /// Where the agent finds it.
    pub pci_path: String,
}

/// A port that is free, as far as it is known before the device is there.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its number.
    pub number: u8,
    /// The name for a device behind it.
    pub device: String,
    /// The name for a network behind that.
    pub netdev: String,
    /// The place of such a device, as `device_add` takes it.
    pub place: Value,
}

/// Something that can be plugged in.
pub trait Pluggable {
    /// Does it, at this port. What it has made besides the device it takes back itself when it fails.
    fn plug_at(&mut self, qmp: &mut Qmp, port: &Port) -> impl Future<Output = Result<(), QmpError>> + Send;
}

impl Machine {
    /// Plugs in a device of `kind` for container `id` at the first port that is free.
    ///
    /// # Errors
    ///
    /// No port is free, or QEMU refuses.
    pub async fn plug(
        &self,
        kind: &str,
        id: &str,
        mut what: impl Pluggable + Send,
    ) -> Result<Plugged, PlugError> {
        let mut qmp = Qmp::connect(&self.qmp).await?;
        for number in 0..PORTS_MAX {
            let bus = format!("rp{number}");
            let Ok(slot) = qmp.pci_slot(&bus).await else { return Err(PlugError::NoPort { ports: number }) };
            let device = format!("{kind}{number}-{}", owner(id));
            let netdev = netdev_of(number, id);
            // Without the address QEMU takes a second device, which no guest finds.
            let port = Port { number, device, netdev, place: json!({ "bus": bus, "addr": "0" }) };
            match what.plug_at(&mut qmp, &port).await {
                Ok(()) => return Ok(Plugged { device: port.device, pci_path: format!("{slot:02x}/00") }),
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PlugError::NoPort { ports: PORTS_MAX })
    }

    /// Pulls all that bears the name of container `id`, and removes its images: for what nobody has noted.
    ///
    /// # Errors
    ///
    /// QEMU does not tell, or the guest does not let go.
    pub async fn sweep(&self, id: &str) -> Result<(), PlugError> {
        let mut qmp = Qmp::connect(&self.qmp).await?;
        let mine = format!("-{}", owner(id));
        let devices = qmp.execute("qom-list", json!({ "path": "/machine/peripheral" })).await?;
        for device in names(&devices, "name").filter(|name| name.ends_with(&mine)) {
            qmp.unplug(device).await?;
        }
        let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        for node in names(&nodes, "node-name").filter(|name| name.ends_with(&mine)) {
            qmp.execute("blockdev-del", json!({ "node-name": node })).await?;
        }
        // QEMU lists them for people only. That one is not there is what is wanted.
        for number in 0..PORTS_MAX {
            if qmp.pci_slot(&format!("rp{number}")).await.is_err() {
                break;
            }
            let _ = qmp.execute("netdev_del", json!({ "id": netdev_of(number, id) })).await;
        }
        for entry in fs::read_dir(&self.run).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| is_image_of(name, id)) {
                // A killed client leaves what an image was to be made of, too.
                let _ = fs::remove_file(entry.path());
                removal::tell(removal::remove(&entry.path()));
            }
        }
        Ok(())
    }

    /// Where the image of a disk of container `id` is: `kind` says which.
    pub fn image(&self, kind: &str, id: &str, format: &str) -> PathBuf {
        self.run.join(format!("{kind}-{id}.{format}"))
    }
}

/// The name of the network behind a card.
fn netdev_of(port: u8, id: &str) -> String {
    format!("net{port}-{}", owner(id))
}

/// `root-ID.ext4`, `upper-ID.ext4`, `layerN-ID.erofs`: see [`Machine::image`]; and what they are made of.
fn is_image_of(name: &str, id: &str) -> bool {
    let mut kinds = [".ext4", ".erofs", ".merged", ".erofs-part"].into_iter();
    let stem = kinds.find_map(|kind| name.strip_suffix(kind));
    let kind = stem.and_then(|stem| stem.strip_suffix(id)).and_then(|kind| kind.strip_suffix('-'));
    let letters = kind.map(|kind| kind.trim_end_matches(|c: char| c.is_ascii_digit()));
    letters.is_some_and(|letters| ["root", "upper", "layer"].contains(&letters))
}

/// QEMU's names are short, containers' are not.
fn owner(id: &str) -> String {
    Digest::of(id.as_bytes()).hex().chars().take(16).collect()
}

/// QEMU tells it by words alone that another device is there; or its name is, when that is the container's own.
fn is_taken(error: &QmpError) -> bool {
    let QmpError::Refused { description, .. } = error else { return false };
    ["occupied", "in use by", "Duplicate"].iter().any(|words| description.contains(words))
}

fn names<'a>(list: &'a Value, key: &'a str) -> impl Iterator<Item = &'a str> {
    list.as_array().into_iter().flatten().filter_map(move |entry| entry.get(key)?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_by_their_containers() {
        for (name, id, expected) in [
            ("root-web.ext4", "web", true),
            ("upper-web.ext4", "web", true),
            ("layer12-web.erofs", "web", true),
            ("root-web.merged", "web", true),
            ("layer0-web.erofs-part", "web", true),
            ("root-my-web.ext4", "web", false),
            ("root-my-web.ext4", "my-web", true),
            ("root-web.ext4", "we", false),
            ("qmp.sock", "sock", false),
        ] {
            assert_eq!(is_image_of(name, id), expected, "{name} {id}");
        }
        assert!(owner("a").len() == 16 && owner("a") != owner("b"));
        assert!(netdev_of(24, "a").len() <= 31);
    }
}
