//! The filter of system calls that `RuntimeDefault` means.
//!
//! The rules are those that Debian's container engines use (package golang-github-containers-common), which say
//! by capability and architecture what holds; this resolves them for one container. Two rules are added,
//! because that list is older than they are and containerd's has them: CAP_BPF allows bpf(2), CAP_PERFMON
//! allows perf_event_open(2).

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

const FILE: &str = "/usr/share/containers/seccomp.json";
const ADDED: [(&str, &str); 2] = [("CAP_BPF", "bpf"), ("CAP_PERFMON", "perf_event_open")];

/// The filter for a container with these capabilities, in the words of the OCI runtime specification.
pub fn default(capabilities: &BTreeSet<String>) -> Result<Value> {
    let text =
        fs::read(FILE).with_context(|| format!("{FILE} (Debian package golang-github-containers-common)"))?;
    resolve(&serde_json::from_slice(&text)?, capabilities)
}

fn resolve(rules: &Value, capabilities: &BTreeSet<String>) -> Result<Value> {
    let named = |rule: &Value, which: &str, what: &str| -> Vec<String> {
        let list = rule[which][what].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let held = |name: &String| capabilities.contains(name);
    let mut syscalls = Vec::new();
    // The first rule for a call wins, so what is added comes first.
    for (capability, call) in ADDED {
        if capabilities.contains(capability) {
            syscalls.push(json!({"names": [call], "action": "SCMP_ACT_ALLOW"}));
        }
    }
    let added: Vec<&str> =
        ADDED.iter().filter(|(name, _)| capabilities.contains(*name)).map(|a| a.1).collect();
    let mut applied = Vec::new();
    for rule in rules["syscalls"].as_array().context("the filter has rules")? {
        let arches = named(rule, "includes", "arches");
        let not_arches = named(rule, "excludes", "arches");
        let applies = (arches.is_empty() || arches.iter().any(|found| found == architecture))
            && !not_arches.iter().any(|found| found == architecture)
            && named(rule, "includes", "caps").iter().all(held)
            && !named(rule, "excludes", "caps").iter().any(held);
        if !applies {
            continue;
        }
        applied.push(rule);
    }
    // Some calls are allowed to all and then denied to some: the narrower rule holds.
    let denies = |rule: &&&Value| {
        rule["action"] != "SCMP_ACT_ALLOW" && rule["args"].as_array().is_none_or(Vec::is_empty)
    };
    let names = |rule: &Value| rule["names"].as_array().cloned().unwrap_or_default();
    let denied: Vec<Value> = applied.iter().filter(denies).flat_map(|rule| names(rule)).collect();
    for rule in applied {
        let allows = rule["action"] == "SCMP_ACT_ALLOW";
        let mut rule = rule.clone();
        let fields = rule.as_object_mut().context("a rule is an object")?;
        fields.retain(|name, value| {
            ["names", "action", "errnoRet", "args"].contains(&name.as_str()) && !value.is_null()
        });
        if let Some(names) = fields.get_mut("names").and_then(Value::as_array_mut) {
            names.retain(|name| {
                let settled = added.iter().any(|added| name == added) || (allows && denied.contains(name));
                !settled
            });
            if names.is_empty() {
                continue;
            }
        }
        syscalls.push(rule);
    }
    Ok(json!({
        "defaultAction": rules["defaultAction"],
        "defaultErrnoRet": rules["defaultErrnoRet"],
        "syscalls": syscalls,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(filter: &Value, call: &str) -> bool {
        let rules = filter["syscalls"].as_array().unwrap();
        let of = |rule: &&Value| rule["names"].as_array().unwrap().iter().any(|name| name == call);
        rules.iter().find(of).is_some_and(|rule| rule["action"] == "SCMP_ACT_ALLOW")
    }

    #[test]
    fn bpf_takes_its_capability() {
        let with = |names: &[&str]| default(&names.iter().map(|name| (*name).to_owned()).collect()).unwrap();
        let (none, bpf, admin) = (with(&[]), with(&["CAP_BPF"]), with(&["CAP_SYS_ADMIN"]));
        assert!(!allows(&none, "bpf") && allows(&bpf, "bpf") && allows(&admin, "bpf"));
        assert!(!allows(&bpf, "perf_event_open") && allows(&with(&["CAP_PERFMON"]), "perf_event_open"));
        assert!(!allows(&bpf, "setns") && allows(&admin, "setns"));
        assert!(allows(&none, "read") && allows(&none, "arch_prctl") == cfg!(target_arch = "x86_64"));
    }
}
