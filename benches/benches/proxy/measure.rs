//! The measurements, and the targets that they are held against.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, ensure};
use slotmesh_bench::{Samples, effort, is_quick, report, row, show, verdict};

use crate::{
    config::{ROUTES, Site},
    endpoint,
    load::{self, IdleConnections, Load, MOST_BODY, Manner, STREAMS},
    sides::{self, Running, Side},
};

/// Batches of idle connections, and the time that each has for coming to rest.
const BATCHES: usize = 5;
const SETTLING: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;
/// Time from the start of a load until it counts, and the time that counts.
const WARMING: Duration = Duration::from_millis(200);
const WINDOW: Duration = Duration::from_millis(500);

/// Requests that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    site: Site,
    manner: Manner,
    connections: usize,
    body: usize,
}

impl Case {
    const fn http1(routes: usize, connections: usize, body: usize) -> Self {
        Self { site: Site::Http1(routes), manner: Manner::KeptAlive, connections, body }
    }

    fn all() -> Vec<Self> {
        let usual = ROUTES[1];
        let mut all = Vec::new();
        for body in [0, 1_000, MOST_BODY] {
            for connections in [1, 16, 256] {
                all.push(Self::http1(usual, connections, body));
            }
        }
        all.push(Self { manner: Manner::New, ..Self::http1(usual, 16, 1_000) });
        all.push(Self::http1(ROUTES[0], 16, 1_000));
        all.push(Self::http1(ROUTES[2], 16, 1_000));
        all.push(Self { site: Site::Http2, manner: Manner::Http2, ..Self::http1(usual, 16, 1_000) });
        all.push(Self { site: Site::Grpc, manner: Manner::Grpc, ..Self::http1(usual, 16, 1_000) });
        all
    }

    fn name(&self) -> String {
        let Self { site, manner, connections, body } = self;
        let manner = match manner {
            Manner::KeptAlive => format!("{connections} connections"),
            Manner::New => format!("{connections} clients, a connection for each request"),
            Manner::Http2 => format!("HTTP/2 in, HTTP/1 out, {connections} connections x {STREAMS}"),
            Manner::Grpc => format!("gRPC, {connections} connections x {STREAMS}"),
        };
        let body = if *body < 1_000 { format!("{body} B") } else { format!("{} kB", body / 1_000) };
        format!("{body}, {manner}, {} routes", site.routes())
    }

    fn load(&self, proxy: &Running) -> Load {
        let Self { site, manner, connections, body } = *self;
        let (port, path) = (proxy.port(site), site.path(body));
        Load { port, path, connections, manner, from: Ipv4Addr::LOCALHOST }
    }
}

/// The proxies that there are.
struct Proxies(Vec<Running>);

impl Proxies {
    fn start() -> anyhow::Result<Self> {
        let endpoints = endpoint::start()?;
        let mut all = Vec::new();
        for side in [Side::Ours, Side::Envoy, Side::Nginx] {
            let found = match side {
                Side::Ours => true,
                Side::Envoy => sides::program("envoy").is_some(),
                Side::Nginx => sides::program("nginx").is_some(),
            };
            if found {
                all.push(Running::start(side, endpoints.http1, endpoints.http2)?);
            } else {
                report::line(&format!("\n{} isn't on this machine and is left out.", side.name()));
            }
        }
        Ok(Self(all))
    }

    fn get(&self, side: Side) -> Option<&Running> {
        self.0.iter().find(|proxy| proxy.side == side)
    }
}

/// Runs the parts that are named, or all.
pub fn run(parts: &[String]) -> anyhow::Result<()> {
    sides::bind_to_load()?;
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let proxies = Proxies::start()?;
    if is_wanted("memory") {
        memory(&proxies)?;
    }
    let mut envoy = None;
    if is_wanted("cpu") {
        envoy = cpu(&proxies, parts)?;
    }
    if is_wanted("latency") {
        latency(&proxies, envoy)?;
    }
    if is_wanted("flood") {
        flood(&proxies)?;
    }
    Ok(())
}

