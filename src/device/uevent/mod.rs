//! The kernel's events of devices (uevents): what they say, and who hears them.
//!
//! An event is `ACTION@DEVPATH`, then `KEY=VALUE` pairs, each ended by a NUL byte (lib/kobject_uevent.c). It
//! is a cue, not a truth: listeners look in sysfs for what is there. So an event that is lost does no harm as
//! long as everybody is told to look ([`Notice::Look`]).

mod listener;

use std::sync::Arc;

use tokio::sync::broadcast;

pub use self::listener::Listener;

/// How many events may wait for a slow listener. One that misses some looks anyway.
const BACKLOG: usize = 64;

/// What happened to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is there.
    Add,
    /// It is gone.
    Remove,
    /// Something about it is different.
    Change,
    /// Something else: `bind`, `unbind`, `move`, `online`, `offline`...
    Other(String),
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: Action,
    /// The device's path in sysfs, without `/sys`.
    pub devpath: String,
    /// The kind of device: `block`, `net`, `memory`...
    pub subsystem: String,
    /// The name of its node in `/dev`, if it has one.
    pub devname: Option<String>,
    /// The name of the link, if it is a network interface.
    pub interface: Option<String>,
    /// The kernel's running number.
    pub seqnum: Option<u64>,
}

/// Why a message is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UeventError {
    /// It does not start with `ACTION@DEVPATH`, as one from udev doesn't.
    #[error("kernel event without a header")]
    Header,
    /// It lacks something.
    #[error("kernel event without {key}")]
    Missing {
        /// What it lacks.
        key: &'static str,
    },
}

impl Uevent {
    /// Reads a message of the kernel.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn parse(message: &[u8]) -> Result<Self, UeventError> {
        let mut fields = message.split(|byte| *byte == 0);
        let header = fields.next().filter(|header| header.contains(&b'@'));
        header.ok_or(UeventError::Header)?;
        let (mut action, mut devpath, mut subsystem) = (None, None, None);
        let (mut devname, mut interface, mut seqnum) = (None, None, None);
        for field in fields {
            let text = String::from_utf8_lossy(field);
            let Some((key, value)) = text.split_once('=') else { continue };
            let value = value.to_owned();
            match key {
                "ACTION" => action = Some(value),
                "DEVPATH" => devpath = Some(value),
                "SUBSYSTEM" => subsystem = Some(value),
                "DEVNAME" => devname = Some(value),
                "INTERFACE" => interface = Some(value),
                "SEQNUM" => seqnum = value.parse().ok(),
                _ => {}
            }
        }
        let action = match action.ok_or(UeventError::Missing { key: "ACTION" })?.as_str() {
            "add" => Action::Add,
            "remove" => Action::Remove,
            "change" => Action::Change,
            other => Action::Other(other.to_owned()),
        };
        let devpath = devpath.ok_or(UeventError::Missing { key: "DEVPATH" })?;
        // A few classless devices have none.
        let subsystem = subsystem.unwrap_or_default();
        Ok(Self { action, devpath, subsystem, devname, interface, seqnum })
    }
}

/// What listeners are told.
#[derive(Debug, Clone)]
pub enum Notice {
    /// An event.
    Event(Arc<Uevent>),
    /// Events may have been lost: whoever waits for something should look for it.
    Look,
    /// A bus was scanned: whoever waits for a device should look for it.
    Scanned,
}

/// The events, for any number of listeners. Clones are the same.
#[derive(Debug, Clone)]
pub struct Uevents {
    sender: broadcast::Sender<Notice>,
}

impl Default for Uevents {
    fn default() -> Self {
        Self::new()
    }
}

impl Uevents {
    /// Events that nobody sends yet: see [`listen`](Self::listen) and [`publish`](Self::publish).
    pub fn new() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG) }
    }

    /// Tells everybody who listens now.
    pub fn publish(&self, notice: Notice) {
        // That nobody listens is the usual case.
        let _listeners = self.sender.send(notice);
    }

    /// How many hear what is published now.
    #[cfg(test)]
    pub(super) fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    /// Hears what is published from now on. Subscribe before looking: then nothing comes between the two.
    pub fn subscribe(&self) -> Subscription {
        Subscription { receiver: self.sender.subscribe() }
    }
}

/// One listener's ear.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Notice>,
}

