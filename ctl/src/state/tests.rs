//! Records as several clients see them.

use super::*;

fn state(base: &Path, address: &str) -> State {
    State::in_directory(base, &address.parse::<Address>().unwrap())
}

fn record(id: &str, created: u64) -> ContainerRecord {
    ContainerRecord { created, ..ContainerRecord::new(id) }
}

#[test]
fn containers_are_kept_by_address_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (state, other) = (state(dir.path(), "unix:///a/b"), state(dir.path(), "unix:///a_b"));
    assert!(state.containers().is_empty());
    state.note_container(&record("../b", 1)).unwrap();
    state.note_container(&record("a", 2)).unwrap();
    assert_eq!(state.containers(), [record("../b", 1), record("a", 2)]);
    assert_eq!(state.container("a"), Some(record("a", 2)));
    assert!(other.containers().is_empty());
    state.change_container("a", |record| record.stop(3)).unwrap();
    assert_eq!(state.container("a").unwrap().state.to_string(), "stopped (3, error)");
    state.forget_container("a");
    state.change_container("a", ContainerRecord::run).unwrap();
    assert_eq!(state.containers().len(), 1);

    assert!(!state.has_sandbox());
    state.note_sandbox(Some("h")).unwrap();
    state.note_vm(&VmRecord { share: "/s".into(), ..VmRecord::default() }).unwrap();
    assert!(state.has_sandbox());
    assert_eq!(state.hostname().as_deref(), Some("h"));
    assert_eq!(state.vm().unwrap().share, Path::new("/s"));
    state.forget();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_end_has_its_reason() {
    let mut record = record("a", 1);
    record.run();
    record.oom_killed = true;
    record.stop(137);
    assert_eq!(record.state, ContainerState::Stopped { code: 137, reason: "oom".to_owned() });
    record.run();
    assert_eq!((record.finished, record.oom_killed), (None, false));
    record.stop(0);
    assert_eq!(record.state.to_string(), "stopped (0, completed)");
    record.fail("no volume");
    let text = serde_json::to_string(&record).unwrap();
    assert!(text.contains(r#""state":{"status":"error","reason":"no volume"}"#), "{text}");
    assert_eq!(serde_json::from_str::<ContainerRecord>(&text).unwrap(), record);
    // A record of an older client has less.
    assert_eq!(serde_json::from_str::<ContainerRecord>(r#"{"id":"a"}"#).unwrap().id, "a");
}

#[test]
fn another_agent_at_the_address_has_none_of_the_containers() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(dir.path(), "unix:///a");
    state.settle_with("7@100");
    state.note_sandbox(Some("h")).unwrap();
    let share = dir.path().join("share");
    fs::create_dir_all(share.join("web/rootfs")).unwrap();
    let holdings = crate::cri::Holdings { share: Some(share.clone()), root: true, ..Default::default() };
    state.note_container(&ContainerRecord { holdings, ..record("web", 1) }).unwrap();
    state.settle_with("7@100");
    assert!(state.has_sandbox() && state.containers().len() == 1 && share.join("web").exists());
    // The same pid, but another process.
    state.settle_with("7@200");
    assert!(!state.has_sandbox() && state.containers().is_empty() && !share.join("web").exists());
}

#[test]
fn two_clients_that_meet_another_agent_drop_its_notes_once() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(dir.path(), "unix:///a");
    state.settle_with("7@100");
    // One client is at it; the other waits, and finds all done.
    let turn = Lock::try_take(&state.directory.join("agent.lock")).unwrap();
    let other = state.clone();
    let second = std::thread::spawn(move || other.settle_with("7@200"));
    write_json(&state.directory.join("agent"), &"7@200").unwrap();
    state.note_container(&record("new", 1)).unwrap();
    drop(turn);
    second.join().unwrap();
    assert_eq!(state.containers(), [record("new", 1)]);
}

#[tokio::test]
async fn attempts_are_counted_by_pod_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::at(dir.path());
    for (pod, name, least, expected) in [
        ("p", "a", 0, 0),
        ("p", "a", 0, 1),
        ("p", "b", 0, 0),
        ("p", "a", 7, 7),
        ("p", "a", 0, 8),
        ("q", "a", 0, 0),
    ] {
        assert_eq!(state.next_attempt(pod, name, least).await.unwrap(), expected, "{pod}/{name}");
    }
}
