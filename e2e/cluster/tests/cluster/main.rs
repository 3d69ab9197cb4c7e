//! A cluster does with stock things what a cluster does: the harness can be believed.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use slotmesh_cluster::{
    Cluster,
    cluster::is_ready,
    images::Start,
    scenarios::{self, Story},
    wait,
};

mod kubelet;

fn main() -> ExitCode {
    scenarios::main(
        3,
        prepare,
        &[
            ("a_service_is_reached_by_address_and_by_name_from_another_node", reach),
            ("configuration_secrets_and_tokens_are_files_and_follow_changes", files),
            ("a_container_has_exactly_the_capabilities_and_the_filter_that_it_asks_for", rights),
            ("probes_decide_who_gets_connections_and_who_is_started_again", probes),
            ("a_rollout_restart_replaces_every_pod", rollout),
            ("a_deleted_pod_has_its_grace", grace),
            ("a_daemon_set_runs_on_every_node_in_its_own_bpffs", daemons),
            ("a_memory_limit_ends_who_exceeds_it", memory),
            ("kubectl_exec_gives_input_and_a_terminal_and_tells_how_it_ended", kubelet::exec),
            ("kubectl_logs_shows_follows_and_remembers_the_start_before", kubelet::logs),
            ("kubectl_attach_talks_to_who_takes_input", kubelet::attach),
            ("kubectl_port_forward_reaches_a_pod_s_loopback", kubelet::port_forward),
            ("nobody_but_the_api_server_asks_a_node", kubelet::strangers),
            ("pods_and_services_have_addresses_of_both_families", kubelet::dual_stack),
            ("a_node_that_is_switched_off_and_on_again_runs_its_pods", reboot),
        ],
    )
}

fn prepare(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let start = Start { entrypoint: vec!["/bin/sh".into(), "-c".into()], ..Start::default() };
        let busybox = Path::new("/bin/busybox");
        cluster.images().make(
            "e2e.test/busybox:1",
            &[(busybox, "/bin/busybox"), (busybox, "/bin/sh")],
            &start,
        )
    })
}

async fn sh(cluster: &Cluster, pod: &Pod, script: &str) -> Result<String> {
    let output = cluster.exec(pod, "main", &["/bin/sh", "-c", script]).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A pod of busybox: what it runs, and what else its containers and its spec have, in YAML's flow style.
fn pod(name: &str, script: &str, container: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}},
          spec: {{{spec} containers: [{{name: main, image: 'e2e.test/busybox:1', {container} args: ['{script}']}}]}}}}"
    )
}

const FOR_EVER: &str = "trap exit TERM; while true; do busybox sleep 1 & wait; done";

fn reach(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.apply(
            "
{apiVersion: v1, kind: Service, metadata: {name: web},
 spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
           labelSelector: {matchLabels: {app: web}}}
      containers:
        - name: main
          image: e2e.test/busybox:1
          args: ['busybox mkdir /www; echo $POD on $NODE > /www/index.html; exec busybox httpd -f -p 8080 -h /www']
          env:
            - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}",
        )?;
        cluster.apply(&pod("client", FOR_EVER, "", "nodeName: a,"))?;
        cluster.rolled_out("default", "web").await?;
        let client = cluster.ready("default", "client").await?;
        let pods = cluster.pods("default", "app=web").await?;
        let mut nodes: Vec<_> = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
        nodes.sort();
        ensure!(nodes == ["a", "b", "c"], "the scheduler spread them over {nodes:?}");
        let address = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
        for to in [address.as_str(), "web", "web.default.svc.cluster.local"] {
            // (The wget of a static busybox crashes where it looks up the name of a port.)
            let get = format!(
                "printf \"GET / HTTP/1.0\\r\\n\\r\\n\" | busybox nc -w 5 {to} 80 | busybox tail -n 1"
            );
            wait::until_true(&format!("answers of all pods at {to}"), async || {
                let mut answers = std::collections::BTreeSet::new();
                for _ in 0..24 {
                    // kube-proxy may be behind.
                    let answer = sh(cluster, &client, &get).await.unwrap_or_default();
                    if !answer.contains(" on ") {
                        return Ok(false);
                    }
                    answers.insert(answer);
                }
                Ok(answers.len() == 3)
            })
            .await?;
        }
        // What the cluster doesn't have is nowhere.
        let out = sh(cluster, &client, "busybox nc -w 5 192.0.2.1 80 </dev/null").await;
        ensure!(out.is_err(), "a pod reached something outside");
        let api = "busybox nc -w 2 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null";
        sh(cluster, &client, api).await.context("the API server isn't reached from a pod")?;
        Ok(())
    })
}

