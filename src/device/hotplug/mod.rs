//! Hot-plug of CPUs and memory: what the host has plugged in comes online.
//!
//! CPUs come online when the host asks for them: [`Devices::online_cpus`] takes those that are there and waits
//! for the kernel's events of the others. Memory blocks come online by themselves, by a task that hears of each
//! ([`MemoryWatch`]); a request takes in what that may have missed.

mod system;
#[cfg(test)]
mod tests;

use std::time::Duration;

use slog::{Logger, debug, info, warn};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use self::system::{Blocks, System};
use super::uevent::{Action, Notice, Subscription, Uevent, Uevents};
use super::{DeviceError, Devices};

impl Devices {
    /// Brings CPUs online until `total` are. Those that are not there yet are waited for up to `limit`.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Cpus`] if they did not come; [`DeviceError::List`].
    pub async fn online_cpus(&self, total: u32, limit: Duration) -> Result<(), DeviceError> {
        let system = System::new(self.inner.tree.sys());
        let mut notices = self.inner.uevents.subscribe();
        // The limit of the wait for events below.
        let expiry = sleep(limit);
        tokio::pin!(expiry);
        let mut in_time = true;
        loop {
            let cpus = blocking(&system, move |system| system.online_cpus(total)).await??;
            if cpus.online >= total {
                return Ok(());
            }
            if !in_time {
                let there = blocking(&system, |system| {
                    let (present, possible) = (system.cpu_list("present"), system.cpu_list("possible"));
                    format!("the guest has CPUs {present} of at most {possible}")
                });
                let there = there.await?;
                let refused = cpus.refused.map(|cause| format!("; {cause}")).unwrap_or_default();
                return Err(DeviceError::Cpus {
                    wanted: total,
                    online: cpus.online,
                    timeout: limit,
                    there: format!("{there}{refused}"),
                });
            }
            in_time = tokio::select! {
                () = &mut expiry => false,
                () = next_cpu(&mut notices) => true,
            };
        }
    }

    /// Brings all memory online that is there. What the kernel refuses is logged.
    ///
    /// # Errors
    ///
    /// [`DeviceError::List`].
    pub async fn online_memory(&self) -> Result<(), DeviceError> {
        let system = System::new(self.inner.tree.sys());
        let blocks = blocking(&system, System::online_memory).await??;
        tell(&self.inner.log, &blocks);
        Ok(())
    }

    /// Tells the kernel of memory blocks at these physical addresses; it adds them, and they come online.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoMemoryProbe`] where the kernel finds memory by itself, or [`DeviceError::MemoryProbe`] for
    /// the first that it does not take.
    pub async fn probe_memory(&self, addresses: Vec<u64>) -> Result<(), DeviceError> {
        let system = System::new(self.inner.tree.sys());
        let probe = move |system: &System| addresses.iter().try_for_each(|at| system.probe_memory(*at));
        blocking(&system, probe).await??;
        self.online_memory().await
    }
}

async fn next_cpu(notices: &mut Subscription) {
    loop {
        match notices.next().await {
            Notice::Look => return,
            Notice::Event(event) if event.subsystem == "cpu" && event.action == Action::Add => return,
            Notice::Event(_) | Notice::Scanned => {}
        }
    }
}

async fn blocking<T: Send + 'static>(
    system: &System,
    work: impl FnOnce(&System) -> T + Send + 'static,
) -> Result<T, DeviceError> {
    let system = system.clone();
    let joined = tokio::task::spawn_blocking(move || work(&system)).await;
    joined.map_err(|error| DeviceError::CutShort {
        wanted: "CPUs and memory".to_owned(),
        reason: error.to_string(),
    })
}

fn tell(log: &Logger, blocks: &Blocks) {
    if !blocks.onlined.is_empty() {
        info!(log, "memory is online"; "blocks" => blocks.onlined.join(" "));
    }
    for cause in &blocks.refused {
        warn!(log, "memory did not come online"; "cause" => cause);
    }
}

/// Brings memory blocks online as they come, until it is dropped.
#[derive(Debug)]
pub(super) struct MemoryWatch(AbortHandle);

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl MemoryWatch {
    /// Watches in a task of the current runtime.
    pub(super) fn start(sys: &std::path::Path, uevents: &Uevents, log: Logger) -> Self {
        let (system, mut notices) = (System::new(sys), uevents.subscribe());
        let watch = async move {
            loop {
                let online = match notices.next().await {
                    // Memory is on no bus, and who has taken some offline wants it so.
                    Notice::Scanned => continue,
                    // All of it may be new.
                    Notice::Look => blocking(&system, System::online_memory).await,
                    Notice::Event(event) => match block_of(&event) {
                        Some(name) => {
                            let online = move |system: &System| {
                                let mut blocks = Blocks::default();
                                system.online_block(&name, &mut blocks);
                                Ok(blocks)
                            };
                            blocking(&system, online).await
                        }
                        None => continue,
                    },
                };
                match online.and_then(|online| online) {
                    Ok(blocks) => tell(&log, &blocks),
                    Err(error) => debug!(log, "memory was not looked at"; "cause" => %error),
                }
            }
        };
        Self(tokio::spawn(watch).abort_handle())
    }
}

/// The memory block that an event says is there now: a name that can't lead elsewhere.
fn block_of(event: &Uevent) -> Option<String> {
    if event.subsystem != "memory" || event.action != Action::Add {
        return None;
    }
    let name = event.devpath.strip_prefix("/devices/system/memory/")?;
    system::number_in(name, "memory").map(|number| format!("memory{number}"))
}
