//! Tests that take injected events.

use notify::{
    EventKind,
    event::{AccessKind, AccessMode, DataChange, ModifyKind},
};

use super::*;

const WAIT: Duration = Duration::from_secs(10);

fn said(reports: &[Report]) -> Vec<String> {
    reports.iter().map(ToString::to_string).collect()
}

fn follow(dir: &Path) -> (Manifests, Receiver<Update>) {
    let (sender, updates) = mpsc::channel();
    let manifests = Manifests::follow(dir, move |update| sender.send(update).is_ok()).unwrap();
    updates.recv_timeout(WAIT).unwrap();
    (manifests, updates)
}

#[test]
fn a_directory_that_cannot_be_watched_is_named_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (manifests, updates) = follow(dir.path());
    let full = notify::Error::new(notify::ErrorKind::MaxFilesWatch);
    manifests.wake.send(Wake::Event(Err(full))).unwrap();
    let appeared = said(&updates.recv_timeout(WAIT).unwrap().appeared);
    assert!(appeared[0].contains("can't be watched: "), "{appeared:?}");
    assert!(appeared[0].contains("raise fs.inotify.max_user_watches"), "{appeared:?}");
    let disappeared = said(&updates.recv_timeout(WAIT).unwrap().disappeared);
    assert_eq!(disappeared, appeared);
    // It is watched again.
    fs::write(dir.path().join("new.yaml"), "kind: [").unwrap();
    assert_eq!(updates.recv_timeout(WAIT).unwrap().appeared.len(), 1);
}

#[test]
fn a_file_that_nobody_closes_is_read_late_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("open.yaml");
    let (manifests, updates) = follow(dir.path());
    fs::write(&path, "").unwrap();
    let event = |kind| Wake::Event(Ok(notify::Event::new(kind).add_path(path.clone())));
    thread::sleep(BUSY);
    let start = Instant::now();
    manifests.wake.send(event(EventKind::Modify(ModifyKind::Data(DataChange::Any)))).unwrap();
    let appeared = said(&updates.recv_timeout(WAIT).unwrap().appeared);
    assert!(start.elapsed() >= HELD);
    assert!(appeared[0].contains("the file is open for writing"), "{appeared:?}");
    manifests.wake.send(event(EventKind::Access(AccessKind::Close(AccessMode::Write)))).unwrap();
    assert_eq!(said(&updates.recv_timeout(WAIT).unwrap().disappeared), appeared);
}
