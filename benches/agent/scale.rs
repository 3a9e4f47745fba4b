//! What a call costs when the sandbox already has some containers.

use std::time::Instant;

use super::subject::{Place, Subject};
use super::{Fallible, Setting};

/// Medians, in ms, with `containers` in the sandbox.
pub(crate) struct Step {
    pub(crate) containers: usize,
    pub(crate) check: f64,
    pub(crate) stats: f64,
    pub(crate) exec: f64,
    pub(crate) create: f64,
}

const SAMPLES: usize = 15;

pub(crate) async fn measure(setting: &Setting) -> Fallible<Vec<Step>> {
    let counts: &[usize] = match setting.place {
        Place::Host { .. } => &[1, 10, 100, 500],
        // A guest of 512 MiB.
        Place::Vm { .. } => &[1, 10, 100],
    };
    let subject = Subject::start(&setting.place, &setting.agent, true).await?;
    subject.create_sandbox().await?;
    let mut steps = Vec::new();
    let mut running = 0;
    for &count in counts {
        let mut created = Vec::new();
        while running < count {
            let id = format!("scale{running}");
            let spec = subject.spec(&id).args(["sleep", "1000000"]).build();
            let begin = Instant::now();
            subject.client.create_container(&id, spec).await?;
            created.push(begin.elapsed().as_secs_f64() * 1e3);
            subject.client.start_container(&id).await?;
            running += 1;
        }
        steps.push(step(&subject, count, median(created)).await?);
    }
    subject.stop().await;
    Ok(steps)
}

async fn step(subject: &Subject, containers: usize, create: f64) -> Fallible<Step> {
    let (mut check, mut stats, mut exec) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..SAMPLES {
        let begin = Instant::now();
        subject.client.check().await?;
        check.push(begin.elapsed().as_secs_f64() * 1e3);
        let begin = Instant::now();
        subject.client.stats_container("scale0").await?;
        stats.push(begin.elapsed().as_secs_f64() * 1e3);
        let begin = Instant::now();
        exec_true(subject, "scale0", &format!("e{containers}-{i}")).await?;
        exec.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Step { containers, check: median(check), stats: median(stats), exec: median(exec), create })
}

/// Runs `true` in a container.
pub(crate) async fn exec_true(subject: &Subject, container: &str, exec: &str) -> Fallible<()> {
    let process = subject.spec(container).args(["true"]).process();
    subject.client.exec_process(container, exec, process).await?;
    let status = subject.client.wait_process(container, exec).await?;
    if status == 0 { Ok(()) } else { Err(format!("true ended with {status}").into()) }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}
