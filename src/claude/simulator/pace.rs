//! How long Claude takes for an answer, as real memos took. The same question always takes as long, so a load test knows
//! which questions could have been answered.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const FIRST_TOKEN: Duration = Duration::from_millis(1_200);

const TOKENS_PER_SECOND: f64 = 90.0;

const BRIEF: Range<f64> = 700.0..900.0;
const FULL: Range<f64> = 1_300.0..3_700.0;

/// A brief memo with many options, or in Chinese, may be longer. Above this many tokens its own length counts.
const LONG_BRIEF: u64 = 1_100;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    pub first: Duration,
    pub thinking: Duration,
    /// From the first token of the text to the last.
    pub writing: Duration,
}

impl Timing {
    /// What Claude takes for `question`, thinking as it is asked to.
    pub fn of(question: &str, is_brief: bool, effort: Option<&str>, thinking: Option<&str>) -> Timing {
        let mut hasher = DefaultHasher::new();
        question.trim().hash(&mut hasher);
        let mut random = StdRng::seed_from_u64(hasher.finish());
        let (length, thought): (f64, f64) = (random.random(), random.random());
        let seconds = match (thinking, effort) {
            (Some("between_tools" | "disabled"), _) => 0.0..1.0,
            (_, Some("low")) => 1.0..4.0,
            (_, Some("medium")) => 3.0..12.0,
            (_, Some("xhigh" | "max")) => 10.0..90.0,
            _ => 5.0..45.0,
        };
        // Few memos are very long, and few thoughts.
        let tokens = if is_brief { at(&BRIEF, length) } else { at(&FULL, length.powf(1.5)) };
        Timing {
            first: FIRST_TOKEN,
            thinking: Duration::from_secs_f64(at(&seconds, thought * thought)),
            writing: Duration::from_secs_f64(tokens / TOKENS_PER_SECOND),
        }
    }

    pub(super) fn with_length(self, tokens: u64) -> Timing {
        let writing = Duration::from_secs_f64(tokens as f64 / TOKENS_PER_SECOND);
        if tokens > LONG_BRIEF { Timing { writing, ..self } } else { self }
    }

    pub fn total(&self) -> Duration {
        self.first + self.thinking + self.writing
    }

    pub(super) fn tokens(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
        {
            ((self.thinking + self.writing).as_secs_f64() * TOKENS_PER_SECOND).round() as u64
        }
    }
}

fn at(range: &Range<f64>, part: f64) -> f64 {
    range.start + (range.end - range.start) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_always_takes_as_long_and_others_differ_within_what_real_memos_took() {
        let brief = |n: u32| Timing::of(&format!("question {n}"), true, Some("low"), Some("between_tools"));
        assert_eq!(brief(1), brief(1));
        let seconds: Vec<f64> = (0..200).map(|n| brief(n).total().as_secs_f64()).collect();
        assert!(seconds.iter().all(|seconds| (8.9..12.3).contains(seconds)), "{seconds:?}");
        let mean = seconds.iter().sum::<f64>() / 200.0;
        assert!((10.0..11.0).contains(&mean), "{mean}");
        assert_eq!(brief(1).with_length(900), brief(1));
        assert_eq!(brief(1).with_length(1_350).writing, Duration::from_secs(15), "with many options");
        let full = Timing::of("question 1", false, Some("high"), None);
        assert!(full.thinking >= Duration::from_secs(5) && full.writing >= Duration::from_secs(14), "{full:?}");
    }
}
