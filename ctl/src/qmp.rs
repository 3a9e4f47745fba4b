//! A client of QEMU's control socket: one command at a time, events kept until they are asked for.
//!
//! QMP is JSON, one object per line: the server greets, is asked for `qmp_capabilities`, and then
//! answers each `execute` with `return` or `error`. Events may come at any time.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// The longest line that is read.
const LINE_MAX: u64 = 4 << 20;

/// How long QEMU may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How many events are kept.
const EVENTS_MAX: usize = 256;

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
    events: VecDeque<Value>,
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
        let mut qmp = Self { stream: BufReader::new(stream), events: VecDeque::new() };
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
                self.keep(answer);
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

    /// Plugs a disk into the machine: a raw image behind a device of this driver. `place` says where
    /// (`bus`, `scsi-id`, `lun`...); the device's id is `id`.
    ///
    /// # Errors
    ///
    /// QEMU refuses it or goes away.
    pub async fn plug_disk(
        &mut self,
        id: &str,
        image: &Path,
        driver: &str,
        place: Value,
    ) -> Result<(), QmpError> {
        self.plug_image(id, image, false, driver, place).await
    }

    /// The same with an image that may be `read_only`: then it can be plugged in more than once.
    ///
    /// # Errors
    ///
    /// QEMU refuses one of the two.
    pub async fn plug_image(
        &mut self,
        id: &str,
        image: &Path,
        read_only: bool,
        driver: &str,
        place: Value,
    ) -> Result<(), QmpError> {
        let node = format!("node-{id}");
        // QEMU takes each of them for itself only.
        let is_device = std::fs::metadata(image).is_ok_and(|image| image.file_type().is_block_device());
        let driver_of_file = if is_device { "host_device" } else { "file" };
        let file = json!({ "driver": driver_of_file, "filename": image, "read-only": read_only });
        let raw = json!({ "driver": "raw", "node-name": node, "file": file, "read-only": read_only });
        self.execute("blockdev-add", raw).await?;
        self.plug(id, driver, with(place, "drive", json!(node))).await
    }

    /// Plugs a device into the machine. `properties` are those of the driver.
    ///
    /// # Errors
    ///
    /// QEMU refuses it or goes away.
    pub async fn plug(&mut self, id: &str, driver: &str, properties: Value) -> Result<(), QmpError> {
        let device = with(with(properties, "id", json!(id)), "driver", json!(driver));
        self.execute("device_add", device).await.map(drop)
    }

    /// Pulls a device, and waits until the guest has let go of it.
    ///
    /// # Errors
    ///
    /// QEMU refuses it, or the guest keeps it.
    pub async fn unplug(&mut self, id: &str) -> Result<(), QmpError> {
        self.events.retain(|event| event.get("event") != Some(&json!("DEVICE_DELETED")));
        self.execute("device_del", json!({ "id": id })).await?;
        loop {
            let event = self.event("DEVICE_DELETED").await?;
            if event.get("device").and_then(Value::as_str) == Some(id) {
                return Ok(());
            }
        }
    }

    /// Pulls a disk that [`Qmp::plug_disk`] has plugged, and forgets its image. One that is gone already, because the
    /// guest let go of it when nobody waited any more, is no failure.
    ///
    /// # Errors
    ///
    /// As for [`Qmp::unplug`].
    pub async fn unplug_disk(&mut self, id: &str) -> Result<(), QmpError> {
        match self.unplug(id).await {
            Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => {}
            pulled => pulled?,
        }
        match self.execute("blockdev-del", json!({ "node-name": format!("node-{id}") })).await {
            // QEMU tells it by words alone.
            Err(QmpError::Refused { description, .. }) if description.contains("Failed to find node") => {}
            forgotten => drop(forgotten?),
        }
        Ok(())
    }

    /// The data of the next event of that name, from those that came meanwhile on.
    ///
    /// # Errors
    ///
    /// It does not come, or QEMU goes away.
    pub async fn event(&mut self, name: &str) -> Result<Value, QmpError> {
        // As a whole: a guest that causes other events must not make this last for ever.
        self.event_within(name, ANSWER_TIMEOUT).await
    }

    async fn event_within(&mut self, name: &str, limit: Duration) -> Result<Value, QmpError> {
        let event = tokio::time::timeout(limit, self.any_event(name)).await;
        event.unwrap_or_else(|_| Err(socket(name)(io::ErrorKind::TimedOut.into())))
    }

    async fn any_event(&mut self, name: &str) -> Result<Value, QmpError> {
        let is = |event: &Value| event.get("event").and_then(Value::as_str) == Some(name);
        loop {
            if let Some(found) = self.events.iter().position(is) {
                let event = self.events.remove(found).unwrap_or_default();
                return Ok(event.get("data").cloned().unwrap_or_default());
            }
            let event = self.read(name).await?;
            self.keep(event);
        }
    }

    /// The slot of the device `id` on its PCI bus.
    ///
    /// # Errors
    ///
    /// There is no such device on the bus.
    pub async fn pci_slot(&mut self, id: &str) -> Result<u64, QmpError> {
        let buses = self.execute("query-pci", json!({})).await?;
        slot_of(&buses, id).ok_or_else(|| unexpected("query-pci", &json!(format!("no device {id}"))))
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
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

fn with(mut object: Value, key: &str, value: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
    object
}

/// Looks through all buses, those behind bridges too.
fn slot_of(tree: &Value, id: &str) -> Option<u64> {
    match tree {
        Value::Object(object) if object.get("qdev_id").and_then(Value::as_str) == Some(id) => {
            object.get("slot").and_then(Value::as_u64)
        }
        Value::Object(object) => object.values().find_map(|value| slot_of(value, id)),
        Value::Array(values) => values.iter().find_map(|value| slot_of(value, id)),
        _ => None,
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
    async fn a_pulled_device_is_waited_for() {
        let gone = concat!(
            r#"{"event": "DEVICE_DELETED", "data": {"device": "other"}}"#,
            "\n{\"return\": {}}\n",
            r#"{"event": "DEVICE_DELETED", "data": {"path": "/x"}}"#,
            "\n",
            r#"{"event": "DEVICE_DELETED", "data": {"device": "d"}}"#,
        );
        let ((), asked) = with_qemu(&[GREETING, r#"{"return": {}}"#, gone], async |path| {
            Qmp::connect(path).await.unwrap().unplug("d").await.unwrap();
        })
        .await;
        assert_eq!(asked[1], json!({"execute": "device_del", "arguments": {"id": "d"}}));
    }

    #[tokio::test]
    async fn a_disk_that_is_gone_already_is_forgotten() {
        let gone = r#"{"error": {"class": "DeviceNotFound", "desc": "Device 'd' not found"}}"#;
        let none =
            r#"{"error": {"class": "GenericError", "desc": "Failed to find node with node-name='node-d'"}}"#;
        for node in [r#"{"return": {}}"#, none] {
            let (pulled, asked) = with_qemu(&[GREETING, r#"{"return": {}}"#, gone, node], async |path| {
                Qmp::connect(path).await.unwrap().unplug_disk("d").await
            })
            .await;
            pulled.unwrap();
            assert_eq!(asked[2], json!({"execute": "blockdev-del", "arguments": {"node-name": "node-d"}}));
        }
        let busy = r#"{"error": {"class": "GenericError", "desc": "Device 'd' is busy"}}"#;
        let (pulled, _) = with_qemu(&[GREETING, r#"{"return": {}}"#, busy], async |path| {
            Qmp::connect(path).await.unwrap().unplug_disk("d").await
        })
        .await;
        assert!(pulled.unwrap_err().to_string().ends_with("is busy"));
    }

    #[tokio::test]
    async fn a_guests_events_don_t_prolong_the_wait_for_another() {
        let (client, mut qemu) = UnixStream::pair().unwrap();
        let mut qmp = Qmp { stream: BufReader::new(client), events: VecDeque::new() };
        let flood = async {
            loop {
                qemu.write_all(b"{\"event\": \"RTC_CHANGE\"}\n").await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let error = tokio::select! {
            event = qmp.event_within("DEVICE_DELETED", Duration::from_millis(100)) => event.unwrap_err(),
            () = flood => return,
        };
        assert_eq!(error.to_string(), "QMP DEVICE_DELETED: timed out");
    }

    #[test]
    fn slots_are_found_behind_bridges() {
        let behind = json!({"bus": 1, "devices": [{"qdev_id": "d", "slot": 3}]});
        let buses = json!([{"bus": 0, "devices": [
            {"qdev_id": "", "slot": 1},
            {"qdev_id": "rp0", "slot": 4, "pci_bridge": {"devices": behind["devices"]}},
        ]}]);
        assert_eq!((slot_of(&buses, "rp0"), slot_of(&buses, "d")), (Some(4), Some(3)));
        assert_eq!(slot_of(&buses, "x"), None);
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
