//! The fields that answers of a route carry, whoever made them: its upstream, or the gateway that refuses a request.

use std::sync::Arc;

use http::HeaderMap;

use crate::policy::Route;

/// Sets the fields of an answer of `route` to a request with these fields.
pub fn set_route_fields(answer: &mut HeaderMap, route: &Route, request: &HeaderMap) {
    if let Some(cors) = &route.cors {
        cors.set(answer, request);
    }
    if let Some(deprecated) = &route.deprecated {
        deprecated.set(answer);
    }
}

/// Sets the fields of the answer to a request whose method none of `routes` serves: those of the first route that lets scripts
/// of its origin in.
pub fn set_fields_of_others(answer: &mut HeaderMap, routes: &[Arc<Route>], request: &HeaderMap) {
    let mut rules = routes.iter().filter_map(|route| route.cors.as_ref());
    rules.any(|cors| cors.set(answer, request));
}
