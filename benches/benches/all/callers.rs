//! One endpoint that changes, of a Service to which 1,000 classes of callers get answers of their own beside one class: in the
//! compiler, as the agent is told of the endpoints alone in both cases.

use std::time::Instant;

use anyhow::ensure;
use slotmesh_bench::{Samples, row, section, show, verdict};
use slotmesh_builders::{service, slice, to, virtual_service};
use slotmesh_compile::Compiler;

const CLASSES: usize = 1_000;
const CHANGES: usize = 400;

/// A Service for which so many namespaces have a route of their own.
fn compiler(classes: usize) -> Compiler {
    let mut compiler = Compiler::default();
    compiler.apply(&service("web").ip("10.96.0.10").port(80).build(), None);
    for version in 0..2 {
        compiler.apply(&service(&format!("web-v{version}")).port(80).build(), None);
    }
    for class in 0..classes {
        let route = virtual_service("web", "web.default.svc.cluster.local").namespace(&format!("n{class}"));
        let mut route = route.http([to(&format!("web-v{}.default", class % 2), 1)]);
        route.0.spec.export_to = vec![".".to_owned()];
        compiler.apply(&route.build(), None);
    }
    compiler.flush();
    compiler
}

/// Moves an endpoint; how many resources that makes, and how long it takes.
fn change(compiler: &mut Compiler, generation: usize) -> (usize, std::time::Duration) {
    let slice = slice("web-1", "web").port(8080).endpoint("10.1.0.1");
    let slice = slice.endpoint(&format!("10.1.1.{}", generation % 250 + 1)).build();
    let started = Instant::now();
    compiler.apply(&slice, None);
    let changes = compiler.flush().changes.len();
    (changes, started.elapsed())
}

pub fn run() -> anyhow::Result<()> {
    section(&format!("callers: one endpoint of a Service changes, {CLASSES} classes of callers beside one"));
    let mut compilers = [compiler(1), compiler(CLASSES)];
    let mut times = [Vec::new(), Vec::new()];
    for generation in 0..CHANGES {
        for (compiler, times) in compilers.iter_mut().zip(&mut times) {
            let (changes, took) = change(compiler, generation);
            ensure!(changes == 1, "{changes} resources change, not the endpoints alone");
            times.push(took);
        }
    }
    let [one, many] = times.map(Samples::new);
    let ratio = many.ratio(&one);
    row("one endpoint, compiled, 1 class, p50", &show(one.p50()), "");
    row(&format!("one endpoint, compiled, {CLASSES} classes, p50"), &show(many.p50()), "");
    row(&format!("{CLASSES} classes / 1"), &format!("{ratio:.2}"), &verdict(ratio <= 1.3, "1.3"));
    Ok(())
}
