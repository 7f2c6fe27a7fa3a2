//! `/api/v1/admin/usage`: tokens and cost by day and model, and today's budget.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    api::Api,
    extract::{Admin, Params, count_up_to},
    problem::Problem,
};
use crate::{
    clock::Timestamp,
    ledger::{DAYS_KEPT, Day, DaySums, Sums, dollars, total},
    limits::budget::{Line, Status},
    queue::QueueError,
};

const DEFAULT_DAYS: usize = 31;

/// Tokens and cost. Days are UTC days; a call counts for the day on which it ended.
#[derive(Serialize, ToSchema)]
#[schema(as = Usage)]
pub(super) struct UsageView {
    #[schema(format = Date)]
    today: String,
    /// Sum of all models for today.
    spent_today: SumsView,
    /// Today's budget; null without a budget.
    budget: Option<BudgetView>,
    /// Days with calls, newest first.
    days: Vec<DayView>,
}

/// Today's budget.
#[derive(Serialize, ToSchema)]
#[schema(as = Budget)]
struct BudgetView {
    /// Budget of tokens of all kinds; null without tokens in DAILY_BUDGET.
    tokens: Option<TokenBudget>,
    /// Budget in US dollars; null without US dollars in DAILY_BUDGET.
    cost_usd: Option<CostBudget>,
    /// The rest is too small for a call. No job runs until `resets_at`.
    is_reached: bool,
    /// At least 80 % are used.
    is_nearly_used: bool,
    /// Start of the next day in UTC.
    resets_at: Timestamp,
}

/// A budget of tokens.
#[derive(Serialize, ToSchema)]
struct TokenBudget {
    /// The tokens of the setting DAILY_BUDGET.
    limit: u64,
    /// Reported tokens, plus the tokens at risk.
    spent: u64,
    /// The most that running calls can need.
    reserved: u64,
    /// The rest for further calls.
    left: u64,
}

/// A budget of money, in US dollars.
#[derive(Serialize, ToSchema)]
struct CostBudget {
    /// The US dollars of the setting DAILY_BUDGET.
    limit: f64,
    /// Billed cost, plus the cost at risk.
    spent: f64,
    /// The most that running calls can cost.
    reserved: f64,
    /// The rest for further calls.
    left: f64,
}

/// Tokens and cost of a day.
#[derive(Serialize, ToSchema)]
#[schema(as = UsageDay)]
struct DayView {
    #[schema(format = Date)]
    date: String,
    /// Sum of all models.
    total: SumsView,
    models: Vec<ModelView>,
}

/// Tokens and cost of a model.
#[derive(Serialize, ToSchema)]
#[schema(as = UsageOfModel)]
struct ModelView {
    /// The model that answered; `unknown` for calls with unknown outcome, `other` for the rest of too many models.
    model: String,
    #[serde(flatten)]
    sums: SumsView,
}

/// Sums over calls.
#[derive(Serialize, ToSchema)]
#[schema(as = UsageSums)]
struct SumsView {
    /// Calls for which Claude reported tokens.
    calls: u64,
    /// Input tokens at the full price.
    input_tokens: u64,
    output_tokens: u64,
    /// Input tokens written to the prompt cache.
    cache_creation_input_tokens: u64,
    /// Input tokens read from the prompt cache.
    cache_read_input_tokens: u64,
    /// Cost at list prices, in US dollars, without the unpriced calls.
    cost_usd: f64,
    /// Calls of models without a known price.
    unpriced_calls: u64,
    /// The most that calls with unknown outcome can have cost in addition.
    at_risk: AtRiskSums,
}

/// The most that calls with unknown outcome can have cost beyond their reported tokens.
#[derive(Serialize, ToSchema)]
struct AtRiskSums {
    /// Calls with unknown outcome.
    calls: u64,
    input_tokens: u64,
    output_tokens: u64,
    /// Cost at list prices, in US dollars, without the unpriced calls.
    cost_usd: f64,
    /// Calls of models without a known price.
    unpriced_calls: u64,
}

/// Get tokens and cost
///
/// By day and model, with today's budget.
#[utoipa::path(
    get, path = "/api/v1/admin/usage", operation_id = "get_usage", tag = "admin",
    params(("days" = Option<usize>, Query, description = "Most days to return: 1 to 400, default 31", minimum = 1,
        maximum = 400)),
    responses((status = 200, description = "Tokens, cost and budget", body = UsageView))
)]
pub(super) async fn get(_: Admin, State(api): State<Arc<Api>>, mut params: Params) -> Result<Json<UsageView>, Problem> {
    const { assert!(DAYS_KEPT == 400, "the description says so") };
    let days = params.last("days", |value| count_up_to(DAYS_KEPT, value)).unwrap_or(DEFAULT_DAYS);
    params.end()?;
    Ok(Json(UsageView {
        today: Day::of(api.queue.now()).to_string(),
        spent_today: SumsView::from(api.operations.spent_today()),
        budget: api.limits.budget().map(BudgetView::from),
        days: api.ledger.days(days).await.map_err(QueueError::from)?.into_iter().map(DayView::from).collect(),
    }))
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
            input_tokens: sums.tokens.input_tokens,
            output_tokens: sums.tokens.output_tokens,
            cache_creation_input_tokens: sums.tokens.cache_creation_input_tokens,
            cache_read_input_tokens: sums.tokens.cache_read_input_tokens,
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
