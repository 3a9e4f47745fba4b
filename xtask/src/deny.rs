//! The rules on dependencies: allowed licences, no known faults, one registry.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use semver::Version;

use crate::advisory::{Advisories, Advisory};
use crate::licence::{Expression, ExpressionError};
use crate::packages::{self, Built, Locked, PackagesError};
use crate::policy::{Ignored, LicencePolicy, Policy};

/// How `Cargo.lock` names the only allowed source.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// A check that could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DenyError {
    /// Reading a file.
    #[error("{}: can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not as it should be.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: toml::de::Error,
    },
    /// Listing the packages.
    #[error(transparent)]
    Packages(#[from] PackagesError),
}

/// A rule that is broken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A licence that is not allowed.
    #[error("{name} {version}: licence {expression:?} is not allowed by deny.toml")]
    Licence {
        /// The crate.
        name: String,
        /// Its version.
        version: Version,
        /// Its licence.
        expression: String,
    },
    /// A licence that can't be understood.
    #[error("{name} {version}: {source}")]
    Expression {
        /// The crate.
        name: String,
        /// Its version.
        version: Version,
        /// What is wrong.
        source: ExpressionError,
    },
    /// No licence.
    #[error("{name} {version}: has no licence expression, and no [[licenses.clarify]] for it in deny.toml")]
    NoLicence {
        /// The crate.
        name: String,
        /// Its version.
        version: Version,
    },
    /// A source that is not the registry.
    #[error("{name} {version}: comes from {found}, not from the registry")]
    Source {
        /// The crate.
        name: String,
        /// Its version.
        version: Version,
        /// Its source.
        found: String,
    },
    /// A known fault.
    #[error("{name} {version}: {id}: {title}")]
    Advisory {
        /// The crate.
        name: String,
        /// Its version.
        version: Version,
        /// The advisory.
        id: String,
        /// What it says.
        title: String,
    },
    /// An ignored advisory that is not against any crate here, or that nobody gives a reason for.
    #[error("deny.toml ignores {id}, which {problem}")]
    Ignored {
        /// The advisory.
        id: String,
        /// What is wrong with ignoring it.
        problem: &'static str,
    },
}

/// Checks the workspace at `root`. Returns how many packages there are, and what is wrong.
pub(crate) fn check(root: &Path) -> Result<(usize, Vec<Finding>), DenyError> {
    let policy: Policy = parse(&root.join("deny.toml"))?;
    let advisories: Advisories = parse(&root.join("xtask/advisories.toml"))?;
    let locked = packages::locked(&read(&root.join("Cargo.lock"))?)?;
    let built = packages::built(root, &policy.graph.targets)?;
    let mut findings = licences(&policy.licenses, &built);
    findings.extend(sources(&locked));
    findings.extend(faults(&policy.advisories.ignore, &advisories.all, &locked));
    Ok((locked.len(), findings))
}

