//! A container's environment variables, and what stands for `$(NAME)` in its command.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, EnvVarSource, Pod, ResourceFieldSelector, Secret,
};
use kube::{Api, ResourceExt as _};

use crate::{kubelet::Kubelet, quantity};

/// Fields of a pod that aren't in its object yet.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The pod's, IPv4 first.
    pub pod: [String; 2],
    /// The node's, IPv4 first.
    pub host: [String; 2],
}

/// All variables of a container: the image's, then the cluster's, then its own.
pub async fn of(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    image: &[String],
    addresses: &Addresses,
) -> Result<BTreeMap<String, String>> {
    let mut all: BTreeMap<String, String> = image
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    all.entry("PATH".to_owned())
        .or_insert_with(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    all.insert("HOSTNAME".to_owned(), hostname(kubelet, pod));
    all.insert("KUBERNETES_SERVICE_HOST".to_owned(), kubelet.config.api.to_string());
    all.insert("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned());
    all.insert("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), "443".to_owned());
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        let mut add = |data: BTreeMap<String, String>| {
            all.extend(data.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
        };
        if let Some(from) = &source.config_map_ref {
            add(config_map(kubelet, pod, &from.name, from.optional).await?);
        }
        if let Some(from) = &source.secret_ref {
            add(secret(kubelet, pod, &from.name, from.optional).await?);
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(kubelet, pod, container, variable, addresses, &all).await? {
            all.insert(variable.name.clone(), value);
        }
    }
    Ok(all)
}

async fn value(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    addresses: &Addresses,
    before: &BTreeMap<String, String>,
) -> Result<Option<String>> {
    let Some(EnvVarSource { config_map_key_ref, field_ref, resource_field_ref, secret_key_ref, .. }) =
        &variable.value_from
    else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), before)));
    };
    if let Some(from) = field_ref {
        return field(pod, &from.field_path, Some(addresses)).map(Some);
    }
    if let Some(from) = resource_field_ref {
        return resource(&pod.spec.as_ref().context("a pod has a spec")?.containers, container, from)
            .map(Some);
    }
    let (data, key, optional) = match (config_map_key_ref, secret_key_ref) {
        (Some(from), _) => {
            (config_map(kubelet, pod, &from.name, from.optional).await?, &from.key, from.optional)
        }
        (_, Some(from)) => (secret(kubelet, pod, &from.name, from.optional).await?, &from.key, from.optional),
        _ => bail!("the variable {} comes from a source that isn't known here", variable.name),
    };
    match data.get(key) {
        None if optional != Some(true) => {
            bail!("the variable {} comes from a missing key {key}", variable.name)
        }
        found => Ok(found.cloned()),
    }
}

async fn config_map(
    kubelet: &Kubelet,
    pod: &Pod,
    name: &str,
    optional: Option<bool>,
) -> Result<BTreeMap<String, String>> {
    let api: Api<ConfigMap> = Api::namespaced(kubelet.client.clone(), &pod.namespace().unwrap_or_default());
    match api.get_opt(name).await? {
        None if optional == Some(true) => Ok(BTreeMap::new()),
        found => Ok(found.with_context(|| format!("configmap {name:?} not found"))?.data.unwrap_or_default()),
    }
}

async fn secret(
    kubelet: &Kubelet,
    pod: &Pod,
    name: &str,
    optional: Option<bool>,
) -> Result<BTreeMap<String, String>> {
    let api: Api<Secret> = Api::namespaced(kubelet.client.clone(), &pod.namespace().unwrap_or_default());
    let found = match api.get_opt(name).await? {
        None if optional == Some(true) => return Ok(BTreeMap::new()),
        found => found.with_context(|| format!("secret {name:?} not found"))?,
    };
    let text = |(name, bytes): (String, k8s_openapi::ByteString)| {
        (name, String::from_utf8_lossy(&bytes.0).into_owned())
    };
    Ok(found.data.unwrap_or_default().into_iter().map(text).collect())
}

/// A pod's host name.
pub fn hostname(kubelet: &Kubelet, pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        return kubelet.config.name.clone();
    }
    spec.and_then(|spec| spec.hostname.clone()).unwrap_or_else(|| pod.name_any())
}

/// A field of a pod, for the downward API.
pub fn field(pod: &Pod, path: &str, addresses: Option<&Addresses>) -> Result<String> {
    let subscript =
        |of: &str| Some(path.strip_prefix(of)?.strip_prefix("['")?.strip_suffix("']")?.to_owned());
    if let Some(key) = subscript("metadata.labels") {
        return Ok(pod.labels().get(&key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Ok(pod.annotations().get(&key).cloned().unwrap_or_default());
    }
    let spec = pod.spec.as_ref().context("a pod has a spec")?;
    let lines = |all: &BTreeMap<String, String>| {
        all.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
    };
    Ok(match (path, addresses) {
        ("metadata.name", _) => pod.name_any(),
        ("metadata.namespace", _) => pod.namespace().unwrap_or_default(),
        ("metadata.uid", _) => pod.uid().unwrap_or_default(),
        ("metadata.labels", _) => lines(pod.labels()),
        ("metadata.annotations", _) => lines(pod.annotations()),
        ("spec.nodeName", _) => spec.node_name.clone().unwrap_or_default(),
        ("spec.serviceAccountName", _) => spec.service_account_name.clone().unwrap_or_default(),
        ("status.podIP", Some(addresses)) => addresses.pod[0].clone(),
        ("status.podIPs", Some(addresses)) => addresses.pod.join(","),
        ("status.hostIP", Some(addresses)) => addresses.host[0].clone(),
        ("status.hostIPs", Some(addresses)) => addresses.host.join(","),
        _ => bail!("the field {path} isn't known here"),
    })
}

/// A request or limit of a container, in units of its divisor.
pub fn resource(all: &[Container], own: &Container, from: &ResourceFieldSelector) -> Result<String> {
    let container = match &from.container_name {
        Some(name) => all.iter().find(|found| &found.name == name).context("no such container")?,
        None => own,
    };
    let (kind, name) = from.resource.split_once('.').context("a resource is limits.NAME or requests.NAME")?;
    let resources = container.resources.as_ref();
    let list =
        resources.and_then(|all| if kind == "limits" { all.limits.as_ref() } else { all.requests.as_ref() });
    let Some(amount) = list.and_then(|list| list.get(name)) else {
        bail!("the container {} has no {}", container.name, from.resource);
    };
    let divisor = from.divisor.as_ref().map(|divisor| quantity::value(&divisor.0)).transpose()?;
    let divisor = divisor.filter(|divisor| *divisor > 0.0).unwrap_or(1.0);
    Ok(format!("{}", (quantity::value(&amount.0)? / divisor).ceil()))
}

/// Replaces `$(NAME)` where it is known; `$$` stands for a dollar.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|open| open.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_where_they_are_known() {
        let known = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expected) in
            [("x$(A)y", "x1y"), ("$(B)", "$(B)"), ("$$(A)", "$(A)"), ("a$", "a$"), ("$(A", "$(A")]
        {
            assert_eq!(expand(text, &known), expected);
        }
    }
}
