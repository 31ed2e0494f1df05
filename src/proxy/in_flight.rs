//! Counts the requests that are being served. The shutdown waits for them, and a gauge shows their number.

use std::sync::Arc;

/// The requests that are being served.
#[derive(Debug, Default)]
pub struct RequestsInFlight {
    /// Each request holds a clone, so that the count of references is the count of requests.
    mark: Arc<()>,
}

/// A request that counts as being served until this is dropped.
#[derive(Debug)]
pub struct RequestInFlight {
    _mark: Arc<()>,
}

impl RequestsInFlight {
    /// Counts one more request.
    pub fn begin(&self) -> RequestInFlight {
        RequestInFlight { _mark: Arc::clone(&self.mark) }
    }

    /// How many requests are being served.
    pub fn count(&self) -> usize {
        Arc::strong_count(&self.mark) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_until_it_is_dropped() {
        let requests = RequestsInFlight::default();
        assert_eq!(requests.count(), 0);
        let (first, second) = (requests.begin(), requests.begin());
        assert_eq!(requests.count(), 2);
        drop(first);
        assert_eq!(requests.count(), 1);
        drop(second);
        assert_eq!(requests.count(), 0);
    }
}
