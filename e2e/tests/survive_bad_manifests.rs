//! A user makes mistakes in the manifests. Each is reported with the object's name, and disturbs
//! nothing that is in force: a load goes on through all of it and no connect fails.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slotmesh_e2e::{
    ClientSpec, Mesh,
    client::LEAST,
    isolated,
    manifests::{service, slice, virtual_service},
    mesh::{at, reviews},
    stats, wait,
};

const ROUTED: [(&str, i64); 2] = [("v1", 80), ("v2", 20)];

fn good() -> Vec<Value> {
    let mut objects = reviews::objects();
    objects.push(virtual_service("reviews").http("reviews", &ROUTED).build());
    objects
}

/// Connects while a mistake is in force, beside those of the load: it stays until they are made, all of
/// them to where they are routed.
fn hold(mesh: &Mesh) -> Result<()> {
    const CONNECTS: u64 = 500;
    let [v4, v6, mapped] = reviews::addresses();
    let spec = ClientSpec::to(v4).and(v6).and(mapped).count(CONNECTS).threads(2);
    let log = spec.run(Some(&mesh.cgroup))?;
    log.expect_all(CONNECTS as usize)?;
    let routed: u64 = reviews::by_version(&log, [1, 2]).iter().sum();
    ensure!(routed == CONNECTS, "{routed} of {CONNECTS} connects went to v1 and v2: {:?}", log.by_backend());
    Ok(())
}

/// Runs `mistakes` under a load on what is good, which must go on as before, and ends alike.
fn undisturbed(mistakes: impl FnOnce(&mut Mesh) -> Result<()> + Send + 'static) {
    isolated(|| {
        let mut mesh = Mesh::with(&good())?;
        reviews::open(&mut mesh.backends)?;
        ensure!(
            mesh.agent()?.reports()?.is_empty(),
            "good manifests are reported: {:?}",
            mesh.agent()?.reports()
        );
        let load = mesh.load(&reviews::addresses())?;
        mistakes(&mut mesh)?;
        let log = load.stop()?;
        println!("{} connects, {:?}", log.len(), log.by_backend());
        log.expect_all(LEAST)?;
        stats::expect_fit(&reviews::by_version(&log, [1, 2]), &[80, 20])?;
        ensure!(reviews::by_version(&log, [3]) == [0], "v3 has no weight");
        // Still in force, and the agent still follows.
        let edited =
            [&reviews::objects()[..], &[virtual_service("reviews").http("reviews", &[("v3", 1)]).build()]];
        let agent = mesh.agent()?;
        agent.published("route", || mesh.manifests.write("mesh.yaml", &edited.concat()))?;
        let log = mesh.connect(at(reviews::V4, reviews::PORT), 100)?;
        ensure!(reviews::by_version(&log, [3]) == [100], "the edit that follows has no effect");
        ensure!(agent.metrics()?.nacked() == 0, "the agent refused something: {}", agent.said());
        mesh.stop()
    });
}

/// Writes a file of its own with a mistake, waits for the report, mends it by removing the file.
fn reported(mesh: &Mesh, text: &str, words: &[&str]) -> Result<()> {
    const FILE: &str = "mistake.yaml";
    let agent = mesh.agent()?;
    mesh.manifests.write_text(FILE, text)?;
    agent.expect_report(words)?;
    // What nobody expects to be read is in the reports only.
    if !words.contains(&"skipped") {
        // What it says comes through a pipe, a moment later.
        wait::until_true(&format!("{} in the log", words[0]), || Ok(agent.said().contains(words[0])))?;
    }
    hold(mesh)?;
    mesh.manifests.remove(FILE)?;
    agent.expect_no_report(words)
}

fn yaml(object: &Value) -> String {
    object.to_string()
}

