//! How PCI devices are named: by the way that leads to them (the protocol), or by their number (the kernel).
//!
//! A *path* is `SS[.F]/SS[.F]/...`, all hexadecimal: the slot (and function, 0 if not given) on the root bus,
//! then the slot on the bus behind that bridge, and so on. The host knows it before the guest has numbered
//! its buses. An *address* is the kernel's `dddd:bb:ss.f`: domain, bus, slot, function.
//!
//! A path of three or more parts whose first is 20 or higher (no slot can be) starts at another root complex,
//! one that QEMU's `pxb-pcie` made: its first part is the number of that root bus.

use std::fmt;
use std::str::FromStr;

/// The highest slot of a bus, and function of a slot.
const MAX_SLOT: u8 = 0x1f;
const MAX_FUNCTION: u8 = 7;

/// Why a text is no PCI path or address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// A part that is no `SS[.F]`.
    #[error(
        "PCI path {path:?}: {part:?} is not a slot (0 to 1f, hexadecimal) with or without .function (0 to 7)"
    )]
    Part {
        /// The path.
        path: String,
        /// The part of it.
        part: String,
    },
    /// Not `dddd:bb:ss.f`.
    #[error("PCI address {address:?} is not of the form dddd:bb:ss.f")]
    Address {
        /// What was given.
        address: String,
    },
}

/// Reads hexadecimal digits, at least one and at most `digits`, nothing else (no sign).
fn hex(text: &str, digits: usize) -> Option<u32> {
    let well_formed = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if well_formed { u32::from_str_radix(text, 16).ok() } else { None }
}

fn hex_byte(text: &str, max: u8) -> Option<u8> {
    hex(text, 2).and_then(|number| u8::try_from(number).ok()).filter(|number| *number <= max)
}

/// A function of a slot of some bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotFunction {
    /// 0 to 0x1f.
    pub slot: u8,
    /// 0 to 7.
    pub function: u8,
}

impl SlotFunction {
    fn parse(text: &str) -> Option<Self> {
        let (slot, function) = match text.split_once('.') {
            Some((slot, function)) if function.len() == 1 => (slot, hex_byte(function, MAX_FUNCTION)?),
            Some(_) => return None,
            None => (text, 0),
        };
        Some(Self { slot: hex_byte(slot, MAX_SLOT)?, function })
    }
}

impl fmt::Display for SlotFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.slot, self.function)
    }
}

/// The way to a PCI device, from a root bus on. Has at least one step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PciPath {
    root_bus: u8,
    steps: Vec<SlotFunction>,
}

impl PciPath {
    /// The number of the bus where it starts: 0, unless it names another root complex.
    pub fn root_bus(&self) -> u8 {
        self.root_bus
    }

    /// The way over these slots from the first root bus on, function 0 each.
    ///
    /// # Errors
    ///
    /// There are none, or one is above 1f.
    pub fn from_slots(slots: &[u32]) -> Result<Self, PciError> {
        let text = slots.iter().map(|slot| format!("{slot:02x}")).collect::<Vec<_>>().join("/");
        let steps = slots.iter().map(|slot| {
            let in_range = u8::try_from(*slot).ok().filter(|slot| *slot <= MAX_SLOT);
            let refuse = || PciError::Part { path: text.clone(), part: format!("{slot:02x}") };
            Ok(SlotFunction { slot: in_range.ok_or_else(refuse)?, function: 0 })
        });
        let steps = steps.collect::<Result<Vec<_>, _>>()?;
        if steps.is_empty() {
            return Err(PciError::Part { path: text, part: String::new() });
        }
        Ok(Self { root_bus: 0, steps })
    }

    /// The slots on the way, the device's own last.
    pub fn steps(&self) -> &[SlotFunction] {
        &self.steps
    }
}

impl FromStr for PciPath {
    type Err = PciError;

    fn from_str(path: &str) -> Result<Self, PciError> {
        let refuse = |part: &str| PciError::Part { path: path.to_owned(), part: part.to_owned() };
        let mut parts = path.split('/').peekable();
        let mut root_bus = 0;
        if let Some(bus) = parts.peek().and_then(|first| hex_byte(first, u8::MAX))
            && bus > MAX_SLOT
            && path.split('/').count() >= 3
        {
            root_bus = bus;
            parts.next();
        }
        let steps: Result<_, _> =
            parts.map(|part| SlotFunction::parse(part).ok_or_else(|| refuse(part))).collect();
        Ok(Self { root_bus, steps: steps? })
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut slash = "";
        if self.root_bus != 0 {
            write!(f, "{:02x}", self.root_bus)?;
            slash = "/";
        }
        for step in &self.steps {
            write!(f, "{slash}{:02x}", step.slot)?;
            if step.function != 0 {
                write!(f, ".{:x}", step.function)?;
            }
            slash = "/";
        }
        Ok(())
    }
}

