//! Which jobs are meant: the service's conditions as options, the same wherever jobs are chosen.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

/// The conditions; a job must meet all that are given.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Which jobs")]
#[group(id = "conditions", multiple = true)]
pub(super) struct Conditions {
    /// Only jobs of this status (queued, scheduled, running, succeeded, failed, cancelled); repeat it for more
    #[arg(long)]
    status: Vec<String>,

    /// Only jobs of this priority (high, normal, low); repeat it for more
    #[arg(long)]
    priority: Vec<String>,

    /// Only jobs that failed with this error code, such as overloaded; repeat it for more
    #[arg(long)]
    code: Vec<String>,

    /// Only jobs whose question holds this, in upper or lower case
    #[arg(long)]
    text: Option<String>,

    /// Only jobs that asked for this model, or that it answered
    #[arg(long)]
    model: Option<String>,

    /// Only jobs of this caller: the name of its key, or jwt: and the subject of its token
    #[arg(long)]
    caller: Option<String>,

    /// Only jobs with this label; repeat it for jobs that have several
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,

    /// Only jobs accepted then or later, such as 2026-11-23T09:30:00Z
    #[arg(long, value_name = "TIME")]
    created_from: Option<String>,

    /// Only jobs accepted before then
    #[arg(long, value_name = "TIME")]
    created_before: Option<String>,
}

impl Conditions {
    /// Those that are given once for each value.
    fn several(&self) -> [(&'static str, &[String]); 3] {
        [("status", &self.status), ("priority", &self.priority), ("code", &self.code)]
    }

    /// Those that are given once.
    fn single(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let single = [
            ("text", &self.text),
            ("model", &self.model),
            ("caller", &self.caller),
            ("created_from", &self.created_from),
            ("created_before", &self.created_before),
        ];
        single.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// Whether there is none: all jobs are meant.
    pub(super) fn is_empty(&self) -> bool {
        self.params().is_empty()
    }

    /// As query parameters of the listing.
    pub(super) fn params(&self) -> Vec<(&'static str, &str)> {
        let labels = ("metadata", &self.metadata[..]);
        let several = self.several().into_iter().chain([labels]);
        let several = several.flat_map(|(name, values)| values.iter().map(move |value| (name, value.as_str())));
        several.chain(self.single()).collect()
    }

    /// As the filter of an action.
    ///
    /// # Errors
    /// If a label is none, or contradicts another: an action on other jobs than were meant can't be taken back.
    pub(super) fn filter(&self) -> anyhow::Result<Value> {
        let mut filter = Map::new();
        for (name, values) in self.several().into_iter().filter(|(_, values)| !values.is_empty()) {
            filter.insert(name.to_owned(), json!(values));
        }
        for (name, value) in self.single() {
            filter.insert(name.to_owned(), json!(value));
        }
        let mut labels = BTreeMap::new();
        for label in &self.metadata {
            let (key, value) =
                label.split_once('=').with_context(|| format!("--metadata {label}: must be KEY=VALUE"))?;
            let other = labels.insert(key, value).filter(|other| *other != value);
            ensure!(other.is_none(), "--metadata {label}: a job has one label of a key, not two");
        }
        if !labels.is_empty() {
            filter.insert("metadata".to_owned(), json!(labels));
        }
        Ok(Value::Object(filter))
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn conditions(args: &[&str]) -> Conditions {
        let command = Conditions::augment_args(Command::new("test").no_binary_name(true));
        Conditions::from_arg_matches(&command.get_matches_from(args)).unwrap()
    }

    #[test]
    fn a_filter_holds_each_condition_and_no_other() {
        assert!(conditions(&[]).is_empty() && conditions(&[]).filter().unwrap() == json!({}));
        let all = conditions(&[
            "--status=failed",
            "--status=cancelled",
            "--priority=low",
            "--code=overloaded",
            "--text=a",
            "--model=m",
            "--caller=c",
            "--metadata=team=ops",
            "--metadata=floor=2",
            "--created-from=x",
            "--created-before=y",
        ]);
        let expected = json!({
            "status": ["failed", "cancelled"], "priority": ["low"], "code": ["overloaded"], "text": "a", "model": "m",
            "caller": "c", "metadata": {"team": "ops", "floor": "2"}, "created_from": "x", "created_before": "y"
        });
        assert_eq!(all.filter().unwrap(), expected);
        assert_eq!(all.params().len(), 11, "each of them is a parameter");
    }

    #[test]
    fn a_label_that_is_none_or_contradicts_another_is_refused() {
        assert!(conditions(&["--metadata=team"]).filter().is_err());
        assert!(conditions(&["--metadata=team=ops", "--metadata=team=law"]).filter().is_err());
        assert!(conditions(&["--metadata=team=ops", "--metadata=team=ops"]).filter().is_ok());
    }
}