/// CPU time of a request, in microseconds.
fn cost(case: &Case, proxy: &Running) -> anyhow::Result<f64> {
    let load = load::start(case.load(proxy))?;
    std::thread::sleep(WARMING);
    let (cpu, answers) = (proxy.cpu()?, load.answers());
    std::thread::sleep(WINDOW);
    let (cpu, answers) = (proxy.cpu()? - cpu, load.answers() - answers);
    let at = || format!("{} before {}", case.name(), proxy.side.name());
    load.stop().with_context(at)?;
    ensure!(answers > 0, "nothing was answered: {}", at());
    Ok(cpu.as_secs_f64() * 1e6 / answers as f64)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU of all cases. Returns Envoy's of the usual one.
fn cpu(proxies: &Proxies, parts: &[String]) -> anyhow::Result<Option<f64>> {
    let only: Vec<&String> = parts.iter().filter(|part| part.contains(' ')).collect();
    let cases: Vec<Case> = Case::all()
        .into_iter()
        .filter(|case| only.is_empty() || only.iter().any(|part| case.name().contains(part.as_str())))
        .collect();
    let mut costs = vec![vec![Vec::new(); proxies.0.len()]; cases.len()];
    for _ in 0..effort(ROUNDS) {
        for (case, costs) in cases.iter().zip(&mut costs) {
            for (proxy, costs) in proxies.0.iter().zip(costs) {
                costs.push(cost(case, proxy)?);
            }
        }
    }
    let medians: Vec<Vec<f64>> =
        costs.iter_mut().map(|of| of.iter_mut().map(|costs| median(costs)).collect()).collect();
    report::line(
        "\n## CPU of a request\n\nMicroseconds of the proxy, and how often ours goes into another's.\n",
    );
    let mut heading = vec!["bodies, clients, routes".to_owned()];
    heading.extend(proxies.0.iter().map(|proxy| proxy.side.name().to_owned()));
    heading.extend(proxies.0.iter().skip(1).map(|proxy| format!("{} / slotmesh", proxy.side.name())));
    let rows: Vec<Vec<String>> = cases
        .iter()
        .zip(&medians)
        .map(|(case, costs)| {
            let mut cells = vec![case.name()];
            cells.extend(costs.iter().map(|cost| format!("{cost:.1}")));
            cells.extend(costs.iter().skip(1).map(|cost| format!("{:.2}", cost / costs[0])));
            cells
        })
        .collect();
    report::table(&heading, &rows);
    let of = |case: Case, side: Side| {
        let proxy = proxies.0.iter().position(|proxy| proxy.side == side)?;
        Some(medians[cases.iter().position(|found| *found == case)?][proxy])
    };
    report::section("CPU of a request against its targets");
    let usual = Case::http1(ROUTES[1], 16, 1_000);
    let http2 = Case { site: Site::Http2, manner: Manner::Http2, ..usual };
    let grpc = Case { site: Site::Grpc, manner: Manner::Grpc, ..usual };
    for (case, side, least) in [
        (usual, Side::Envoy, 5.0),
        (usual, Side::Nginx, 1.25),
        (Case { body: MOST_BODY, ..usual }, Side::Envoy, 3.5),
        (http2, Side::Envoy, 2.5),
        (http2, Side::Nginx, 0.9),
        (grpc, Side::Envoy, 2.5),
        (grpc, Side::Nginx, 0.9),
    ] {
        if let (Some(ours), Some(theirs)) = (of(case, Side::Ours), of(case, side)) {
            let ratio = theirs / ours;
            let what = format!("{}: {} / slotmesh", case.name(), side.name());
            row(&what, &format!("{ratio:.2}"), &verdict(ratio >= least, &format!("at least {least}")));
        }
    }
    let routes = |routes| of(Case::http1(routes, 16, 1_000), Side::Ours);
    if let (Some(many), Some(one)) = (routes(ROUTES[2]), routes(ROUTES[0])) {
        let ratio = many / one;
        row("1,000 routes against 1", &format!("{ratio:.2}"), &verdict(ratio <= 1.05, "at most 1.05"));
    }
    Ok(of(usual, Side::Envoy))
}

/// Latency that a proxy adds, at half of what Envoy can do.
fn latency(proxies: &Proxies, envoy: Option<f64>) -> anyhow::Result<()> {
    let usual = Case::http1(ROUTES[1], 16, 1_000);
    let Some(found) = proxies.get(Side::Envoy) else { return Ok(()) };
    let micros = match envoy {
        Some(micros) => micros,
        None => cost(&usual, found)?,
    };
    let per_second = 0.5e6 / micros;
    let time = if is_quick() { Duration::from_secs(1) } else { Duration::from_secs(2) };
    let direct = Load { port: found.ports.http1[0], ..usual.load(found) };
    // Medians of the rounds' quantiles: one round that the machine disturbed doesn't count.
    let mut quantiles = vec![[Vec::new(), Vec::new()]; proxies.0.len() + 1];
    for _ in 0..effort(ROUNDS) {
        let loads = std::iter::once(direct.clone()).chain(proxies.0.iter().map(|proxy| usual.load(proxy)));
        for (load, [p50, p99]) in loads.zip(&mut quantiles) {
            let times = Samples::new(load::paced(load, per_second, time)?);
            p50.push(times.p50());
            p99.push(times.quantile(0.99));
        }
    }
    let quantiles: Vec<[Duration; 2]> =
        quantiles.into_iter().map(|all| all.map(|of| Samples::new(of).p50())).collect();
    let what = format!(
        "Latency that is added, at {per_second:.0} requests a second (half of what Envoy can do), 1 kB, 16 connections"
    );
    report::section(&what);
    row("direct, p50 and p99", &format!("{}, {}", show(quantiles[0][0]), show(quantiles[0][1])), "");
    let added =
        |proxy: usize, quantile: usize| quantiles[proxy + 1][quantile].saturating_sub(quantiles[0][quantile]);
    let place = |side| proxies.0.iter().position(|proxy| proxy.side == side);
    for (index, proxy) in proxies.0.iter().enumerate() {
        let figure = format!("{}, {}", show(added(index, 0)), show(added(index, 1)));
        row(&format!("{} adds, p50 and p99", proxy.side.name()), &figure, "");
    }
    if let (Some(ours), Some(envoy)) = (place(Side::Ours), place(Side::Envoy)) {
        for (quantile, name, most) in [(0, "p50", 0.35), (1, "p99", 0.3)] {
            let ratio = added(ours, quantile).as_secs_f64() / added(envoy, quantile).as_secs_f64();
            let target = verdict(ratio <= most, &format!("at most {most}"));
            row(&format!("{name} of slotmesh against Envoy's"), &format!("{ratio:.2}"), &target);
        }
    }
    Ok(())
}

/// Memory of the processes, and of idle connections.
fn memory(proxies: &Proxies) -> anyhow::Result<()> {
    let each_time = if is_quick() { 500 } else { 1_500 };
    report::section("Memory");
    for proxy in &proxies.0 {
        let size = proxy.memory("VmRSS")?;
        let target = match proxy.side {
            Side::Ours => verdict(size <= 10_000_000, "at most 10 MB"),
            Side::Envoy | Side::Nginx => String::new(),
        };
        let what = format!("{}, resident, without a connection", proxy.side.name());
        row(&what, &format!("{:.1} MB", size as f64 / 1e6), &target);
    }
    for proxy in &proxies.0 {
        let load = Case::http1(ROUTES[1], each_time, 1_000).load(proxy);
        let mut sizes = Vec::new();
        let mut idle = Vec::new();
        for _ in 0..BATCHES {
            idle.push(IdleConnections::open(&load)?);
            std::thread::sleep(SETTLING);
            sizes.push(proxy.memory("RssAnon")?);
        }
        drop(idle);
        // What a burst leaves behind in the allocator is no connection's: the first batch doesn't count.
        let connections = each_time * (BATCHES - 1);
        let each = sizes[BATCHES - 1].saturating_sub(sizes[0]) / connections as u64;
        let target = match proxy.side {
            Side::Ours => verdict(each <= 512, "at most 512 B"),
            Side::Envoy | Side::Nginx => String::new(),
        };
        row(
            &format!("{}, an idle connection of {connections}", proxy.side.name()),
            &format!("{each} B"),
            &target,
        );
    }
    Ok(())
}

/// Waits of a client while another one floods the proxy.
fn flood(proxies: &Proxies) -> anyhow::Result<()> {
    report::section("A client beside one that sends what it can on 256 connections: p99");
    let time = Duration::from_secs(if is_quick() { 1 } else { 2 });
    for proxy in &proxies.0 {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..effort(ROUNDS) {
            let usual = Case::http1(ROUTES[1], 4, 1_000).load(proxy);
            let p99 = || anyhow::Ok(Samples::new(load::gentle(usual.clone(), time)?).quantile(0.99));
            alone.push(p99()?);
            let flood = Load {
                path: "/flood".to_owned(),
                connections: 256,
                from: Ipv4Addr::new(127, 0, 0, 2),
                ..usual.clone()
            };
            let flood = load::start(flood)?;
            std::thread::sleep(WARMING);
            beside.push(p99()?);
            flood.stop()?;
        }
        let (alone, beside) = (Samples::new(alone), Samples::new(beside));
        let ratio = beside.ratio(&alone);
        let target = match proxy.side {
            Side::Ours => verdict(ratio <= 2.0, "at most 2"),
            Side::Envoy | Side::Nginx => String::new(),
        };
        let figure = format!("{}, {}: {ratio:.1}", show(alone.p50()), show(beside.p50()));
        row(&format!("{}: alone, beside, ratio", proxy.side.name()), &figure, &target);
    }
    Ok(())
}
