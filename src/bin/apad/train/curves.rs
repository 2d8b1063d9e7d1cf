//! The curves of experiments: the mean over the seeds as a line, and the range from lowest to highest as a band. Reads
//! no file.

use std::path::Path;

use anyhow::{Context, Result};
use apa::experiment::StepRecord;

use super::group::Group;
use crate::plot::{self, Panel, Series};

const SIZE: (u32, u32) = (1440, 460);

/// The figure that a point's coordinate shows.
type Coordinate = fn(&StepRecord) -> Option<f64>;

const SAMPLES: Coordinate = |r| Some(r.samples as f64);
const REWARD: Coordinate = |r| r.reward_mean;
const KL: Coordinate = |r| r.kl_k1_per_response;

/// What [`write`] writes.
pub const FILES: [&str; 2] = ["curves.png", "curves.svg"];

/// Writes `curves.png` and `curves.svg` into `dir`: reward and KL against samples, reward against KL.
pub fn write(dir: &Path, groups: &[Group]) -> Result<()> {
    let panel = |title: &str, x_label: &str, y_label: &str, x: Coordinate, y: Coordinate| Panel {
        title: title.into(),
        x_label: x_label.into(),
        y_label: y_label.into(),
        series: groups.iter().enumerate().flat_map(|(colour, group)| lines(group, colour, x, y)).collect(),
        mark: None,
    };
    let (samples, kl) = ("answers trained on", "KL to the initial model (k1), nats a response");
    let panels = [
        panel("reward", samples, "mean reward of a batch", SAMPLES, REWARD),
        panel("distance", samples, kl, SAMPLES, KL),
        panel("reward and distance", kl, "mean reward of a batch", KL, REWARD),
    ];
    plot::write_png(&dir.join("curves.png"), &panels, panels.len(), SIZE)?;
    let path = dir.join("curves.svg");
    std::fs::write(&path, plot::svg(&panels, panels.len(), SIZE)?)
        .with_context(|| format!("writing {}", path.display()))
}

fn lines(group: &Group, colour: usize, x: Coordinate, y: Coordinate) -> Vec<Series> {
    let points = |records: &[StepRecord]| records.iter().filter_map(|r| Some((x(r)?, y(r)?))).collect();
    let seeds: Vec<Vec<(f64, f64)>> = group.seeds.iter().map(|(_, records)| points(records)).collect();
    let mean = mean_of(&seeds);
    let line = |name: &str, points| Series { name: name.into(), points, colour: Some(colour), ..Series::default() };
    // Where the seeds' points don't share their x, there is no band, and each seed is drawn as a line.
    let band = if seeds.len() > 1 { band_of(&seeds) } else { Some(Vec::new()) };
    match band {
        Some(band) => vec![Series { band, ..line(&group.name, mean) }],
        None => {
            let thin = |points| Series { thin: true, ..line("", points) };
            seeds.into_iter().map(thin).chain([line(&group.name, mean)]).collect()
        }
    }
}

/// The mean point of each step that every seed has reached.
fn mean_of(seeds: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let steps = seeds.iter().map(Vec::len).min().unwrap_or(0);
    let mean = |step: usize| {
        let points = seeds.iter().filter_map(|s| s.get(step));
        let (x, y) = points.fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
        (x / seeds.len() as f64, y / seeds.len() as f64)
    };
    (0..steps).map(mean).collect()
}

/// The least and the greatest y at each x that every seed has; `None` if they don't have the same x.
fn band_of(seeds: &[Vec<(f64, f64)>]) -> Option<Vec<(f64, f64, f64)>> {
    let steps = seeds.iter().map(Vec::len).min().unwrap_or(0);
    let at = |step: usize| {
        let (mut x, mut low, mut high) = (None, f64::INFINITY, f64::NEG_INFINITY);
        for point in seeds.iter().filter_map(|s| s.get(step)) {
            if *x.get_or_insert(point.0) != point.0 {
                return None;
            }
            (low, high) = (low.min(point.1), high.max(point.1));
        }
        Some((x?, low, high))
    };
    (0..steps).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_ends_where_the_shortest_run_does() {
        let seeds = [vec![(16.0, 1.0), (32.0, 2.0), (48.0, 9.0)], vec![(16.0, 3.0), (32.0, 6.0)]];
        assert_eq!(mean_of(&seeds), [(16.0, 2.0), (32.0, 4.0)]);
        assert_eq!(mean_of(&[]), []);
    }

    #[test]
    fn a_band_holds_every_seed_and_needs_one_x() {
        let seeds = [vec![(16.0, 1.0), (32.0, 2.0), (48.0, 9.0)], vec![(16.0, 3.0), (32.0, -6.0)]];
        assert_eq!(band_of(&seeds), Some(vec![(16.0, 1.0, 3.0), (32.0, -6.0, 2.0)]));
        assert_eq!(band_of(&[vec![(1.0, 1.0)], vec![(2.0, 1.0)]]), None);
    }
}
