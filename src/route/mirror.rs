//! Which requests of a route are copied for another upstream. This file must not know how a copy is sent.

use std::time::Duration;

use super::table::serves;

/// The rules of a route about copies.
#[derive(Clone, Debug)]
pub struct Mirror<T> {
    /// The upstream that gets the copies.
    pub upstream: T,
    /// How many of a hundred requests are copied.
    pub percent: u64,
    /// The methods of requests that are copied. `GET` includes `HEAD`.
    pub methods: Vec<String>,
    /// Most copies on their way to the upstream at the same time, in this process.
    pub max_in_flight: isize,
    /// The longest time of a copy, from its connection to the end of its answer.
    pub timeout: Duration,
}

impl<T> Mirror<T> {
    /// Whether a request with `method` is copied; `dice` gives a number below 100.
    pub fn copies(&self, method: &str, dice: impl FnOnce() -> u64) -> bool {
        serves(&self.methods, method) && (self.percent >= 100 || dice() < self.percent)
    }

    /// The same rules for another kind of upstream.
    pub fn map<U>(self, with: impl FnOnce(T) -> U) -> Mirror<U> {
        let Self { upstream, percent, methods, max_in_flight, timeout } = self;
        Mirror { upstream: with(upstream), percent, methods, max_in_flight, timeout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_and_the_dice_decide() {
        let mirror = |percent| Mirror {
            upstream: (),
            percent,
            methods: vec!["GET".into(), "PUT".into()],
            max_in_flight: 1,
            timeout: Duration::ZERO,
        };
        for (percent, method, dice, copies) in [
            (10, "GET", 9, true),
            (10, "GET", 10, false),
            (10, "HEAD", 0, true),
            (100, "PUT", 99, true),
            (100, "POST", 0, false),
        ] {
            assert_eq!(
                mirror(percent).copies(method, || dice),
                copies,
                "{percent} {method} {dice}"
            );
        }
    }
}
