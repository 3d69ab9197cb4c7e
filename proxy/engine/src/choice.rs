//! How a cluster has an endpoint chosen, read from its messages.

use prost::Message as _;
use slotmesh_routing::InvalidField;
use slotmesh_xds::envoy::envoy::{
    config::{
        cluster::v3::{
            self as proto,
            cluster::{LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig},
            load_balancing_policy::Policy,
        },
        route::v3::route_action::hash_policy::{ConnectionProperties, PolicySpecifier},
    },
    extensions::load_balancing_policies::{common::v3::ConsistentHashingLbConfig, maglev::v3::Maglev},
};

use crate::{
    hashing::HashTableKind,
    upstream::{EndpointChoice, refuse_set, wrong},
};

const MAGLEV: &str = "envoy.extensions.load_balancing_policies.maglev.v3.Maglev";

/// How `lb_policy` has an endpoint chosen.
pub(crate) fn choice(policy: i32, config: Option<&LbConfig>) -> Result<EndpointChoice, InvalidField> {
    Ok(match (LbPolicy::try_from(policy), config) {
        (Ok(LbPolicy::RoundRobin), _) => EndpointChoice::RoundRobin,
        (Ok(LbPolicy::Random), _) => EndpointChoice::Random,
        (Ok(LbPolicy::LeastRequest), config) => {
            let choices = match config {
                Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig { choice_count, .. })) => {
                    choice_count.map_or(2, |count| count.value)
                }
                _ => 2,
            };
            EndpointChoice::LeastRequests { choices: choices.clamp(2, 16) }
        }
        (Ok(LbPolicy::Maglev), config) => {
            let size = match config {
                Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(size) })) => size.value,
                _ => 65_537,
            };
            if !is_prime(size) || size > 5_000_011 {
                let reason = "not a prime number up to 5,000,011";
                return Err(wrong("maglev_lb_config.table_size", reason));
            }
            EndpointChoice::Hash(HashTableKind::Maglev { size })
        }
        (Ok(LbPolicy::RingHash), config) => {
            let (minimum, maximum, function) = match config {
                Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
                    minimum_ring_size,
                    maximum_ring_size,
                    hash_function,
                })) => (
                    minimum_ring_size.map_or(1_024, |size| size.value),
                    maximum_ring_size.map_or(8 << 20, |size| size.value),
                    *hash_function,
                ),
                _ => (1_024, 8 << 20, 0),
            };
            if function != 0 {
                return Err(wrong("ring_hash_lb_config.hash_function", "only XX_HASH"));
            }
            if minimum == 0 || minimum > maximum || maximum > 8 << 20 {
                return Err(wrong("ring_hash_lb_config", "sizes are 1 to 8,388,608, the least first"));
            }
            EndpointChoice::Hash(HashTableKind::Ring { minimum, maximum })
        }
        _ => {
            return Err(wrong(
                "lb_policy",
                "only ROUND_ROBIN, RANDOM, LEAST_REQUEST, MAGLEV and RING_HASH are supported",
            ));
        }
    })
}

/// How the load balancing policy that is an extension has an endpoint chosen; true: by the client's address.
pub(crate) fn extension(policy: &proto::LoadBalancingPolicy) -> Result<(EndpointChoice, bool), InvalidField> {
    const AT: &str = "load_balancing_policy";
    let any = match &policy.policies[..] {
        [Policy { typed_extension_config: Some(config) }] => config.typed_config.as_ref(),
        _ => None,
    };
    let Some(any) = any.filter(|any| any.type_url.ends_with(MAGLEV)) else {
        return Err(wrong(AT, format!("only one policy, {MAGLEV}")));
    };
    let maglev = Maglev::decode(any.value.as_slice()).map_err(|error| wrong(AT, error.to_string()))?;
    let Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } = &maglev;
    let at = |field: &str| format!("{AT}.{field}");
    refuse_set!(format!("{AT}."), "localities are chosen from alike": locality_weighted_lb_config;);
    let config =
        (*table_size).map(|size| LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(size) }));
    let choice = choice(LbPolicy::Maglev.into(), config.as_ref())?;
    let hashing = consistent_hashing_lb_config.clone().unwrap_or_default();
    let ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } = &hashing;
    refuse_set!(at("consistent_hashing_lb_config."),
        "the address alone is hashed": use_hostname_for_hashing;
        "no endpoint is passed over": hash_balance_factor;
    );
    let source = Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }));
    if hash_policy.iter().any(|policy| policy.policy_specifier != source) {
        return Err(wrong(at("consistent_hashing_lb_config.hash_policy"), "only the source address"));
    }
    Ok((choice, !hash_policy.is_empty()))
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|n| n * n <= number).all(|n| !number.is_multiple_of(n))
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::envoy::{
        envoy::config::{core::v3 as core, route::v3::route_action::HashPolicy},
        google::protobuf::Any,
    };

    use super::*;
    use crate::upstream::ClusterConfig;

    #[test]
    fn a_cluster_may_hash_the_clients_address_whatever_a_route_says() {
        let with = |source_ip: bool| {
            let source = ConnectionProperties { source_ip };
            let hash_policy = vec![HashPolicy {
                policy_specifier: Some(PolicySpecifier::ConnectionProperties(source)),
                ..Default::default()
            }];
            let hashing = ConsistentHashingLbConfig { hash_policy, ..Default::default() };
            let maglev = Maglev { consistent_hashing_lb_config: Some(hashing), ..Default::default() };
            let any =
                Any { type_url: format!("type.googleapis.com/{MAGLEV}"), value: maglev.encode_to_vec() };
            let extension = core::TypedExtensionConfig { name: "maglev".into(), typed_config: Some(any) };
            let policy = Policy { typed_extension_config: Some(extension) };
            ClusterConfig::new(&proto::Cluster {
                name: "c".into(),
                load_balancing_policy: Some(proto::LoadBalancingPolicy { policies: vec![policy] }),
                ..Default::default()
            })
        };
        let config = with(true).unwrap();
        assert!(config.hashes_source);
        assert_eq!(config.choice, EndpointChoice::Hash(HashTableKind::Maglev { size: 65_537 }));
        let fault = with(false).unwrap_err();
        assert_eq!(fault.field, "load_balancing_policy.consistent_hashing_lb_config.hash_policy");
        let unknown = proto::LoadBalancingPolicy::default();
        let unknown =
            proto::Cluster { name: "c".into(), load_balancing_policy: Some(unknown), ..Default::default() };
        assert_eq!(ClusterConfig::new(&unknown).unwrap_err().field, "load_balancing_policy");
    }
}
