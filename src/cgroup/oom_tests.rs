//! Counting OOM kills in files that a kernel would keep.

use super::tests::Fixture;
use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::fs;

const V1_CONTROL: &str = "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n";

fn v2() -> Fixture {
    Fixture::v2(&[("memory.events", "low 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 0\n")])
}

fn v1() -> Fixture {
    Fixture::v1(&[("memory/memory.oom_control", V1_CONTROL), ("memory/cgroup.event_control", "")])
}

impl Fixture {
    fn set(&self, file: &str, text: &str) {
        fs::write(self.root.path().join(file), text).unwrap();
    }

    /// The kills in v1's cgroup `name`, which is made if need be.
    fn set_v1(&self, name: &str, kills: u64) {
        let directory = self.root.path().join("memory").join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("memory.oom_control"), format!("under_oom 1\noom_kill {kills}\n")).unwrap();
    }
}

#[test]
fn v2_counts_oom_kill_alone_and_each_kill_once() {
    let fixture = v2();
    assert_eq!(fixture.cgroup.oom_kills().unwrap(), 2);
    let kills = fixture.cgroup.count_oom_kills(1).unwrap().unwrap();
    assert!(!kills.is_early());
    for (text, news) in [
        ("oom 4\noom_kill 2\n", 1),
        ("oom 99\noom_kill 2\noom_group_kill 7\n", 0),
        ("oom_kill 5", 3),
        ("", 0),
        ("oom_kill\n", 0),
        ("oom_kill many\n", 0),
        ("oom_kill -1\n", 0),
        ("oom_kill 99999999999999999999999\n", 0),
        ("\u{0}\u{fffd}oom_kill 77\n", 0),
        ("oom_kill 5\n", 0),
        ("low 0\noom_kill 6\n", 1),
    ] {
        fixture.set("pod/one/memory.events", text);
        assert_eq!(kills.news().unwrap(), news, "{text:?}");
    }
}

#[test]
fn v1_counts_the_whole_tree() {
    let fixture = v1();
    assert_eq!(fixture.cgroup.oom_kills().unwrap(), 0);
    let kills = fixture.cgroup.count_oom_kills(0).unwrap().unwrap();
    assert!(kills.is_early());
    let registered = fixture.root.path().join("memory/pod/one/cgroup.event_control");
    assert_eq!(fs::read_to_string(registered).unwrap().split(' ').count(), 2);
    fixture.set_v1("pod/other", 50);
    assert_eq!(kills.news().unwrap(), 0);
    fixture.set_v1("pod/one", 1);
    fixture.set_v1("pod/one/inner/most", 2);
    assert_eq!(kills.news().unwrap(), 3);
    fixture.set("memory/pod/one/memory.oom_control", "not a number");
    fs::remove_dir_all(fixture.root.path().join("memory/pod/one/inner")).unwrap();
    assert_eq!(kills.news().unwrap(), 0);
    // What a removed cgroup counted has been told, and is not taken off what comes later.
    fixture.set_v1("pod/one", 1);
    assert_eq!(kills.news().unwrap(), 0);
    fixture.set_v1("pod/one", 2);
    assert_eq!(kills.news().unwrap(), 1);
}

#[test]
fn a_cgroup_that_is_gone_or_does_not_count_is_no_error() {
    for fixture in [v1(), v2()] {
        let kills = fixture.cgroup.count_oom_kills(9).unwrap().unwrap();
        fs::remove_dir_all(fixture.root.path()).unwrap();
        assert_eq!(kills.news().unwrap(), 0);
        assert_eq!(fixture.cgroup.oom_kills().unwrap(), 0);
        assert!(fixture.cgroup.count_oom_kills(0).unwrap().is_none());
    }
    for fixture in [Fixture::v1(&[("memory/memory.stat", "")]), Fixture::v2(&[("memory.stat", "")])] {
        assert_eq!(fixture.cgroup.oom_kills().unwrap(), 0);
        assert!(fixture.cgroup.count_oom_kills(0).unwrap().is_none());
    }
}

