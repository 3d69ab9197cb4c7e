//! The questions of docs/tasks/debug.md, each answered by the command that stands there.
//!
//! ```text
//!  node a: near --> web (80 to v1, 20 to v2), empty (no pod), limited (one connection), zoned (pods on a and b)
//!  node a: stranger, of a namespace that takes no part            node c: its agent is taken away, and comes back
//! ```

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slotmesh_cluster::{Cluster, scenarios::Story, wait};
use slotmesh_e2e::Held;

use crate::{
    mesh::says,
    observe::Plugin,
    world::{LOAD, SYSTEM, World, all_ready, client, enrolled, route},
};

const PAGE: &str = "../docs/tasks/debug.md";
/// The time of the page's question about a change.
const TIME: &str = "10:42";

/// A question of the page.
#[derive(Debug)]
struct Question {
    title: String,
    command: Vec<String>,
    answer: String,
}

/// All of the page's, in its order.
fn questions() -> Result<Vec<Question>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mut found = Vec::new();
    for section in text.split("\n## ").skip(1) {
        let title = section.lines().next().context("a title")?.to_owned();
        let block =
            section.split("```console\n").nth(1).with_context(|| format!("{title} has no command"))?;
        let (command, answer) =
            block.split("```").next().and_then(|block| block.split_once('\n')).context("a command")?;
        let command =
            command.strip_prefix("$ kubectl slotmesh ").with_context(|| format!("{title}: {command}"))?;
        let command = command.split_whitespace().map(str::to_owned).collect();
        found.push(Question { title, command, answer: answer.to_owned() });
    }
    Ok(found)
}

/// A Service of pods with a label, and nothing more than these.
fn service(name: &str, more: Value) -> Value {
    let mut spec = json!({"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]});
    more.as_object().into_iter().flatten().for_each(|(field, value)| spec[field] = value.clone());
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": LOAD}, "spec": spec})
}

fn objects() -> Vec<Value> {
    let limit = json!({
        "apiVersion": "slotmesh.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "limited", "namespace": LOAD},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "limited"}], "maxConnections": 1},
    });
    vec![
        service("empty", json!({})),
        service("limited", json!({})),
        service("zoned", json!({"trafficDistribution": "PreferClose"})),
        limit,
        client("limited", LOAD, "b", json!({"app": "limited"})),
        client("zoned-a", LOAD, "a", json!({"app": "zoned"})),
        client("zoned-b", LOAD, "b", json!({"app": "zoned"})),
    ]
}

fn now() -> Result<String> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(format!("{:02}:{:02}", seconds / 3_600 % 24, seconds / 60 % 60))
}

/// Whoever asks.
struct Asker<'c> {
    cluster: &'c Cluster,
    plugin: Plugin,
    questions: Vec<Question>,
}

impl Asker<'_> {
    /// Asks a question of the page until the answer has this exit status and these words, which stand on the page, too.
    /// `before` is done each time.
    async fn answered(
        &self,
        title: &str,
        status: i32,
        words: &[&str],
        before: impl Fn() -> Result<Vec<(&'static str, String)>>,
    ) -> Result<()> {
        let question = self.questions.iter().find(|one| one.title == title);
        let Question { command, answer, .. } =
            question.with_context(|| format!("{PAGE} has no {title:?}"))?;
        for word in words {
            ensure!(answer.contains(word), "{PAGE}, {title}: {word:?} isn't in the answer there: {answer}");
        }
        let mut last = String::new();
        let what = format!("the answer to {title:?}");
        let waited = wait::until_true(&what, async || {
            let replaced = before()?;
            let of = |part: &String| {
                let other = replaced.iter().find(|(from, _)| part == from);
                other.map_or(part.clone(), |(_, to)| to.clone())
            };
            let command: Vec<String> = command.iter().map(of).collect();
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let (code, said) = self.plugin.run(self.cluster, &command)?;
            let is_it = code == Some(status) && words.iter().all(|word| said.contains(word));
            last = format!("exit status {code:?}: {said}");
            Ok(is_it)
        });
        waited.await.with_context(|| last)
    }

    async fn ask(&self, title: &str, status: i32, words: &[&str]) -> Result<()> {
        self.answered(title, status, words, || Ok(Vec::new())).await
    }
}

