//! The policy that every request is checked against: Rego, evaluated by regorus. Built with the feature `policy`.
//!
//! A request named `M` is allowed if the rule `data.agent_policy.M` says so, for the request as `input`
//! ([`input`]). The rule is a boolean, or an object `{allowed, ops}`: the operations, a JSON patch, are applied to
//! the policy's data ([`state`]), so that a rule can remember what it has allowed. A rule that is not there is a
//! failure, and refuses the request too. `AllowRequestsFailingPolicy := true` turns both into warnings; it is
//! for developing a policy.
//!
//! Guarantees: a policy that does not compile changes nothing, the one before it stays. Requests are decided one
//! after the other. What was set and what a policy remembers is written down before it counts, so that the next server
//! has the same ([`memory`]). Nothing is allowed by a failure. A refusal names the request, and what the policy printed,
//! in one line of limited length.
//!
//! Everything here blocks for as long as a policy takes.

mod engine;
mod input;
mod memory;
mod state;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use protobuf::MessageDyn;

use self::engine::{Decision, Engine};
use self::memory::Memory;
use crate::records::{RecordError, Records};

/// The policy of images that bring one, if the configuration names no other.
pub const DEFAULT_FILE: &str = "/etc/kata-opa/default-policy.rego";
/// The longest policy, in bytes.
pub const TEXT_LIMIT: u64 = 16 << 20;

/// Why a request is refused, or a policy is.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The policy's file can't be read.
    #[error("policy {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The policy is too long.
    #[error("the policy has {len} bytes, the limit is {TEXT_LIMIT}")]
    TooLong {
        /// How long it is.
        len: u64,
    },
    /// The policy is wrong.
    #[error("the policy is not valid: {reason}")]
    Invalid {
        /// What the engine said, in a line.
        reason: String,
    },
    /// It can't be kept for the next server.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The policy refused the request.
    #[error("{request} is blocked by policy: {prints}")]
    Denied {
        /// The message's name.
        request: String,
        /// What the policy printed.
        prints: String,
    },
    /// The policy failed, or has no rule for the request.
    #[error("{request}: the policy failed: {reason}")]
    Failed {
        /// The message's name.
        request: String,
        /// What the engine said, in a line.
        reason: String,
    },
}

/// The policy in force.
#[derive(Debug, Default)]
pub struct Policy {
    /// `None`: everything is allowed.
    engine: Mutex<Option<Engine>>,
    /// For the next server.
    memory: Option<Memory>,
}

/// A request that a policy allows although it failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Tolerated(pub String);

impl Policy {
    /// The policy that an earlier server was given, or that of the file, or of [`DEFAULT_FILE`] if that is there, or
    /// none: then every request is allowed until there is one. What an earlier server's has remembered is remembered.
    ///
    /// # Errors
    ///
    /// [`PolicyError`], when the file or the records can't be read, or what they say is wrong.
    pub fn load(file: Option<&Path>, records: Arc<Records>) -> Result<Self, PolicyError> {
        let memory = Memory::new(records);
        let (set, data) = memory.recall()?;
        let default = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| default.exists().then_some(default));
        let text = set.map_or_else(|| file.map(read).transpose(), |text| Ok(Some(text)))?;
        let mut engine = text.map(|text| Engine::new(&text)).transpose()?;
        if let Some((engine, data)) = engine.as_mut().zip(data) {
            engine.recall(&data)?;
        }
        Ok(Self { engine: Mutex::new(engine), memory: Some(memory) })
    }

    /// Puts another policy in force, with nothing remembered.
    ///
    /// # Errors
    ///
    /// [`PolicyError::Invalid`], [`PolicyError::TooLong`] and [`PolicyError::Record`]. The policy before it stays then.
    pub fn replace(&self, text: &str) -> Result<(), PolicyError> {
        let engine = Engine::new(text)?;
        let mut place = self.lock();
        self.memory.as_ref().map_or(Ok(()), |memory| memory.set(text))?;
        *place = Some(engine);
        Ok(())
    }

    /// Decides about a request. A failure that the policy wants to be tolerated is returned.
    ///
    /// # Errors
    ///
    /// [`PolicyError::Denied`] and [`PolicyError::Failed`].
    pub fn check(&self, request: &dyn MessageDyn) -> Result<Option<Tolerated>, PolicyError> {
        let mut engine = self.lock();
        let Some(engine) = engine.as_mut() else { return Ok(None) };
        let descriptor = request.descriptor_dyn();
        let name = descriptor.name();
        let keep = |data: &serde_json::Value| match &self.memory {
            Some(memory) => memory.remember(data).map_err(|error| error.to_string()),
            None => Ok(()),
        };
        let (decision, prints) = engine.decide(name, input::of(request), &keep);
        let error = match decision {
            Ok(Decision::Allowed) => return Ok(None),
            Ok(Decision::Denied) => PolicyError::Denied { request: name.to_owned(), prints },
            Err(reason) => PolicyError::Failed { request: name.to_owned(), reason },
        };
        if engine.tolerates() { Ok(Some(Tolerated(error.to_string()))) } else { Err(error) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Engine>> {
        // A thread that died in between has allowed nothing, and the engine's data is replaced as a whole.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Result<String, PolicyError> {
    use std::io::Read as _;
    let failed = |source| PolicyError::File { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(TEXT_LIMIT.saturating_add(1)).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// A text in one line of limited length.
fn one_line(text: &str) -> String {
    const LIMIT: usize = 1024;
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line,
    }
}
