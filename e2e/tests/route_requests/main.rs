//! Requests by their routes, in a cluster: the chart with `proxy.enabled`, operator, agents, brokers and proxies as the
//! pods that it makes.

use std::process::ExitCode;

use slotmesh_cluster::scenarios;

mod decided;
mod observed;
#[path = "../shared/panels.rs"]
mod panels;
mod replaced;
mod rights;
mod world;

fn main() -> ExitCode {
    scenarios::main(
        world::NODES,
        world::prepare,
        &[
            ("broker_and_proxy_have_exactly_the_rights_that_the_chart_asks_for", rights::least),
            ("requests_go_where_their_routes_say", decided::routes),
            ("a_route_that_changes_costs_no_request", decided::changes),
            ("every_panel_of_the_proxys_dashboard_shows_something", observed::dashboard),
            ("a_proxy_that_is_killed_serves_again", replaced::killed),
            ("broker_and_proxy_are_replaced_and_no_request_fails", replaced::upgraded),
        ],
    )
}
