//! slotmesh in a cluster, as its owner installs it: the chart by helm, operator and agents as the pods that it
//! makes, on three nodes. The scenarios share the cluster, and follow each other as an owner's days do.

use std::process::ExitCode;

use slotmesh_cluster::scenarios;

mod changes;
mod clocks;
mod crds;
mod faults;
mod hostile;
mod leave;
mod mesh;
mod observe;
#[path = "../shared/panels.rs"]
mod panels;
mod questions;
mod readme;
mod rights;
mod sight;
mod world;

fn main() -> ExitCode {
    scenarios::main(
        3,
        world::prepare,
        &[
            ("the_agent_has_exactly_the_rights_that_the_chart_asks_for", rights::least),
            ("the_five_commands_of_the_readme_make_a_canary", mesh::five_commands),
            ("pods_of_a_labelled_namespace_are_routed_and_no_others", mesh::enrolment),
            ("nodes_and_policies_tell_what_is_in_force", mesh::told),
            ("a_user_asks_by_the_plugin_of_kubectl", observe::commands),
            ("each_question_of_those_on_call_is_answered_by_one_command", questions::asked),
            ("a_node_is_sent_what_its_pods_can_make_use_of", sight::exported),
            ("every_panel_of_the_dashboards_shows_something", observe::dashboards),
            ("an_agent_that_is_replaced_costs_no_connection", faults::agent_replaced),
            ("an_operator_that_is_killed_costs_no_connection", faults::operator_killed),
            ("an_api_server_that_is_away_costs_no_connection", faults::api_server_away),
            ("certificates_that_are_rotated_cost_no_connection", faults::rotated),
            ("peers_that_misbehave_are_refused_and_cost_no_connection", hostile::peers),
            ("a_token_that_expires_costs_no_connection", hostile::token_expired),
            ("a_clock_that_jumps_costs_no_connection", clocks::jump),
            ("a_leader_that_is_killed_leaves_no_status_behind", changes::leader_killed),
            ("ten_thousand_updates_at_once_cost_no_connection", changes::many),
            ("resources_that_are_uninstalled_and_installed_again_cost_no_connection", changes::uninstalled),
            ("a_node_that_is_switched_off_and_on_again_routes_its_pods", faults::node_restarted),
            ("an_upgrade_costs_no_connection", faults::upgraded),
            ("helm_test_says_that_all_is_well", leave::helm_test),
            ("an_uninstall_that_was_given_up_is_undone_by_a_rollback", leave::undone),
            ("an_uninstall_leaves_nothing_on_any_node", leave::uninstall),
        ],
    )
}
