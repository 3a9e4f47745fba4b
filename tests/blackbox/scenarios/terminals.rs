//! `run -it` and `exec -it` at a terminal of this host's: keys, sizes and ^C arrive, the exit status comes back, and the
//! terminal is as it was.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::client::Client;
use crate::harness::context::SHELL_LIMIT;
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario { in_vm: false, ..scenario!(a_users_terminal_is_the_containers) }]
}

/// A terminal at which a command has been started.
struct Terminal {
    keys: File,
    screen: UnboundedReceiver<Vec<u8>>,
    /// All that was on the screen since it was last looked at.
    seen: String,
    /// The command's side.
    slave: OwnedFd,
    child: Child,
}

impl Terminal {
    fn start(command: &Command) -> Fallible<Self> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None)?;
        assert!(echoes(&slave)?);
        let stdio = || Ok::<_, std::io::Error>(Stdio::from(slave.try_clone()?));
        // The terminal has to be the session's own: who resizes it, or types ^C, is heard by the session.
        let mut session = Command::new("setsid");
        session
            .args(["--ctty", "--wait"])
            .arg(command.as_std().get_program())
            .args(command.as_std().get_args());
        for (name, value) in command.as_std().get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let child = session.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?).kill_on_drop(true).spawn()?;
        let (keys, mut output) = (File::from(master.try_clone()?), File::from(master));
        let (sender, screen) = unbounded_channel();
        // Ends with the last holder of the other side.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = output.read(&mut bytes) {
                if count == 0 || sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { keys, screen, seen: String::new(), slave, child })
    }

    fn type_in(&mut self, keys: &str) -> Outcome {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }

    /// Waits until this is on the screen, and goes on behind it.
    async fn until(&mut self, wanted: &str) -> Outcome {
        let waited = async {
            loop {
                if let Some((_, rest)) = self.seen.split_once(wanted) {
                    self.seen = rest.to_owned();
                    return Outcome::Ok(());
                }
                let bytes = self.screen.recv().await.ok_or("the terminal is closed")?;
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        let waited = tokio::time::timeout(SHELL_LIMIT, waited).await;
        waited.map_err(|_| format!("{wanted:?} is not in {:?}", self.seen))?
    }

    async fn resize(&self, rows: &str, columns: &str) -> Outcome {
        let mut stty = Command::new("stty");
        stty.args(["rows", rows, "cols", columns]).stdin(Stdio::from(self.slave.try_clone()?));
        assert!(stty.status().await?.success());
        Ok(())
    }

    /// Talks to a shell that has just been started, and ends it with 7.
    async fn talk(mut self) -> Outcome {
        // What is typed is echoed, so no word is typed as it is printed.
        self.type_in("until stty size | grep '^24 80'; do sleep 0.1; done\n")?;
        self.until("\n24 80").await?;
        assert!(!echoes(&self.slave)?, "the keys are the container's");
        self.resize("33", "99").await?;
        self.type_in("until stty size | grep '^33 99'; do sleep 0.1; done\n")?;
        self.until("\n33 99").await?;
        self.type_in("sh -c 'echo be\"\"gun; exec sleep 1000000'\n")?;
        self.until("begun").await?;
        self.type_in("\x03")?;
        self.type_in("echo status''-$?\n")?;
        self.until("status-130").await?;
        self.type_in("exit 7\n")?;
        let status = tokio::time::timeout(SHELL_LIMIT, self.child.wait()).await??;
        assert_eq!(status.code(), Some(7), "{}", self.seen);
        assert!(echoes(&self.slave)?, "the terminal is as it was");
        Ok(())
    }
}

/// Whether it is as it is made.
fn echoes(terminal: &OwnedFd) -> Fallible<bool> {
    Ok(tcgetattr(terminal)?.local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON))
}

async fn a_users_terminal_is_the_containers(ctx: Ctx) -> Outcome {
    let client = Client::new()?;
    let root = ctx.make_root(&format!("{}-image", ctx.prefix()))?;
    let (image, parent) = (root.display().to_string(), format!("/nakai-{}", ctx.prefix()));
    let (address, id) = (ctx.address().to_string(), format!("{}-typed", ctx.prefix()));
    let run = ["--address", &address, "run", "--cgroup-parent", &parent, "--rootfs", &image];
    Terminal::start(&client.command(&[&run[..], &["-it", "sh"]].concat()))?.talk().await?;
    client.run(&[&run[..], &["-d", "--name", &id, "sleep", "1000000"]].concat()).await?;
    let exec = ["--address", &address, "exec", "-it", &id, "sh"];
    Terminal::start(&client.command(&exec))?.talk().await?;
    client.run(&["--address", &address, "rm", &id]).await?;
    std::fs::remove_dir_all(root.parent().unwrap_or(&root))?;
    Ok(())
}
