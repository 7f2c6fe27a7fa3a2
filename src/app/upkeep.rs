//! A background task: warms the schema up, stores when it was last used, and warns of old prices.
//!
//! **Warm-up.** The first use of a schema waits for up to three minutes while the API compiles it. The API keeps it for 24
//! hours after the last use. So a service without a question since its start makes one small call ([`WarmUp`])
//! after [`Tuning::warm_up_after`](super::Tuning). It makes none with jobs in the queue, whose calls compile it; while the
//! limits, the gate or the daily budget allow no call; or within 23 hours of the stored last use. That time is stored before
//! the call, so a service that restarts again and again pays once a day. Without a warm-up, the first question gets three more
//! minutes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    agent::{Agent, plan::Planner, warm_up::WarmUp},
    analysis,
    claude::price::MAX_AGE_DAYS,
    clock::Timestamp,
    digest::sha256,
    http::api::Note,
    job::AttemptReport,
    ledger::{Day, Sums, UNKNOWN_MODEL, dollars},
    limits::{Limits, Tokens, budget::Room},
    queue::Operations,
    redis::Redis,
    registry::{Live, Registry, Unavailable},
    store::{Ledger, postgres::PostgresStore},
};

const TICK: Duration = Duration::from_mins(1);

/// A later use is stored if it is so much later: the API keeps a schema for a day.
const STORED_EVERY: Duration = Duration::from_hours(1);

const SCHEMAS: &str = "schema/";

#[derive(Serialize, Deserialize)]
struct Use {
    schema: String,
    at: Timestamp,
}

pub(super) struct Upkeep {
    pub(super) operations: Operations,
    pub(super) registry: Registry,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) limits: Limits,
    pub(super) agent: Agent,
    pub(super) closing: CancellationToken,
    /// `None`: the schema is not compiled ahead.
    pub(super) warm_up_after: Option<Duration>,
}

impl Upkeep {
    /// The stored uses of today's schema, by model.
    async fn uses(&self) -> Result<HashMap<String, Use>, Unavailable> {
        let stored = self.registry.load::<Use>(SCHEMAS).await?.into_iter();
        Ok(stored.filter(|(_, stored)| stored.schema == schema_digest()).collect())
    }

    pub(super) async fn run(&self) {
        let mut warned_on = None;
        self.warn_of_prices(&mut warned_on);
        if let Some(pause) = self.warm_up_after
            && self.closing.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
        {
            self.warm_up().await;
        }
        let mut tick = tokio::time::interval(TICK);
        while self.closing.run_until_cancelled(tick.tick()).await.is_some() {
            self.warn_of_prices(&mut warned_on);
            self.store_uses(STORED_EVERY).await;
        }
        self.store_uses(Duration::ZERO).await;
    }

    /// Has the schema compiled, if no question has come that will.
    async fn warm_up(&self) {
        let counts = self.operations.counts();
        let is_idle = counts.queued + counts.running == 0 && self.operations.submitted() == 0;
        let now = self.operations.now();
        let Some(warm_up) = self.agent.planner.warm_up(now).filter(|_| is_idle) else { return };
        let Some(mut permit) = self.limits.try_permit(None) else { return };
        let is_expected = permit.expect(warm_up.model(), warm_up.input_bytes()).is_ok();
        if !is_expected || permit.make_room(warm_up.at_risk) != Room::Yes {
            return;
        }
        let _share = permit.budget_share();
        if let Err(error) = self.store_use(warm_up.model(), now).await {
            warn!(%error, "the schema is not compiled ahead, because the call can't be recorded");
            return;
        }
        let outcome = self.closing.run_until_cancelled(self.agent.compile(&warm_up)).await;
        let report = outcome.unwrap_or_else(|| AttemptReport::unknown("the service stopped", Some(warm_up.at_risk)));
        permit.settle_failed(report.usage.map(Tokens::from));
        self.record(&warm_up, &report).await;
    }

