//! A trial: a candidate answers a share of the users, and their ratings of both versions decide. Holds no clock, asks
//! nobody, and never serves anything.

use serde::{Deserialize, Serialize};

use super::bounds::{Arm, Difference, Interval};

/// A candidate whose mean rating is lower by this much so far gets no more users, even if it may be chance.
const DOUBT: f64 = 0.25;

/// The parameters of a trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Shares of the users that get the candidate, in order.
    pub shares: Vec<f64>,
    /// Comparisons before the next share.
    pub least: u64,
    /// How much lower the candidate's mean rating may be for promotion, in ratings from -1 to 1.
    pub margin: f64,
    /// How much more often its answers may be regenerated or corrected, or how much less often rated, as a share of the
    /// answers.
    pub rate_margin: f64,
    /// Probability that a candidate worse by more than the margin is promoted, over all looks.
    pub alpha: f64,
    /// Ratings of both versions after which the trial ends undecided.
    pub most_ratings: u64,
    /// Hours after which the trial ends undecided.
    pub most_hours: f64,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            shares: vec![0.05, 0.25],
            least: 6,
            margin: 0.1,
            rate_margin: 0.05,
            alpha: 0.01,
            most_ratings: 2000,
            most_hours: 168.0,
        }
    }
}

/// What users did with an answer, reported once they have had time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// It was rated.
    pub rated: bool,
    /// A user asked for another one instead.
    pub regenerated: bool,
    /// A user corrected it.
    pub corrected: bool,
}

/// The state of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Undecided so far.
    Open,
    /// The candidate replaces its parent.
    Better,
    /// The candidate is worse.
    Worse,
    /// Its time or its ratings are over without a decision.
    Ended,
}

/// The observations of a trial, for the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct TrialRecord {
    /// Its state.
    pub standing: Standing,
    /// The reason, in one sentence.
    pub reason: String,
    /// Share of the users that get the candidate.
    pub share: f64,
    /// Ratings of the parent's answers.
    pub parent_ratings: u64,
    /// Ratings of the candidate's.
    pub candidate_ratings: u64,
    /// The candidate's mean rating less the parent's; `count` is the number of comparisons.
    pub rating: Interval,
    /// The candidate's share of rated answers less the parent's.
    pub rated: Interval,
    /// The candidate's share of regenerated answers less the parent's.
    pub regenerated: Interval,
    /// The candidate's share of corrected answers less the parent's.
    pub corrected: Interval,
}

/// A candidate on trial beside its parent.
#[derive(Clone, Debug)]
pub struct Trial {
    plan: Plan,
    step: usize,
    ratings: (u64, u64),
    rating: Difference,
    rated: Difference,
    regenerated: Difference,
    corrected: Difference,
}

impl Trial {
    /// Starts without observations.
    pub fn new(plan: Plan) -> Trial {
        let alpha = plan.alpha;
        let rate = || Difference::new(1.0, alpha);
        let (rating, rated, regenerated, corrected) = (Difference::new(2.0, alpha), rate(), rate(), rate());
        Trial { plan, step: 0, ratings: (0, 0), rating, rated, regenerated, corrected }
    }

    /// Share of the users that get the candidate.
    pub fn share(&self) -> f64 {
        self.plan.shares.get(self.step).copied().unwrap_or(0.0)
    }

    /// Adds a rating, in the order in which they came. Moves to the next share after enough comparisons, if nothing
    /// speaks against it.
    pub fn rating(&mut self, arm: Arm, value: f64) {
        match arm {
            Arm::Parent => self.ratings.0 += 1,
            Arm::Candidate => self.ratings.1 += 1,
        }
        self.rating.observe(arm, value);
        let seen = self.rating.interval();
        let due = self.plan.least.saturating_mul(self.step as u64 + 1);
        if seen.count >= due && seen.mean > -DOUBT && self.step + 1 < self.plan.shares.len() {
            self.step += 1;
        }
    }

    /// Adds what users did with an answer.
    pub fn answer(&mut self, arm: Arm, fate: Fate) {
        let one = |yes: bool| f64::from(u8::from(yes));
        self.rated.observe(arm, one(fate.rated));
        self.regenerated.observe(arm, one(fate.regenerated));
        self.corrected.observe(arm, one(fate.corrected));
    }

    /// The state `hours` after the start.
    pub fn look(&self, hours: f64) -> TrialRecord {
        let (standing, reason) = self.standing(hours);
        TrialRecord {
            standing,
            reason,
            share: self.share(),
            parent_ratings: self.ratings.0,
            candidate_ratings: self.ratings.1,
            rating: self.rating.interval(),
            rated: self.rated.interval(),
            regenerated: self.regenerated.interval(),
            corrected: self.corrected.interval(),
        }
    }

    fn standing(&self, hours: f64) -> (Standing, String) {
        let Plan { margin, rate_margin, most_ratings, most_hours, .. } = &self.plan;
        let rating = self.rating.interval();
        if rating.upper < 0.0 {
            return (Standing::Worse, format!("its mean rating is lower by {:.2} at least", -rating.upper));
        }
        let rated = self.rated.interval();
        if rated.upper < -rate_margin {
            let less = 100.0 * -rated.upper;
            return (Standing::Worse, format!("its answers are rated less often, by {less:.1}% of them at least"));
        }
        for (what, rate) in [("regenerated", &self.regenerated), ("corrected", &self.corrected)] {
            let lower = rate.interval().lower;
            if lower > *rate_margin {
                let more = 100.0 * lower;
                return (Standing::Worse, format!("its answers are {what} more often, by {more:.1}% of them at least"));
            }
        }
        // Only at the last share: few users never decide for all.
        if self.step + 1 >= self.plan.shares.len() && rating.lower > -margin {
            let (mean, lower) = (rating.mean, rating.lower);
            return (Standing::Better, format!("its mean rating differs by {mean:+.2}, by {lower:+.2} at least"));
        }
        let ratings = self.ratings.0 + self.ratings.1;
        if ratings >= *most_ratings {
            return (
                Standing::Ended,
                format!("{ratings} ratings showed neither that it is better nor that it is worse"),
            );
        }
        if hours >= *most_hours {
            return (
                Standing::Ended,
                format!("{hours:.0} hours showed neither that it is better nor that it is worse"),
            );
        }
        (Standing::Open, "ratings of both versions are being compared".into())
    }
}

