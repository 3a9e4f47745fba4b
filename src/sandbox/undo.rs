//! The undo stack: what has been done so far, and how to take it back.
//!
//! Work in many steps pushes the way back of each step *before* it counts on it. A failure runs the stack in
//! reverse; success keeps it, and the removal of what was made runs it later. A step that can't be taken back
//! is reported and does not keep the steps below it from being tried.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;

use slog::{Logger, warn};

/// Why the stack is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// What was being made has failed: nothing of it may stay.
    Failed,
    /// What was made has had its life. Storages that live as long as the sandbox stay.
    Removed,
}

type Async = Box<dyn FnOnce(Why) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send>;
type Blocking = Box<dyn FnOnce() -> Result<(), String> + Send>;

type Name = Cow<'static, str>;

enum Step {
    Async(Async),
    Blocking(Blocking),
}

/// Ways back, the newest on top.
#[derive(Default)]
pub(super) struct Undo {
    steps: Vec<(Cow<'static, str>, Step)>,
}

impl Undo {
    /// Pushes the way back of the step called `name`, as async work.
    pub(super) fn push<F, Fut>(&mut self, name: impl Into<Cow<'static, str>>, back: F)
    where
        F: FnOnce(Why) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.steps.push((name.into(), Step::Async(Box::new(|why| Box::pin(back(why))))));
    }

    /// Pushes a way back that blocks; it will run on the blocking pool, in one go with its neighbours that block, too.
    pub(super) fn push_blocking(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        back: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) {
        self.steps.push((name.into(), Step::Blocking(Box::new(back))));
    }

    /// Runs all ways back, the newest first. What could not be taken back is logged and returned.
    pub(super) async fn run(mut self, why: Why, logger: &Logger) -> Vec<String> {
        let mut leftovers = Vec::new();
        while let Some((name, step)) = self.steps.pop() {
            let results = match step {
                Step::Async(back) => vec![(name, back(why).await)],
                Step::Blocking(back) => self.run_blocking(name, back).await,
            };
            for (name, result) in results {
                if let Err(error) = result {
                    warn!(logger, "not undone"; "step" => &*name, "error" => &error);
                    leftovers.push(format!("{name}: {error}"));
                }
            }
        }
        leftovers
    }

    /// Runs a step that blocks, and those below it that do.
    async fn run_blocking(&mut self, name: Name, back: Blocking) -> Vec<(Name, Result<(), String>)> {
        let mut steps = vec![(name.clone(), back)];
        while let Some((name, step)) = self.steps.pop() {
            match step {
                Step::Blocking(back) => steps.push((name, back)),
                other => {
                    self.steps.push((name, other));
                    break;
                }
            }
        }
        let run = move || steps.into_iter().map(|(name, back)| (name, back())).collect();
        let joined = tokio::task::spawn_blocking(run).await;
        joined.unwrap_or_else(|error| vec![(name, Err(error.to_string()))])
    }
}

impl fmt::Debug for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn steps_run_newest_first_and_a_failing_one_stops_nobody() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for (name, result) in
            [("a", Ok(())), ("b", Err("stuck".to_owned())), ("async", Ok(())), ("c", Ok(()))]
        {
            let order = order.clone();
            let step = move || {
                order.lock().unwrap().push(name);
                result
            };
            if name == "async" {
                undo.push(name, |_| async { step() });
            } else {
                undo.push_blocking(name, step);
            }
        }
        let logger = Logger::root(slog::Discard, slog::o!());
        assert_eq!(undo.run(Why::Removed, &logger).await, ["b: stuck"]);
        assert_eq!(*order.lock().unwrap(), ["c", "async", "b", "a"]);
    }
}