impl Subscription {
    /// The next notice. Never ends before the events themselves do; then it waits for ever.
    pub async fn next(&mut self) -> Notice {
        match self.receiver.recv().await {
            Ok(notice) => notice,
            Err(broadcast::error::RecvError::Lagged(_)) => Notice::Look,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: &[u8] = b"add@/devices/pci0000:00/0000:00:04.0/virtio5/block/vdb\0ACTION=add\0\
        DEVPATH=/devices/pci0000:00/0000:00:04.0/virtio5/block/vdb\0SUBSYSTEM=block\0MAJOR=254\0MINOR=16\0\
        DEVNAME=vdb\0DEVTYPE=disk\0SEQNUM=1234\0";

    #[test]
    fn a_disk_that_comes() {
        let event = Uevent::parse(DISK).unwrap();
        assert_eq!(event.action, Action::Add);
        assert_eq!(event.devpath, "/devices/pci0000:00/0000:00:04.0/virtio5/block/vdb");
        assert_eq!((event.subsystem.as_str(), event.devname.as_deref()), ("block", Some("vdb")));
        assert_eq!((event.seqnum, event.interface), (Some(1234), None));
    }

    #[test]
    fn other_events() {
        let event =
            Uevent::parse(b"remove@/a\0ACTION=remove\0DEVPATH=/a\0SUBSYSTEM=net\0INTERFACE=eth0\0").unwrap();
        assert_eq!((event.action, event.interface.as_deref()), (Action::Remove, Some("eth0")));
        let event = Uevent::parse(b"bind@/a\0ACTION=bind\0DEVPATH=/a=b\0junk\0SEQNUM=x").unwrap();
        assert_eq!(event.action, Action::Other("bind".to_owned()));
        assert_eq!((event.devpath.as_str(), event.subsystem.as_str(), event.seqnum), ("/a=b", "", None));
    }

    #[test]
    fn what_is_no_event_of_the_kernel() {
        let missing = |key| Err(UeventError::Missing { key });
        for (message, expected) in [
            (&b""[..], Err(UeventError::Header)),
            (b"libudev\0\xfe\xed\xca\xfe", Err(UeventError::Header)),
            (b"add@/a\0DEVPATH=/a\0", missing("ACTION")),
            (b"add@/a\0ACTION=add\0", missing("DEVPATH")),
        ] {
            assert_eq!(Uevent::parse(message), expected);
        }
    }

    /// Writes an event as the kernel does, its fields in any order, with some that nobody reads.
    fn write(event: &Uevent, order: &[usize]) -> Vec<u8> {
        let action = match &event.action {
            Action::Add => "add",
            Action::Remove => "remove",
            Action::Change => "change",
            Action::Other(other) => other,
        };
        let some = |key, value: Option<String>| value.map(|value| format!("{key}={value}"));
        let fields = [
            some("ACTION", Some(action.to_owned())),
            some("DEVPATH", Some(event.devpath.clone())),
            some("SUBSYSTEM", Some(event.subsystem.clone()).filter(|subsystem| !subsystem.is_empty())),
            some("DEVNAME", event.devname.clone()),
            some("INTERFACE", event.interface.clone()),
            some("SEQNUM", event.seqnum.map(|number| number.to_string())),
            some("MODALIAS", Some("virtio:d2=v1".to_owned())),
        ];
        let header = format!("{action}@{}\0", event.devpath);
        let ordered = order.iter().filter_map(|&at| fields[at].as_ref()).map(|field| format!("{field}\0"));
        ordered.fold(header, |text, field| text + &field).into_bytes()
    }

    fn any_event() -> impl Strategy<Value = Uevent> {
        let action = prop_oneof![
            Just(Action::Add),
            Just(Action::Remove),
            Just(Action::Change),
            prop::sample::select(vec!["bind", "move", "offline"])
                .prop_map(|other| Action::Other(other.to_owned())),
        ];
        let name = || prop::option::of("[a-z0-9/=!]{0,8}");
        (action, "/[a-z0-9:./=@]{0,30}", "[a-z_]{0,8}", name(), name(), any::<Option<u64>>()).prop_map(
            |(action, devpath, subsystem, devname, interface, seqnum)| Uevent {
                action,
                devpath,
                subsystem,
                devname,
                interface,
                seqnum,
            },
        )
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read(
            event in any_event(), order in Just((0..7).collect::<Vec<usize>>()).prop_shuffle(),
        ) {
            prop_assert_eq!(Uevent::parse(&write(&event, &order)), Ok(event));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Uevent::parse(&bytes);
            let mut mangled = DISK.to_vec();
            for (at, byte) in bytes.iter().enumerate().take(40) {
                let len = mangled.len();
                mangled[(at * 31 + usize::from(*byte)) % len] = *byte;
            }
            let _ = Uevent::parse(&mangled);
        }
    }
}
