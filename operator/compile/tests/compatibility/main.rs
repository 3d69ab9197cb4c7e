//! `docs/compatibility.md` says what comes of each field: these trials write its tables, so that it can't say anything else.
//!
//! Compared with what is checked in; `UPDATE_GOLDEN=1 cargo test -p slotmesh-compile --test compatibility` writes it anew.

mod enrolment;
mod gateways;
mod istio;
mod kubernetes;
mod listing;
mod page;
mod requests;
mod schemas;
mod slotmesh;
mod trial;

use std::{env, fs};

use slotmesh_builders::{pod, rule, service, slice};
use slotmesh_compile::Object;

const PAGE: &str = "docs/compatibility.md";
/// The names of the parts of the page that are written here.
const FIELDS: &str = "fields";
const TAKING_PART: &str = "taking part";

/// Two Services of two namespaces, of which `reviews` has pods of two versions, and two pods that may connect.
fn shop() -> Vec<Object> {
    let web = |name: &str, ip: &str| {
        let service = service(name).ip(ip).named_port("http", 80).named_port("http-admin", 81);
        service.named_port("tls", 443).named_port("tls-admin", 444).named_port("tcp", 9000)
    };
    let ports = |name: &str| {
        let slice = slice(name, name).named_port("http", 8080).named_port("http-admin", 8081);
        slice.named_port("tls", 8443).named_port("tls-admin", 8444).named_port("tcp", 9000)
    };
    vec![
        web("reviews", "10.96.0.13").build(),
        ports("reviews").pod_endpoint("10.1.0.1", "reviews-1").pod_endpoint("10.1.0.2", "reviews-2").build(),
        pod("reviews-1").label("version", "v1").ip("10.1.0.1").build(),
        pod("reviews-2").label("version", "v2").ip("10.1.0.2").build(),
        web("ratings", "10.96.0.14").build(),
        ports("ratings").endpoint("10.1.0.3").build(),
        web("reviews", "10.96.0.15").namespace("other").build(),
        ports("reviews").namespace("other").endpoint("10.1.0.4").build(),
        pod("client").label("app", "client").build(),
        pod("client").namespace("other").label("app", "client").build(),
    ]
}

/// The DestinationRule that divides `reviews` by versions.
fn versions() -> Object {
    rule("versions", "reviews").version("v1").version("v2").build()
}

#[test]
fn the_page_says_what_the_trials_show() {
    let subjects = kubernetes::subjects().into_iter().chain(istio::subjects());
    let subjects = subjects.chain(gateways::subjects()).chain(slotmesh::subjects());
    let mut faults = Vec::new();
    let tables: String = subjects.map(|subject| page::section(&subject, &mut faults)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let file = page::root().join(PAGE);
    let held = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{PAGE}: {error}"));
    let expected = exchange(&exchange(&held, FIELDS, &tables), TAKING_PART, &enrolment::table());
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &expected).unwrap();
        return;
    }
    let differs = held.lines().zip(expected.lines()).find(|(held, expected)| held != expected);
    assert!(
        held == expected,
        "{PAGE} isn't what the trials show (first difference: {differs:?}); run UPDATE_GOLDEN=1 cargo test -p \
         slotmesh-compile --test compatibility and look at the difference"
    );
}

/// The page with another text in one of its parts.
fn exchange(page: &str, part: &str, text: &str) -> String {
    let [begin, end] = ["begin", "end"].map(|at| format!("<!-- {part}: {at} -->\n"));
    let (before, rest) = page.split_once(&begin).expect("the page says where the part begins");
    let (_, after) = rest.split_once(&end).expect("the page says where the part ends");
    format!("{before}{begin}{text}\n{end}{after}")
}
