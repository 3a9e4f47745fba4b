//! What Kubernetes, Docker's users and Zun ask for, through nakai-ctl's front ends, and seen from inside.
//!
//! A [`Group`] is a scenario and the lines of the table that it proves. Most lines are a [`Check`]: a shell script
//! in the container, and what it has to print; those of a group share one container. `docs/orchestrators.md` is
//! written from them, and a test sees to it that it says what is tested.

mod bench;
mod command_line;
mod cri;
mod docker;
mod lifecycle;
mod nets;
mod page;
mod pod;
mod refusals;
mod user_namespaces;
mod zun;

use crate::harness::Scenario;

pub(crate) use page::check as page_is_up_to_date;

/// Whose words are used.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Section {
    Kubernetes,
    Pod,
    Docker,
    Zun,
}

/// A line of the table: what is asked for, and what is seen in the container.
type Row = (&'static str, &'static str);

/// A line, how it is looked at, and what one of these has to be seen.
struct Check {
    row: Row,
    script: &'static str,
    expected: &'static [&'static str],
}

const fn check(
    asked: &'static str,
    seen: &'static str,
    script: &'static str,
    expected: &'static [&'static str],
) -> Check {
    Check { row: (asked, seen), script, expected }
}

/// A scenario and what it proves.
struct Group {
    section: Section,
    scenario: Scenario,
    rows: Vec<Row>,
}

fn group(section: Section, scenario: Scenario, checks: &[Check], more: &[Row]) -> Group {
    // All of them under one name, whichever file they are in.
    let name = scenario.name.rsplit("::").next().unwrap_or_default();
    let scenario = Scenario { name: format!("orchestrators::{name}"), ..scenario };
    let rows = checks.iter().map(|check| check.row).chain(more.iter().copied()).collect();
    Group { section, scenario, rows }
}

fn groups() -> Vec<Group> {
    [
        cri::groups(),
        pod::groups(),
        lifecycle::groups(),
        refusals::groups(),
        docker::groups(),
        zun::groups(),
        command_line::groups(),
        nets::groups(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A scenario that proves lines of several sections is one all the same.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for Group { scenario, .. } in groups() {
        if scenarios.iter().all(|other| other.name != scenario.name) {
            scenarios.push(scenario);
        }
    }
    scenarios
}
