//! What the next server has to know: the policy that SetPolicy has put in force, and what it remembers.
//!
//! | record | says |
//! |---|---|
//! | `policy` | the text, if it is not the configuration's, and which of these it was |
//! | `policy-data/<number>` | what that one remembers, if a rule has changed it |
//!
//! One number for each policy: so a server that dies between the two records leaves no policy with another's memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::records::{RecordError, Records};

#[derive(Debug, Serialize, Deserialize)]
struct Set {
    text: String,
    number: u64,
}

/// The records. Its user does one thing after the other.
#[derive(Debug)]
pub(super) struct Memory {
    records: Arc<Records>,
    number: AtomicU64,
}

fn name() -> &'static Path {
    Path::new("policy")
}

fn data_name(number: u64) -> PathBuf {
    Path::new("policy-data").join(number.to_string())
}

impl Memory {
    pub(super) fn new(records: Arc<Records>) -> Self {
        Self { records, number: AtomicU64::new(0) }
    }

    /// The text that was set, if one was, and what the policy in force had remembered, if anything.
    pub(super) fn recall(&self) -> Result<(Option<String>, Option<Json>), RecordError> {
        let set: Option<Set> = self.records.read(name())?;
        let number = set.as_ref().map_or(0, |set| set.number);
        self.number.store(number, Ordering::Relaxed);
        Ok((set.map(|set| set.text), self.records.read(&data_name(number))?))
    }

    /// A new policy, which remembers nothing.
    pub(super) fn set(&self, text: &str) -> Result<(), RecordError> {
        let before = self.number.load(Ordering::Relaxed);
        let number = before.saturating_add(1);
        self.records.write(name(), &Set { text: text.to_owned(), number })?;
        self.number.store(number, Ordering::Relaxed);
        let _nobody_looks_at_it = self.records.remove(&data_name(before));
        Ok(())
    }

    pub(super) fn remember(&self, data: &Json) -> Result<(), RecordError> {
        self.records.write(&data_name(self.number.load(Ordering::Relaxed)), data)
    }
}
