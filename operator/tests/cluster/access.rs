//! Certificates and tokens, with the API server that issues and judges them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, Secret, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, ResourceExt as _, api::PostParams};
use serde_json::json;
use slotmesh_cluster::{ControlPlane, wait};
use slotmesh_operator::{
    Tokens,
    certs::{Certificates, Keeper, Lifetimes, Names},
};
use slotmesh_serve::{AuthError, Authenticator as _, Token};
use tokio_util::sync::CancellationToken;

use crate::support::{apply, namespace, pod};

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_known_by_the_tokens_of_their_pods() -> Result<()> {
    let cluster = ControlPlane::start().await?;
    let client = cluster.client().await?;
    apply(&client, namespace("shop", json!({}))).await?;
    apply(&client, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})).await?;
    apply(
        &client,
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
               "metadata": {"name": "slotmesh-agent", "namespace": "shop"}}),
    )
    .await?;
    let mut agent = pod("agent", "agent", "n1", "10.1.0.2");
    agent["spec"]["serviceAccountName"] = "slotmesh-agent".into();
    let agent = apply(&client, agent).await?;
    wait::until_true("the account of pods", async || {
        Ok(apply(&client, pod("other", "other", "n1", "10.1.0.3")).await.is_ok())
    })
    .await?;

    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "shop");
    let token = async |account: &str, audience: &str, bound: Option<BoundObjectReference>| -> Result<Token> {
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                bound_object_ref: bound,
                expiration_seconds: Some(600),
            },
            status: None,
        };
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        Ok(Token::from(answer.status.context("no token")?.token))
    };
    let bound = BoundObjectReference {
        kind: Some("Pod".into()),
        api_version: Some("v1".into()),
        name: Some(agent.name_any()),
        uid: agent.uid(),
    };
    let tokens = Tokens::new(client.clone(), "slotmesh-operator", "shop", "slotmesh-agent");
    let good = token("slotmesh-agent", "slotmesh-operator", Some(bound.clone())).await?;
    let authenticated = tokens.authenticate(good.clone(), None).await?;
    ensure!(authenticated.node.as_str() == "n1");
    let lasts = authenticated.lasts.context("a token that never expires")?;
    ensure!(lasts > Duration::from_secs(500) && lasts <= Duration::from_secs(600), "{lasts:?}");

    let refused = async |token: Token, word: &str| -> Result<()> {
        let Err(AuthError::Invalid(reason)) = tokens.authenticate(token, None).await else {
            anyhow::bail!("let in: {word}")
        };
        ensure!(reason.contains(word), "{reason}");
        Ok(())
    };
    refused(token("slotmesh-agent", "other", Some(bound)).await?, "refused").await?;
    refused(token("default", "slotmesh-operator", None).await?, "shop:default").await?;
    refused(token("slotmesh-agent", "slotmesh-operator", None).await?, "bound to no pod").await?;
    refused(Token::from("nonsense"), "refused").await?;

    // Known tokens need no API server; unknown ones are put off, not refused.
    let new = {
        let mut cluster = cluster;
        cluster.stop_api_server()?;
        ensure!(tokens.authenticate(good, None).await?.node.as_str() == "n1");
        tokens.authenticate(Token::from("another"), None).await
    };
    ensure!(matches!(new, Err(AuthError::Unavailable(_))), "{new:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_agree_on_one_authority_and_publish_it() -> Result<()> {
    let cluster = ControlPlane::start().await?;
    let client = cluster.client().await?;
    apply(&client, namespace("slotmesh-system", json!({}))).await?;
    let names = Names {
        namespace: "slotmesh-system".into(),
        secret: "authority".into(),
        config_map: "ca".into(),
        hosts: vec!["operator.test".into()],
    };
    let stop = CancellationToken::new();
    let mut keepers = Vec::new();
    for _ in 0..3 {
        let keeper = Keeper::new(&client, names.clone(), Lifetimes::default(), Certificates::default());
        let ready = CancellationToken::new();
        keepers.push((tokio::spawn(keeper.run(ready.clone(), stop.clone())), ready));
    }
    for (_, ready) in &keepers {
        tokio::time::timeout(wait::SOON, ready.cancelled()).await?;
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "slotmesh-system");
    let bundle = async || -> Result<String> {
        let data = maps.get("ca").await?.data.unwrap_or_default();
        Ok(data.get("ca.crt").cloned().unwrap_or_default())
    };
    let first = bundle().await?;
    ensure!(first.matches("BEGIN CERTIFICATE").count() == 1, "{first}");

    // Without the Secret a new authority is made, by one of them.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "slotmesh-system");
    secrets.delete("authority", &kube::api::DeleteParams::default()).await?;
    wait::until_true("another authority", async || Ok(bundle().await? != first)).await?;
    stop.cancel();
    for (keeper, _) in keepers {
        keeper.await?;
    }
    Ok(())
}