#[test]
fn broken_yaml_and_unknown_kinds() {
    undisturbed(|mesh| {
        reported(mesh, "kind: [\n", &["mistake.yaml", "stays in force"])?;
        reported(mesh, "just text", &["mistake.yaml"])?;
        let unknown = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}});
        reported(mesh, &yaml(&unknown), &["ConfigMap default/settings", "skipped"])?;
        let port = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "typo"}, "spec": {"ports": [{"port": "http"}]}});
        reported(mesh, &yaml(&port), &["Service default/typo", "spec.ports[0].port", "invalid type"])
    });
}

/// The file that defines all that is in force is broken, and mended.
#[test]
fn broken_yaml_in_the_file_that_is_in_force() {
    undisturbed(|mesh| {
        let path = mesh.manifests.path().join("mesh.yaml");
        let whole = fs::read_to_string(&path)?;
        let agent = mesh.agent()?;
        for broken in ["kind: [", &whole[..whole.len() / 2], ""] {
            // Written in place, as by an editor that truncates.
            fs::write(&path, format!("{broken}\n\t{{"))?;
            agent.expect_report(&["mesh.yaml", "stays in force"])?;
            hold(mesh)?;
            fs::write(&path, &whole)?;
            agent.expect_no_report(&["mesh.yaml"])?;
        }
        Ok(())
    });
}

/// Each mistake costs its own share of the connections and no other, for as long as it stands there.
#[test]
fn routes_to_what_is_not_there_refuse_their_share_and_heal() {
    isolated(|| {
        let mut mesh = Mesh::with(&good())?;
        reviews::open(&mut mesh.backends)?;
        let agent = mesh.agent()?;
        let edit = |weights: &[(&str, i64)], host: &str, words: &[&str], share: [u32; 3]| {
            const CONNECTS: u64 = 10_000;
            let mut objects = reviews::objects();
            objects.push(virtual_service("reviews").http(host, weights).build());
            agent.published("route", || mesh.manifests.write("mesh.yaml", &objects))?;
            agent.expect_report(words)?;
            let log = mesh.connect(at(reviews::V4, reviews::PORT), CONNECTS)?;
            let [v1, v2, v3] = reviews::by_version(&log, [1, 2, 3]);
            let refused = CONNECTS - v1 - v2 - v3;
            // A share of 0 takes no part in the fit: it is exactly 0.
            let (counts, shares): (Vec<_>, Vec<_>) = [v1, v2, refused]
                .into_iter()
                .zip(share)
                .filter(|(count, share)| *count > 0 || *share > 0)
                .unzip();
            ensure!(
                v3 == 0 && shares.iter().all(|share| *share > 0),
                "{v1}, {v2}, {v3} and {refused} refused"
            );
            if shares.len() > 1 {
                stats::expect_fit(&counts, &shares)?;
            }
            agent.published("route", || mesh.manifests.write("mesh.yaml", &good()))?;
            agent.expect_no_report(words)?;
            hold(&mesh)
        };
        let name = "VirtualService default/reviews";
        edit(
            &ROUTED,
            "nowhere",
            &[name, "spec.http[0].route[0].destination.host", "there is no Service default/nowhere"],
            [0, 0, 1],
        )?;
        edit(
            &[("v1", 80), ("v9", 20)],
            "reviews",
            &[name, "spec.http[0].route[1].destination.subset", "v9"],
            [80, 0, 20],
        )?;
        edit(
            &[("v1", 0), ("v2", 0)],
            "reviews",
            &[name, "spec.http[0].route", "connections are refused"],
            [0, 0, 1],
        )?;
        edit(
            &[("v1", -1), ("v2", 1)],
            "reviews",
            &[name, "spec.http[0].route[0].weight", "below 0"],
            [0, 1, 0],
        )?;
        ensure!(agent.metrics()?.nacked() == 0, "the agent refused something: {}", agent.said());
        mesh.stop()
    });
}

