//! The arithmetic of weighted rendezvous hashing.
//!
//! Each key draws a number for every candidate by hashing, and the least [remoteness] wins. No state is kept: all processes
//! agree. When a candidate leaves, or its weight changes, no key moves between the others.

/// Spreads every bit of `bits` over the result (the last step of SplitMix64).
pub fn mix(bits: u64) -> u64 {
    let bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// How far a key is from a candidate of this weight that drew `drawn`, which is [mixed](mix). With a weight of 0 it is
/// infinitely far.
pub fn remoteness(drawn: u64, weight: f64) -> f64 {
    const STEPS: u64 = 1 << 52;
    // Between 0 and 1, and neither, so that its logarithm is finite and not 0.
    let drawn = ((drawn >> 12) as f64 + 0.5) / STEPS as f64;
    -drawn.ln() / weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_finite_but_for_a_weight_of_zero() {
        for drawn in [0, u64::MAX] {
            let distance = remoteness(drawn, 1.0);
            assert!(distance.is_finite() && distance > 0.0);
            assert_eq!(remoteness(drawn, 0.0), f64::INFINITY);
        }
    }
}
