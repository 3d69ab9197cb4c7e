//! Our own kinds.

use slotmesh_crds::own;

/// Builds a SlotProfile.
#[derive(Clone, Debug)]
pub struct ProfileBuilder(pub own::SlotProfile);

/// A SlotProfile for all nodes that sets nothing.
pub fn profile(name: &str) -> ProfileBuilder {
    ProfileBuilder(own::SlotProfile::new(name, own::SlotProfileSpec::default()))
}

impl ProfileBuilder {
    /// For nodes with this label only.
    #[must_use]
    pub fn select(mut self, key: &str, value: &str) -> Self {
        self.0.spec.node_selector.insert(key.to_owned(), value.to_owned());
        self
    }

    /// For the node of this name, and others that are named.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.0.spec.node_names.push(node.to_owned());
        self
    }

    /// With this cap.
    #[must_use]
    pub fn cap(mut self, cap: u32) -> Self {
        self.0.spec.cap = Some(cap);
        self
    }

    /// With these settings.
    #[must_use]
    pub fn set(mut self, set: impl FnOnce(&mut own::SlotProfileSpec)) -> Self {
        set(&mut self.0.spec);
        self
    }
}

/// Builds a TrafficPolicy.
#[derive(Clone, Debug)]
pub struct PolicyBuilder(pub own::TrafficPolicy);

/// A TrafficPolicy in namespace `default` for this Service, or for a port of it: `service/port`.
pub fn policy(name: &str, target: &str) -> PolicyBuilder {
    let policy = own::TrafficPolicy::new(name, own::TrafficPolicySpec::default());
    PolicyBuilder(policy).target(target)
}

impl PolicyBuilder {
    /// One more Service, or port of one: `service/port`.
    #[must_use]
    pub fn target(mut self, target: &str) -> Self {
        let (name, section) = match target.split_once('/') {
            Some((name, section)) => (name, Some(section.to_owned())),
            None => (target, None),
        };
        self.0.spec.target_refs.push(own::PolicyTarget {
            group: String::new(),
            kind: "Service".to_owned(),
            name: name.to_owned(),
            section_name: section,
        });
        self
    }

    /// Balances by this algorithm.
    #[must_use]
    pub fn balance(mut self, algorithm: own::Balancing) -> Self {
        self.0.spec.load_balancing = Some(own::LoadBalancing { algorithm });
        self
    }

    /// Allows this many connections.
    #[must_use]
    pub fn max(mut self, connections: u32) -> Self {
        self.0.spec.max_connections = Some(connections);
        self
    }

    /// Bounds how fast new connections may come.
    #[must_use]
    pub fn new_connections(mut self, rate: own::NewConnections) -> Self {
        self.0.spec.new_connections = Some(rate);
        self
    }

    /// Leaves endpoints out that fail.
    #[must_use]
    pub fn outliers(mut self, outliers: own::Ejection) -> Self {
        self.0.spec.outlier_detection = Some(outliers);
        self
    }

    /// Chooses by where endpoints are.
    #[must_use]
    pub fn locality(mut self, locality: own::LocalityPreference) -> Self {
        self.0.spec.locality = Some(locality);
        self
    }
}
