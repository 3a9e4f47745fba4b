//! What is allowed: `deny.toml`, the part of cargo-deny's format that the check needs.

use semver::Version;
use serde::Deserialize;

/// The file. Sections and keys that only cargo-deny reads are passed over.
#[derive(Debug, Deserialize)]
pub(crate) struct Policy {
    /// What is built.
    pub(crate) graph: Graph,
    /// Known faults.
    pub(crate) advisories: AdvisoryPolicy,
    /// Licences.
    pub(crate) licenses: LicencePolicy,
}

/// Section `[graph]`.
#[derive(Debug, Deserialize)]
pub(crate) struct Graph {
    /// Target triples: a dependency of other targets only need not have an allowed licence.
    pub(crate) targets: Vec<String>,
}

/// Section `[advisories]`.
#[derive(Debug, Deserialize)]
pub(crate) struct AdvisoryPolicy {
    /// Advisories that do no harm here.
    #[serde(default)]
    pub(crate) ignore: Vec<Ignored>,
}

/// An advisory that does no harm here.
#[derive(Debug, Deserialize)]
pub(crate) struct Ignored {
    /// Which.
    pub(crate) id: String,
    /// Why not. There must be one.
    pub(crate) reason: String,
}

/// Section `[licenses]`.
#[derive(Debug, Deserialize)]
pub(crate) struct LicencePolicy {
    /// Licences that every crate may have.
    allow: Vec<String>,
    /// Licences that single crates may have.
    #[serde(default)]
    exceptions: Vec<Exception>,
    /// Licences of crates that do not say theirs.
    #[serde(default)]
    clarify: Vec<Clarification>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    /// `name` or `name@version`.
    #[serde(rename = "crate")]
    package: String,
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Clarification {
    /// `name` or `name@version`.
    #[serde(rename = "crate")]
    package: String,
    expression: String,
}

impl LicencePolicy {
    /// Whether a crate may have a licence.
    pub(crate) fn allows(&self, name: &str, version: &Version, licence: &str) -> bool {
        let of_crate = self.exceptions.iter().filter(|exception| names(&exception.package, name, version));
        of_crate.flat_map(|exception| &exception.allow).chain(&self.allow).any(|allowed| allowed == licence)
    }

    /// The licence expression of a crate that does not say its own.
    pub(crate) fn clarified(&self, name: &str, version: &Version) -> Option<&str> {
        let found = self.clarify.iter().find(|clarification| names(&clarification.package, name, version));
        found.map(|clarification| clarification.expression.as_str())
    }
}

/// Whether `name` or `name@version` names this crate.
fn names(package: &str, name: &str, version: &Version) -> bool {
    match package.split_once('@') {
        None => package == name,
        Some((wanted, exact)) => wanted == name && exact == version.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
        allow = ['MIT']
        exceptions = [{ crate = 'p', allow = ['MPL-2.0'] }]
        [[clarify]]
        crate = 'c@0.6.1'
        expression = 'MIT'
        license-files = []
    ";

    #[test]
    fn exceptions_are_for_their_crate() {
        let policy: LicencePolicy = toml::from_str(TEXT).unwrap();
        let version = Version::new(1, 0, 0);
        assert!(policy.allows("p", &version, "MPL-2.0"));
        assert!(policy.allows("p", &version, "MIT"));
        assert!(!policy.allows("q", &version, "MPL-2.0"));
    }

    #[test]
    fn clarifications_are_for_their_version() {
        let policy: LicencePolicy = toml::from_str(TEXT).unwrap();
        assert_eq!(policy.clarified("c", &Version::new(0, 6, 1)), Some("MIT"));
        assert_eq!(policy.clarified("c", &Version::new(0, 6, 2)), None);
    }
}
