//! `/api/v1/admin/usage`: what was spent, by day and model, and what is left of today's budget.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    extract::{Admin, Params, count_up_to},
    problem::Problem,
};
use crate::{
    clock::Timestamp,
    ledger::{DAYS_KEPT, Day, DaySums, Sums, dollars, total},
    limits::budget::{Line, Status},
};

/// Days told if the client does not say.
const DEFAULT_DAYS: usize = 31;

/// What was spent. Days are of UTC; a call belongs to the day on which it ended.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageView {
    /// Today.
    #[schema(value_type = String, format = Date)]
    today: String,
    /// What was spent today, over all models.
    spent_today: SumsView,
    /// Today's budget; null if there is none.
    budget: Option<BudgetView>,
    /// The newest days on which anything was spent, newest first.
    days: Vec<DayView>,
}

/// Today's budget.
#[derive(Serialize, ToSchema)]
struct BudgetView {
    /// Tokens of all kinds; null if they are not bounded.
    tokens: Option<TokenBudget>,
    /// US dollars; null if they are not bounded.
    cost_usd: Option<CostBudget>,
    /// The next call may not fit into what is left: the queue is held until `resets_at`.
    is_reached: bool,
    /// 80 % are used.
    is_nearly_used: bool,
    /// When the day turns.
    #[schema(value_type = String, format = DateTime)]
    resets_at: Timestamp,
}

/// A budget of tokens.
#[derive(Serialize, ToSchema)]
struct TokenBudget {
    /// The tokens of DAILY_BUDGET.
    limit: u64,
    /// What counts as spent: all tokens reported, and those at risk.
    spent: u64,
    /// Kept for calls under way: the most that they may need.
    reserved: u64,
    /// What is left for further calls.
    left: u64,
}

/// A budget of money, in US dollars.
#[derive(Serialize, ToSchema)]
struct CostBudget {
    /// The US dollars of DAILY_BUDGET.
    limit: f64,
    /// What counts as spent: all that was billed, and what is at risk.
    spent: f64,
    /// Kept for calls under way: the most that they may cost.
    reserved: f64,
    /// What is left for further calls.
    left: f64,
}

/// What was spent on a day.
#[derive(Serialize, ToSchema)]
struct DayView {
    /// Which.
    #[schema(value_type = String, format = Date)]
    date: String,
    /// Over all models.
    total: SumsView,
    /// By model.
    models: Vec<ModelView>,
}

/// What was spent on a model.
#[derive(Serialize, ToSchema)]
struct ModelView {
    /// The model that answered; `unknown` for calls whose end nobody saw, `other` where there were too many.
    model: String,
    /// What its calls cost.
    #[serde(flatten)]
    sums: SumsView,
}

/// Sums over calls.
#[derive(Serialize, ToSchema)]
struct SumsView {
    /// Calls for which tokens were reported, whether or not their answer was of use.
    calls: u64,
    /// Input tokens at the full price.
    input_tokens: u64,
    /// Output tokens.
    output_tokens: u64,
    /// Input tokens written to the prompt cache.
    cache_creation_input_tokens: u64,
    /// Input tokens read from the prompt cache.
    cache_read_input_tokens: u64,
    /// What these cost at list prices, in US dollars; without the unpriced calls.
    cost_usd: f64,
    /// Calls of models without a price.
    unpriced_calls: u64,
    /// What calls of unknown end may have cost beyond that, at most.
    at_risk: AtRiskSums,
}

/// The most that calls of unknown end may have cost beyond what was reported of them.
#[derive(Serialize, ToSchema)]
struct AtRiskSums {
    /// How many such calls there were.
    calls: u64,
    /// Input tokens.
    input_tokens: u64,
    /// Output tokens.
    output_tokens: u64,
    /// At list prices, in US dollars; without the unpriced calls.
    cost_usd: f64,
    /// Calls of models without a price.
    unpriced_calls: u64,
}

/// Look at what was spent
#[utoipa::path(
    get, path = "/api/v1/admin/usage", operation_id = "get_usage", tag = "admin",
    params(("days" = Option<usize>, Query, description = "Days told at most: 1 to 400, 31 if absent", minimum = 1,
        maximum = 400)),
    responses(
        (status = 200, description = "What was spent, and what is left", body = UsageView)
    )
)]
pub(super) async fn get(_: Admin, State(api): State<Arc<Api>>, params: Params) -> Result<Response, Problem> {
    let days = days(&params)?;
    let view = UsageView {
        today: Day::of(api.queue.now()).to_string(),
        spent_today: SumsView::from(api.queue.spent_today()),
        budget: api.limits.budget().map(BudgetView::from),
        days: api.queue.ledger(days).into_iter().map(DayView::from).collect(),
    };
    Ok(Json(view).into_response())
}

fn days(params: &Params) -> Result<usize, Problem> {
    const { assert!(DAYS_KEPT == 400, "the description says so") };
    let mut days = DEFAULT_DAYS;
    params.read("days", |name, value| {
        (name == "days").then(|| count_up_to(DAYS_KEPT, value).map(|given| days = given))
    })?;
    Ok(days)
}

impl From<Status> for BudgetView {
    fn from(status: Status) -> BudgetView {
        let token = |line: Line| TokenBudget {
            limit: line.limit,
            spent: line.spent,
            reserved: line.reserved,
            left: line.left(),
        };
        let cost = |line: Line| CostBudget {
            limit: dollars(line.limit),
            spent: dollars(line.spent),
            reserved: dollars(line.reserved),
            left: dollars(line.left()),
        };
        BudgetView {
            tokens: status.tokens.map(token),
            cost_usd: status.nanodollars.map(cost),
            is_reached: status.is_reached,
            is_nearly_used: status.is_nearly_used(),
            resets_at: status.day_ends_at,
        }
    }
}

impl From<DaySums> for DayView {
    fn from(day: DaySums) -> DayView {
        DayView {
            date: day.day.to_string(),
            total: SumsView::from(total(day.models.values())),
            models: day.models.into_iter().map(|(model, sums)| ModelView { model, sums: sums.into() }).collect(),
        }
    }
}

impl From<Sums> for SumsView {
    fn from(sums: Sums) -> SumsView {
        SumsView {
            calls: sums.calls,
            input_tokens: sums.tokens.input,
            output_tokens: sums.tokens.output,
            cache_creation_input_tokens: sums.tokens.cache_write,
            cache_read_input_tokens: sums.tokens.cache_read,
            cost_usd: dollars(sums.nanodollars),
            unpriced_calls: sums.unpriced_calls,
            at_risk: AtRiskSums {
                calls: sums.at_risk.calls,
                input_tokens: sums.at_risk.input_tokens,
                output_tokens: sums.at_risk.output_tokens,
                cost_usd: dollars(sums.at_risk.nanodollars),
                unpriced_calls: sums.at_risk.unpriced_calls,
            },
        }
    }
}