#[test]
fn looks_at_the_same_time_count_each_kill_once() {
    let fixture = v1();
    let kills = fixture.cgroup.count_oom_kills(0).unwrap().unwrap();
    let look = || std::iter::repeat_with(|| kills.news().unwrap()).take(100).sum::<u64>();
    let told: u64 = std::thread::scope(|scope| {
        let lookers: Vec<_> = (0..4).map(|_| scope.spawn(look)).collect();
        // Renamed into place, since the kernel never shows half a file.
        for count in 1..=50 {
            fixture.set("new", &format!("oom_kill {count}\n"));
            let control = fixture.root.path().join("memory/pod/one/memory.oom_control");
            fs::rename(fixture.root.path().join("new"), control).unwrap();
        }
        lookers.into_iter().map(|looker| looker.join().unwrap()).sum()
    });
    assert_eq!(told.saturating_add(kills.news().unwrap()), 50);
}

#[test]
fn a_slice_counts_its_units_and_the_machine_those_of_the_topmost() {
    let fixture = v2();
    fixture.set("pod/memory.events", "oom 9\noom_kill 7\n");
    fs::create_dir(fixture.root.path().join("pod/two")).unwrap();
    fixture.set("pod/two/memory.events", "oom_kill 4\n");
    fixture.set("vmstat", "nr_free_pages 1\noom_kill 11\n");
    let all = fixture.root.path().join("vmstat").to_str().unwrap().to_owned();
    let slice = fixture.cgroup.kills_above(&all).unwrap();
    assert_eq!((slice.path(), slice.unit(), slice.count()), ("pod".as_ref(), "one".as_ref(), Some(7)));
    assert_eq!(slice.counts().unwrap(), HashMap::from([("one".into(), 2), ("two".into(), 4)]));
    let topmost = Cgroup::new(fixture.cgroup.hierarchy.clone(), "/pod".into()).unwrap();
    let slice = topmost.kills_above(&all).unwrap();
    assert_eq!((slice.path(), slice.unit(), slice.count()), ("".as_ref(), "pod".as_ref(), Some(11)));
    assert_eq!(slice.counts().unwrap(), HashMap::from([("pod".into(), 7)]));
}

#[tokio::test]
async fn every_notice_of_v1_is_passed_on() {
    let fixture = v1();
    let kills = fixture.cgroup.count_oom_kills(0).unwrap().unwrap();
    let notices = Notices::of(&kills).unwrap();
    for count in 1..=3 {
        nix::unistd::write(kills.notice().0, &1u64.to_ne_bytes()).unwrap();
        notices.next().await.unwrap();
        fixture.set_v1("pod/one", count);
        assert_eq!(kills.news().unwrap(), 1);
    }
}

/// systemd takes a unit's cgroup away when its last process was killed, which may be before the kill is seen.
#[test]
fn v1_tells_a_cgroup_that_went_with_a_kill_from_one_that_just_went() {
    for (notices, seen, elsewhere, expected) in [
        (1, 0, false, true),
        (0, 0, false, false),
        (1, 1, false, false),
        (2, 1, false, true),
        (2, 1, true, false),
    ] {
        let fixture = v1();
        let kills = fixture.cgroup.count_oom_kills(0).unwrap().unwrap();
        let notice = || nix::unistd::write(kills.notice().0, &1u64.to_ne_bytes()).unwrap();
        for number in 1..=notices {
            notice();
            if number <= seen {
                fixture.set_v1("pod/one", number);
            }
            assert_eq!(kills.news().unwrap(), u64::from(number <= seen));
        }
        if elsewhere {
            kills.expect_no_more();
        }
        fs::remove_dir_all(fixture.root.path().join("memory/pod/one")).unwrap();
        // The kernel's own, of the end.
        notice();
        assert_eq!((kills.news().unwrap(), kills.is_gone()), (0, true));
        assert_eq!(kills.has_unseen(), expected, "{notices} notices, {seen} seen");
    }
}

proptest! {
    #[test]
    fn no_text_is_counted_twice(text in "(oom_kill [0-9]{1,20}\n|[a-z_]* [0-9x]*\n|.){0,5}") {
        let fixture = v2();
        let kills = fixture.cgroup.count_oom_kills(0).unwrap().unwrap();
        fixture.set("pod/one/memory.events", &text);
        kills.news().unwrap();
        prop_assert_eq!(kills.news().unwrap(), 0);
    }
}
