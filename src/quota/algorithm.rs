//! Fixed windows as arithmetic. The Redis script in `store/redis/scripts` computes the same.

use std::time::Duration;

use crate::clock::UnixTime;

/// When the window that holds `now` ends. Windows are multiples of `window` since the epoch.
pub fn window_end(now: UnixTime, window: Duration) -> UnixTime {
    let length = u64::try_from(window.as_micros()).unwrap_or(u64::MAX).max(1);
    let start = now.as_micros() - now.as_micros() % length;
    UnixTime::from_micros(start.saturating_add(length))
}

/// How many of `wanted` a subject may take when its windows stand at `(quota, used)`.
pub fn grantable(wanted: u64, windows: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    windows.into_iter().fold(wanted, |grant, (quota, used)| grant.min(quota.saturating_sub(used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_align_to_the_epoch() {
        let minute = Duration::from_secs(60);
        let end = |micros| window_end(UnixTime::from_micros(micros), minute).as_micros();
        assert_eq!(end(0), 60_000_000);
        assert_eq!(end(59_999_999), 60_000_000);
        assert_eq!(end(60_000_000), 120_000_000);
    }

    #[test]
    fn a_grant_fits_every_window() {
        assert_eq!(grantable(5, [(10, 0), (3, 1)]), 2);
        assert_eq!(grantable(5, [(10, 12)]), 0);
        assert_eq!(grantable(5, []), 5);
    }
}
