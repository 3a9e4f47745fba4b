//! What an agent takes: memory, descriptors, processor time. All processes of the agent count, those of containers not.

use super::Fallible;
use super::calls::start_many;
use super::figures::Figures;
use super::subject::Subject;

/// Containers that run at once.
const MANY: usize = 50;

/// How many seconds after a call an agent is taken to be at rest: what it takes then it takes for good. In a guest the
/// look is itself a process that the agent started, so that it is the look that waits.
const REST: u32 = 2;

/// A shell function `each`: runs its argument for `$p`, each process that runs the same program as the agent.
const EACH: &str = "each() {
    me=$(readlink $PROC/$AGENT/exe)
    for d in $PROC/[0-9]*; do
        [ \"$(readlink $d/exe 2>/dev/null)\" = \"$me\" ] && [ \"$(readlink $d/ns/mnt)\" = \"$(readlink $PROC/$AGENT/ns/mnt)\" ] || continue
        p=$d; eval \"$1\"
    done
}\n";

struct Footprint {
    pss: f64,
    anonymous: f64,
    fds: f64,
}

async fn footprint(subject: &Subject) -> Fallible<Footprint> {
    let script = format!(
        "sleep {REST}\n{EACH}each 'grep -E \"^(Pss|Anonymous):\" $p/smaps_rollup; echo fds $(ls $p/fd | wc -l) kB'"
    );
    let text = subject.look(&script).await?;
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum()
    };
    if sum("Pss:") == 0.0 {
        return Err(format!("no process of the agent can be looked at: {text:?}").into());
    }
    Ok(Footprint { pss: sum("Pss:"), anonymous: sum("Anonymous:"), fds: sum("fds") })
}

/// Milliseconds of processor time of the agent and of all children that it has reaped.
pub(crate) async fn cpu(subject: &Subject) -> Fallible<f64> {
    // utime, stime, cutime and cstime are the fields 14 to 17 of proc_pid_stat(5); 11 to 14 after the name.
    let script = format!("{EACH}each 'sed \"s/.*) //\" $p/stat'");
    let text = subject.look(&script).await?;
    let mut ticks = 0.0;
    for line in text.lines() {
        ticks += line.split_whitespace().skip(11).take(4).filter_map(|t| t.parse::<f64>().ok()).sum::<f64>();
    }
    // A tick is 10 ms (sysconf(3), _SC_CLK_TCK).
    Ok(ticks * 10.0)
}

pub(crate) async fn idle(subject: &Subject, name: &'static str, figures: &mut Figures) -> Fallible<()> {
    let found = footprint(subject).await?;
    figures.add(name, "PSS idle", "kB", found.pss);
    figures.add(name, "of it anonymous", "kB", found.anonymous);
    Ok(())
}

/// 50 containers started at once, what they cost the agent, and what is left of them.
pub(crate) async fn loaded(subject: &Subject, name: &'static str, figures: &mut Figures) -> Fallible<()> {
    let before = footprint(subject).await?;
    figures.add(name, "50 containers at once", "ms", start_many(subject, MANY).await?);
    let with = footprint(subject).await?;
    figures.add(name, "PSS with 50 running", "kB", with.pss);
    let growth = (with.anonymous - before.anonymous) / MANY as f64;
    figures.add(name, "anonymous memory a container", "kB", growth);
    for i in 0..MANY {
        let id = format!("many{i}");
        subject.client.signal_process(&id, "", 9).await?;
        subject.client.wait_process(&id, "").await?;
        subject.client.remove_container(&id).await?;
    }
    let after = footprint(subject).await?;
    figures.add(name, "descriptors left of 50 containers", "", after.fds - before.fds);
    Ok(())
}
