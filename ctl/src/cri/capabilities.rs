//! Capability sets: the usual ones, changed by add, drop and ambient; `ALL` is every one.

use nakai_protocols::oci;
use nakai_protocols::spec::CAPABILITIES as ALL;

use super::CriError;
use super::config::Capability;
use crate::spec::DEFAULT_CAPABILITIES;

/// The five sets. `ALL` comes before single names, whatever the order: "drop ALL, add CHOWN" leaves CHOWN.
///
/// # Errors
///
/// A name is no capability.
pub fn sets(asked: &Capability, privileged: bool) -> Result<oci::LinuxCapabilities, CriError> {
    let add = names("add_capabilities", &asked.add_capabilities)?;
    let drop = names("drop_capabilities", &asked.drop_capabilities)?;
    let ambient = names("add_ambient_capabilities", &asked.add_ambient_capabilities)?;
    let has_all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let full = || ALL.iter().map(|name| format!("CAP_{name}")).collect::<Vec<_>>();
    let mut set = if privileged || has_all(&add) {
        full()
    } else if has_all(&drop) {
        Vec::new()
    } else {
        DEFAULT_CAPABILITIES.map(str::to_owned).to_vec()
    };
    if !privileged {
        if has_all(&drop) {
            set.clear();
        }
        for name in add.iter().chain(&ambient).filter(|name| *name != "ALL") {
            if !set.contains(name) {
                set.push(name.clone());
            }
        }
        set.retain(|name| !drop.contains(name));
    }
    let ambient: Vec<String> = if has_all(&ambient) { set.clone() } else { ambient };
    let ambient: Vec<String> = ambient.into_iter().filter(|name| set.contains(name)).collect();
    Ok(oci::LinuxCapabilities {
        Bounding: set.clone(),
        Effective: set.clone(),
        Permitted: set,
        // What is ambient must be inheritable (capabilities(7)).
        Inheritable: ambient.clone(),
        Ambient: ambient,
        ..Default::default()
    })
}

/// `chown`, `CHOWN` and `CAP_CHOWN` are one; `ALL` stays.
fn names(field: &str, given: &[String]) -> Result<Vec<String>, CriError> {
    let name = |text: &String| {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match bare {
            "ALL" => Ok("ALL".to_owned()),
            bare if ALL.contains(&bare) => Ok(format!("CAP_{bare}")),
            _ => Err(CriError::field(field, format!("{text:?} is no capability"))),
        }
    };
    given.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str], ambient: &[&str]) -> oci::LinuxCapabilities {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let asked = Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            add_ambient_capabilities: list(ambient),
        };
        sets(&asked, false).unwrap()
    }

    #[test]
    fn names_are_added_and_dropped_and_all_comes_first() {
        assert_eq!(of(&[], &[], &[]).Effective, DEFAULT_CAPABILITIES);
        assert_eq!(of(&["chown"], &["ALL"], &[]).Bounding, ["CAP_CHOWN"]);
        let most = of(&["ALL"], &["CAP_SYS_ADMIN"], &[]);
        assert_eq!(most.Permitted.len(), 40);
        assert!(!most.Permitted.contains(&"CAP_SYS_ADMIN".to_owned()));
        let ambient = of(&[], &["ALL"], &["NET_ADMIN"]);
        assert_eq!(ambient.Ambient, ["CAP_NET_ADMIN"]);
        assert_eq!((&ambient.Inheritable, &ambient.Permitted), (&ambient.Ambient, &ambient.Ambient));
        assert_eq!(sets(&Capability::default(), true).unwrap().Effective.len(), 41);
        let wrong = Capability { drop_capabilities: vec!["FLY".into()], ..Capability::default() };
        assert!(sets(&wrong, false).unwrap_err().to_string().contains("drop_capabilities: \"FLY\""));
    }
}
