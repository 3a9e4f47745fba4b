//! The packages of the dependency graph: from `cargo metadata`, which knows licences, and `Cargo.lock`, which names
//! the packages of every target.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use semver::Version;
use serde::Deserialize;

/// A package in `Cargo.lock`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Locked {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: Version,
    /// Where it comes from; none is this workspace.
    pub(crate) source: Option<String>,
}

/// A package that is built for a target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Built {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: Version,
    /// Where it comes from; none is this workspace.
    pub(crate) source: Option<String>,
    /// Its licence expression, if it says one.
    pub(crate) license: Option<String>,
}

/// Packages that can't be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackagesError {
    /// `cargo metadata` could not be started.
    #[error("cargo can't be started: {0}")]
    Start(#[source] std::io::Error),
    /// `cargo metadata` failed.
    #[error("cargo metadata ended with {status}: {output}")]
    Metadata {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote to its standard error.
        output: String,
    },
    /// Its output is not what it was.
    #[error("the output of cargo metadata: {0}")]
    MetadataFormat(#[source] serde_json::Error),
    /// `Cargo.lock` is not what it was.
    #[error("Cargo.lock: {0}")]
    LockFormat(#[source] toml::de::Error),
}

/// The packages that are built for any of the targets.
pub(crate) fn built(root: &Path, targets: &[String]) -> Result<BTreeSet<Built>, PackagesError> {
    let mut all = BTreeSet::new();
    for target in targets {
        all.extend(built_for(root, target)?);
    }
    Ok(all)
}

#[expect(clippy::disallowed_methods, reason = "the rule is for the guest: no supervisor reaps here")]
fn built_for(root: &Path, target: &str) -> Result<Vec<Built>, PackagesError> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", target])
        .current_dir(root)
        .output()
        .map_err(PackagesError::Start)?;
    if output.status.success() {
        return parse_metadata(&output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(PackagesError::Metadata { status: output.status, output: said })
}

fn parse_metadata(json: &[u8]) -> Result<Vec<Built>, PackagesError> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Built>,
    }
    let metadata: Metadata = serde_json::from_slice(json).map_err(PackagesError::MetadataFormat)?;
    Ok(metadata.packages)
}

/// The packages in the text of `Cargo.lock`.
pub(crate) fn locked(text: &str) -> Result<Vec<Locked>, PackagesError> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Locked>,
    }
    let lock: Lock = toml::from_str(text).map_err(PackagesError::LockFormat)?;
    Ok(lock.package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_is_read() {
        let text = "
            version = 4
            [[package]]
            name = 'here'
            version = '0.1.0'
            dependencies = ['there']
            [[package]]
            name = 'there'
            version = '1.2.3+build'
            source = 'registry+there'
        ";
        let packages = locked(text).unwrap();
        assert_eq!(packages[0].source, None);
        assert_eq!(packages[1].source.as_deref(), Some("registry+there"));
        assert_eq!(packages[1].version.patch, 3);
    }

    #[test]
    fn metadata_is_read() {
        let json = br#"{"packages": [{"name": "a", "version": "1.0.0", "source": null, "license": "MIT", "id": "x"}],
            "workspace_members": []}"#;
        let packages = parse_metadata(json).unwrap();
        assert_eq!(packages[0].license.as_deref(), Some("MIT"));
    }
}
