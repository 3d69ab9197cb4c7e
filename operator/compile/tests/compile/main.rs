//! What the compiler makes of objects, by its public interface only.

mod bad_input;
mod cost;
mod golden;
mod profiles;
mod properties;
mod routes;
mod services;
mod support;