/// What is nearly a field or a kind is named with what is meant, and turns no route into another one.
#[test]
fn misspelt_fields_kinds_and_versions() {
    undisturbed(|mesh| {
        let agent = mesh.agent()?;
        let path = mesh.manifests.path().join("mesh.yaml");
        let whole = fs::read_to_string(&path)?;
        for (good, typo, words) in [
            (
                "weight",
                "wieght",
                ["VirtualService default/reviews", "did you mean `weight`?", "stays in force"],
            ),
            (
                "VirtualService",
                "VirtualServce",
                ["VirtualServce default/reviews", "did you mean VirtualService?", "stays in force"],
            ),
            (
                "networking.istio.io/v1",
                "networking.istio.io/v9",
                ["VirtualService default/reviews", "networking.istio.io/v1beta1", "stays in force"],
            ),
        ] {
            let broken = whole.replace(good, typo);
            ensure!(broken != whole, "{good} isn't in {whole}");
            fs::write(&path, broken)?;
            agent.expect_report(&words)?;
            hold(mesh)?;
            fs::write(&path, &whole)?;
            agent.expect_no_report(&words)?;
        }
        // In the log a line says where, and another one when it is over.
        wait::until_true("the end of a complaint", || Ok(agent.said().contains("settled: ")))?;
        let line =
            agent.said().lines().find(|line| line.contains("did you mean `weight`?")).map(str::to_owned);
        let line = line.context("a line")?;
        ensure!(
            line.contains("WARN") && line.contains("mesh.yaml:") && !line.contains("field=\"\""),
            "{line}"
        );
        Ok(())
    });
}

/// Whoever relies on security that nobody enforces is told.
#[test]
fn security_policies_and_what_kustomize_reads() {
    undisturbed(|mesh| {
        let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "deny"}});
        reported(
            mesh,
            &yaml(&policy),
            &["AuthorizationPolicy default/deny", "not_supported", "nothing enforces it"],
        )?;
        mesh.manifests.write_text("kustomization.yaml", "resources: [mesh.yaml]\n")?;
        let unset = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "lost"},
            "spec": {"hosts": ["elsewhere"], "http": [{"route": [{"destination": {"host": "elsewhere"}}]}]}});
        reported(
            mesh,
            &yaml(&unset),
            &[
                "VirtualService default/lost",
                "there is no Service default/elsewhere",
                "metadata.namespace isn't set",
            ],
        )?;
        ensure!(mesh.agent()?.reports()?.is_empty(), "{:?}", mesh.agent()?.reports());
        Ok(())
    });
}

#[test]
fn duplicate_addresses_and_objects_that_are_defined_twice() {
    undisturbed(|mesh| {
        let thief = service("zz-thief").ip(reviews::V4).port(reviews::PORT).build();
        reported(
            mesh,
            &yaml(&thief),
            &["Service default/zz-thief", reviews::V4, "belongs to Service default/reviews"],
        )?;
        let twice = virtual_service("reviews").http("reviews", &[("v3", 1)]).build();
        reported(
            mesh,
            &yaml(&twice),
            &["VirtualService default/reviews", "mistake.yaml", "already defined in", "mesh.yaml"],
        )?;
        let second = virtual_service("reviews").name("zz-second").http("reviews", &[("v3", 1)]).build();
        reported(
            mesh,
            &yaml(&second),
            &["VirtualService default/zz-second", "already routed by VirtualService default/reviews"],
        )
    });
}

#[test]
fn an_endpoint_without_address() {
    undisturbed(|mesh| {
        let broken = slice("reviews-more", "reviews")
            .port(8080)
            .raw_endpoint(json!({"addresses": [], "conditions": {"ready": true}}))
            .build();
        reported(
            mesh,
            &yaml(&broken),
            &["EndpointSlice default/reviews-more", "endpoints[0].addresses", "no address"],
        )
    });
}

