//! `docs/orchestrators.md`, written from the groups.

use std::fmt::Write as _;
use std::path::Path;

use libtest_mimic::Failed;

use super::{Section, groups};

const HEAD: &str = "\
# What orchestrators ask for

<!-- Written by `NAKAI_WRITE_DOCS=1 cargo test --test blackbox -- docs::`. Change tests/blackbox/scenarios/orchestrators. -->

Each line is tested through `nakai-ctl` by a scenario that looks from inside a container: `host::` with an agent on
the test's host, `vm::` in a virtual machine. What can't be done is refused by name, before anything is made.
";

const SECTIONS: [(Section, &str, &str); 4] = [
    (
        Section::Kubernetes,
        "Kubernetes: a container",
        "`nakai-ctl cri run POD.json CONTAINER.json`, with CRI's ContainerConfig as crictl reads it.",
    ),
    (Section::Pod, "Kubernetes: a pod", "CRI's PodSandboxConfig, in the same command."),
    (Section::Docker, "Docker's flags", "`nakai-ctl run FLAGS IMAGE COMMAND`."),
    (
        Section::Zun,
        "OpenStack Zun",
        "`nakai-ctl zun create REQUEST.json`, with the body of a create request.",
    ),
];

fn page() -> String {
    let mut page = HEAD.to_owned();
    let groups = groups();
    for (section, title, text) in SECTIONS {
        let _ = writeln!(
            page,
            "\n## {title}\n\n{text}\n\n| asked for | seen in the container | scenario | where |"
        );
        let _ = writeln!(page, "|---|---|---|---|");
        for group in groups.iter().filter(|group| group.section == section) {
            let places = [(group.scenario.on_host, "host"), (group.scenario.in_vm, "vm")];
            let places: Vec<_> = places.into_iter().filter(|(on, _)| *on).map(|(_, place)| place).collect();
            let name = group.scenario.name.rsplit("::").next().unwrap_or_default();
            for (asked, seen) in &group.rows {
                let (asked, seen) = (asked.replace('|', "\\|"), seen.replace('|', "\\|"));
                let _ = writeln!(page, "| {asked} | {seen} | `{name}` | {} |", places.join(", "));
            }
        }
    }
    page
}

/// The page says what is tested; with `NAKAI_WRITE_DOCS` it is made to.
pub(crate) fn check() -> Result<(), Failed> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/orchestrators.md");
    let page = page();
    if std::env::var_os("NAKAI_WRITE_DOCS").is_some() {
        std::fs::write(&path, page)?;
        return Ok(());
    }
    if std::fs::read_to_string(&path).unwrap_or_default() == page {
        return Ok(());
    }
    Err("docs/orchestrators.md is not what is tested: NAKAI_WRITE_DOCS=1 cargo test --test blackbox -- docs::".into())
}
