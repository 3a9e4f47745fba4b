//! The memory agent: reclaims and compacts memory before it is short. Off by default, and without a task then.
//!
//! Two tasks, each with settings of its own, which the host may change at any time (`settings`): one lets pages
//! age and reclaims old ones (`memcg`), one compacts free memory (`compact`). Both keep still while tasks wait
//! for memory (`pressure`). What fails is logged, and tried again in the next period. What the host has set is written
//! down for the next server before it counts.

mod compact;
mod fragments;
mod lru_gen;
mod memcg;
mod pressure;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use nakai_protocols::agent::{MemAgentCompactConfig, MemAgentMemcgConfig};
use serde::Serialize;
use slog::{Logger, info, warn};
use tokio::sync::watch;

use self::pressure::Look;
use self::settings::Change;
use crate::config::{CompactSettings, MemAgentConfig, MemcgSettings};
use crate::records::{RecordError, Records};
use crate::supervisor::client::Launcher;

/// The records of the settings.
const MEMCG: &str = "mem-agent-memcg";
const COMPACT: &str = "mem-agent-compact";

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
    /// They can't be kept for the next server.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The agent is ending.
    #[error("the settings were not written down")]
    Task,
}

/// The memory agent, if there is one.
#[derive(Debug)]
pub struct MemAgent {
    tasks: Option<Tasks>,
    records: Arc<Records>,
    /// Changes come one after the other: each begins with what the one before it has left.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Tasks {
    memcg: watch::Sender<MemcgSettings>,
    compact: watch::Sender<CompactSettings>,
}

impl MemAgent {
    /// Starts it, if the configuration wants one, with what an earlier server was told in `records`.
    pub fn start(config: &MemAgentConfig, records: Arc<Records>, launcher: Launcher, logger: Logger) -> Self {
        if !config.enable {
            return Self { tasks: None, records, turn: Arc::default() };
        }
        info!(logger, "the memory agent is on");
        let memcg = records.read(MEMCG.as_ref()).unwrap_or_else(|error| lost(&logger, &error));
        let compact = records.read(COMPACT.as_ref()).unwrap_or_else(|error| lost(&logger, &error));
        let (memcg, memcg_settings) = watch::channel(memcg.unwrap_or_else(|| config.memcg.clone()));
        let (compact, compact_settings) = watch::channel(compact.unwrap_or_else(|| config.compact.clone()));
        tokio::spawn(memcg::run(memcg_settings, logger.clone()));
        tokio::spawn(compact::run(compact_settings, launcher, logger));
        Self { tasks: Some(Tasks { memcg, compact }), records, turn: Arc::default() }
    }

    /// Changes how it reclaims.
    ///
    /// # Errors
    ///
    /// [`MemAgentError`]. Nothing is changed then.
    pub async fn set_memcg(&self, request: &MemAgentMemcgConfig) -> Result<(), MemAgentError> {
        let settings = &self.tasks.as_ref().ok_or(MemAgentError::Off)?.memcg;
        self.change(MEMCG, settings, request).await
    }

    /// Changes how it compacts.
    ///
    /// # Errors
    ///
    /// As [`MemAgent::set_memcg`].
    pub async fn set_compact(&self, request: &MemAgentCompactConfig) -> Result<(), MemAgentError> {
        let settings = &self.tasks.as_ref().ok_or(MemAgentError::Off)?.compact;
        self.change(COMPACT, settings, request).await
    }

    /// In a task of its own: also if the caller goes away, what is written down is what is in force.
    async fn change<S, R>(
        &self,
        name: &'static str,
        settings: &watch::Sender<S>,
        request: &R,
    ) -> Result<(), MemAgentError>
    where
        S: Change<R> + Clone + Serialize + Send + Sync + 'static,
        R: Clone + Send + Sync + 'static,
    {
        let (turn, records) = (Arc::clone(&self.turn), Arc::clone(&self.records));
        let (settings, request) = (settings.clone(), request.clone());
        let change = async move {
            let _turn = turn.lock().await;
            let changed = settings.borrow().changed(&request)?;
            let kept = changed.clone();
            let written = tokio::task::spawn_blocking(move || records.write(name.as_ref(), &kept)).await;
            written.map_err(|_| MemAgentError::Task)??;
            settings.send_replace(changed);
            Ok(())
        };
        tokio::spawn(change).await.unwrap_or(Err(MemAgentError::Task))
    }
}

/// An earlier server's settings that can't be read: the configuration's are as good as any.
fn lost<S>(logger: &Logger, error: &RecordError) -> Option<S> {
    warn!(logger, "settings of the host are lost"; "error" => %error);
    None
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
        // The period that the host has set; there is no event in it.
        () = tokio::time::sleep(period), if !is_disabled => look.percent_since() <= percent_limit.into(),
    }
}

#[cfg(test)]
mod tests {
    use slog::{Discard, o};

    use super::*;
    use crate::config::Config;
    use crate::supervisor::channel::Channel;

    #[tokio::test]
    async fn the_next_server_has_what_the_host_has_set() {
        let directory = tempfile::tempdir().unwrap();
        let records = Arc::new(Records::new(directory.path().join("settings")));
        records.prepare(&[]).unwrap();
        let (_supervisor, server) = Channel::pair().unwrap();
        let logger = Logger::root(Discard, o!());
        let launcher = Launcher::start(server, 0, logger.clone()).unwrap();
        let config = MemAgentConfig { enable: true, ..Config::default().mem_agent };
        let start = || MemAgent::start(&config, records.clone(), launcher.clone(), logger.clone());
        let memcg = MemAgentMemcgConfig { period_secs: Some(4711), ..Default::default() };
        start().set_memcg(&memcg).await.unwrap();
        let compact = MemAgentCompactConfig { compact_order: Some(3), ..Default::default() };
        start().set_compact(&compact).await.unwrap();
        let wrong = MemAgentCompactConfig { compact_order: Some(99), ..Default::default() };
        start().set_compact(&wrong).await.unwrap_err();
        // Of two at once, both count.
        let agent = start();
        let limit = MemAgentMemcgConfig { period_psi_percent_limit: Some(7), ..Default::default() };
        let swap = MemAgentMemcgConfig { swap: Some(true), ..Default::default() };
        let (one, other) = tokio::join!(agent.set_memcg(&limit), agent.set_memcg(&swap));
        one.and(other).unwrap();
        let tasks = start().tasks.unwrap();
        assert!(tasks.memcg.borrow().swap);
        assert_eq!(tasks.memcg.borrow().period_psi_percent_limit, 7);
        assert_eq!(tasks.memcg.borrow().period, Duration::from_secs(4711));
        assert_eq!(*tasks.compact.borrow(), CompactSettings { order: 3, ..config.compact.clone() });
    }
}
