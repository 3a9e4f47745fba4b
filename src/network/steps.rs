//! Changes that belong together: all of them, or none.

use slog::{Logger, debug, warn};

use super::NetworkError;
use super::kernel::{Change, Kernel};
use super::link::Link;

/// Changes that have been made, each with its way back.
pub(super) struct Steps<'a> {
    kernel: &'a mut dyn Kernel,
    /// For their names.
    links: Vec<Link>,
    back: Vec<Change>,
    log: &'a Logger,
}

impl<'a> Steps<'a> {
    pub(super) fn new(kernel: &'a mut dyn Kernel, links: Vec<Link>, log: &'a Logger) -> Self {
        Self { kernel, links, back: Vec::new(), log }
    }

    /// Makes a change that `back` undoes.
    pub(super) fn apply(&mut self, change: Change, back: Change) -> Result<(), NetworkError> {
        let applied = self.kernel.apply(&change);
        let what = change.describe(&self.links);
        debug!(self.log, "network"; "change" => &what, "done" => applied.is_ok());
        applied.map_err(|source| NetworkError::Change { what, source })?;
        self.note_name(&change);
        self.back.push(back);
        Ok(())
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
