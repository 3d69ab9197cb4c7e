//! The step that needs requests: a header picks the version, by the proxy on the node.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use slotmesh_e2e::{HttpAnswer, http, wait};

use crate::{
    Demo, go_on,
    show::{share, thousands},
};

/// The cluster address of details.
const DETAILS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 11)), 80);
/// The versions of details, as their servers call themselves.
const VERSIONS: [&str; 2] = ["v1", "v2"];

impl Demo {
    /// Gives version 2 of details to testers, and then to partners.
    pub fn by_header(&self) -> Result<()> {
        let before = self.details(None, 1)?;
        ensure!(before[0].by() == "v1", "details answered {before:?}");
        println!(
            "   details has one version, and its connections are routed in the kernel: it answers as v1"
        );
        for file in ["details-v2.yaml", "testers.yaml"] {
            let text = fs::read_to_string(self.added.join(file))?;
            if file == "testers.yaml" {
                println!("   add {file}:");
                let rules = text.lines().skip_while(|line| !line.starts_with("  http:"));
                rules.take_while(|line| *line != "---").for_each(|line| println!("      +{line}"));
            }
            self.manifests.write_text(file, &text)?;
        }
        self.followed("tester")?;
        self.shares("tester")?;
        println!("   edit testers.yaml:");
        println!("      -    - headers: {{end-user: {{exact: tester}}}}");
        println!("      +    - headers: {{end-user: {{exact: partner}}}}");
        let text = fs::read_to_string(self.manifests.path().join("testers.yaml"))?;
        self.manifests.write_text("testers.yaml", &text.replace("exact: tester", "exact: partner"))?;
        self.followed("partner")?;
        self.shares("partner")
    }

    /// Waits until requests of `user` go to v2, all of many.
    fn followed(&self, user: &str) -> Result<()> {
        const IN_A_ROW: u64 = 20;
        let saved = Instant::now();
        let what = format!("requests of {user} to go to v2");
        wait::until_true(&what, || {
            go_on()?;
            Ok(self.details(Some(user), IN_A_ROW)?.iter().all(|answer| answer.by() == "v2"))
        })?;
        println!(
            "   from saving the file until {IN_A_ROW} requests in a row followed: {} ms",
            saved.elapsed().as_millis()
        );
        Ok(())
    }

    /// Makes requests with the header and without, and prints who answered.
    fn shares(&self, user: &str) -> Result<()> {
        let count = (self.connections / 5).max(100);
        for (header, weights) in [(Some(user), [0, 100]), (None, [90, 10])] {
            go_on()?;
            let answers = self.details(header, count)?;
            let with = header.map_or("without it".to_owned(), |user| format!("with `end-user: {user}`"));
            println!("   {} requests to details, {DETAILS}, {with}:", thousands(answers.len()));
            let rows: Vec<_> = VERSIONS
                .iter()
                .zip(weights)
                .map(|(version, weight)| {
                    (*version, weight, answers.iter().filter(|answer| answer.by() == *version).count() as u64)
                })
                .collect();
            share(answers.len(), &rows);
        }
        Ok(())
    }

    /// The answers that a process in the mesh gets from details.
    fn details(&self, user: Option<&str>, times: u64) -> Result<Vec<HttpAnswer>> {
        let (header, times) = (user.map(|user| format!("end-user: {user}")), times.to_string());
        let mut arguments = vec!["--host", "details", "--times", &times];
        if let Some(header) = &header {
            arguments.extend(["--header", header]);
        }
        arguments.push("/");
        http::ask_from(&self.cgroup, DETAILS, &arguments).context("ask details")
    }
}
