//! `kubectl` on a pod that runs: exec, logs, attach, port-forward.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use slotmesh_cluster::{Cluster, fabric, scenarios::Story, wait};

use crate::{FOR_EVER, pod};

/// Runs a command with this input, to its end.
fn with_input(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

pub fn exec(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.apply(&pod("told", FOR_EVER, "", "nodeName: b,"))?;
        cluster.ready("default", "told").await?;
        let script = "busybox cat; echo wrong >&2; exit 7";
        // WebSockets are kubectl's first choice, SPDY what older clients and Kubernetes' own tests speak.
        for websockets in ["true", "false"] {
            let mut kubectl = cluster.control_plane().kubectl()?;
            kubectl
                .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
                .args(["exec", "-i", "told", "--", "/bin/sh", "-c", script]);
            let long = "much ".repeat(100_000);
            let output = with_input(&mut kubectl, &long)?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(7), "{websockets}: {}: {said}", output.status);
            ensure!(output.stdout == long.as_bytes(), "{websockets}: {} bytes", output.stdout.len());
            ensure!(said.starts_with("wrong\n"), "{websockets}: {said}");
        }
        // A terminal, of the size of the terminal that kubectl has.
        let kubectl = cluster.control_plane().kubectl()?;
        let told = format!(
            "stty rows 31 cols 77; {} exec -it told -- /bin/sh -c 'busybox tty; busybox sleep 1; busybox stty size'",
            kubectl.get_program().display()
        );
        let mut script = Command::new("script");
        script.args(["-qec", &told, "/dev/null"]);
        for (name, value) in kubectl.get_envs() {
            script.env(name, value.context("a value")?);
        }
        let output = with_input(&mut script, "")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains("/dev/pts/") && said.contains("31 77"), "{said}");
        // What isn't there is said.
        for (what, part) in [("nobody", "not found"), ("told", "no-such-container")] {
            let error =
                cluster.kubectl(&["exec", what, "-c", "no-such-container", "--", "true"]).unwrap_err();
            ensure!(error.to_string().contains(part), "{error}");
        }
        let error = cluster.kubectl(&["exec", "told", "--", "/no-such-program"]).unwrap_err().to_string();
        ensure!(error.contains("/no-such-program"), "{error}");
        Ok(())
    })
}

pub fn logs(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let script =
            "echo one; echo two >&2; echo three; while ! test -f /tmp/go; do busybox sleep 1; done; echo end";
        cluster.apply(&pod("talks", script, "", "nodeName: a, restartPolicy: Never,"))?;
        cluster.ready("default", "talks").await?;
        wait::until_true("what it said", async || {
            Ok(cluster.kubectl(&["logs", "talks"])? == "one\ntwo\nthree\n")
        })
        .await?;
        for (flag, expected) in [
            ("--tail=1", "three\n"),
            ("--tail=2", "two\nthree\n"),
            ("--tail=9", "one\ntwo\nthree\n"),
            ("--tail=0", ""),
            ("--limit-bytes=5", "one\nt"),
        ] {
            let said = cluster.kubectl(&["logs", "talks", flag])?;
            ensure!(said == expected, "{flag}: {said:?}");
        }
        // Times aren't kept, which isn't passed over.
        ensure!(cluster.kubectl(&["logs", "talks", "--timestamps"]).is_err());
        let mut following = cluster.control_plane().kubectl()?;
        following.args(["logs", "-f", "talks"]).stdout(Stdio::piped());
        let mut following = following.spawn()?;
        let mut lines = BufReader::new(following.stdout.take().context("a pipe")?).lines();
        for expected in ["one", "two", "three"] {
            ensure!(lines.next().transpose()?.as_deref() == Some(expected));
        }
        cluster.kubectl(&["exec", "talks", "--", "/bin/busybox", "touch", "/tmp/go"])?;
        ensure!(lines.next().transpose()?.as_deref() == Some("end"));
        // Ends with the container.
        ensure!(lines.next().is_none() && following.wait()?.success());
        ensure!(cluster.kubectl(&["logs", "talks"])?.ends_with("end\n"), "logs outlive their container");

        let script = "test -f /keep/x && { echo again; while true; do busybox sleep 1; done; }; echo > /keep/x; echo first";
        cluster.apply(&pod(
            "twice",
            script,
            "volumeMounts: [{name: keep, mountPath: /keep}],",
            "volumes: [{name: keep, emptyDir: {}}],",
        ))?;
        wait::until_true("a second start", async || {
            Ok(cluster.kubectl(&["logs", "twice"]).is_ok_and(|said| said == "again\n"))
        })
        .await?;
        let before = cluster.kubectl(&["logs", "--previous", "twice"])?;
        ensure!(before == "first\n", "{before:?}");
        Ok(())
    })
}

pub fn attach(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.apply(&pod(
            "asks",
            "while read line; do echo got $line; done; echo over; busybox sleep 1",
            "stdin: true, stdinOnce: true,",
            "restartPolicy: Never,",
        ))?;
        cluster.ready("default", "asks").await?;
        let mut kubectl = cluster.control_plane().kubectl()?;
        kubectl.args(["attach", "-i", "asks"]);
        let output = with_input(&mut kubectl, "first\nsecond\n")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // What it said before somebody attached is in its log only.
        ensure!(said.contains("got second\nover\n"), "{said:?}");
        wait::until_true("its end", async || {
            let phase = cluster.kubectl(&["get", "pod", "asks", "-o", "jsonpath={.status.phase}"])?;
            Ok(phase == "Succeeded")
        })
        .await?;
        let log = cluster.kubectl(&["logs", "asks"])?;
        ensure!(log == "got first\ngot second\nover\n", "{log:?}");

        cluster.apply(&pod("deaf-mute", FOR_EVER, "", ""))?;
        cluster.ready("default", "deaf-mute").await?;
        let mut kubectl = cluster.control_plane().kubectl()?;
        let output = with_input(kubectl.args(["attach", "-i", "deaf-mute"]), "hello\n")?;
        ensure!(!output.status.success(), "who takes no input was given some");
        Ok(())
    })
}