pub fn asked(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects()}).to_string())?;
        route(cluster, 80, 20)?;
        for name in ["limited", "zoned-a", "zoned-b"] {
            cluster.ready(LOAD, name).await?;
        }
        enrolled(cluster).await?;
        says(cluster, "limited", "Programmed", "True").await?;
        let asker = Asker { cluster, plugin: Plugin::new()?, questions: questions()? };

        asker
            .ask(
                "Why does this pod reach v1?",
                0,
                &[
                    "connects are routed",
                    "outbound|80|v1|web.load.svc.cluster.local   80 ",
                    "40.0%",
                    "VirtualService load/web (resourceVersion ",
                ],
            )
            .await?;
        asker
            .ask(
                "Why is it refused?",
                3,
                &[
                    "connects are refused at once (ECONNREFUSED)",
                    "No EndpointSlice of the Service names an endpoint",
                ],
            )
            .await?;
        asker
            .ask(
                "Why isn't it routed at all?",
                4,
                &["plain/stranger isn't attached on this node", "namespace plain takes no part"],
            )
            .await?;
        asker
            .ask(
                "Is my policy in force?",
                0,
                &["TrafficPolicy load/limited: in force on all nodes", "Programmed"],
            )
            .await?;

        let world = World::look(cluster).await?;
        world.connect(cluster, &world.near, 100).await?;
        asker.ask("Who calls this?", 0, &["load/near ", "web.load.svc.cluster.local", "OPENED"]).await?;
        let limited = ["get", "service", "limited", "-n", LOAD, "-o", "jsonpath={.spec.clusterIP}"];
        let limited = std::net::SocketAddr::new(cluster.kubectl(&limited)?.trim().parse()?, 80);
        let mut exec = cluster.exec_command(&world.near, "main", &["/holder"]).await?;
        let mut held = Held::start_by(&mut exec.command)?;
        held.open(limited)?;
        held.expect_refused(limited)?;
        asker
            .ask(
                "Why is the limit hit?",
                0,
                &[
                    "reached: further connects are refused; 1 of at most 1 connections",
                    "TrafficPolicy load/limited (resourceVersion ",
                ],
            )
            .await?;
        held.close()?;
        drop(held);
        asker
            .ask(
                "Why this zone?",
                0,
                &["on node a (", "zone-a", "endpoints are chosen by where the caller's node is"],
            )
            .await?;

        let weight = std::cell::Cell::new(0);
        asker
            .answered(
                "What changed at 10:42?",
                0,
                &["applied", "VirtualService load/web", "serves", "has "],
                || {
                    // The minute may end in between.
                    weight.set(weight.get() % 50 + 1);
                    let time = now()?;
                    route(cluster, weight.get(), 100 - weight.get())?;
                    Ok(vec![(TIME, time)])
                },
            )
            .await?;
        asker.ask("Is the table full?", 0, &["SLOT BYTES", "not full: "]).await?;

        // No agent on node c, and the others stay as they are.
        let patch = |patch: &Value| {
            let patch = patch.to_string();
            cluster.kubectl(&[
                "patch",
                "daemonset/slotmesh-agent",
                "-n",
                SYSTEM,
                "--type=merge",
                "--patch",
                &patch,
            ])
        };
        cluster.kubectl(&["label", "nodes", "a", "b", "e2e.test/agent=yes", "--overwrite"])?;
        let strategy =
            ["get", "daemonset/slotmesh-agent", "-n", SYSTEM, "-o", "jsonpath={.spec.updateStrategy}"];
        let strategy: Value = serde_json::from_str(&cluster.kubectl(&strategy)?)?;
        patch(&json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null},
            "template": {"spec": {"nodeSelector": {"e2e.test/agent": "yes"}}}}}))?;
        asker.ask("Which node is behind?", 3, &["Nodes: 2 of 3 ready", "node c: ", "What to do:"]).await?;
        patch(&json!({"spec": {"updateStrategy": strategy,
            "template": {"spec": {"nodeSelector": {"e2e.test/agent": null}}}}}))?;
        cluster.kubectl(&["label", "nodes", "a", "b", "e2e.test/agent-"])?;
        all_ready(cluster).await?;
        for object in objects() {
            let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
            let (kind, name) = (kind.as_str().context("a kind")?, name.as_str().context("a name")?);
            cluster.kubectl(&["delete", kind, name, "--namespace", LOAD, "--wait=false"])?;
        }
        wait::until_true("the pods to be gone", async || {
            Ok(cluster.pods(LOAD, "app in (limited,zoned)").await?.is_empty())
        })
        .await?;
        enrolled(cluster).await
    })
}