fn files(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.kubectl(&["create", "configmap", "settings", "--from-literal=level=low"])?;
        cluster.kubectl(&["create", "secret", "generic", "key", "--from-literal=password=open"])?;
        cluster.apply(&pod(
            "files",
            FOR_EVER,
            "env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: key, key: password}}},
                   {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}],
             resources: {limits: {cpu: 250m}},
             volumeMounts: [{name: all, mountPath: /all, readOnly: true}, {name: empty, mountPath: /empty}],",
            "volumes: [{name: empty, emptyDir: {}}, {name: all, projected: {defaultMode: 0400, sources: [
               {configMap: {name: settings}}, {secret: {name: key, items: [{key: password, path: in/password}]}},
               {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}},
               {serviceAccountToken: {path: token, audience: e2e.test, expirationSeconds: 600}}]}}],",
        ))?;
        let pod = cluster.ready("default", "files").await?;
        let read =
            sh(cluster, &pod, "busybox cat /all/level /all/in/password; echo; echo $PASSWORD $CPU").await?;
        ensure!(read == "lowopen\nopen 250", "{read:?}");
        // The API server adds where the pod's node is.
        let labels = sh(cluster, &pod, "busybox cat /all/labels").await?;
        ensure!(labels.lines().any(|line| line == "app=\"files\""), "{labels}");
        ensure!(sh(cluster, &pod, "busybox stat -L -c %a /all/level").await? == "400");
        ensure!(sh(cluster, &pod, "echo x > /all/level").await.is_err(), "a read-only volume was written");
        sh(cluster, &pod, "echo x > /empty/x").await?;

        let token = sh(cluster, &pod, "busybox cat /all/token").await?;
        let review = format!(
            "{{apiVersion: authentication.k8s.io/v1, kind: TokenReview, metadata: {{name: x}},
               spec: {{token: {token}, audiences: [e2e.test]}}}}"
        );
        let file = cluster.control_plane().dir().join("review.yaml");
        std::fs::write(&file, review)?;
        let path = file.to_str().context("text")?;
        let said = cluster.kubectl(&["create", "-o", "jsonpath={.status}", "-f", path])?;
        for part in
            ["\"authenticated\":true", "system:serviceaccount:default:default", "\"files\"", "node-name"]
        {
            ensure!(said.contains(part), "{part} isn't in {said}");
        }

        cluster.kubectl(&["patch", "configmap", "settings", "-p", "{\"data\":{\"level\":\"high\"}}"])?;
        wait::until_true("the changed file", async || {
            Ok(sh(cluster, &pod, "busybox cat /all/level").await? == "high")
        })
        .await
    })
}

fn rights(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let context = "securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false,
            seccompProfile: {type: RuntimeDefault},
            capabilities: {drop: [ALL], add: [BPF, NET_ADMIN, PERFMON]}},";
        cluster.apply(&pod("rights", FOR_EVER, context, ""))?;
        cluster.apply(&pod(
            "plain",
            FOR_EVER,
            "securityContext: {runAsUser: 1234, runAsNonRoot: true},",
            "",
        ))?;
        let rights = cluster.ready("default", "rights").await?;
        let status = sh(cluster, &rights, "busybox cat /proc/1/status").await?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .unwrap_or_default()
                .to_owned()
        };
        // CAP_BPF is 39, CAP_NET_ADMIN 12, CAP_PERFMON 38.
        let expected = format!("{:016x}", 1_u64 << 39 | 1 << 12 | 1 << 38);
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            ensure!(field(set) == expected, "{set} {}", field(set));
        }
        ensure!(
            field("CapInh:") == "0000000000000000" && field("NoNewPrivs:") == "1" && field("Seccomp:") == "2"
        );
        ensure!(sh(cluster, &rights, "echo x > /x").await.is_err(), "a read-only root was written");

        let plain = cluster.ready("default", "plain").await?;
        ensure!(sh(cluster, &plain, "busybox id -u; echo x > /tmp/x; busybox ls /tmp").await? == "1234\nx");
        let eff = sh(cluster, &plain, "busybox grep CapEff /proc/1/status").await?;
        ensure!(eff.ends_with("0000000000000000"), "who isn't root has {eff}");

        cluster.apply(&pod("root", FOR_EVER, "securityContext: {runAsNonRoot: true},", ""))?;
        wait::until_true("the refusal of a root container", async || {
            let message = "jsonpath={.status.containerStatuses[0].state.waiting.message}";
            Ok(cluster.kubectl(&["get", "pod", "root", "-o", message])?.contains("runAsNonRoot"))
        })
        .await
    })
}

