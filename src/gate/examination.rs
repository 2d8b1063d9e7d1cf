//! An examination compares the answers of candidate and parent to the same prompts with the same seeds, and decides
//! whether users may see the candidate. Never generates or scores an answer.

use serde::{Deserialize, Serialize};

use super::bounds::Interval;
use crate::types::TokenId;

/// Length of a run of tokens that counts as repetition when it occurs again in the same answer.
const REPEATED: usize = 4;

/// Measurements of one answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Its score by the reward model, command or service; `None` if there is none.
    pub score: Option<f64>,
    /// Whether it reached its token limit.
    pub cut_off: bool,
    /// Its number of tokens.
    pub tokens: usize,
    /// Share of its runs of four tokens that occurred before in it.
    pub repetition: f64,
    /// Log-probability of its tokens under the version that gave it, less that under the initial model, summed, nats.
    pub kl_initial: f64,
    /// The same against the parent; 0 for an answer of the parent.
    pub kl_parent: f64,
    /// Mean entropy at its tokens, nats.
    pub entropy: f64,
    /// Whether it violates the requested format; `None` if none was requested.
    pub malformed: Option<bool>,
}

/// The result of an anchor: a prompt whose answer must pass a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct AnchorResult {
    /// Its name.
    pub name: String,
    /// Whether the candidate's answer passed.
    pub held: bool,
    /// Whether the parent's passed; an anchor that the parent fails too is no reason against the candidate.
    pub held_before: bool,
}

/// The input of an examination.
#[derive(Clone, Debug, Default)]
pub struct Measurements {
    /// For each prompt, the measurements of the parent's answer and of the candidate's.
    pub answers: Vec<(Measured, Measured)>,
    /// Mean log-probability per token of a held-back text under the initial model, the parent and the candidate, nats.
    pub held_back: Option<(f64, f64, f64)>,
    /// The anchors' results.
    pub anchors: Vec<AnchorResult>,
    /// Whether the prompts are the built-in ones since no prompt of a user could be asked.
    pub built_in: bool,
}

/// The limits of a candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// How much lower its mean score may be, in standard deviations of the parent's scores.
    pub margin: f64,
    /// KL to the initial model, nats a response.
    pub kl_initial: f64,
    /// KL to the parent, nats a response.
    pub kl_parent: f64,
    /// How many more of its answers may be cut off, as a share of them.
    pub cut_off: f64,
    /// How many times longer or shorter than the parent's its answers may be.
    pub length: f64,
    /// How much more repetition it may have, as a share of the runs of four tokens.
    pub repetition: f64,
    /// Least share of the parent's entropy that must remain.
    pub entropy: f64,
    /// How much less likely than under the initial model the held-back text may be, nats a token.
    pub held_back: f64,
    /// How many more of its answers may violate their format, as a share of them.
    pub malformed: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            margin: 0.1,
            kl_initial: 40.0,
            kl_parent: 5.0,
            cut_off: 0.2,
            length: 3.0,
            repetition: 0.15,
            entropy: 0.25,
            held_back: 0.5,
            malformed: 0.1,
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Compared {
    /// What is compared.
    pub name: String,
    /// The parent's mean.
    pub parent: f64,
    /// The candidate's mean.
    pub candidate: f64,
    /// The candidate's less the parent's, over the prompts, with a 95% confidence interval.
    pub difference: Interval,
    /// Its limit; none if it only informs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// Whether the limit was crossed.
    pub crossed: bool,
}

/// The outcome of an examination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Shown to be no worse, so it may serve everyone.
    Passed,
    /// It may serve no one.
    Refused,
    /// No limit was crossed, but nothing was shown either: users decide.
    Undecided,
}

/// The report of an examination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Examination {
    /// The outcome.
    pub outcome: Outcome,
    /// The reason, in one sentence.
    pub reason: String,
    /// Prompts that both versions answered.
    pub prompts: usize,
    /// The comparisons.
    pub compared: Vec<Compared>,
    /// The anchors' results.
    pub anchors: Vec<AnchorResult>,
}

