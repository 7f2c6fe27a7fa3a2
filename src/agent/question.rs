//! The dedup key: two jobs with the same key would get the same answer.

use std::num::NonZeroU64;

use super::plan::{Planner, least_thinking};
use crate::{clock::Timestamp, digest::sha256, job::JobRequest};

impl Planner {
    /// A digest of the caller and of all that determines the answer. White space does not count. `None` if the prompt version
    /// does not exist.
    pub fn question(&self, request: &JobRequest, is_waited_for: bool, now: Timestamp) -> Option<NonZeroU64> {
        // Without `..`, so that a new field of requests is considered here.
        let JobRequest {
            query,
            context,
            options,
            model,
            prompt_version,
            depth,
            caller,
            metadata: _,
            callback_url: _,
            callback_events: _,
            request_id: _,
            traceparent: _,
        } = request;
        let prompts = self.prompts.sha256(prompt_version.as_deref())?;
        let words: Vec<&str> = query.split_whitespace().collect();
        let own_models: Vec<&str> = if model.is_some() { Vec::new() } else { self.models.ids().collect() };
        let depth: &str = depth.resolved(is_waited_for).into();
        let effort = self.effort(is_waited_for, false);
        let thinking = least_thinking(self.model_for(request, &[]), effort).filter(|_| is_waited_for);
        let asked = (caller, words, context, options, prompt_version, prompts, now.date());
        let how = (model, own_models, depth, effort.word(), thinking, self.config.max_tokens);
        let [a, b, c, d, e, f, g, h, ..] = sha256(&[&postcard::to_stdvec(&(asked, how)).ok()?]);
        Some(NonZeroU64::new(u64::from_be_bytes([a, b, c, d, e, f, g, h])).unwrap_or(NonZeroU64::MIN))
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::{agent::plan::AgentConfig, claude::price::Prices, config::Effort, job::Depth, prompts::Prompts};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    fn planner(change: impl FnOnce(&mut AgentConfig), fallbacks: &[&str]) -> Planner {
        let prompts = Prompts::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts")).unwrap();
        let mut config = AgentConfig {
            model: "a".to_owned(),
            allowed_models: Vec::new(),
            max_tokens: 1_000,
            effort: Effort::Auto,
            interactive_timeout: Duration::from_secs(60),
            request_timeout: None,
        };
        change(&mut config);
        let fallbacks = fallbacks.iter().map(|id| (*id).to_owned()).collect();
        Planner::new(prompts, config, fallbacks, Prices::new([]))
    }

    fn request() -> JobRequest {
        JobRequest {
            query: "Buy or build?".to_owned(),
            context: Some("We are ten.".to_owned()),
            options: vec!["buy".to_owned(), "build".to_owned()],
            ..JobRequest::default()
        }
    }

    #[test]
    fn what_makes_no_other_answer_makes_no_other_question() {
        let planner = planner(|_| {}, &[]);
        let plain = planner.question(&request(), false, at(0));
        assert!(plain.is_some());
        let mut other = request();
        other.query = "  Buy\n or\tbuild? ".to_owned();
        other.metadata.insert("team".to_owned(), "ops".to_owned());
        other.callback_url = Some("https://example.com/".to_owned());
        other.request_id = Some("r".to_owned());
        other.traceparent = Some("t".to_owned());
        assert_eq!(planner.question(&other, false, at(60)), plain);
    }

    #[test]
    fn whatever_makes_another_answer_makes_another_question() {
        let plain = planner(|_| {}, &[]);
        let asked = |change: fn(&mut JobRequest)| {
            let mut request = request();
            change(&mut request);
            plain.question(&request, false, at(0)).unwrap()
        };
        let all = [
            asked(|_| {}),
            asked(|request| request.query = "Buy or build".to_owned()),
            asked(|request| request.query = "Buyor build?".to_owned()),
            asked(|request| request.context = None),
            asked(|request| request.context = Some("We are  ten.".to_owned())),
            asked(|request| request.options.reverse()),
            asked(|request| request.options = vec!["buybuild".to_owned()]),
            asked(|request| request.model = Some("a".to_owned())),
            asked(|request| request.prompt_version = Some("v1".to_owned())),
            asked(|request| request.caller = Some("alice".to_owned())),
            asked(|request| request.depth = Depth::Brief),
            plain.question(&request(), true, at(0)).unwrap(),
            plain.question(&request(), false, at(24 * 60 * 60)).unwrap(),
            planner(|config| config.max_tokens = 2_000, &[]).question(&request(), false, at(0)).unwrap(),
            planner(|config| config.model = "b".to_owned(), &[]).question(&request(), false, at(0)).unwrap(),
            planner(|_| {}, &["b"]).question(&request(), false, at(0)).unwrap(),
        ];
        let distinct: std::collections::HashSet<NonZeroU64> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
        let same_effort = planner(|config| config.effort = Effort::High, &[]);
        let waited_for = JobRequest { depth: Depth::Full, ..request() };
        assert_eq!(same_effort.question(&waited_for, true, at(0)), same_effort.question(&request(), false, at(0)));
        let unknown = JobRequest { prompt_version: Some("v99".to_owned()), ..request() };
        assert_eq!(plain.question(&unknown, false, at(0)), None);
    }
}
