//! Tests of what the compiler makes of objects, by its public interface only.

mod bad_input;
mod budgets;
mod callers;
mod conditions;
mod cost;
mod enrolment;
mod entries;
mod gateway;
mod golden;
mod guards;
mod localities;
mod model;
mod node_ports;
mod origins;
mod policies;
mod profiles;
mod properties;
mod requests;
mod routes;
mod rules;
mod services;
mod support;
mod udp;