/// Judges the measurements. Only the first reason against a candidate is reported.
pub fn examine(measurements: &Measurements, limits: &Limits) -> Examination {
    let answers = &measurements.answers;
    let mut compared = Vec::new();
    let mut line =
        |name: &str, limit: Option<f64>, crossed: &dyn Fn(&Compared) -> bool, of: &dyn Fn(&Measured) -> f64| {
            let pairs: Vec<(f64, f64)> = answers.iter().map(|(p, c)| (of(p), of(c))).collect();
            let mut line = compare(name, &pairs);
            line.limit = limit;
            line.crossed = crossed(&line);
            compared.push(line);
        };
    let one = |yes: bool| f64::from(u8::from(yes));
    // Not `mean > limit`, since NaN must count as over every limit.
    let over = |limit: f64| move |c: &Compared| !at_most(c.candidate, limit);
    let rises = |limit: f64| move |c: &Compared| !at_most(c.difference.lower, limit);
    line("kl_initial", Some(limits.kl_initial), &over(limits.kl_initial), &|m| m.kl_initial);
    line("kl_parent", Some(limits.kl_parent), &over(limits.kl_parent), &|m| m.kl_parent);
    line("cut_off", Some(limits.cut_off), &rises(limits.cut_off), &|m| one(m.cut_off));
    line("repetition", Some(limits.repetition), &rises(limits.repetition), &|m| m.repetition);
    let far = limits.length.ln();
    let length = |c: &Compared| !(c.difference.lower <= far && c.difference.upper >= -far);
    line("log_length", Some(far), &length, &|m| (m.tokens.max(1) as f64).ln());
    let left = |c: &Compared| !at_most(limits.entropy * c.parent, c.candidate);
    line("entropy", Some(limits.entropy), &left, &|m| m.entropy);
    // Of the prompts that ask for a format alone.
    let asked: Vec<(f64, f64)> =
        answers.iter().filter_map(|(p, c)| Some((one(p.malformed?), one(c.malformed?)))).collect();
    if !asked.is_empty() {
        let mut line = Compared { limit: Some(limits.malformed), ..compare("malformed", &asked) };
        line.crossed = rises(limits.malformed)(&line);
        compared.push(line);
    }
    if let Some((initial, parent, candidate)) = measurements.held_back {
        let difference =
            Interval { count: 1, mean: candidate - initial, lower: candidate - initial, upper: candidate - initial };
        compared.push(Compared {
            name: "held_back_logprob".into(),
            parent,
            candidate,
            difference,
            limit: Some(-limits.held_back),
            crossed: !at_most(-limits.held_back, candidate - initial),
        });
    }
    let scored: Vec<(f64, f64)> = answers.iter().filter_map(|(p, c)| Some((p.score?, c.score?))).collect();
    let score = (!scored.is_empty()).then(|| compare("score", &scored));
    let (outcome, mut reason) = decide(measurements, &compared, score.as_ref(), limits);
    if measurements.built_in {
        reason += " (on built-in prompts, as there was none of users to ask)";
    }
    compared.extend(score);
    Examination { outcome, reason, prompts: answers.len(), compared, anchors: measurements.anchors.clone() }
}

/// False for NaN.
fn at_most(value: f64, limit: f64) -> bool {
    value <= limit
}

fn decide(
    measurements: &Measurements,
    compared: &[Compared],
    score: Option<&Compared>,
    limits: &Limits,
) -> (Outcome, String) {
    if let Some(anchor) = measurements.anchors.iter().find(|a| a.held_before && !a.held) {
        return (Outcome::Refused, format!("its answer to the anchor {} no longer holds", anchor.name));
    }
    if let Some(c) = compared.iter().find(|c| c.crossed) {
        let limit = c.limit.unwrap_or_default();
        return (
            Outcome::Refused,
            format!(
                "its {} is {:.3}, the parent's {:.3}: that crosses the limit of {limit:.3}",
                c.name, c.candidate, c.parent
            ),
        );
    }
    let Some(score) = score else {
        return (Outcome::Undecided, "nothing scores its answers; no limit is crossed".into());
    };
    let Interval { mean, lower, upper, .. } = score.difference;
    let margin = limits.margin * deviation(measurements.answers.iter().filter_map(|(parent, _)| parent.score));
    let told = format!("its mean score differs by {mean:+.3} from the parent's, between {lower:+.3} and {upper:+.3}");
    let outcome = if lower > -margin {
        Outcome::Passed
    } else if upper < -margin {
        Outcome::Refused
    } else {
        return (Outcome::Undecided, told + ", which decides nothing");
    };
    (outcome, told)
}

