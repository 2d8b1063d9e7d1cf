//! Watches the version that serves, and goes back when its users' ratings fall. Never judges a candidate.
//!
//! A version is held against the one before it, and it and those before it together against the last that was found to
//! be good: where learning publishes faster than people rate, no version alone has ratings enough to be judged.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use super::*;
use crate::gate::{Arm, Watch};
use crate::ledger::{Decides, Sums};

/// Most versions, the newest of a line, that are looked at.
const LINE: usize = 64;
/// Ratings that versions must have together to be found good.
const ENOUGH: u64 = 64;
/// Newest ratings that this is judged by.
const RATINGS: usize = 20_000;
/// Ratings of earlier versions, the newest ones at the start of a watch, that later ones are held against: what people
/// said long ago says less of what they would say now.
const RECENT: usize = 256;

/// The version that serves, if it is watched.
pub(super) struct Watched {
    verdict: StoredVerdict,
    comparisons: Vec<Comparison>,
}

/// Ratings of versions against those of earlier ones.
struct Comparison {
    /// Earlier versions; the last of them serves again if the others fell.
    before: Vec<PolicyVersion>,
    after: Vec<PolicyVersion>,
    watch: Watch,
    /// Probability that it is wrong, over all looks.
    alpha: f64,
    /// The last row of the ledger that was counted.
    heard: u64,
    /// Ratings of the later versions until which a fall is one user's alone.
    doubted: u64,
}

impl Comparison {
    /// Counts new ratings. The reason to go back, if there is one.
    fn look(&mut self, ledger: &Ledger) -> Result<Option<String>> {
        if self.heard == 0 {
            let (watch, heard) = self.counted(ledger, |_| true)?;
            (self.watch, self.heard) = (watch, heard);
        }
        for said in ledger.ratings_of(&self.both(), 0, self.heard, super::trial::ROWS)? {
            self.heard = said.id;
            self.watch.rating(self.arm(&said), said.rating);
        }
        let fell = self.watch.fell(&named(&self.after), &named(&self.before));
        Ok(if fell.is_some() && self.hangs_on_one(ledger)? { None } else { fell })
    }

    fn both(&self) -> Vec<PolicyVersion> {
        [&self.before[..], &self.after].concat()
    }

    fn arm(&self, said: &TrialRating) -> Arm {
        if self.after.contains(&said.version) { Arm::Candidate } else { Arm::Parent }
    }

    /// What the ratings on record say so far, those that are wanted, and the last row of them.
    fn counted(&self, ledger: &Ledger, wanted: impl Fn(&TrialRating) -> bool) -> Result<(Watch, u64)> {
        let (both, mut watch, mut heard) = (self.both(), Watch::new(self.alpha), 0);
        let (mut recent, mut later) = (VecDeque::new(), Vec::new());
        loop {
            let page = ledger.ratings_of(&both, 0, heard, super::trial::ROWS)?;
            let full = page.len() == super::trial::ROWS;
            heard = page.last().map_or(heard, |said| said.id);
            for said in page.iter().filter(|said| wanted(said)) {
                match self.arm(said) {
                    Arm::Candidate if later.len() < RATINGS => later.push(said.rating),
                    Arm::Candidate => {}
                    Arm::Parent => {
                        recent.push_back(said.rating);
                        if recent.len() > RECENT {
                            recent.pop_front();
                        }
                    }
                }
            }
            if !full {
                break;
            }
        }
        recent.into_iter().for_each(|rating| watch.rating(Arm::Parent, rating));
        later.into_iter().for_each(|rating| watch.rating(Arm::Candidate, rating));
        Ok((watch, heard))
    }

    /// Whether the later versions did not fall without the ratings of the user who likes them least. Who gave half of
    /// the earlier ratings, too, is the one who is served here.
    fn hangs_on_one(&mut self, ledger: &Ledger) -> Result<bool> {
        let count = self.watch.means().1.count;
        if count < self.doubted {
            return Ok(true);
        }
        let ratings = ledger.ratings_of(&self.both(), 0, 0, RATINGS)?;
        // Feedback without a user is taken as one user's.
        let who = |said: &TrialRating| said.user.clone().unwrap_or_default();
        let mut users: HashMap<String, (f64, usize)> = HashMap::new();
        let mut earlier = 0;
        for said in &ratings {
            let (later, before) = users.entry(who(said)).or_default();
            match self.arm(said) {
                Arm::Candidate => *later += said.rating,
                Arm::Parent => (*before, earlier) = (*before + 1, earlier + 1),
            }
        }
        let worst = users.into_iter().min_by(|a, b| a.1.0.total_cmp(&b.1.0));
        let Some((worst, (_, theirs))) = worst else { return Ok(false) };
        if 2 * theirs >= earlier {
            return Ok(false);
        }
        let (without, _) = self.counted(ledger, |said| who(said) != worst)?;
        if without.fell("", "").is_some() {
            return Ok(false);
        }
        tracing::info!(after = ?self.after, "ratings fell by one user's alone: nothing is taken back");
        // Not at each look again.
        self.doubted = count + count / 4 + 1;
        Ok(true)
    }
}

fn named(versions: &[PolicyVersion]) -> String {
    match versions {
        [] => "no version".to_owned(),
        [one] => format!("version {one}"),
        [first, .., last] => format!("versions {first} to {last}"),
    }
}

