//! Changes that belong together: all of them, or none.

use nix::errno::Errno;
use slog::{Logger, debug, warn};

use super::NetworkError;
use super::kernel::{Change, Kernel};
use super::link::{Address, Link};
use super::netlink::Refused;

/// Changes that have been made, each with its way back.
pub(super) struct Steps<'a> {
    kernel: &'a mut dyn Kernel,
    /// For their names.
    links: Vec<Link>,
    back: Vec<Change>,
    has_changed: bool,
    log: &'a Logger,
}

impl<'a> Steps<'a> {
    pub(super) fn new(kernel: &'a mut dyn Kernel, links: Vec<Link>, log: &'a Logger) -> Self {
        Self { kernel, links, back: Vec::new(), has_changed: false, log }
    }

    /// Makes a change that `back` undoes.
    pub(super) fn apply(&mut self, change: Change, back: Change) -> Result<(), NetworkError> {
        let applied = self.kernel.apply(&change);
        self.note(&change, applied)?;
        self.note_name(&change);
        self.back.push(back);
        Ok(())
    }

    /// Removes an address, unless it has gone with another one. It has no way back here: who undoes it has to put all
    /// that a link lost back in its order.
    pub(super) fn remove_address(&mut self, address: Address) -> Result<(), NetworkError> {
        let change = Change::RemoveAddress(address);
        let removed = match self.kernel.apply(&change) {
            Err(refused) if refused.errno == Errno::EADDRNOTAVAIL => Ok(()),
            other => other,
        };
        self.note(&change, removed)
    }

    fn note(&mut self, change: &Change, applied: Result<(), Refused>) -> Result<(), NetworkError> {
        let what = change.describe(&self.links);
        debug!(self.log, "network"; "change" => &what, "done" => applied.is_ok());
        applied.map_err(|source| NetworkError::Change { what, source })?;
        self.has_changed = true;
        Ok(())
    }

    /// Whether anything has been changed, also if it has been undone.
    pub(super) fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// Keeps the names right that errors and the log tell.
    fn note_name(&mut self, change: &Change) {
        let Change::Rename { link, name } = change else { return };
        self.links
            .iter_mut()
            .filter(|known| known.index == *link)
            .for_each(|link| link.name.clone_from(name));
    }

    /// Makes a change that may fail without harm, and is not undone.
    pub(super) fn try_to(&mut self, change: &Change) {
        if let Err(cause) = self.kernel.apply(change) {
            debug!(self.log, "network: not done"; "change" => change.describe(&self.links), "cause" => %cause);
        }
    }

    /// What is there now.
    pub(super) fn kernel(&mut self) -> &mut dyn Kernel {
        self.kernel
    }

    /// Undoes all, the newest first. What can't be undone is logged, and the rest goes on.
    pub(super) fn undo(&mut self) {
        while let Some(change) = self.back.pop() {
            if let Err(cause) = self.kernel.apply(&change) {
                warn!(self.log, "network: not undone";
                    "change" => change.describe(&self.links), "cause" => %cause);
            } else {
                self.note_name(&change);
            }
        }
    }
}
