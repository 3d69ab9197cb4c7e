//! Each request follows its own route, whatever connection it is on.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slotmesh_cluster::{Cluster, scenarios::Story, wait};
use slotmesh_e2e::{HttpAnswer, stats};

use crate::world::{Load, SHOP, ask, ask_one, route, until_answered};

/// So many that a split which is off by ten percent is always seen.
const REQUESTS: usize = 600;

fn to(backends: &[(&str, u32)]) -> Value {
    backends.iter().map(|(name, weight)| json!({"name": name, "port": 80, "weight": weight})).collect()
}

/// Rules of which each does something else, and none is for every request.
fn rules() -> Value {
    let path = |value: &str| json!([{"path": {"type": "PathPrefix", "value": value}}]);
    json!([
        {"matches": [{"headers": [{"name": "end-user", "value": "tester"}]}], "backendRefs": to(&[("web-v2", 1)])},
        {"matches": path("/split"), "backendRefs": to(&[("web-v1", 80), ("web-v2", 20)])},
        {"matches": path("/old"), "filters": [{"type": "RequestRedirect", "requestRedirect": {
            "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}, "statusCode": 301}}]},
        {"matches": path("/rewrite"), "backendRefs": to(&[("web-v1", 1)]), "filters": [
            {"type": "URLRewrite", "urlRewrite": {"hostname": "inside.example",
                "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/r"}}},
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-added", "value": "yes"}]}},
        ]},
        {"matches": path("/gone"), "backendRefs": to(&[("gone", 1)])},
    ])
}

pub fn routes(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.apply(&route(&rules()))?;
        for name in ["near", "far"] {
            let pod = cluster.ready(SHOP, name).await?;
            let own = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("its address")?;
            until_answered(cluster, &pod, "the routes to be in force", &["/none"], |answer| {
                answer.status == 404
            })
            .await?;

            // One connection, a route for each request.
            let targets = ["/split", "/old/a?b=c", "/rewrite/a?b=c", "/gone", "/none", "/split/x"];
            let answers = ask(cluster, &pod, &targets).await?;
            let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            ensure!(statuses == [200, 301, 200, 500, 404, 200], "{name}: {statuses:?} {answers:?}");
            ensure!(answers[1].header("location") == "http://web/new/a?b=c", "{:?}", answers[1]);
            let rewritten = &answers[2].seen;
            ensure!(rewritten["target"] == "/r/a?b=c", "{rewritten}");
            let headers = &rewritten["headers"];
            ensure!(headers["host"] == "inside.example" && headers["x-added"] == "yes", "{rewritten}");
            // The backend sees the pod, not the node or the proxy.
            for answer in [&answers[0], &answers[2], &answers[5]] {
                ensure!(answer.seen["peer"] == own, "{name} has {own}: {answer:?}");
            }

            // A header picks the version, for this request only.
            let tester = ["--header", "end-user: tester", "--times", "20", "/none"];
            let by: Vec<_> = ask(cluster, &pod, &tester).await?;
            ensure!(by.iter().all(|answer| answer.by() == "v2"), "{name}: {by:?}");
            let times = REQUESTS.to_string();
            let answers = ask(cluster, &pod, &["--times", &times, "/split"]).await?;
            stats::expect_fit(&split(&answers)?, &[80, 20])?;
        }
        told(cluster).await
    })
}

/// How many of the answers each version gave, all of which are good.
fn split(answers: &[HttpAnswer]) -> Result<[u64; 2]> {
    let bad = answers.iter().find(|answer| answer.status != 200);
    ensure!(bad.is_none(), "of {} answers one is {bad:?}", answers.len());
    let by = |version: &str| answers.iter().filter(|answer| answer.by() == version).count() as u64;
    Ok(["v1", "v2"].map(by))
}

/// Waits until the route's status says what is wrong with it, and that the rest is in force.
async fn told(cluster: &Cluster) -> Result<()> {
    wait::until_true("the status of the route", async || {
        let found = cluster.kubectl(&["get", "httproute", "web", "-n", SHOP, "-o", "json"])?;
        let found: Value = serde_json::from_str(&found)?;
        let conditions = found["status"]["parents"][0]["conditions"].as_array();
        let is = |ty: &str, status: &str, reason: &str| {
            conditions.into_iter().flatten().any(|condition| {
                condition["type"] == ty
                    && condition["status"] == status
                    && (reason.is_empty() || condition["reason"] == reason)
            })
        };
        Ok(is("Accepted", "True", "")
            && is("ResolvedRefs", "False", "BackendNotFound")
            && is("Programmed", "True", ""))
    })
    .await
}

pub fn changes(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let all_to = |name: &str| {
            route(&json!([{"matches": [{"path": {"value": "/split"}}], "backendRefs": to(&[(name, 1)])}]))
        };
        cluster.apply(&all_to("web-v1"))?;
        let pod = cluster.ready(SHOP, "near").await?;
        until_answered(cluster, &pod, "v1 to answer", &["/split"], |answer| answer.by() == "v1").await?;
        let load = Load::start(cluster, &pod, &["/split"]).await?;
        for version in ["v2", "v1", "v2", "v1", "v2"] {
            cluster.apply(&all_to(&format!("web-{version}")))?;
            until_answered(cluster, &pod, &format!("{version} to answer"), &["/split"], |answer| {
                answer.by() == version
            })
            .await?;
        }
        let answers = load.end()?;
        let counts = split(&answers)?;
        ensure!(counts.iter().all(|count| *count > 0), "{counts:?}");
        ensure!(ask_one(cluster, &pod, &["/other"]).await?.status == 404);
        Ok(())
    })
}