/// Which of a line of versions, oldest first, were last found good: together they have ratings enough, and are rated no
/// worse on average than those that were found good before them. At first that is the oldest. The newest is not asked.
fn good(line: &[Sums]) -> Range<usize> {
    let mean = |of: &Sums| of.sum / of.count as f64;
    let (mut good, mut bar) = (0..1, line.first().copied().unwrap_or_default());
    let mut next = Sums::default();
    for (i, of) in line.iter().enumerate().take(line.len().saturating_sub(1)).skip(1) {
        next = Sums { count: next.count + of.count, sum: next.sum + of.sum, squares: next.squares + of.squares };
        if next.count >= ENOUGH && (bar.count == 0 || mean(&next) >= mean(&bar)) {
            (good, bar, next) = (good.end..i + 1, next, Sums::default());
        }
    }
    good
}

impl Worker {
    /// Watches the active version, if it was promoted and the settings ask for it.
    pub(super) fn begin_watch(&mut self) -> Result<()> {
        self.watched = None;
        if !self.config.gate.watch {
            return Ok(());
        }
        let promoted = self.ledger.verdict_of(self.active)?.filter(|v| v.ruling == Ruling::Promoted);
        let Some(verdict) = promoted else { return Ok(()) };
        let versions = self.ledger.versions()?;
        let known = |v: PolicyVersion| versions.iter().find(|info| info.version == v);
        let mut line: Vec<&VersionInfo> = Vec::new();
        let mut next = known(self.active);
        while let Some(info) = next.filter(|_| line.len() < LINE) {
            line.push(info);
            // What is judged beside another version than the one that it was trained from is held against that.
            let parent = if line.len() == 1 { Some(verdict.parent) } else { info.parent };
            next = parent.and_then(known).filter(|parent| parent.version < info.version);
        }
        line.reverse();
        let observed = self.ledger.observed(RATINGS)?;
        let rated = |info: &&VersionInfo| observed.get(&info.version).map(|o| o.rating).unwrap_or_default();
        let good = good(&line.iter().map(rated).collect::<Vec<_>>());
        let last = line.len().saturating_sub(1);
        let mut pairs = vec![(last.saturating_sub(1)..last, last..last + 1)];
        if good.end < last {
            pairs.push((good.clone(), good.end..last + 1));
        }
        if last == 0 {
            return Ok(());
        }
        let alpha = self.config.gate.alpha / pairs.len() as f64;
        let compare = |(before, after): (Range<usize>, Range<usize>)| {
            let of = |range: Range<usize>| line[range].iter().map(|info| info.version).collect::<Vec<_>>();
            Comparison { before: of(before), after: of(after), watch: Watch::new(alpha), alpha, heard: 0, doubted: 0 }
        };
        self.watched = Some(Watched { verdict, comparisons: pairs.into_iter().map(compare).collect() });
        Ok(())
    }

    /// Counts new ratings, and goes back if they fell.
    pub(super) fn look_back(&mut self) -> Result<()> {
        let Some(watched) = &mut self.watched else { return Ok(()) };
        let mut fallen = None;
        for comparison in &mut watched.comparisons {
            if let Some(reason) = comparison.look(&self.ledger)? {
                // The earliest: what lies between fell, too.
                fallen = Some((comparison.before.last().copied().unwrap_or_default(), reason));
            }
        }
        let Some((target, reason)) = fallen else { return Ok(()) };
        let Some(Watched { verdict, comparisons }) = self.watched.take() else { return Ok(()) };
        let version = self.active;
        tracing::warn!(version = version.0, target = target.0, reason, "rolled back");
        let record = VerdictRecord { reason: reason.clone(), ..VerdictRecord::of(&verdict) };
        self.serve_as(target, None, Decides::Verdict(verdict.id, Ruling::RolledBack, record.json()))?;
        for between in comparisons.iter().flat_map(|c| &c.after).filter(|v| **v > target && **v != version) {
            if let Some(verdict) = self.ledger.verdict_of(*between)?.filter(|v| v.ruling == Ruling::Promoted) {
                self.settle(&verdict, Ruling::RolledBack, &reason)?;
            }
        }
        self.shared.status().rolled_back += 1;
        self.tell(|| News::VersionRolledBack { version, parent: target, reason });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rated(line: &[(u64, f64)]) -> Vec<Sums> {
        line.iter().map(|(count, mean)| Sums { count: *count, sum: mean * *count as f64, squares: 0.0 }).collect()
    }

    #[test]
    fn versions_are_found_good_together_and_the_bar_stays_where_they_are_worse() {
        assert_eq!(good(&rated(&[(40, 0.9), (16, -0.9)])), 0..1);
        // Fifteen versions, each with a few bad ratings: all are held against the first.
        assert_eq!(good(&rated(&[&[(44, 0.9)][..], &[(16, -0.9); 15]].concat())), 0..1);
        // As good as the first, together: the bar moves on with them.
        assert_eq!(good(&rated(&[(40, 0.5), (16, 0.4), (48, 0.6), (16, 0.6), (9, 0.0)])), 1..3);
        // Nobody rated the first.
        assert_eq!(good(&rated(&[(0, 0.0), (30, -0.5), (40, -0.5), (5, 0.0)])), 1..3);
        // The newest is not asked.
        assert_eq!(good(&rated(&[(40, 0.5), (900, 0.9)])), 0..1);
        assert_eq!(good(&rated(&[(40, 0.5)])), 0..1);
    }
}