fn probes(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        // A probe that takes long on a busy machine is no failure of what it asks.
        let often = "periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30";
        cluster.apply(&pod(
            "probed",
            "touch() { echo > $1; }; touch /tmp/live; busybox sleep 1; touch /tmp/started; trap exit TERM; \
             while true; do busybox sleep 1 & wait; done",
            &format!(
                "startupProbe: {{exec: {{command: [/bin/busybox, test, -f, /tmp/started]}}, periodSeconds: 1, failureThreshold: 30, timeoutSeconds: 30}},
                 readinessProbe: {{exec: {{command: [/bin/busybox, test, -f, /tmp/ready]}}, {often}}},
                 livenessProbe: {{exec: {{command: [/bin/busybox, test, -f, /tmp/live]}}, {often}}},"
            ),
            "terminationGracePeriodSeconds: 3,",
        ))?;
        cluster.kubectl(&["expose", "pod", "probed", "--port=80"])?;
        let api: Api<Pod> = Api::default_namespaced(cluster.client().await?);
        let running = wait::until("the container to have started", async || {
            let found = api.get("probed").await?;
            let statuses = found.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            let started = statuses.clone().any(|status| status.started == Some(true));
            Ok(started.then_some(found.clone()))
        })
        .await?;
        ensure!(!is_ready(&running), "ready before its probe succeeded");
        let endpoints = || {
            let path = "jsonpath={.items[*].endpoints[*].conditions.ready}";
            cluster.kubectl(&["get", "endpointslices", "-l", "kubernetes.io/service-name=probed", "-o", path])
        };
        wait::until_true("an endpoint that isn't ready", async || Ok(endpoints()? == "false")).await?;
        sh(cluster, &running, "echo > /tmp/ready").await?;
        wait::until_true("an endpoint that is ready", async || Ok(endpoints()? == "true")).await?;
        sh(cluster, &running, "busybox rm /tmp/live").await?;
        wait::until_true("a restart", async || {
            let found = api.get("probed").await?;
            let statuses = found.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            let again =
                statuses.clone().any(|status| status.restart_count == 1 && status.started == Some(true));
            Ok(again && !is_ready(&found))
        })
        .await
    })
}

fn rollout(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.apply(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {name: rolling}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: rolling}}
  template:
    metadata: {labels: {app: rolling}}
    spec:
      containers:
        - {name: main, image: 'e2e.test/busybox:1', args: ['exec busybox httpd -f -p 8080 -h /'],
           lifecycle: {preStop: {sleep: {seconds: 1}}},
           readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}",
        )?;
        cluster.rolled_out("default", "rolling").await?;
        let names = async || -> Result<Vec<String>> {
            Ok(cluster.pods("default", "app=rolling").await?.iter().map(|pod| pod.name_any()).collect())
        };
        let before = names().await?;
        ensure!(before.len() == 2);
        cluster.kubectl(&["rollout", "restart", "deployment/rolling"])?;
        cluster.rolled_out("default", "rolling").await?;
        wait::until_true("the old pods to be gone", async || {
            let now = names().await?;
            Ok(now.len() == 2 && now.iter().all(|name| !before.contains(name)))
        })
        .await
    })
}

