//! Reads whole numbers of JSON. Knows no field and no range.

use serde_json::Value;

/// A whole number from 0 on, in any notation: in many languages all numbers are floats.
pub fn whole(value: &Value) -> Option<u64> {
    // 2^64, the first that doesn't fit.
    let float = |x: &f64| x.fract() == 0.0 && (0.0..u64::MAX as f64).contains(x);
    value.as_u64().or_else(|| value.as_f64().filter(float).map(|x| x as u64))
}
