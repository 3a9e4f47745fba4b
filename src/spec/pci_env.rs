//! PCI addresses in a process's environment.
//!
//! Kubernetes' SR-IOV device plugins tell a container its devices' addresses in variables
//! `PCIDEVICE_<resource>=<address>[,<address>]` and, as JSON, in `PCIDEVICE_<resource>_INFO`. The addresses
//! are the host's; the container is in the guest.

use std::collections::BTreeMap;

const PREFIX: &str = "PCIDEVICE_";

/// Rewrites the addresses that are known. One without a counterpart is left, with a warning.
pub(super) fn apply(
    env: &mut [String],
    host_to_guest: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) {
    for entry in env.iter_mut() {
        let Some((name, value)) = entry.split_once('=').filter(|(name, _)| name.starts_with(PREFIX)) else {
            continue;
        };
        let translated = if name.ends_with("_INFO") {
            translate_text(value, host_to_guest)
        } else {
            let lookup = |address: &str| match host_to_guest.get(address) {
                Some(guest) => guest.clone(),
                None => {
                    if is_address(address) {
                        warnings
                            .push(format!("{name}: no device of this container is {address} on the host"));
                    }
                    address.to_owned()
                }
            };
            value.split(',').map(lookup).collect::<Vec<_>>().join(",")
        };
        *entry = format!("{name}={translated}");
    }
}

/// Replaces the addresses in one pass, so that a guest's address which is also a host's is not replaced
/// again.
fn translate_text(text: &str, host_to_guest: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let known = rest
            .split_at_checked(ADDRESS_LEN)
            .and_then(|(head, tail)| Some((host_to_guest.get(head)?, tail)));
        if let Some((guest, tail)) = known {
            out.push_str(guest);
            rest = tail;
        } else {
            let mut chars = rest.chars();
            out.extend(chars.next());
            rest = chars.as_str();
        }
    }
    out
}

/// `dddd:bb:dd.f`
const ADDRESS_LEN: usize = 12;

fn is_address(text: &str) -> bool {
    text.len() == ADDRESS_LEN
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b':',
            10 => byte == b'.',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(entry: &str) -> (String, usize) {
        let map = BTreeMap::from([
            ("0000:1a:02.0".to_owned(), "0000:01:00.0".to_owned()),
            ("0000:01:00.0".to_owned(), "0000:02:00.0".to_owned()),
        ]);
        let mut env = [entry.to_owned()];
        let mut warnings = Vec::new();
        apply(&mut env, &map, &mut warnings);
        let [entry] = env;
        (entry, warnings.len())
    }

    #[test]
    fn addresses_become_the_guests_once() {
        for (entry, expected, warned) in [
            ("PCIDEVICE_X=0000:1a:02.0", "PCIDEVICE_X=0000:01:00.0", 0),
            ("PCIDEVICE_X=0000:1a:02.0,0000:01:00.0", "PCIDEVICE_X=0000:01:00.0,0000:02:00.0", 0),
            ("PCIDEVICE_X=0000:99:00.0", "PCIDEVICE_X=0000:99:00.0", 1),
            ("PCIDEVICE_X=vhost", "PCIDEVICE_X=vhost", 0),
            ("OTHER=0000:1a:02.0", "OTHER=0000:1a:02.0", 0),
            (
                r#"PCIDEVICE_X_INFO={"0000:1a:02.0":{"é":1}}"#,
                r#"PCIDEVICE_X_INFO={"0000:01:00.0":{"é":1}}"#,
                0,
            ),
            ("PCIDEVICE_X", "PCIDEVICE_X", 0),
        ] {
            assert_eq!(run(entry), (expected.to_owned(), warned));
        }
    }
}