/// Means, and their difference over pairs with Student's 95% interval.
fn compare(name: &str, pairs: &[(f64, f64)]) -> Compared {
    let n = pairs.len() as f64;
    let mean = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n.max(1.0);
    let (parent, candidate) = (mean(&|p| p.0), mean(&|p| p.1));
    let difference = candidate - parent;
    let squares: f64 = pairs.iter().map(|(p, c)| (c - p - difference).powi(2)).sum();
    // A single pair has no spread.
    let margin = if n > 1.0 { student(n - 1.0) * (squares / (n - 1.0) / n).sqrt() } else { f64::INFINITY };
    let (lower, upper) = if n > 1.0 { (difference - margin, difference + margin) } else { (f64::MIN, f64::MAX) };
    let difference = Interval { count: pairs.len() as u64, mean: difference, lower, upper };
    Compared { name: name.into(), parent, candidate, difference, limit: None, crossed: false }
}

/// Standard deviation; 0 for fewer than two values.
fn deviation(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    let n = values.len() as f64;
    if n < 2.0 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

/// The 97.5% point of Student's distribution: Cornish and Fisher's expansion, accurate to a thousandth from 5 degrees
/// of freedom on; below that from a table.
pub fn student(degrees: f64) -> f64 {
    const TABLE: [f64; 4] = [12.706, 4.303, 3.182, 2.776];
    let z = 1.959_964_f64;
    if let Some(exact) = TABLE.get((degrees as usize).saturating_sub(1)) {
        return *exact;
    }
    let (z3, z5, z7, z9) = (z.powi(3), z.powi(5), z.powi(7), z.powi(9));
    z + (z3 + z) / (4.0 * degrees)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * degrees.powi(2))
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * degrees.powi(3))
        + (79.0 * z9 + 776.0 * z7 + 1482.0 * z5 - 1920.0 * z3 - 945.0 * z) / (92160.0 * degrees.powi(4))
}

