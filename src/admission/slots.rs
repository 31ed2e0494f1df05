//! Requests in flight: the number of requests of each token, and of each route, that this process serves at the same
//! time. This file must not know requests.

use pingora_limits::inflight::{Guard, Inflight};
use smallvec::SmallVec;

use super::reject::Scope;

/// The slots of one request. Dropping them makes room for another.
pub type Slots = SmallVec<[Guard; 2]>;

/// Counts requests in flight.
pub struct InFlight {
    tokens: Inflight,
    routes: Inflight,
}

/// A bound on requests in flight.
#[derive(Clone, Copy)]
pub struct Bound<'a> {
    /// Whether the bound is a token's or a route's.
    pub scope: Scope,
    /// The token's subject or the route's key.
    pub name: &'a str,
    /// The most that may be in flight; `None` for any number.
    pub most: Option<isize>,
}

impl InFlight {
    /// A count of no requests.
    pub fn new() -> Self {
        Self { tokens: Inflight::new(), routes: Inflight::new() }
    }

    /// Takes a slot for a request under each of `bounds` that has a number.
    ///
    /// # Errors
    /// The scope that has no slot left. The slots taken before it are free again.
    pub fn take<'a>(&self, bounds: impl IntoIterator<Item = Bound<'a>>) -> Result<Slots, Scope> {
        let mut slots = Slots::new();
        for Bound { scope, name, most } in bounds {
            let Some(most) = most else { continue };
            let counted = match scope {
                Scope::Token => &self.tokens,
                Scope::Route => &self.routes,
            };
            let (slot, in_flight) = counted.incr(name, 1);
            if in_flight > most {
                return Err(scope);
            }
            slots.push(slot);
        }
        Ok(slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_again_when_its_request_ends_or_is_refused() {
        let in_flight = InFlight::new();
        let token = Bound { scope: Scope::Token, name: "t", most: Some(2) };
        let route = Bound { scope: Scope::Route, name: "r", most: Some(1) };
        let unbounded = Bound { most: None, ..token };
        let first = in_flight.take([token, route]).unwrap();
        for _ in 0..3 {
            assert_eq!(in_flight.take([token, route]).err(), Some(Scope::Route));
        }
        let second = in_flight.take([token]).unwrap();
        assert_eq!(in_flight.take([token, route]).err(), Some(Scope::Token));
        assert!(in_flight.take([unbounded]).unwrap().is_empty());
        drop((first, second));
        assert_eq!(in_flight.take([token, route]).unwrap().len(), 2);
    }
}
