//! Ranges of values: the check, and its wording in errors. Never knows a setting.

use std::fmt;
use std::ops::{Bound, RangeBounds, RangeInclusive};

/// The values that a setting takes.
#[derive(Clone, Debug)]
pub(super) enum Range {
    /// Every value of the type.
    Any,
    /// Whole numbers, both ends included.
    Whole(i128, i128),
    /// Finite numbers between bounds; each of them in a list.
    Number(Bound<f64>, Bound<f64>),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Text of a form: its description, and a function that returns the part that is wrong.
    Text(&'static str, fn(&str) -> Option<&str>),
}

/// Whole numbers from the first to the last.
pub(super) fn whole<T: Into<i128>>(range: RangeInclusive<T>) -> Range {
    let (low, high) = range.into_inner();
    Range::Whole(low.into(), high.into())
}

/// Numbers larger than `low`.
pub(super) fn above(low: f64) -> Range {
    Range::Number(Bound::Excluded(low), Bound::Unbounded)
}

/// Numbers of `low` or more.
pub(super) fn at_least(low: f64) -> Range {
    Range::Number(Bound::Included(low), Bound::Unbounded)
}

/// Numbers from `low` to `high`, both included.
pub(super) fn from_to(low: f64, high: f64) -> Range {
    Range::Number(Bound::Included(low), Bound::Included(high))
}

/// Numbers above `low` up to `high`, which is included.
pub(super) fn above_to(low: f64, high: f64) -> Range {
    Range::Number(Bound::Excluded(low), Bound::Included(high))
}

/// Numbers from `low`, which is included, to below `high`.
pub(super) fn from_below(low: f64, high: f64) -> Range {
    Range::Number(Bound::Included(low), Bound::Excluded(high))
}

/// A value to be checked. JSON can't express numbers that aren't finite.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given<'a> {
    Flag,
    Whole(i128),
    Numbers(&'a [f64]),
    Text(&'a str),
    Unset,
}

impl Range {
    /// The value as an error shows it, if it is out of range.
    pub(super) fn refuse(&self, given: Given) -> Option<String> {
        match (self, given) {
            (Range::Whole(low, high), Given::Whole(n)) => (!(*low..=*high).contains(&n)).then(|| n.to_string()),
            (Range::Number(low, high), Given::Numbers(numbers)) => {
                let fits = numbers.iter().all(|n| n.is_finite() && (*low, *high).contains(n));
                (!fits).then(|| match numbers {
                    [number] => number.to_string(),
                    list => format!("{list:?}"),
                })
            }
            (Range::OneOf(words), Given::Text(text)) => (!words.contains(&text)).then(|| format!("{text:?}")),
            (Range::Text(_, wrong), Given::Text(text)) => wrong(text).map(|part| match part {
                "" => "empty".to_owned(),
                part => format!("{part:?}"),
            }),
            _ => None,
        }
    }

    /// What an error says was expected: `a whole number from 1 to 256`.
    pub(super) fn expected(&self, kind: &str) -> String {
        let range = self.to_string();
        match self {
            Range::Any => kind.to_owned(),
            Range::OneOf(_) | Range::Text(..) => range,
            Range::Whole(..) | Range::Number(..) if range.contains(" to ") => format!("{kind} from {range}"),
            Range::Whole(..) | Range::Number(..) if range.contains(" or more") => format!("{kind} of {range}"),
            Range::Whole(..) | Range::Number(..) => format!("{kind} {range}"),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Range::Any => f.write_str("any"),
            // The maximum of the type, which nobody reaches.
            Range::Whole(low, high) if *high >= i32::MAX.into() => write!(f, "{low} or more"),
            Range::Whole(low, high) => write!(f, "{low} to {high}"),
            Range::Number(Bound::Included(low), Bound::Included(high)) => write!(f, "{low} to {high}"),
            Range::Number(low, high) => {
                match low {
                    Bound::Included(low) => write!(f, "{low} or more")?,
                    Bound::Excluded(low) => write!(f, "above {low}")?,
                    Bound::Unbounded => f.write_str("any")?,
                }
                match high {
                    Bound::Included(high) => write!(f, ", at most {high}"),
                    Bound::Excluded(high) => write!(f, ", below {high}"),
                    Bound::Unbounded => Ok(()),
                }
            }
            Range::OneOf(words) => match words {
                [first @ .., last] if !first.is_empty() => write!(f, "{} or {last}", first.join(", ")),
                words => f.write_str(&words.join(", ")),
            },
            Range::Text(expected, _) => f.write_str(expected),
        }
    }
}