fn read(path: &Path) -> Result<String, DenyError> {
    std::fs::read_to_string(path).map_err(|source| DenyError::Read { path: path.into(), source })
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, DenyError> {
    toml::from_str(&read(path)?).map_err(|source| DenyError::Parse { path: path.into(), source })
}

fn licences(policy: &LicencePolicy, built: &BTreeSet<Built>) -> Vec<Finding> {
    let outside = built.iter().filter(|package| package.source.is_some());
    outside.filter_map(|package| licence(policy, package)).collect()
}

fn licence(policy: &LicencePolicy, package: &Built) -> Option<Finding> {
    let (name, version) = (package.name.clone(), package.version.clone());
    let own = package.license.as_deref();
    let Some(expression) = own.or_else(|| policy.clarified(&name, &version)) else {
        return Some(Finding::NoLicence { name, version });
    };
    match Expression::parse(expression) {
        Err(source) => Some(Finding::Expression { name, version, source }),
        Ok(parsed) if parsed.is_satisfied(&|licence| policy.allows(&name, &version, licence)) => None,
        Ok(_) => Some(Finding::Licence { name, version, expression: expression.into() }),
    }
}

fn sources(locked: &[Locked]) -> impl Iterator<Item = Finding> {
    locked.iter().filter_map(|package| {
        let found = package.source.clone().filter(|source| source != REGISTRY)?;
        Some(Finding::Source { name: package.name.clone(), version: package.version.clone(), found })
    })
}

fn faults(ignored: &[Ignored], advisories: &[Advisory], locked: &[Locked]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut met = BTreeSet::new();
    for Locked { name, version, .. } in locked {
        for advisory in advisories.iter().filter(|advisory| advisory.affects(name, version)) {
            met.insert(advisory.id.as_str());
            if ignored.iter().all(|ignored| ignored.id != advisory.id) {
                let (name, version) = (name.clone(), version.clone());
                let (id, title) = (advisory.id.clone(), advisory.title.clone());
                findings.push(Finding::Advisory { name, version, id, title });
            }
        }
    }
    for Ignored { id, reason } in ignored {
        if !met.contains(id.as_str()) {
            findings
                .push(Finding::Ignored { id: id.clone(), problem: "is against no package in Cargo.lock" });
        }
        if reason.trim().is_empty() {
            findings.push(Finding::Ignored { id: id.clone(), problem: "needs a reason" });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(name: &str, license: Option<&str>) -> Built {
        let source = Some(REGISTRY.into());
        Built {
            name: name.into(),
            version: Version::new(1, 0, 0),
            source,
            license: license.map(str::to_owned),
        }
    }

    #[test]
    fn licences_are_allowed_refused_or_missing() {
        let policy: LicencePolicy = toml::from_str("allow = ['MIT']").unwrap();
        let mut ours = built("ours", Some("Proprietary"));
        ours.source = None;
        let packages = [
            built("good", Some("GPL-3.0 OR MIT")),
            built("bad", Some("GPL-3.0")),
            built("none", None),
            built("odd", Some("MIT MIT")),
            ours,
        ];
        let findings: Vec<_> =
            licences(&policy, &packages.into()).into_iter().map(|finding| finding.to_string()).collect();
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert_eq!(findings[0], "bad 1.0.0: licence \"GPL-3.0\" is not allowed by deny.toml");
        assert!(findings[1].starts_with("none 1.0.0: has no licence expression"));
        assert!(findings[2].starts_with("odd 1.0.0: \"MIT MIT\" is no licence expression"));
    }

    fn lock(name: &str, source: Option<&str>) -> Locked {
        Locked { name: name.into(), version: Version::new(1, 0, 0), source: source.map(str::to_owned) }
    }

    #[test]
    fn only_the_registry_is_a_source() {
        let locked =
            [lock("ours", None), lock("good", Some(REGISTRY)), lock("bad", Some("git+ssh://there/bad"))];
        let findings: Vec<_> = sources(&locked).map(|finding| finding.to_string()).collect();
        assert_eq!(findings, ["bad 1.0.0: comes from git+ssh://there/bad, not from the registry"]);
    }

    #[test]
    fn faults_are_found_unless_they_are_ignored_for_a_reason() {
        let text = "[[advisory]]\nid = 'A-1'\ncrate = 'bad'\ntitle = 'breaks'\npatched = ['>= 1.0.1']";
        let advisories: Advisories = toml::from_str(text).unwrap();
        let check = |ignored: &[Ignored], locked: &[Locked]| {
            let findings = faults(ignored, &advisories.all, locked);
            findings.into_iter().map(|finding| finding.to_string()).collect::<Vec<_>>()
        };
        let bad = [lock("bad", Some(REGISTRY))];
        let ignore = |reason: &str| [Ignored { id: "A-1".into(), reason: reason.into() }];
        assert_eq!(check(&[], &bad), ["bad 1.0.0: A-1: breaks"]);
        assert!(check(&ignore("not called"), &bad).is_empty());
        assert_eq!(check(&ignore(" "), &bad), ["deny.toml ignores A-1, which needs a reason"]);
        assert_eq!(
            check(&ignore("not called"), &[]),
            ["deny.toml ignores A-1, which is against no package in Cargo.lock"]
        );
    }

    #[test]
    fn the_committed_files_parse() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let policy: Policy = parse(&root.join("deny.toml")).unwrap();
        let advisories: Advisories = parse(&root.join("xtask/advisories.toml")).unwrap();
        assert!(!policy.graph.targets.is_empty());
        let ids: BTreeSet<_> = advisories.all.iter().map(|advisory| &advisory.id).collect();
        assert_eq!(ids.len(), advisories.all.len(), "an advisory is listed twice");
    }
}
