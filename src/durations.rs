//! Histograms of durations. Measures and decides nothing itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets, in seconds; one more bucket counts longer durations.
pub const BOUNDS_SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24];

/// A histogram of durations since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Durations {
    /// Number of durations in each bucket: at most [`BOUNDS_SECONDS`], and above the bound before; the last bucket is
    /// above all bounds.
    pub counts: [u64; BOUNDS_SECONDS.len() + 1],
    /// Sum of the durations, in seconds.
    pub sum_seconds: f64,
}

impl Durations {
    /// Number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Counts durations into buckets, from any thread.
#[derive(Default)]
pub(crate) struct Meter {
    counts: [AtomicU64; BOUNDS_SECONDS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Meter {
    /// Counts one.
    pub(crate) fn add(&self, time: Duration) {
        let bucket = BOUNDS_SECONDS.partition_point(|bound| *bound < time.as_secs_f64());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What was counted so far.
    pub(crate) fn read(&self) -> Durations {
        Durations {
            counts: std::array::from_fn(|i| self.counts[i].load(Ordering::Relaxed)),
            sum_seconds: self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_counted_once_in_its_bucket() {
        let meter = Meter::default();
        for milliseconds in [0, 5, 6, 20_000] {
            meter.add(Duration::from_millis(milliseconds));
        }
        let read = meter.read();
        assert_eq!((read.counts[0], read.counts[3], read.counts[4], read.counts[15]), (1, 1, 1, 1));
        assert_eq!(read.count(), 4);
        assert!((read.sum_seconds - 20.011).abs() < 1e-9);
    }
}
