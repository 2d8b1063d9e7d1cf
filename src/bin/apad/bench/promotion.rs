//! `apad bench promotion`: simulates users to measure what trials decide about candidates whose effect is known. Never
//! runs a model.

use anyhow::{Result, bail};
use apa::gate::{Arm, Fate, Plan, Standing, Trial};
use clap::Args;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::json;

/// Mean thumbs that users give a parent's answers.
const BASES: [f64; 3] = [0.0, 0.5, 0.8];
/// Differences of the candidate's mean.
const EFFECTS: [f64; 3] = [-0.2, 0.0, 0.2];
/// How much users differ from each other, whatever version answers.
const TEMPER: f64 = 0.2;
/// Number of users; each always gets the same version.
const USERS: usize = 400;
/// Share of the answers that are rated.
const RATED: f64 = 0.5;

/// Simulate promotions of candidates whose effect is known
#[derive(Args)]
#[command(after_help = "\
Example:
  apad bench promotion --json

Each candidate is tried on 400 users who give thumbs, half of the answers rated, until it is promoted, refused, or
2,000 ratings are in. Exit code 1 if what is promised of a trial does not hold: of candidates worse by 0.2 at most 1%
are promoted, and of those better by 0.2 at least 90%.")]
pub struct Options {
    /// Candidates of each kind
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    candidates: u32,
    /// Seed of the first candidate's dice
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON line a kind
    #[arg(long)]
    json: bool,
}

/// What became of the candidates of a kind.
#[derive(Default)]
struct Tally {
    promoted: u32,
    refused: u32,
    ended: u32,
    /// Reached the second share.
    advanced: u32,
    ratings: u64,
}

pub async fn run(options: Options) -> Result<()> {
    tokio::task::spawn_blocking(move || simulate(&options)).await?
}

fn simulate(options: &Options) -> Result<()> {
    let (mut kept, all) = (true, f64::from(options.candidates));
    if !options.json {
        println!("parent  effect  promoted  refused  undecided  beyond 5%  ratings (mean)");
    }
    for base in BASES {
        for effect in EFFECTS {
            let ends: Vec<(Standing, f64, u64)> = (0..u64::from(options.candidates))
                .into_par_iter()
                .map(|candidate| hold(options.seed.wrapping_add(candidate), base, effect))
                .collect();
            let mut tally = Tally::default();
            for (standing, share, ratings) in ends {
                match standing {
                    Standing::Better => tally.promoted += 1,
                    Standing::Worse => tally.refused += 1,
                    Standing::Ended | Standing::Open => tally.ended += 1,
                }
                tally.advanced += u32::from(share > 0.05);
                tally.ratings += ratings;
            }
            let share = |count: u32| f64::from(count) / all;
            kept &= match effect {
                e if e < 0.0 => share(tally.promoted) <= 0.01,
                // Above a parent that nearly everyone likes there is no room for that effect.
                e if e > 0.0 && base + e <= 0.9 => share(tally.promoted) >= 0.9,
                _ => true,
            };
            let mean = tally.ratings as f64 / all;
            if options.json {
                let line = json!({
                    "parent": base, "effect": effect, "promoted": share(tally.promoted),
                    "refused": share(tally.refused), "undecided": share(tally.ended),
                    "advanced": share(tally.advanced), "ratings": mean,
                });
                println!("{line}");
            } else {
                println!(
                    "{base:6.1} {effect:+7.1} {:8.1}% {:7.1}% {:9.1}% {:9.1}% {mean:10.0}",
                    100.0 * share(tally.promoted),
                    100.0 * share(tally.refused),
                    100.0 * share(tally.ended),
                    100.0 * share(tally.advanced)
                );
            }
        }
    }
    if !kept {
        bail!("trials did not keep what is promised of them");
    }
    Ok(())
}

/// Runs a trial to its end: the outcome, the share it reached, and the number of ratings.
fn hold(seed: u64, base: f64, effect: f64) -> (Standing, f64, u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut trial = Trial::new(Plan::default());
    // A user gets the candidate if the share is above the user's number.
    let users: Vec<(f64, f64)> =
        (0..USERS).map(|_| (rng.random_range(0.0..1.0), rng.random_range(-TEMPER..TEMPER))).collect();
    loop {
        let record = trial.look(0.0);
        if record.standing != Standing::Open {
            return (record.standing, record.share, record.parent_ratings + record.candidate_ratings);
        }
        let (number, temper) = users.get(rng.random_range(0..USERS)).copied().unwrap_or_default();
        let arm = if number < trial.share() { Arm::Candidate } else { Arm::Parent };
        let rated = rng.random_bool(RATED);
        trial.answer(arm, Fate { rated, ..Fate::default() });
        if rated {
            let mean = base + temper + if arm == Arm::Candidate { effect } else { 0.0 };
            trial.rating(arm, if rng.random_range(-1.0..1.0) < mean { 1.0 } else { -1.0 });
        }
    }
}
