//! A container as the runtime sees it: its configuration in the words of the OCI runtime specification.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};
use serde_json::{Value, json};
use slotmesh_cluster::images::Start;

use crate::{environment::expand, pod::Sandbox, seccomp};

/// Capabilities of a container that asks for nothing, without the prefix `CAP_`: the list of container engines.
const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// All capabilities, by number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Parts that a container's configuration is made of.
pub struct Input<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub image: &'a Start,
    pub env: &'a BTreeMap<String, String>,
    pub sandbox: &'a Sandbox,
    pub root: &'a Path,
    pub cgroup: &'a Path,
    pub termination_log: &'a Path,
}

/// The configuration.
pub fn config(input: &Input<'_>) -> Result<Value> {
    let Input { pod, container, image, env, sandbox, root, cgroup, .. } = input;
    let spec = pod.spec.as_ref().context("a pod has a spec")?;
    let context = container.security_context.clone().unwrap_or_default();
    let pod_context = spec.security_context.clone().unwrap_or_default();
    let privileged = context.privileged == Some(true);
    let capabilities = capabilities(&context)?;
    let mut process = json!({
        "terminal": false,
        "user": user(&context, &pod_context, image)?,
        "args": args(container, image, env)?,
        "env": env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        "cwd": container.working_dir.as_deref().unwrap_or(
            if image.working_dir.is_empty() { "/" } else { &image.working_dir }),
        // As containerd does it: nothing inheritable, so who isn't root has none after exec.
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
        "noNewPrivileges": context.allow_privilege_escalation == Some(false),
    });
    process["user"]["umask"] = json!(0o022);
    let mut linux = json!({
        "cgroupsPath": cgroup,
        "namespaces": namespaces(pod, sandbox)?,
    });
    if !privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
        let profile = context.seccomp_profile.as_ref().or(pod_context.seccomp_profile.as_ref());
        match profile.map(|profile| profile.type_.as_str()) {
            None | Some("Unconfined") => {}
            Some("RuntimeDefault") => linux["seccomp"] = seccomp::default(&capabilities)?,
            Some(other) => bail!("the seccomp profile {other} isn't known here"),
        }
    }
    let propagations =
        || container.volume_mounts.iter().flatten().filter_map(|m| m.mount_propagation.as_deref());
    if propagations().any(|found| found == "Bidirectional") {
        linux["rootfsPropagation"] = json!("rshared");
    } else if propagations().any(|found| found == "HostToContainer") {
        linux["rootfsPropagation"] = json!("rslave");
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": root, "readonly": context.read_only_root_filesystem == Some(true)},
        "hostname": sandbox.hostname,
        "mounts": mounts(input, privileged)?,
        "linux": linux,
    }))
}

fn args(container: &Container, image: &Start, env: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let given = |list: &Option<Vec<String>>| -> Option<Vec<String>> {
        let list = list.as_ref().filter(|list| !list.is_empty())?;
        Some(list.iter().map(|arg| expand(arg, env)).collect())
    };
    let (command, args) = (given(&container.command), given(&container.args));
    // A command replaces both of the image's.
    let rest = args.unwrap_or_else(|| if command.is_some() { Vec::new() } else { image.cmd.clone() });
    let mut all = command.unwrap_or_else(|| image.entrypoint.clone());
    all.extend(rest);
    ensure!(!all.is_empty(), "neither the image nor the container says what to run");
    Ok(all)
}

fn user(context: &SecurityContext, pod: &PodSecurityContext, image: &Start) -> Result<Value> {
    let (image_user, image_group) = match image.user.split_once(':') {
        Some((user, group)) => (user, group),
        None => (image.user.as_str(), ""),
    };
    let number = |text: &str| match text {
        "" | "root" => Ok(0),
        text => text.parse::<i64>().with_context(|| format!("the image's user {text:?} is no number")),
    };
    let uid = match context.run_as_user.or(pod.run_as_user) {
        Some(uid) => uid,
        None => number(image_user)?,
    };
    let gid = match context.run_as_group.or(pod.run_as_group) {
        Some(gid) => gid,
        None => number(image_group)?,
    };
    if context.run_as_non_root.or(pod.run_as_non_root) == Some(true) && uid == 0 {
        bail!("container has runAsNonRoot and image will run as root");
    }
    let mut groups: Vec<i64> = pod.supplemental_groups.clone().unwrap_or_default();
    groups.extend(pod.fs_group);
    Ok(json!({"uid": uid, "gid": gid, "additionalGids": groups}))
}

fn capabilities(context: &SecurityContext) -> Result<BTreeSet<String>> {
    let named = |name: &str| format!("CAP_{name}");
    if context.privileged == Some(true) {
        let held = held()?;
        return Ok(ALL
            .iter()
            .enumerate()
            .filter(|(bit, _)| held >> bit & 1 == 1)
            .map(|(_, name)| named(name))
            .collect());
    }
    let asked = context.capabilities.clone().unwrap_or_default();
    let is_all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let (add, drop) = (asked.add.unwrap_or_default(), asked.drop.unwrap_or_default());
    let mut set: BTreeSet<String> = match (is_all(&add), is_all(&drop)) {
        (true, _) => ALL.iter().map(|name| named(name)).collect(),
        (false, true) => BTreeSet::new(),
        (false, false) => CAPABILITIES.iter().map(|name| named(name)).collect(),
    };
    let full = |name: &String| {
        let name = name.to_uppercase();
        if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    for name in drop.iter().map(full) {
        set.remove(&name);
    }
    for name in add.iter().map(full).filter(|name| name != "CAP_ALL") {
        ensure!(ALL.iter().any(|known| named(known) == name), "{name} is no capability");
        set.insert(name);
    }
    Ok(set)
}

/// Capabilities that this machine lets anybody have.
fn held() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd")?;
    Ok(u64::from_str_radix(mask.trim(), 16)?)
}