#[test]
fn names_of_253_characters() {
    undisturbed(|mesh| {
        let longest = "a".repeat(253);
        mesh.backends.open("127.5.0.1:8080", 500)?;
        let objects = [
            service(&longest).ip("10.96.0.50").port(80).build(),
            slice(&longest, &longest).port(8080).endpoint("127.5.0.1").build(),
            virtual_service(&longest).http(&longest, &[("", 1)]).build(),
        ];
        let agent = mesh.agent()?;
        agent.published("listener", || mesh.manifests.write("long.yaml", &objects))?;
        mesh.connect(at("10.96.0.50", 80), 100)?.expect_all(100)?;
        ensure!(agent.reports()?.is_empty(), "{:?}", agent.reports());
        let longer = "a".repeat(254);
        let too_long = service(&longer).ip("10.96.0.51").port(80).build();
        reported(mesh, &yaml(&too_long), &[&longer, "254", "253"])
    });
}

#[test]
fn three_hundred_endpoints_in_one_service() {
    const COUNT: u16 = 300;
    const CONNECTS: u64 = 12_000;
    undisturbed(|mesh| {
        mesh.backends.open_all_v4(9999)?;
        let many = (0..COUNT).fold(slice("many", "many").port(9999), |slice, i| {
            slice.endpoint(&format!("127.7.{}.{}", i / 100, i % 100 + 1))
        });
        let objects = [service("many").ip("10.96.0.70").port(80).build(), many.build()];
        mesh.agent()?.published("listener", || mesh.manifests.write("many.yaml", &objects))?;
        let log = ClientSpec::to(at("10.96.0.70", 80)).count(CONNECTS).threads(2).run(Some(&mesh.cgroup))?;
        log.expect_all(CONNECTS as usize)?;
        let counts: Vec<_> = log.by_backend().into_values().collect();
        ensure!(counts.len() == usize::from(COUNT), "{} of {COUNT} endpoints were chosen", counts.len());
        stats::expect_fit(&counts, &[1; COUNT as usize])
    });
}

#[test]
fn a_manifest_directory_that_disappears_and_comes_back() {
    undisturbed(|mesh| {
        let (dir, away) = (mesh.manifests.path().to_owned(), mesh.manifests.beside("away"));
        let name = dir.display().to_string();
        let agent = mesh.agent()?;
        // Moved away and back, then removed and made again, empty at first.
        fs::rename(&dir, &away)?;
        agent.expect_report(&[&name, "disappeared"])?;
        hold(mesh)?;
        fs::rename(&away, &dir)?;
        agent.expect_no_report(&[&name, "disappeared"])?;
        let whole = fs::read(dir.join("mesh.yaml"))?;
        fs::remove_dir_all(&dir)?;
        agent.expect_report(&[&name, "disappeared"])?;
        hold(mesh)?;
        // It comes back whole: an empty directory would mean that nothing is wanted any more.
        fs::create_dir(&away)?;
        fs::write(away.join("mesh.yaml"), whole)?;
        fs::rename(&away, &dir)?;
        agent.expect_no_report(&[&name, "disappeared"])
    });
}

/// Many mistakes in one edit: all are reported, by name.
#[test]
fn many_mistakes_at_once() {
    undisturbed(|mesh| {
        let names: BTreeSet<_> = (0..50).map(|i| format!("bad-{i:02}")).collect();
        let objects: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(i, name)| match i % 3 {
                0 => service(name).ip("10.96.0.300").port(80).build(),
                1 => virtual_service(name).http("nowhere", &[("v1", 1)]).build(),
                _ => json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": 7}),
            })
            .collect();
        mesh.manifests.write("mistakes.yaml", &objects)?;
        let agent = mesh.agent()?;
        names.iter().try_for_each(|name| agent.expect_report(&[&format!("default/{name}")]))?;
        hold(mesh)?;
        mesh.manifests.remove("mistakes.yaml")?;
        names.iter().try_for_each(|name| agent.expect_no_report(&[&format!("default/{name}")]))?;
        agent.reports()?.is_empty().then_some(()).context("a report stays")
    });
}