/// The kernel's number of a PCI device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// Usually 0.
    pub domain: u32,
    /// The bus, as the guest numbered it.
    pub bus: u8,
    /// Where on the bus.
    pub at: SlotFunction,
}

impl FromStr for PciAddress {
    type Err = PciError;

    fn from_str(address: &str) -> Result<Self, PciError> {
        let parse = || {
            let mut parts = address.split(':');
            let (domain, bus, at) = (parts.next()?, parts.next()?, parts.next()?);
            // Domains beyond ffff exist (VMD); the kernel writes each part at its full width.
            let full_width = domain.len() >= 4 && bus.len() == 2 && at.len() == 4 && parts.next().is_none();
            if !full_width {
                return None;
            }
            Some(Self { domain: hex(domain, 8)?, bus: hex_byte(bus, u8::MAX)?, at: SlotFunction::parse(at)? })
        };
        parse().ok_or_else(|| PciError::Address { address: address.to_owned() })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{}", self.domain, self.bus, self.at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_read_and_written() {
        for (text, root_bus, steps, written) in [
            ("04", 0, vec![(4, 0)], "04"),
            ("4/1f.7", 0, vec![(4, 0), (0x1f, 7)], "04/1f.7"),
            ("02.0/03.1/00", 0, vec![(2, 0), (3, 1), (0, 0)], "02/03.1/00"),
            ("20/00/02", 0x20, vec![(0, 0), (2, 0)], "20/00/02"),
        ] {
            let path: PciPath = text.parse().unwrap();
            let found: Vec<_> = path.steps().iter().map(|step| (step.slot, step.function)).collect();
            assert_eq!((path.root_bus(), found), (root_bus, steps), "{text}");
            assert_eq!(path.to_string(), written);
        }
    }

    #[test]
    fn what_is_no_path_is_refused_with_the_part_that_is_wrong() {
        for (text, part) in [
            ("", ""),
            ("/", ""),
            ("04/", ""),
            ("20", "20"),
            ("20/00", "20"),
            ("02/20", "20"),
            ("02.8", "02.8"),
            ("02.00", "02.00"),
            ("+2", "+2"),
            ("002", "002"),
            ("0000:00:02.0", "0000:00:02.0"),
            ("02/../03", ".."),
        ] {
            let refused = text.parse::<PciPath>().unwrap_err();
            assert_eq!(refused, PciError::Part { path: text.into(), part: part.into() });
        }
    }

    #[test]
    fn slots_make_a_path() {
        assert_eq!(PciPath::from_slots(&[4, 0, 31]).unwrap().to_string(), "04/00/1f");
        assert!(PciPath::from_slots(&[32, 0, 0]).unwrap_err().to_string().contains("\"20\""));
        for bad in [&[][..], &[4, 32], &[260]] {
            PciPath::from_slots(bad).unwrap_err();
        }
    }

    #[test]
    fn addresses_are_read_at_full_width_only() {
        let address: PciAddress = "0000:3a:1f.7".parse().unwrap();
        assert_eq!((address.domain, address.bus, address.at.slot, address.at.function), (0, 0x3a, 0x1f, 7));
        for bad in ["", "0000:00", "00:02.0", "0000:00:02", "0000:00:20.0", "0000:00:02.8", "0000:00:02.0:1"]
        {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad} was accepted");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_what_is_read_stays_the_same(text in "[0-9a-f./:+g]{0,16}") {
            if let Ok(path) = text.parse::<PciPath>() {
                prop_assert!(!path.steps().is_empty());
                prop_assert_eq!(&path.to_string().parse::<PciPath>().unwrap(), &path);
            }
            if let Ok(address) = text.parse::<PciAddress>() {
                prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
            }
        }

        #[test]
        fn every_path_is_read_back(
            root_bus in prop_oneof![Just(0u8), 0x20u8..],
            steps in prop::collection::vec((0u8..=MAX_SLOT, 0u8..=MAX_FUNCTION), 2..6),
        ) {
            let steps = steps.into_iter().map(|(slot, function)| SlotFunction { slot, function }).collect();
            let path = PciPath { root_bus, steps };
            prop_assert_eq!(path.to_string().parse::<PciPath>().unwrap(), path);
        }

        #[test]
        fn every_address_is_read_back(domain: u32, bus: u8, slot in 0..=MAX_SLOT, function in 0..=MAX_FUNCTION) {
            let address = PciAddress { domain, bus, at: SlotFunction { slot, function } };
            prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
        }
    }
}
