//! Changes of settings from the host, checked: a number that is too large is refused, not cut.

use std::time::Duration;

use nakai_protocols::agent::{MemAgentCompactConfig, MemAgentMemcgConfig};

use super::MemAgentError;
use crate::config::{CompactSettings, MemcgSettings, ORDERS, PERCENT, SWAPPINESS};

/// Changes of settings; all of a request's, or none.
pub(super) trait Change<R>: Sized {
    /// These settings, with what the request names changed.
    fn changed(&self, request: &R) -> Result<Self, MemAgentError>;
}

impl Change<MemAgentMemcgConfig> for MemcgSettings {
    fn changed(&self, request: &MemAgentMemcgConfig) -> Result<Self, MemAgentError> {
        let mut new = self.clone();
        set(&mut new.disabled, request.disabled);
        set(&mut new.swap, request.swap);
        small(&mut new.swappiness_max, "swappiness_max", request.swappiness_max, SWAPPINESS)?;
        seconds(&mut new.period, "period_secs", request.period_secs)?;
        let limit = request.period_psi_percent_limit;
        small(&mut new.period_psi_percent_limit, "period_psi_percent_limit", limit, PERCENT)?;
        let limit = request.eviction_psi_percent_limit;
        small(&mut new.eviction_psi_percent_limit, "eviction_psi_percent_limit", limit, PERCENT)?;
        set(&mut new.eviction_run_aging_count_min, request.eviction_run_aging_count_min);
        Ok(new)
    }
}

impl Change<MemAgentCompactConfig> for CompactSettings {
    fn changed(&self, request: &MemAgentCompactConfig) -> Result<Self, MemAgentError> {
        let mut new = self.clone();
        set(&mut new.disabled, request.disabled);
        seconds(&mut new.period, "period_secs", request.period_secs)?;
        let limit = request.period_psi_percent_limit;
        small(&mut new.period_psi_percent_limit, "period_psi_percent_limit", limit, PERCENT)?;
        let limit = request.compact_psi_percent_limit;
        small(&mut new.psi_percent_limit, "compact_psi_percent_limit", limit, PERCENT)?;
        if let Some(longest) = request.compact_sec_max {
            let longest = u64::try_from(longest);
            let range =
                || MemAgentError::Range { field: "compact_sec_max", range: "1 to 4294967295 seconds" };
            seconds(&mut new.longest, "compact_sec_max", Some(longest.map_err(|_| range())?))?;
        }
        if let Some(order) = request.compact_order {
            if order >= ORDERS {
                return Err(MemAgentError::Range { field: "compact_order", range: "0 to 10" });
            }
            new.order = order;
        }
        set(&mut new.threshold, request.compact_threshold);
        set(&mut new.force_times, request.compact_force_times);
        Ok(new)
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn small(field: &mut u8, name: &'static str, value: Option<u32>, most: u8) -> Result<(), MemAgentError> {
    let range = if most == PERCENT { "0 to 100" } else { "0 to 200" };
    if let Some(value) = value {
        let value = u8::try_from(value).ok().filter(|value| *value <= most);
        *field = value.ok_or(MemAgentError::Range { field: name, range })?;
    }
    Ok(())
}

fn seconds(field: &mut Duration, name: &'static str, value: Option<u64>) -> Result<(), MemAgentError> {
    if let Some(value) = value {
        // Small enough to be added to any clock.
        let value = u32::try_from(value).ok().filter(|value| *value > 0);
        let value = value.ok_or(MemAgentError::Range { field: name, range: "1 to 4294967295 seconds" })?;
        *field = Duration::from_secs(value.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_request_changes_what_it_names() {
        let before = Config::default().mem_agent;
        let request = MemAgentMemcgConfig { swap: Some(true), period_secs: Some(7), ..Default::default() };
        let after = before.memcg.changed(&request).unwrap();
        assert_eq!(after, MemcgSettings { swap: true, period: Duration::from_secs(7), ..before.memcg });
        let request = MemAgentCompactConfig { compact_order: Some(3), ..Default::default() };
        assert_eq!(
            before.compact.changed(&request).unwrap(),
            CompactSettings { order: 3, ..before.compact.clone() }
        );
    }

    #[test]
    fn a_number_that_is_too_large_is_refused_and_not_cut() {
        let settings = Config::default().mem_agent;
        let memcg = MemAgentMemcgConfig { swappiness_max: Some(256), ..Default::default() };
        let error = settings.memcg.changed(&memcg).unwrap_err().to_string();
        assert_eq!(error, "swappiness_max must be 0 to 200");
        for compact in [
            MemAgentCompactConfig { compact_sec_max: Some(-1), ..Default::default() },
            MemAgentCompactConfig { compact_order: Some(11), ..Default::default() },
            MemAgentCompactConfig { period_secs: Some(0), ..Default::default() },
            MemAgentCompactConfig { compact_psi_percent_limit: Some(101), ..Default::default() },
        ] {
            let error = settings.compact.changed(&compact).unwrap_err();
            assert!(matches!(error, MemAgentError::Range { .. }), "{compact}: {error}");
        }
    }
}
