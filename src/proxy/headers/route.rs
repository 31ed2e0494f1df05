//! The fields that answers of a route carry, whoever made them: its upstream, or the gateway that refuses a request.

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
