//! `images`: the unpacked layers of this host.

use std::collections::BTreeSet;

use clap::Subcommand;
use nakai_ctl::image::Store;
use nakai_ctl::state::State;
use nakai_ctl::sweep::sweep;

use super::error::CliError;
use super::query::size;
use super::say::say;

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// List the layers, with what they take and whether a container has them
    Ls,
    /// Remove the layers that no container has
    Prune,
}

/// Does one of them.
pub(crate) fn dispatch(command: &ImagesCommand) -> Result<u8, CliError> {
    let store = Store::of_user();
    // Containers of machines that were killed have none.
    sweep();
    match command {
        ImagesCommand::Ls => {
            say!("{:<64} {:<12} USED", "LAYER", "SIZE");
            let used = State::layers_in_use();
            for (layer, bytes) in store.layers() {
                let name = layer.file_name().unwrap_or_default().to_string_lossy();
                say!("{name:<64} {:<12} {}", size(bytes), if used.contains(&layer) { "yes" } else { "no" });
            }
        }
        ImagesCommand::Prune => {
            let gone: BTreeSet<_> = store.prune(State::layers_in_use)?.into_iter().collect();
            for (layer, bytes) in &gone {
                say!("{} {}", layer.file_name().unwrap_or_default().to_string_lossy(), size(*bytes));
            }
        }
    }
    Ok(0)
}