pub fn port_forward(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        // On loopback only: nobody else reaches it.
        let script = "busybox mkdir /www; echo inside > /www/index.html; exec busybox httpd -f -p 127.0.0.1:8080 -h /www";
        let serves = "readinessProbe: {periodSeconds: 1, timeoutSeconds: 30, exec: {command:
            [/bin/busybox, nc, -w, '5', 127.0.0.1, '8080']}},";
        cluster.apply(&pod("inside", script, serves, "nodeName: c,"))?;
        cluster.ready("default", "inside").await?;
        for websockets in ["true", "false"] {
            let mut kubectl = cluster.control_plane().kubectl()?;
            kubectl
                .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
                .args(["port-forward", "--address=127.0.0.1", "pod/inside", ":8080"])
                .stdout(Stdio::piped());
            let mut kubectl = kubectl.spawn()?;
            let result = (|| -> Result<()> {
                let mut said = String::new();
                // Kept to the end: kubectl has more to say, and dies when nobody hears it.
                let mut output = BufReader::new(kubectl.stdout.take().context("a pipe")?);
                output.read_line(&mut said)?;
                let address = said.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
                let address = address.with_context(|| format!("kubectl said {said:?}"))?;
                // Several, each a stream of its own.
                for _ in 0..3 {
                    let mut connection = TcpStream::connect(address)?;
                    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                    let mut answer = String::new();
                    connection.read_to_string(&mut answer)?;
                    ensure!(answer.ends_with("inside\n"), "{answer:?}");
                }
                Ok(())
            })();
            kubectl.kill()?;
            kubectl.wait()?;
            result.with_context(|| format!("by WebSocket: {websockets}"))?;
        }
        Ok(())
    })
}

pub fn strangers(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let pki = cluster.control_plane().dir().join("pki");
        let ask = |user: Option<&str>| -> Result<String> {
            let mut curl = Command::new("curl");
            curl.args([
                "--silent",
                "--show-error",
                "--max-time",
                "20",
                "--write-out",
                " %{http_code}",
                "--cacert",
            ])
            .arg(pki.join("ca.crt"));
            if let Some(user) = user {
                curl.arg("--cert").arg(pki.join(format!("{user}.crt")));
                curl.arg("--key").arg(pki.join(format!("{user}.key")));
            }
            let output = curl.arg(format!("https://{}:10250/healthz", fabric::node_address(1))).output()?;
            if !output.status.success() {
                bail!("{}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        ensure!(ask(Some("kube-apiserver-kubelet-client"))? == "ok 200");
        // Of another node, and of the cluster's administrator: signed by the same authority.
        for user in ["node-b", "admin"] {
            let said = ask(Some(user))?;
            ensure!(said.ends_with(" 403"), "{user}: {said}");
        }
        let error = ask(None).unwrap_err().to_string();
        ensure!(error.contains("certificate required"), "{error}");
        Ok(())
    })
}

pub fn dual_stack(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let script =
            "busybox mkdir /www; echo both > /www/index.html; exec busybox httpd -f -p [::]:8080 -h /www";
        let probe = "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1},";
        cluster.apply(&pod("both", script, probe, "nodeName: b,"))?;
        cluster.apply(
            "{apiVersion: v1, kind: Service, metadata: {name: both},
              spec: {selector: {app: both}, ipFamilyPolicy: RequireDualStack, ports: [{port: 80, targetPort: 8080}]}}",
        )?;
        cluster.apply(&pod("asker", FOR_EVER, "", "nodeName: a,"))?;
        let both = cluster.ready("default", "both").await?;
        let asker = cluster.ready("default", "asker").await?;
        let addresses = both.status.as_ref().and_then(|status| status.pod_ips.clone()).unwrap_or_default();
        ensure!(addresses.len() == 2 && addresses[1].ip.contains(':'), "{addresses:?}");
        let services =
            cluster.kubectl(&["get", "service", "both", "-o", "jsonpath={.spec.clusterIPs[*]}"])?;
        ensure!(services.split(' ').count() == 2, "{services}");
        let pods = addresses.iter().map(|address| (address.ip.clone(), 8080));
        for (to, port) in pods.chain(services.split(' ').map(|to| (to.to_owned(), 80))) {
            let get = format!("printf \"GET / HTTP/1.0\\r\\n\\r\\n\" | busybox nc -w 5 {to} {port}");
            wait::until_true(&format!("an answer from {to}"), async || {
                Ok(crate::sh(cluster, &asker, &get).await.is_ok_and(|answer| answer.ends_with("both")))
            })
            .await?;
        }
        // By the API server, as its user.
        for (path, answer) in
            [("namespaces/default/pods/both:8080/proxy/", "both\n"), ("nodes/b/proxy/healthz", "ok")]
        {
            let said = cluster.kubectl(&["get", "--raw", &format!("/api/v1/{path}")])?;
            ensure!(said == answer, "{path}: {said:?}");
        }
        // Nobody has that: said at once, as in the other family.
        let out = crate::sh(cluster, &asker, "busybox nc -w 5 2001:db8::1 80 </dev/null").await;
        ensure!(out.is_err(), "a pod reached something outside");
        Ok(())
    })
}