/// Share of an answer's runs of four tokens that occurred before in it; 0 for an answer of fewer tokens.
pub fn repetition(tokens: &[TokenId]) -> f64 {
    let runs = tokens.windows(REPEATED);
    let count = runs.len();
    if count == 0 {
        return 0.0;
    }
    let distinct = runs.collect::<std::collections::HashSet<_>>().len();
    (count - distinct) as f64 / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(score: f64) -> Measured {
        Measured { score: Some(score), tokens: 40, entropy: 1.5, kl_initial: 3.0, ..Measured::default() }
    }

    fn measurements(of: impl Fn(usize) -> (Measured, Measured)) -> Measurements {
        Measurements { answers: (0..32).map(of).collect(), ..Measurements::default() }
    }

    fn noise(i: usize) -> f64 {
        ((i * 37 % 17) as f64 - 8.0) / 40.0
    }

    #[test]
    fn a_candidate_that_is_better_on_the_same_prompts_passes() {
        let report =
            examine(&measurements(|i| (good(noise(i)), good(noise(i) + 0.1 + noise(i + 5) / 4.0))), &Limits::default());
        assert_eq!(report.outcome, Outcome::Passed, "{}", report.reason);
        assert_eq!(report.prompts, 32);
    }

    #[test]
    fn a_candidate_that_is_worse_is_refused_and_one_that_nobody_can_tell_is_undecided() {
        let worse =
            examine(&measurements(|i| (good(noise(i)), good(noise(i) - 0.3 + noise(i + 5) / 4.0))), &Limits::default());
        assert_eq!(worse.outcome, Outcome::Refused);
        let like = examine(&measurements(|i| (good(noise(i)), good(2.0 * noise(i + 5)))), &Limits::default());
        assert_eq!(like.outcome, Outcome::Undecided, "{}", like.reason);
        let unscored = |i| (Measured { score: None, ..good(noise(i)) }, Measured { score: None, ..good(0.0) });
        assert_eq!(examine(&measurements(unscored), &Limits::default()).outcome, Outcome::Undecided);
    }

    #[test]
    fn each_limit_refuses_whatever_the_score_says() {
        let better = |c: Measured| measurements(move |i| (good(noise(i)), Measured { score: Some(1.0), ..c.clone() }));
        for (name, candidate) in [
            ("kl_initial", Measured { kl_initial: 41.0, ..good(1.0) }),
            ("kl_initial", Measured { kl_initial: f64::NAN, ..good(1.0) }),
            ("kl_parent", Measured { kl_parent: 5.5, ..good(1.0) }),
            ("cut_off", Measured { cut_off: true, ..good(1.0) }),
            ("repetition", Measured { repetition: 0.5, ..good(1.0) }),
            ("log_length", Measured { tokens: 4, ..good(1.0) }),
            ("log_length", Measured { tokens: 400, ..good(1.0) }),
            ("entropy", Measured { entropy: 0.1, ..good(1.0) }),
        ] {
            let report = examine(&better(candidate), &Limits::default());
            assert_eq!(report.outcome, Outcome::Refused, "{name}");
            assert!(report.reason.starts_with(&format!("its {name} is ")), "{}", report.reason);
        }
        // Half of the prompts ask for a format; of those, the candidate's answers no longer have it.
        let asked = |i: usize| (i.is_multiple_of(2)).then_some(false);
        let broken = measurements(|i| {
            let parent = Measured { malformed: asked(i), ..good(noise(i)) };
            (parent, Measured { malformed: asked(i).map(|_| i % 8 != 0), ..good(1.0) })
        });
        let report = examine(&broken, &Limits::default());
        assert_eq!(report.reason, "its malformed is 0.750, the parent's 0.000: that crosses the limit of 0.100");
        let text = Measurements { held_back: Some((-3.0, -3.1, -3.6)), ..better(good(1.0)) };
        assert!(examine(&text, &Limits::default()).reason.starts_with("its held_back_logprob is -3.600"));
    }

    #[test]
    fn an_anchor_that_no_longer_holds_is_a_veto_and_one_that_never_held_is_none() {
        let fine = measurements(|i| (good(noise(i)), good(noise(i) + 0.2)));
        let with = |held, held_before| {
            let anchors = vec![AnchorResult { name: "capital".into(), held, held_before }];
            examine(&Measurements { anchors, ..fine.clone() }, &Limits::default())
        };
        assert_eq!(with(false, true).outcome, Outcome::Refused);
        assert_eq!(with(false, true).reason, "its answer to the anchor capital no longer holds");
        assert_eq!(with(false, false).outcome, Outcome::Passed);
        assert_eq!(with(true, true).outcome, Outcome::Passed);
    }

    #[test]
    fn intervals_are_those_of_students_distribution() {
        for (degrees, exact) in
            [(1.0, 12.706), (4.0, 2.776), (5.0, 2.5706), (10.0, 2.2281), (31.0, 2.0395), (100.0, 1.984)]
        {
            assert!((student(degrees) - exact).abs() < 2e-3, "{degrees}: {}", student(degrees));
        }
        let line = compare("x", &[(0.0, 1.0), (0.0, 2.0), (0.0, 3.0)]);
        // 2 +- 4.303 · 1 / sqrt(3)
        assert!((line.difference.lower - (2.0 - 2.4843)).abs() < 1e-3, "{:?}", line.difference);
    }

    #[test]
    fn repetition_is_the_share_of_runs_that_occurred_before() {
        assert_eq!(repetition(&[1, 2, 3]), 0.0);
        assert_eq!(repetition(&[1, 2, 3, 4, 5]), 0.0);
        assert_eq!(repetition(&[1, 1, 1, 1, 1, 1]), 2.0 / 3.0);
    }
}
