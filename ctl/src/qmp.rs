//! A client of QEMU's control socket: one command at a time, events skipped.
//!
//! QMP is JSON, one object per line: the server greets, is asked for `qmp_capabilities`, and then
//! answers each `execute` with `return` or `error`. Events may come at any time.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// The longest line that is read.
const LINE_MAX: u64 = 4 << 20;

/// How long QEMU may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket can't be connected to, read or written.
    #[error("QMP {command}: {source}")]
    Socket {
        /// What was being done.
        command: String,
        /// The system's reason.
        source: io::Error,
    },
    /// QEMU refused the command.
    #[error("QMP {command}: {class}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of error.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU said something that is not QMP.
    #[error("QMP {command}: unexpected answer {answer}")]
    Answer {
        /// The command.
        command: String,
        /// The beginning of the answer.
        answer: String,
    },
}

/// A control connection.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the socket at `path` and negotiates.
    ///
    /// # Errors
    ///
    /// Nobody listens, or what answers is not QMP.
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let command = "connect";
        let stream = UnixStream::connect(path).await.map_err(socket(command))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        let greeting = qmp.read(command).await?;
        if greeting.get("QMP").is_none() {
            return Err(unexpected(command, &greeting));
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and gives back what it returns.
    ///
    /// # Errors
    ///
    /// QEMU refuses it or goes away.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await.map_err(socket(command))?;
        loop {
            let mut answer = self.read(command).await?;
            if answer.get("event").is_some() {
                continue;
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            let Some(error) = answer.get("error") else { return Err(unexpected(command, &answer)) };
            let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (class, description) = (text("class"), text("desc"));
            return Err(QmpError::Refused { command: command.to_owned(), class, description });
        }
    }

    async fn read(&mut self, command: &str) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LINE_MAX);
        let read = tokio::time::timeout(ANSWER_TIMEOUT, limited.read_until(b'\n', &mut line)).await;
        match read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(socket(command))? {
            0 => Err(socket(command)(io::ErrorKind::UnexpectedEof.into())),
            _ => serde_json::from_slice(&line).map_err(|_| QmpError::Answer {
                command: command.to_owned(),
                answer: String::from_utf8_lossy(&line).chars().take(100).collect(),
            }),
        }
    }
}

fn socket(command: &str) -> impl Fn(io::Error) -> QmpError + '_ {
    move |source| QmpError::Socket { command: command.to_owned(), source }
}

fn unexpected(command: &str, answer: &Value) -> QmpError {
    let answer = answer.to_string().chars().take(100).collect();
    QmpError::Answer { command: command.to_owned(), answer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// A QEMU that says these lines, one after each line it reads.
    async fn with_qemu<T>(lines: &[&str], client: impl AsyncFnOnce(&Path) -> T) -> (T, Vec<Value>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let qemu = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut asked = Vec::new();
            for (n, line) in lines.iter().enumerate() {
                if n > 0 {
                    let mut text = String::new();
                    stream.read_line(&mut text).await.unwrap();
                    asked.push(serde_json::from_str(&text).unwrap());
                }
                stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            }
            asked
        };
        tokio::join!(client(&path), qemu)
    }

    #[tokio::test]
    async fn negotiates_executes_and_skips_events() {
        let event = "{\"event\": \"RESUME\"}\n{\"return\": {\"status\": \"running\"}}";
        let (answer, asked) = with_qemu(&[GREETING, r#"{"return": {}}"#, event], async |path| {
            let mut qmp = Qmp::connect(path).await.unwrap();
            qmp.execute("query-status", json!({"a": 1})).await.unwrap()
        })
        .await;
        assert_eq!(answer, json!({"status": "running"}));
        assert_eq!(asked[1], json!({"execute": "query-status", "arguments": {"a": 1}}));
    }

    #[tokio::test]
    async fn refusals_and_foreign_servers_are_told() {
        let refusal = r#"{"error": {"class": "GenericError", "desc": "no bus"}}"#;
        let (error, _) = with_qemu(&[GREETING, r#"{"return": {}}"#, refusal], async |path| {
            Qmp::connect(path).await.unwrap().execute("device_add", json!({})).await.unwrap_err()
        })
        .await;
        assert_eq!(error.to_string(), "QMP device_add: GenericError: no bus");
        let (error, _) = with_qemu(&["220 ready"], async |path| Qmp::connect(path).await.unwrap_err()).await;
        assert_eq!(error.to_string(), "QMP connect: unexpected answer 220 ready\n");
    }
}
