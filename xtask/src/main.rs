//! Checks of this repository that no tool at hand makes.
//!
//! - `cargo xtask deny`: dependencies have allowed licences, come from the registry and have no known faults. It
//!   needs no network once the dependencies are there.
//! - `cargo xtask lines`: no Rust file is too long.

mod advisory;
mod deny;
mod licence;
mod lines;
mod packages;
mod policy;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    match run(&task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask {task}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a task and tells whether all is well.
fn run(task: &str) -> Result<bool, Box<dyn Error>> {
    let root = workspace()?;
    match task {
        "deny" => deny(&root),
        "lines" => lines(&root),
        _ => Err("no such task; there are `deny` and `lines`".into()),
    }
}

/// The nearest folder upwards with a `Cargo.lock`.
fn workspace() -> Result<PathBuf, Box<dyn Error>> {
    let here = std::env::current_dir()?;
    let root = here.ancestors().find(|dir| dir.join("Cargo.lock").is_file());
    Ok(root.ok_or("no Cargo.lock here or above")?.into())
}

fn deny(root: &Path) -> Result<bool, Box<dyn Error>> {
    let (packages, findings) = deny::check(root)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    println!("{packages} packages: {} findings", findings.len());
    Ok(findings.is_empty())
}

fn lines(root: &Path) -> Result<bool, Box<dyn Error>> {
    let files = lines::too_long(root)?;
    for (path, lines) in &files {
        eprintln!("{}: {lines} lines: split it", path.strip_prefix(root).unwrap_or(path).display());
    }
    Ok(files.is_empty())
}
