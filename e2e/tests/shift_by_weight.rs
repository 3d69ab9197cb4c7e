//! A user splits the connections of a service between its versions by weight.

use anyhow::{Result, ensure};
use slotmesh_e2e::{ClientSpec, Mesh, isolated, manifests::virtual_service, mesh::reviews, stats};

/// So many that a split which is off by two percent is always seen (11 standard deviations; the limit is 5).
const CONNECTS: u64 = 50_000;

/// What protocol the routes are for, which of their kinds is written.
#[derive(Clone, Copy)]
enum Kind {
    Http,
    Tcp,
}

fn mesh(kind: Kind, weights: &[(&str, i64)]) -> Result<Mesh> {
    let mut objects = reviews::objects();
    let route = virtual_service("reviews");
    objects.push(match kind {
        Kind::Http => route.http("reviews", weights).build(),
        Kind::Tcp => route.tcp("reviews", weights).build(),
    });
    let mut mesh = Mesh::with(&objects)?;
    reviews::open(&mut mesh.backends)?;
    Ok(mesh)
}

/// Connects that often to both cluster addresses together; how many v1 and v2 got.
fn split(mesh: &Mesh) -> Result<[u64; 2]> {
    let [v4, v6, _] = reviews::addresses();
    let log = ClientSpec::to(v4).and(v6).count(CONNECTS).threads(2).run(Some(&mesh.cgroup))?;
    log.expect_all(CONNECTS as usize)?;
    let counts = reviews::by_version(&log, [1, 2]);
    ensure!(
        counts.iter().sum::<u64>() == CONNECTS,
        "a version without weight was chosen: {:?}",
        log.by_backend()
    );
    // Both addresses have the same split, and the pods of a version have alike.
    let [four, six] = [v4, v6].map(|to| reviews::by_version(&log.to(to), [1, 2]));
    let expected = counts.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    stats::expect_fit(&four, &expected)?;
    stats::expect_fit(&six, &expected)?;
    let pods = log.by_backend();
    let of = |id| pods.get(&id).copied().unwrap_or_default();
    stats::expect_fit(&[of(11), of(12)], &[1, 1])?;
    stats::expect_fit(&[of(21), of(22)], &[1, 1])?;
    println!("{CONNECTS} connections: {pods:?}");
    Ok(counts)
}

#[test]
fn a_canary_gets_its_20_percent_by_an_http_route() {
    isolated(|| {
        let mesh = mesh(Kind::Http, &[("v1", 80), ("v2", 20)])?;
        stats::expect_fit(&split(&mesh)?, &[80, 20])
    });
}

#[test]
fn a_canary_gets_its_20_percent_by_a_tcp_route() {
    isolated(|| {
        let mesh = mesh(Kind::Tcp, &[("v1", 80), ("v2", 20)])?;
        stats::expect_fit(&split(&mesh)?, &[80, 20])
    });
}

/// The check of the other tests sees a table that is off by two percent.
#[test]
fn a_split_of_78_to_22_is_not_taken_for_80_to_20() {
    isolated(|| {
        let mesh = mesh(Kind::Http, &[("v1", 78), ("v2", 22)])?;
        let counts = split(&mesh)?;
        stats::expect_fit(&counts, &[78, 22])?;
        ensure!(!stats::fits(&counts, &[80, 20])?, "{counts:?} pass for 80/20");
        Ok(())
    });
}
