//! The job filter as options, the same for all commands.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cli::terminal::given;

/// The conditions. A job must match all that are given.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Filter")]
#[group(id = "conditions", multiple = true)]
pub(super) struct Conditions {
    /// Jobs with these ids, with commas; repeatable
    #[arg(id = "filter_ids", long = "ids", value_name = "ID", value_delimiter = ',')]
    ids: Vec<String>,

    /// Jobs with this status (queued, scheduled, running, succeeded, failed, cancelled); repeatable
    #[arg(long)]
    status: Vec<String>,

    /// Jobs with this priority (high, normal, low); repeatable
    #[arg(long)]
    priority: Vec<String>,

    /// Jobs that failed with this error code, for example overloaded; repeatable
    #[arg(long)]
    code: Vec<String>,

    /// Jobs whose question contains this text, ignoring case
    #[arg(long)]
    text: Option<String>,

    /// Jobs that requested this model or were answered by it
    #[arg(long)]
    model: Option<String>,

    /// Jobs of this caller: the name of the API key, or jwt: and the token's subject
    #[arg(long)]
    caller: Option<String>,

    /// Jobs with this label; repeat it for several labels
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,

    /// Jobs accepted at this time or later, for example 2026-11-23T09:30:00Z
    #[arg(long, value_name = "TIME")]
    created_from: Option<String>,

    /// Jobs accepted before this time
    #[arg(long, value_name = "TIME")]
    created_before: Option<String>,
}

impl Conditions {
    fn several(&self) -> [(&'static str, &[String]); 4] {
        [("ids", &self.ids), ("status", &self.status), ("priority", &self.priority), ("code", &self.code)]
    }

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

    pub(super) fn is_empty(&self) -> bool {
        self.params().is_empty()
    }

    pub(super) fn params(&self) -> Vec<(&'static str, &str)> {
        let labels = ("metadata", &self.metadata[..]);
        let several = self.several().into_iter().chain([labels]);
        let several = several.flat_map(|(name, values)| values.iter().map(move |value| (name, value.as_str())));
        several.chain(self.single()).collect()
    }

    pub(super) fn filter(&self) -> anyhow::Result<Value> {
        let mut labels = BTreeMap::new();
        for label in &self.metadata {
            let (key, value) =
                label.split_once('=').with_context(|| format!("--metadata {label}: must be KEY=VALUE"))?;
            let other = labels.insert(key, value).filter(|other| *other != value);
            ensure!(
                other.is_none(),
                "--metadata {label}: this key has another value already; a job has one value for each key"
            );
        }
        let mut filter = json!({ "metadata": labels });
        for (name, values) in self.several() {
            filter[name] = json!(values);
        }
        for (name, value) in self.single() {
            filter[name] = json!(value);
        }
        Ok(given(filter))
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
            "--ids=a,b",
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
            "ids": ["a", "b"], "status": ["failed", "cancelled"], "priority": ["low"], "code": ["overloaded"], "text": "a", "model": "m",
            "caller": "c", "metadata": {"team": "ops", "floor": "2"}, "created_from": "x", "created_before": "y"
        });
        assert_eq!(all.filter().unwrap(), expected);
        assert_eq!(all.params().len(), 13, "each of them is a parameter");
    }

    #[test]
    fn a_label_that_is_invalid_or_contradicts_another_is_refused() {
        assert!(conditions(&["--metadata=team"]).filter().is_err());
        assert!(conditions(&["--metadata=team=ops", "--metadata=team=law"]).filter().is_err());
        assert!(conditions(&["--metadata=team=ops", "--metadata=team=ops"]).filter().is_ok());
    }
}
