//! Known advisories against crates (`advisories.toml`).

use semver::{Version, VersionReq};
use serde::Deserialize;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Advisories {
    /// All of them.
    #[serde(rename = "advisory")]
    pub(crate) all: Vec<Advisory>,
}

/// One advisory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Advisory {
    /// Its name in the database it comes from.
    pub(crate) id: String,
    /// The crate it is about.
    #[serde(rename = "crate")]
    pub(crate) package: String,
    /// What is wrong, in a few words.
    pub(crate) title: String,
    /// Versions that have a correction.
    patched: Vec<VersionReq>,
    /// Versions that never had the fault.
    #[serde(default)]
    unaffected: Vec<VersionReq>,
}

impl Advisory {
    /// Whether it is about this version of this crate.
    pub(crate) fn affects(&self, package: &str, version: &Version) -> bool {
        let mut sound = self.patched.iter().chain(&self.unaffected);
        self.package == package && !sound.any(|versions| versions.matches(version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affected(versions: &str, version: &str) -> bool {
        let text = format!("[[advisory]]\nid = 'A'\ncrate = 'c'\ntitle = 't'\n{versions}");
        let advisories: Advisories = toml::from_str(&text).unwrap();
        advisories.all[0].affects("c", &version.parse().unwrap())
    }

    #[test]
    fn a_version_is_affected_until_it_is_patched() {
        let versions = "patched = ['>= 1.8.4, < 1.9.0', '>= 1.13.1']\nunaffected = ['< 0.1.14']";
        let table = [
            ("0.1.13", false),
            ("0.1.14", true),
            ("1.8.3", true),
            ("1.8.4", false),
            ("1.9.0", true),
            ("1.13.0", true),
            ("1.13.1", false),
            ("2.0.0", false),
        ];
        for (version, expected) in table {
            assert_eq!(affected(versions, version), expected, "{version}");
        }
    }

    #[test]
    fn without_a_patch_all_versions_are_affected() {
        assert!(affected("patched = []", "99.0.0"));
    }

    #[test]
    fn carets_match_one_series() {
        assert!(!affected("patched = ['^0.20.2', '>= 0.23.0']", "0.20.9"));
        assert!(affected("patched = ['^0.20.2', '>= 0.23.0']", "0.21.0"));
    }

    #[test]
    fn other_crates_are_not_meant() {
        let text = "[[advisory]]\nid = 'A'\ncrate = 'c'\ntitle = 't'\npatched = []";
        let advisories: Advisories = toml::from_str(text).unwrap();
        assert!(!advisories.all[0].affects("cc", &Version::new(1, 0, 0)));
    }
}
