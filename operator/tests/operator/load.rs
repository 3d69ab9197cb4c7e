//! 1,000 Services of 10 endpoints: a change costs what depends on it. Counted; times are printed.

use std::time::Instant;

use slotmesh_builders::{service, slice};
use slotmesh_xds::ResourceType;

use crate::support::{Site, yaml};

fn file(s: usize, endpoints: usize) -> String {
    let name = format!("s{s}");
    let mut slice = slice(&name, &name).port(8080);
    for e in 0..endpoints {
        slice = slice.endpoint(&format!("10.{}.{}.{}", s / 250 + 1, s % 250, e + 1));
    }
    let ip = format!("10.0.{}.{}", s / 250, s % 250 + 1);
    yaml(&[service(&name).ip(&ip).port(80).build(), slice.build()])
}

#[test]
fn one_endpoint_changes_one_assignment() {
    let files: Vec<_> = (0..1_000).map(|s| (format!("s{s}.yaml"), file(s, 10))).collect();
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    let start = Instant::now();
    let site = Site::with(&files);
    println!("1,000 Services, files written and compiled: {:?}", start.elapsed());
    assert_eq!(site.names(ResourceType::Listener).len(), 1_000);
    let before = site.status().compiled;
    let start = Instant::now();
    site.write("s7.yaml", file(7, 11));
    site.until("the endpoint", |s| s.has_endpoint("10.1.7.11"));
    println!("one endpoint more: {:?}", start.elapsed());
    site.until("the count", |s| s.status().compiled != before);
    let after = site.status().compiled;
    assert_eq!((after.units - before.units, after.resources - before.resources), (1, 1));
}
