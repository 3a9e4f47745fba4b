//! `make bench`: what the agent costs, beside yardsticks measured in the same run.
//!
//! | variable                | what                                                                  |
//! |-------------------------|-----------------------------------------------------------------------|
//! | `WHERE`                 | `host` (a unix socket on this machine) or `vm` (the guest in QEMU)    |
//! | `PEER`                  | on the host another agent of the same protocol, in a VM its initrd    |
//! | `ROUNDS`                | how often everything is measured, one subject after the other (5)     |
//! | `NAKAI_AGENT` `NAKAI_KERNEL` `NAKAI_INITRD` `NAKAI_BUSYBOX_ROOT` | as the black-box tests have them |
//! | `OUT`                   | the directory for `bench-host.json`, `scale-host.svg` and so on       |
//!
//! In a VM the containers' root filesystem is in the guest's memory, copied there over the protocol.
//!
//! Each round measures every subject once, so that a noisy minute hits all alike. A figure is the median of its
//! samples. The program fails when a promise of `SPECIFICATION.md` is broken.

#![expect(clippy::disallowed_methods, reason = "runs on the host, where children are ours to wait for")]
#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod calls;
mod figures;
mod footprint;
mod launcher;
mod plot;
mod promises;
mod report;
mod scale;
mod stream;
mod subject;
mod upload;
mod yardsticks;

use std::path::PathBuf;
use std::process::ExitCode;

use figures::Figures;
use subject::{Place, Subject};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// What is measured, and where.
struct Setting {
    agent: PathBuf,
    peer: Option<PathBuf>,
    place: Place,
    rounds: usize,
    out: PathBuf,
}

impl Setting {
    fn of_environment() -> Fallible<Self> {
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let needed =
            |name: &str| path(name).ok_or_else(|| format!("{name} is not set: `make bench` sets it"));
        let root = needed("NAKAI_BUSYBOX_ROOT")?;
        let (agent, place) = match std::env::var("WHERE").as_deref() {
            Ok("vm") => (needed("NAKAI_INITRD")?, Place::Vm { kernel: needed("NAKAI_KERNEL")?, root }),
            Ok("host" | "") | Err(_) => (needed("NAKAI_AGENT")?, Place::Host { root }),
            Ok(other) => return Err(format!("WHERE={other}: host or vm").into()),
        };
        let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
        let out = path("OUT").unwrap_or_else(|| "target/bench".into());
        Ok(Self { agent, peer: path("PEER"), place, rounds, out })
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|arg| arg == launcher::ARGUMENT) {
        return launcher::run(args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Fallible<bool> {
    let setting = Setting::of_environment()?;
    std::fs::create_dir_all(&setting.out)?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let mut figures = Figures::default();
    for round in 1..=setting.rounds {
        eprintln!("round {round} of {}", setting.rounds);
        measure(&setting, "nakai", &setting.agent, &mut figures).await?;
        if let Some(peer) = &setting.peer {
            measure(&setting, "peer", peer, &mut figures).await?;
        }
        if let Place::Host { root } = &setting.place {
            yardsticks::measure(root, &mut figures)?;
        }
    }
    let steps = scale::measure(&setting).await?;
    let place = setting.place.name();
    std::fs::write(setting.out.join(format!("scale-{place}.svg")), plot::svg(&steps))?;
    let verdicts = promises::judge(&setting.place, &figures);
    print!("{}", report::table(place, &load, &figures, &verdicts));
    print!("{}", report::scale_table(&steps));
    let json = report::json(place, &load, &figures, &verdicts, &steps);
    std::fs::write(setting.out.join(format!("bench-{place}.json")), json)?;
    Ok(verdicts.iter().all(|verdict| verdict.kept))
}

/// One agent, from its start to its end.
async fn measure(
    setting: &Setting,
    name: &'static str,
    agent: &std::path::Path,
    figures: &mut Figures,
) -> Fallible<()> {
    let subject = Subject::start(&setting.place, agent, name == "nakai").await?;
    figures.add(name, "first Check", "ms", subject.first_check.as_secs_f64() * 1e3);
    if name == "nakai" && matches!(setting.place, Place::Host { .. }) {
        figures.add(name, "binary", "kB", std::fs::metadata(agent)?.len() as f64 / 1e3);
    }
    subject.create_sandbox().await?;
    footprint::idle(&subject, name, figures).await?;
    calls::measure(&subject, name, figures).await?;
    footprint::loaded(&subject, name, figures).await?;
    subject.stop().await;
    Ok(())
}
