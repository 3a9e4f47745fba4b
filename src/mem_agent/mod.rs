//! The memory agent: reclaims and compacts memory before it is short. Off by default, and without a task then.
//!
//! Two tasks, each with settings of its own, which the host may change at any time (`settings`): one lets pages
//! age and reclaims old ones (`memcg`), one compacts free memory (`compact`). Both keep still while tasks wait
//! for memory (`pressure`). What fails is logged, and tried again in the next period.

mod compact;
mod fragments;
mod lru_gen;
mod memcg;
mod pressure;
mod settings;

use std::time::Duration;

use nakai_protocols::agent::{MemAgentCompactConfig, MemAgentMemcgConfig};
use slog::{Logger, info};
use tokio::sync::watch;

use self::pressure::Look;
use self::settings::Change;
use crate::config::{CompactSettings, MemAgentConfig, MemcgSettings};
use crate::supervisor::client::Launcher;

/// Why settings were not changed.
#[derive(Debug, thiserror::Error)]
pub enum MemAgentError {
    /// There is none.
    #[error("the memory agent is off: mem_agent_enable is not set")]
    Off,
    /// A number that can't be.
    #[error("{field} must be {range}")]
    Range {
        /// Its name on the wire.
        field: &'static str,
        /// What it may be.
        range: &'static str,
    },
}

/// The memory agent, if there is one.
#[derive(Debug)]
pub struct MemAgent {
    tasks: Option<Tasks>,
}

#[derive(Debug)]
struct Tasks {
    memcg: watch::Sender<MemcgSettings>,
    compact: watch::Sender<CompactSettings>,
}

impl MemAgent {
    /// Starts it, if the configuration wants one.
    pub fn start(config: &MemAgentConfig, launcher: Launcher, logger: Logger) -> Self {
        if !config.enable {
            return Self { tasks: None };
        }
        info!(logger, "the memory agent is on");
        let (memcg, memcg_settings) = watch::channel(config.memcg.clone());
        let (compact, compact_settings) = watch::channel(config.compact.clone());
        tokio::spawn(memcg::run(memcg_settings, logger.clone()));
        tokio::spawn(compact::run(compact_settings, launcher, logger));
        Self { tasks: Some(Tasks { memcg, compact }) }
    }

    /// Changes how it reclaims.
    ///
    /// # Errors
    ///
    /// [`MemAgentError`]. Nothing is changed then.
    pub fn set_memcg(&self, request: &MemAgentMemcgConfig) -> Result<(), MemAgentError> {
        change(&self.tasks.as_ref().ok_or(MemAgentError::Off)?.memcg, request)
    }

    /// Changes how it compacts.
    ///
    /// # Errors
    ///
    /// As [`MemAgent::set_memcg`].
    pub fn set_compact(&self, request: &MemAgentCompactConfig) -> Result<(), MemAgentError> {
        change(&self.tasks.as_ref().ok_or(MemAgentError::Off)?.compact, request)
    }
}

fn change<S: Change<R>, R>(settings: &watch::Sender<S>, request: &R) -> Result<(), MemAgentError> {
    let changed = settings.borrow().changed(request)?;
    settings.send_replace(changed);
    Ok(())
}

/// Waits for a run's turn. False if it is not to be made: the settings have changed, or memory is short.
async fn next_turn<S>(
    settings: &mut watch::Receiver<S>,
    is_disabled: bool,
    period: Duration,
    percent_limit: u8,
) -> bool {
    let look = Look::now();
    tokio::select! {
        _ = settings.changed() => false,
        () = tokio::time::sleep(period), if !is_disabled => look.percent_since() <= percent_limit.into(),
    }
}