fn namespaces(pod: &Pod, sandbox: &Sandbox) -> Result<Vec<Value>> {
    let spec = pod.spec.as_ref().context("a pod has a spec")?;
    let mut all = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    if spec.host_pid != Some(true) {
        all.push(json!({"type": "pid"}));
    }
    if spec.host_ipc != Some(true) {
        all.push(json!({"type": "ipc"}));
    }
    all.push(json!({"type": "uts"}));
    if let Some(network) = &sandbox.network {
        all.push(json!({"type": "network", "path": network.path()}));
    }
    Ok(all)
}

fn mounts(input: &Input<'_>, privileged: bool) -> Result<Vec<Value>> {
    let Input { container, sandbox, termination_log, .. } = input;
    let own: BTreeSet<&str> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| mount.mount_path.trim_end_matches('/'))
        .collect();
    let writable = if privileged { "rw" } else { "ro" };
    let mut all = Vec::new();
    let mut add = |destination: &str, kind: &str, source: &Path, options: &[&str]| {
        if !own.contains(destination) {
            all.push(json!({"destination": destination, "type": kind, "source": source, "options": options}));
        }
    };
    let named = Path::new;
    add("/proc", "proc", named("proc"), &["nosuid", "noexec", "nodev"]);
    add("/dev", "tmpfs", named("tmpfs"), &["nosuid", "strictatime", "mode=755", "size=65536k"]);
    add(
        "/dev/pts",
        "devpts",
        named("devpts"),
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    );
    add("/dev/shm", "tmpfs", named("shm"), &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]);
    add("/dev/mqueue", "mqueue", named("mqueue"), &["nosuid", "noexec", "nodev"]);
    add("/sys", "sysfs", named("sysfs"), &["nosuid", "noexec", "nodev", writable]);
    add("/sys/fs/cgroup", "cgroup", named("cgroup"), &["nosuid", "noexec", "nodev", "relatime", writable]);
    for name in ["hosts", "hostname", "resolv.conf"] {
        add(
            &format!("/etc/{name}"),
            "bind",
            &sandbox.volumes.blocking_lock().dir().join(name),
            &["bind", "rprivate"],
        );
    }
    let log = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    add(log, "bind", termination_log, &["bind", "rprivate"]);
    // Outer mounts first.
    let mut volumes: Vec<_> = container.volume_mounts.iter().flatten().collect();
    volumes.sort_by_key(|mount| mount.mount_path.len());
    for mount in volumes {
        let volumes = sandbox.volumes.blocking_lock();
        let mut source = volumes.path(&mount.name)?.to_owned();
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (_, Some(expression)) => Some(expand(expression, input.env)),
            (sub, None) => sub.clone(),
        };
        if let Some(sub) = sub.filter(|sub| !sub.is_empty()) {
            source = source.join(sub);
            if !source.exists() {
                fs::create_dir_all(&source)?;
            }
        }
        let mode = if mount.read_only == Some(true) { "ro" } else { "rw" };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("Bidirectional") => "rshared",
            Some("HostToContainer") => "rslave",
            _ => "rprivate",
        };
        all.push(json!({"destination": mount.mount_path, "type": "bind", "source": source,
                        "options": ["rbind", propagation, mode]}));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(context: Value) -> Vec<String> {
        capabilities(&serde_json::from_value(context).unwrap()).unwrap().into_iter().collect()
    }

    #[test]
    fn capabilities_are_exactly_those_that_are_asked_for() {
        assert_eq!(set(json!({})).len(), CAPABILITIES.len());
        let agent = json!({"capabilities": {"drop": ["ALL"], "add": ["BPF", "CAP_NET_ADMIN"]}});
        assert_eq!(set(agent), ["CAP_BPF", "CAP_NET_ADMIN"]);
        assert!(set(json!({"capabilities": {"drop": ["ALL"]}})).is_empty());
        assert!(!set(json!({"capabilities": {"drop": ["NET_RAW"]}})).contains(&"CAP_NET_RAW".to_owned()));
        let wrong = json!({"capabilities": {"add": ["FLY"]}});
        assert!(capabilities(&serde_json::from_value(wrong).unwrap()).is_err());
    }

    #[test]
    fn who_must_not_be_root_isn_t() {
        let context: SecurityContext = serde_json::from_value(json!({"runAsNonRoot": true})).unwrap();
        let with = |user: &str| user_of(&context, Start { user: user.to_owned(), ..Start::default() });
        assert!(with("").is_err() && with("0").is_err() && with("nobody").is_err());
        assert_eq!(with("65532:7").unwrap()["gid"], 7);
    }

    fn user_of(context: &SecurityContext, image: Start) -> Result<Value> {
        user(context, &PodSecurityContext::default(), &image)
    }

    #[test]
    fn a_command_replaces_all_of_the_image_s() {
        let image = Start { entrypoint: vec!["/e".into()], cmd: vec!["c".into()], ..Start::default() };
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let of = |container: Value| {
            let mut container = container;
            container["name"] = json!("x");
            args(&serde_json::from_value(container).unwrap(), &image, &env).unwrap()
        };
        assert_eq!(of(json!({})), ["/e", "c"]);
        assert_eq!(of(json!({"args": ["$(A)"]})), ["/e", "1"]);
        assert_eq!(of(json!({"command": ["/x"]})), ["/x"]);
    }
}
