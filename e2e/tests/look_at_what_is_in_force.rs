//! A user looks at what the kernel holds; whoever comes from elsewhere sees metrics and probes only.

use anyhow::{Context as _, Result, ensure};
use slotmesh_e2e::{Mesh, isolated, mesh::reviews, net};

/// Status and body of a page, at an address.
fn get(at: &str, path: &str) -> Result<(u16, String)> {
    let request = ureq::get(format!("http://{at}{path}")).config().http_status_as_error(false).build();
    let mut response = request.call().with_context(|| format!("{at}{path}"))?;
    Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
}

#[test]
fn from_page_to_page() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        let agent = mesh.agent()?;
        let page = |path: &str| -> Result<String> {
            let (status, body) = agent.get(path)?;
            let ends = body.is_empty() || body.ends_with('\n');
            ensure!(status == 200 && ends, "{path} answers {status}: {body:?}");
            Ok(body)
        };
        let index = page("/")?;
        for path in ["/metrics", "/readyz", "/livez", "/slots", "/reports", "/resources"] {
            ensure!(index.contains(path), "{path} isn't in {index}");
            page(path)?;
        }
        // Every name that a list tells of can be looked at.
        for list in page("/resources")?.lines() {
            for name in page(list)?.lines() {
                let shown = page(&format!("{list}/{}", name.replace('|', "%7C")))?;
                let shown: serde_json::Value = serde_json::from_str(&shown)?;
                ensure!(shown["name"] == name, "{list}: {shown}");
            }
        }
        ensure!(page("/resources/cluster")?.contains("reviews.default.svc"), "no cluster is listed");
        let (status, body) = agent.get("/nothing")?;
        ensure!(status == 404 && body.contains("/resources"), "{status}: {body}");
        mesh.stop()
    });
}

#[test]
fn from_another_address_than_loopback() {
    isolated(|| {
        net::ip("addr add 10.9.9.9/32 dev lo")?;
        let mut mesh = Mesh::new()?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        let port = mesh.spec().admin;
        mesh.spec().admin_on = "0.0.0.0";
        mesh.start()?;
        let elsewhere = format!("10.9.9.9:{port}");
        for path in ["/metrics", "/readyz", "/livez"] {
            ensure!(get(&elsewhere, path)?.0 == 200, "{path} isn't answered");
        }
        for path in ["/", "/slots", "/reports", "/resources", "/resources/cluster", "/resources/cluster/x"] {
            let (status, body) = get(&elsewhere, path)?;
            ensure!(status == 403 && body.contains("port-forward"), "{path} answers {status}: {body}");
        }
        ensure!(get(&format!("127.0.0.1:{port}"), "/slots")?.0 == 200, "loopback is answered as ever");
        mesh.stop()
    });
}

#[test]
fn at_the_connections_of_the_busiest_clusters() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        for (most, shown) in [(0, 0), (1, 1)] {
            mesh.spec().args = vec![format!("--cluster-metrics={most}")];
            mesh.start()?;
            mesh.connect(reviews::addresses()[0], 5)?.expect_all(5)?;
            let (_, metrics) = mesh.agent()?.get("/metrics")?;
            let series =
                metrics.lines().filter(|line| line.starts_with("slotmesh_agent_cluster_connections_total{"));
            ensure!(series.count() == shown, "{most}: {metrics}");
            mesh.stop()?;
        }
        Ok(())
    });
}