fn grace(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let script = "trap \"echo told; busybox sleep 1; echo done; exit 0\" TERM; \
                      echo up; while true; do busybox sleep 1 & wait; done";
        cluster.apply(&pod("polite", script, "", "terminationGracePeriodSeconds: 20,"))?;
        cluster.apply(&pod(
            "deaf",
            "trap \"\" TERM; while true; do busybox sleep 1; done",
            "",
            "terminationGracePeriodSeconds: 2,",
        ))?;
        let api: Api<Pod> = Api::default_namespaced(cluster.client().await?);
        for (name, said) in [("polite", "up\ntold\ndone\n"), ("deaf", "")] {
            let pod = cluster.ready("default", name).await?;
            wait::until_true("the container to be up", async || {
                Ok(said.is_empty() || cluster.container_log(&pod, "main")? == "up\n")
            })
            .await?;
            api.delete(name, &DeleteParams::default()).await?;
            ensure!(api.get_opt(name).await?.is_some(), "{name} had no grace");
            wait::until_true("the pod to be gone", async || Ok(api.get_opt(name).await?.is_none())).await?;
            let log = cluster.container_log(&pod, "main")?;
            ensure!(log == said, "{name} said {log:?}");
        }
        Ok(())
    })
}

fn daemons(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.apply(
            "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      hostNetwork: true
      containers:
        - name: main
          image: e2e.test/busybox:1
          args: ['busybox mkdir -p /sys/fs/bpf/e2e/$NODE; trap exit TERM; while true; do busybox sleep 1 & wait; done']
          env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
          volumeMounts:
            - {name: bpf, mountPath: /sys/fs/bpf, mountPropagation: HostToContainer}
            - {name: cgroup, mountPath: /host/cgroup, readOnly: true}
            - {name: netns, mountPath: /run/netns, mountPropagation: HostToContainer}
      volumes:
        - {name: bpf, hostPath: {path: /sys/fs/bpf, type: Directory}}
        - {name: cgroup, hostPath: {path: /sys/fs/cgroup, type: Directory}}
        - {name: netns, hostPath: {path: /run/netns, type: DirectoryOrCreate}}",
        )?;
        let pods = wait::until("a pod on every node", async || {
            let pods = cluster.pods("default", "app=everywhere").await?;
            Ok((pods.len() == 3 && pods.iter().all(is_ready)).then_some(pods))
        })
        .await?;
        // A pod of its own to be found by its cgroup.
        cluster.apply(&pod("found", FOR_EVER, "", "nodeName: b,"))?;
        let found = cluster.ready("default", "found").await?;
        for pod in &pods {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            wait::until_true("the node's own bpffs", async || {
                Ok(sh(cluster, pod, "busybox ls /sys/fs/bpf/e2e").await? == node)
            })
            .await?;
            let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
            ensure!(address == cluster.node_config(&node)?.address.to_string(), "{node}: {address}");
            let listed =
                sh(cluster, pod, "busybox find /host/cgroup/kubepods -name \"pod*\" -type d").await?;
            let uid = found.uid().unwrap_or_default();
            ensure!(listed.contains(&uid) == (node == "b"), "{node}: {uid} in\n{listed}");
            let named = sh(cluster, pod, "busybox ls /run/netns").await?;
            ensure!(named.contains(&uid) == (node == "b"), "{node}: {uid} in\n{named}");
        }
        Ok(())
    })
}

fn memory(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.apply(&pod(
            "greedy",
            "x=0123456789abcdef; while true; do x=$x$x; done",
            "resources: {limits: {memory: 32Mi}},",
            "restartPolicy: Never,",
        ))?;
        wait::until_true("the end of who takes too much", async || {
            let code = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}";
            let phase = cluster.kubectl(&["get", "pod", "greedy", "-o", "jsonpath={.status.phase}"])?;
            Ok(phase == "Failed" && cluster.kubectl(&["get", "pod", "greedy", "-o", code])? == "137")
        })
        .await
    })
}

fn reboot(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.apply(&pod("stays", FOR_EVER, "", "nodeName: c,"))?;
        let before = cluster.ready("default", "stays").await?;
        cluster.stop_node("c")?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.start_node("c")?;
        wait::until_true("the pod to run again", async || {
            Ok(sh(cluster, &before, "echo here").await.is_ok_and(|said| said == "here"))
        })
        .await
    })
}