/// Compares the ratings of promoted versions with those of versions they replaced. The latter come from the record, so
/// hours and users may differ, and only a fall beyond chance counts.
#[derive(Clone, Debug)]
pub struct Watch {
    before: super::bounds::MeanBounds,
    since: super::bounds::MeanBounds,
}

impl Watch {
    /// Starts without observations; wrong with probability `alpha` at most, over all looks.
    pub fn new(alpha: f64) -> Watch {
        let bounds = || super::bounds::MeanBounds::new(-1.0, 1.0, alpha / 2.0);
        Watch { before: bounds(), since: bounds() }
    }

    /// Adds a rating of the version before, or of the watched one.
    pub fn rating(&mut self, arm: Arm, value: f64) {
        match arm {
            Arm::Parent => self.before.observe(value),
            Arm::Candidate => self.since.observe(value),
        }
    }

    /// Both means: of the version before, and of the watched one.
    pub fn means(&self) -> (Interval, Interval) {
        (self.before.interval(), self.since.interval())
    }

    /// The reason to roll back, if the watched versions fell. Both are named as they are to be called.
    pub fn fell(&self, watched: &str, earlier: &str) -> Option<String> {
        let (before, since) = self.means();
        // Bounds that their own mean contradicts hold nothing: the ratings drifted.
        let drifted = before.mean < before.lower || since.mean > since.upper;
        (since.upper < before.lower && !drifted).then(|| {
            format!(
                "the mean rating of {watched} is {:.2} at most ({} ratings), that of {earlier} {:.2} at least ({} \
                 ratings)",
                since.upper, since.count, before.lower, before.count
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Thumbs from many users, at the shares that the trial chooses.
    fn hold(seed: u64, base: f64, effect: f64) -> TrialRecord {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut trial = Trial::new(Plan::default());
        loop {
            let record = trial.look(0.0);
            if record.standing != Standing::Open {
                return record;
            }
            let (arm, mean) =
                if rng.random_bool(trial.share()) { (Arm::Candidate, base + effect) } else { (Arm::Parent, base) };
            trial.rating(arm, if rng.random_range(-1.0..1.0) < mean { 1.0 } else { -1.0 });
        }
    }

    #[test]
    fn a_candidate_that_is_worse_by_a_fifth_is_never_promoted() {
        let promoted = (0..40).filter(|seed| hold(*seed, 0.5, -0.2).standing == Standing::Better).count();
        assert_eq!(promoted, 0);
    }

    #[test]
    fn a_candidate_that_is_better_by_a_fifth_is_promoted_within_two_thousand_ratings() {
        let promoted = (0..40).filter(|seed| hold(*seed, 0.5, 0.2).standing == Standing::Better).count();
        assert!(promoted >= 36, "{promoted} of 40");
    }

    #[test]
    fn a_candidate_like_its_parent_ends_undecided() {
        let ended = (0..20).filter(|seed| hold(*seed, 0.5, 0.0).standing == Standing::Ended).count();
        assert!(ended >= 15, "{ended} of 20");
    }

    #[test]
    fn a_harmful_candidate_is_refused_at_the_first_share() {
        let mut trial = Trial::new(Plan::default());
        for _ in 0..40 {
            trial.rating(Arm::Parent, 1.0);
            trial.rating(Arm::Candidate, -1.0);
        }
        let record = trial.look(0.0);
        assert_eq!((record.standing, record.share), (Standing::Worse, 0.05), "{record:?}");
        assert!(record.reason.starts_with("its mean rating is lower by"), "{}", record.reason);
    }

    #[test]
    fn answers_that_are_regenerated_more_often_decide_without_a_rating() {
        let mut trial = Trial::new(Plan::default());
        for _ in 0..200 {
            trial.answer(Arm::Parent, Fate::default());
            trial.answer(Arm::Candidate, Fate { regenerated: true, ..Fate::default() });
        }
        let record = trial.look(0.0);
        assert_eq!(record.standing, Standing::Worse);
        assert!(record.reason.contains("regenerated more often"), "{}", record.reason);
    }

    #[test]
    fn time_ends_a_trial_that_nobody_rates() {
        assert_eq!(Trial::new(Plan::default()).look(167.0).standing, Standing::Open);
        assert_eq!(Trial::new(Plan::default()).look(168.0).standing, Standing::Ended);
    }

    #[test]
    fn a_fall_after_the_promotion_is_seen_and_chance_is_not() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut thumb = |mean: f64| if rng.random_range(-1.0..1.0) < mean { 1.0 } else { -1.0 };
        let mut watch = Watch::new(0.01);
        (0..500).for_each(|_| watch.rating(Arm::Parent, thumb(0.6)));
        (0..500).for_each(|_| watch.rating(Arm::Candidate, thumb(0.6)));
        assert_eq!(watch.fell("version 2", "version 1"), None);
        (0..500).for_each(|_| watch.rating(Arm::Candidate, thumb(-0.4)));
        assert!(watch.fell("version 2", "version 1").unwrap().starts_with("the mean rating of version 2 is"));
    }
}