    async fn record(&self, warm_up: &WarmUp, report: &AttemptReport) {
        let booked = match Sums::of(report) {
            Some(sums) => {
                let model = report.model.clone().unwrap_or_else(|| UNKNOWN_MODEL.to_owned());
                self.ledger.add(Day::of(self.operations.now()), model, sums).await.map_err(Unavailable::from)
            }
            // It cost nothing, so the next start may try it again.
            None => self.registry.delete(format!("{SCHEMAS}{}", warm_up.model())).await,
        };
        if let Err(error) = booked {
            warn!(%error, "the cost of compiling the schema is not in the ledger");
        }
        let (model, cost_usd) = (warm_up.model(), report.nanodollars.map(dollars));
        match &report.error {
            None => info!(model, cost_usd, "the schema of memos is compiled"),
            Some(error) => warn!(
                model, cost_usd, error.code = %error.code, error.message,
                "the schema of memos could not be compiled ahead; the first question gets three more minutes"
            ),
        }
    }

    /// Stores each use that is later than the stored one by more than `least`.
    async fn store_uses(&self, least: Duration) {
        let Ok(stored) = self.uses().await.inspect_err(|error| warn!(%error, "failed to read the uses of the schema"))
        else {
            return;
        };
        for known in self.agent.planner.models.known() {
            let Some(at) = known.schema_used_at else { continue };
            if stored.get(&known.model).is_none_or(|before| at.since(before.at) > least)
                && let Err(error) = self.store_use(&known.model, at).await
            {
                warn!(%error, "the last use of the schema is not stored");
            }
        }
    }

    async fn store_use(&self, model: &str, at: Timestamp) -> Result<(), Unavailable> {
        self.registry.put(format!("{SCHEMAS}{model}"), &Use { schema: schema_digest(), at }).await
    }

    /// Warns once a day of list prices that may have changed: costs and the budget would be wrong.
    fn warn_of_prices(&self, warned_on: &mut Option<Day>) {
        let today = Day::of(self.operations.now());
        if warned_on.replace(today) != Some(today) {
            for (model, as_of) in self.agent.planner.outdated_prices(&today.to_string()) {
                warn!(model, %as_of, "the list price of this model is {OLD_PRICE}");
            }
        }
    }
}

#[async_trait]
impl Live for Upkeep {
    fn prefix(&self) -> &'static str {
        SCHEMAS
    }

    async fn reload(&self, _: &str) -> Result<(), Unavailable> {
        for (model, stored) in self.uses().await? {
            // A clock that was set back must not make it the newest use for years.
            self.agent.planner.models.schema_used(&model, stored.at.min(self.operations.now()));
        }
        Ok(())
    }
}

const OLD_PRICE: &str = "more than 60 days old: check it, and set it in MODEL_PRICES";
const _: () = assert!(MAX_AGE_DAYS == 60, "the warning says so");

pub(super) fn notes(planner: &Planner, now: Timestamp) -> Vec<Note> {
    let note = |(model, as_of)| Note {
        field: "prices",
        code: "price_outdated",
        message: format!("the list price of {model} ({as_of}) is {OLD_PRICE}"),
    };
    planner.outdated_prices(&now.date()).map(note).collect()
}

pub(super) fn redis_note(redis: &Redis) -> Option<Note> {
    let trouble = redis.trouble()?;
    let message = format!(
        "Redis of REDIS_URL can't be used, so each node counts quotas for itself, and the text of running attempts comes on \
         their own nodes only: {trouble}"
    );
    Some(Note { field: "redis", code: "redis_unavailable", message })
}

pub(super) fn settings_note(database: &PostgresStore) -> Option<Note> {
    let names = database.differing_settings();
    let message = format!(
        "another node of this database has other values of {}. Give all nodes the same values; two clusters need two \
         databases. During a change node by node this is normal",
        names.join(", ")
    );
    (!names.is_empty()).then_some(Note { field: "settings", code: "settings_differ", message })
}

fn schema_digest() -> String {
    hex::encode(&sha256(&[analysis::schema::text().get().as_bytes()])[..8])
}
