//! A user's pods come and go while connections are made.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use serde_json::{Value, json};
use slotmesh_e2e::{
    Log, Mesh,
    client::LEAST,
    connect::now,
    isolated,
    manifests::{service, slice},
    mesh::{at, reviews},
};

/// What must pass between the publication of a removal and the end of the pod: whoever chose its
/// address just before has connected by then.
const DRAIN: Duration = Duration::from_secs(1);

/// Removes the pod with this id; when that was published.
fn remove(mesh: &Mesh, id: u16) -> Result<u64> {
    mesh.agent()?
        .published("endpoints", || mesh.manifests.write("mesh.yaml", &reviews::objects_without(&[id])))?;
    Ok(now())
}

fn restore(mesh: &Mesh) -> Result<()> {
    mesh.agent()?.published("endpoints", || mesh.manifests.write("mesh.yaml", &reviews::objects()))
}

fn expect_unused(log: &Log, id: u16, from: u64, to: u64) -> Result<()> {
    let span = log.during(from, to);
    ensure!(!span.is_empty(), "no connect was made meanwhile");
    let late = span.connects.iter().find(|c| c.backend == Some(id));
    ensure!(late.is_none(), "pod {id} was chosen after its removal was published: {late:?}");
    Ok(())
}

#[test]
fn a_pod_that_ends_a_second_after_its_removal_was_published_is_missed_by_nobody() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        let load = mesh.load(&reviews::addresses())?;
        let mut spans = Vec::new();
        for id in [11, 22, 31, 12, 21, 31] {
            let removed = remove(&mesh, id)?;
            thread::sleep(DRAIN);
            reviews::close_pod(&mut mesh.backends, id)?;
            thread::sleep(Duration::from_millis(100));
            reviews::open_pod(&mut mesh.backends, id)?;
            spans.push((id, removed, now()));
            restore(&mesh)?;
        }
        let log = load.stop()?;
        println!("{} connects, {:?}", log.len(), log.by_backend());
        log.expect_all(LEAST)?;
        spans.iter().try_for_each(|(id, removed, restored)| expect_unused(&log, *id, *removed, *restored))?;
        mesh.stop()
    });
}

/// A second service, whose records are written in between: a slot that was reused too early would
/// lead from one service to the other.
mod other {
    use super::*;

    /// Its cluster address.
    pub const TO: (&str, u16) = ("10.96.0.80", 80);
    const PODS: u16 = 40;

    pub fn open(mesh: &mut Mesh) -> Result<()> {
        mesh.backends.open_all_v4(9999)
    }

    /// With the pods from `first` on.
    pub fn write(mesh: &Mesh, first: u16) -> Result<()> {
        let slice = (first..PODS).fold(slice("other", "other").port(9999), |slice, i| {
            slice.endpoint(&format!("127.8.8.{}", i + 1))
        });
        mesh.manifests.write("other.yaml", &[service("other").ip(TO.0).port(TO.1).build(), slice.build()])
    }

    /// Whether this backend is one of its pods.
    pub fn is_pod(id: u16) -> bool {
        (0x0801..=0x0800 + PODS).contains(&id)
    }
}

#[test]
fn pods_that_come_and_go_all_the_time_break_no_connection() {
    const CHANGES: usize = 100;
    isolated(|| {
        let mut mesh = Mesh::new()?;
        other::write(&mesh, 0)?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        mesh.start()?;
        reviews::open(&mut mesh.backends)?;
        other::open(&mut mesh)?;
        let second = at(other::TO.0, other::TO.1);
        let [v4, v6, mapped] = reviews::addresses();
        let load = mesh.load(&[v4, second, v6, second, mapped])?;
        let pods = [11, 12, 21, 22, 31];
        for turn in 0..CHANGES {
            // One to four of the five are gone, and up to 39 of the other's 40.
            let gone: Vec<_> = (0..=turn % 4).map(|i| pods[(turn + i) % pods.len()]).collect();
            let write = || {
                mesh.manifests.write("mesh.yaml", &reviews::objects_without(&gone))?;
                other::write(&mesh, turn as u16 * 7 % 40)
            };
            mesh.agent()?.published("endpoints", write)?;
        }
        // Faster than they can be followed, too.
        for turn in 0..CHANGES {
            mesh.manifests.write("mesh.yaml", &reviews::objects_without(&[pods[turn % pods.len()]]))?;
            other::write(&mesh, turn as u16 * 11 % 40)?;
            thread::sleep(Duration::from_millis(turn as u64 / 2));
        }
        restore(&mesh)?;
        let log = load.stop()?;
        println!("{} connects, {:?}", log.len(), log.by_backend());
        log.expect_all(LEAST)?;
        let strayed = log.connects.iter().find(|c| other::is_pod(c.backend.unwrap_or(0)) != (c.to == second));
        ensure!(strayed.is_none(), "a connect ended at the other service: {strayed:?}");
        ensure!(mesh.agent()?.metrics()?.nacked() == 0, "something was refused");
        mesh.stop()
    });
}

/// One service whose pods have these conditions, in turn; the number of a pod is its id.
fn with_conditions(pods: &[Value]) -> Vec<Value> {
    let numbered = pods.iter().zip(1_u16..);
    let slice = numbered.fold(slice("web", "web").port(9999), |slice, (conditions, number)| {
        slice.endpoint_with(&format!("127.6.0.{number}"), conditions.clone())
    });
    vec![service("web").ip("10.96.0.60").port(80).build(), slice.build()]
}

#[test]
fn pods_that_are_ready_are_chosen_and_else_those_that_still_serve_while_they_end() {
    let ready = || json!({"ready": true, "serving": true, "terminating": false});
    let ending = || json!({"ready": false, "serving": true, "terminating": true});
    let ended = || json!({"ready": false, "serving": false, "terminating": true});
    let starting = || json!({"ready": false, "serving": false, "terminating": false});
    let unknown = || json!({});
    let cases: [([Value; 5], &[u16]); 6] = [
        ([ready(), ending(), ended(), starting(), unknown()], &[1, 5]),
        ([ending(), ending(), ended(), starting(), starting()], &[1, 2]),
        ([ended(), ending(), ready(), starting(), ready()], &[3, 5]),
        ([ended(), ended(), ended(), starting(), starting()], &[]),
        ([ended(), ending(), ended(), starting(), starting()], &[2]),
        ([ended(), ending(), ended(), starting(), unknown()], &[5]),
    ];
    isolated(move || {
        let mut mesh = Mesh::with(&with_conditions(&[ready()]))?;
        mesh.backends.open_all_v4(9999)?;
        let to = at("10.96.0.60", 80);
        for (pods, chosen) in cases {
            mesh.agent()?
                .published("endpoints", || mesh.manifests.write("mesh.yaml", &with_conditions(&pods)))?;
            let log = mesh.connect(to, 200)?;
            if chosen.is_empty() {
                log.expect_errno(Errno::ECONNREFUSED)?;
                continue;
            }
            log.expect_all(200)?;
            let found: Vec<_> = log.by_backend().into_keys().collect();
            ensure!(found == chosen, "{found:?} were chosen, not {chosen:?}, of {pods:?}");
        }
        mesh.stop()
    });
}
