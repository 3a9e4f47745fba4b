//! `bind`: a directory or file of the sandbox, seen at a second place. The source must be where storages
//! live, too: nothing of the guest itself can be handed to a container this way.

use std::path::Path;

use super::{Driver, Places, StorageError, Work};

#[derive(Debug)]
pub(super) struct Bind;

impl Driver for Bind {
    fn attach(&self, work: &mut Work<'_>, places: &Places) -> Result<(), StorageError> {
        let from = places.locate(Path::new(work.source))?;
        let from = from.handle().map_err(StorageError::at("opening", work.source))?;
        let mut options = work.request.options_without(|_| false);
        if !options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind")) {
            options.insert(0, "bind".to_owned());
        }
        work.bind(&from, &options)?;
        work.give_to_group()
    }
}
