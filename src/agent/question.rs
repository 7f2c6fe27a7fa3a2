//! When two jobs ask the same: if the answer to one would do for the other.

use std::num::NonZeroU64;

use super::{Agent, plan::least_thinking};
use crate::{clock::Timestamp, digest::sha256, job::JobRequest};

/// A day as prompts have it, in UTC.
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

impl Agent {
    /// A digest of who asks and of all that makes the answer: the question, the prompts as they are loaded now, the day
    /// that they name, and how Claude is asked. Questions that differ in white space alone are the same. None if there
    /// are no such prompts.
    pub fn question(&self, request: &JobRequest, is_waited_for: bool, now: Timestamp) -> Option<NonZeroU64> {
        // Without `..`, so that a field added to requests is considered here: it may make another question of them.
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
        let mut parts = Parts(Vec::with_capacity(512 + query.len() + context.as_ref().map_or(0, String::len)));
        parts.add(caller.as_deref());
        let start = parts.0.len();
        for word in query.split_whitespace() {
            parts.0.extend_from_slice(word.as_bytes());
            parts.0.push(b' ');
        }
        parts.end(start);
        parts.add(context.as_deref());
        options.iter().for_each(|option| parts.add(Some(option)));
        parts.add(None);
        parts.add(prompt_version.as_deref());
        parts.add(Some(&prompts));
        parts.0.extend_from_slice(&now.as_millis().div_euclid(DAY_MS).to_be_bytes());
        match model {
            Some(model) => parts.add(Some(model)),
            None => {
                parts.add(None);
                self.models().for_each(|model| parts.add(Some(model)));
                parts.add(None);
            }
        }
        parts.add(Some(depth.resolved(is_waited_for).into()));
        let effort = self.effort(is_waited_for, false);
        parts.add(effort.word());
        parts.add(least_thinking(self.model_for(request, &[]), effort).filter(|_| is_waited_for));
        parts.0.extend_from_slice(&self.config.max_tokens.to_be_bytes());
        let [a, b, c, d, e, f, g, h, ..] = sha256(&[&parts.0]);
        Some(NonZeroU64::new(u64::from_be_bytes([a, b, c, d, e, f, g, h])).unwrap_or(NonZeroU64::MIN))
    }
}

/// Texts one after the other, none of which can be taken for a piece of another.
struct Parts(Vec<u8>);

impl Parts {
    /// One text, or that there is none (more).
    fn add(&mut self, text: Option<&str>) {
        let start = self.0.len();
        match text {
            Some(text) => {
                self.0.extend_from_slice(text.as_bytes());
                self.end(start);
            }
            None => self.0.extend_from_slice(&u64::MAX.to_be_bytes()),
        }
    }

    /// Ends the text that began at `start`, with its length.
    fn end(&mut self, start: usize) {
        let length = (self.0.len() - start) as u64;
        self.0.extend_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use secrecy::SecretString;

    use super::*;
    use crate::{
        agent::AgentConfig,
        claude::{Claude, ClientConfig, price::Prices},
        config::Effort,
        job::Depth,
        prompts::Prompts,
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    fn agent(change: impl FnOnce(&mut AgentConfig), fallbacks: &[&str]) -> Agent {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let claude = Claude::new(ClientConfig {
            base_url: "http://127.0.0.1:9".to_owned(),
            api_key: Some(SecretString::from("sk-test")),
            auth_token: None,
            custom_headers: None,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
        });
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
        Agent::new(claude.unwrap(), prompts, config, fallbacks, Prices::new([]))
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
        let agent = agent(|_| {}, &[]);
        let plain = agent.question(&request(), false, at(0));
        assert!(plain.is_some());
        let mut other = request();
        other.query = "  Buy\n or\tbuild? ".to_owned();
        other.metadata.insert("team".to_owned(), "ops".to_owned());
        other.callback_url = Some("https://example.com/".to_owned());
        other.request_id = Some("r".to_owned());
        other.traceparent = Some("t".to_owned());
        assert_eq!(agent.question(&other, false, at(60)), plain);
    }

    #[test]
    fn whatever_makes_another_answer_makes_another_question() {
        let plain = agent(|_| {}, &[]);
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
            agent(|config| config.max_tokens = 2_000, &[]).question(&request(), false, at(0)).unwrap(),
            agent(|config| config.model = "b".to_owned(), &[]).question(&request(), false, at(0)).unwrap(),
            agent(|_| {}, &["b"]).question(&request(), false, at(0)).unwrap(),
        ];
        let distinct: std::collections::HashSet<NonZeroU64> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
        let same_effort = agent(|config| config.effort = Effort::High, &[]);
        let waited_for = JobRequest { depth: Depth::Full, ..request() };
        assert_eq!(same_effort.question(&waited_for, true, at(0)), same_effort.question(&request(), false, at(0)));
        let unknown = JobRequest { prompt_version: Some("v99".to_owned()), ..request() };
        assert_eq!(plain.question(&unknown, false, at(0)), None);
    }
}
