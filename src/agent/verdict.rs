//! From a failed call to the [`Disposition`] of its job.
//!
//! [`Concern`] says whom a failure concerns; this adds whose model it was. A model that the caller named can fail only that
//! job. A fallback model never fails a job, because the preferred model may answer it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use tracing::warn;

use super::{
    models::{GONE_FOR, Models, OVERLOADED_FOR},
    plan::Plan,
};
use crate::{
    claude::error::{CallError, Concern, DEFAULT_RETRY_AFTER, ErrorKind},
    job::{
        FailureClass, FailureCode,
        disposition::{Disposition, Scope, SharedFailure},
    },
};

/// So many different questions must meet what may be the fault of one question, such as a firewall's page.
const DOUBTFUL_WITNESSES: usize = 2;

/// So many different questions in a row must meet the same 400 before it counts as the service's own fault.
const BREAKER_WITNESSES: usize = 3;

pub(super) fn after_failure(models: &Models, plan: &Plan, error: &CallError) -> Disposition {
    let code = code_of(error.kind);
    match error.concern() {
        Concern::Passing => after_passing(models, plan, error),
        Concern::Limit => {
            let opens_after = Some(error.retry_after.unwrap_or(DEFAULT_RETRY_AFTER));
            let alone = Disposition::Retry { code, class: FailureClass::Suspect, after: opens_after };
            let (scope, signature) = (Scope::Model, signature(code));
            blocked(SharedFailure { code, scope, signature, witnesses: 1, opens_after }, alone)
        }
        Concern::Account => block(error, code, Scope::Account),
        Concern::Model if plan.is_of_caller => after_a_callers_model(error, code),
        Concern::Model => after_our_model(models, plan, error, code),
        Concern::Parameter(parameter) => {
            let named = error.max_tokens_named(plan.call.max_tokens);
            match models.refused(&plan.call, parameter, named) {
                Some(change) => {
                    let (model, detail) = (plan.model(), error.message.as_str());
                    warn!(model, detail, "the model refuses {parameter}: {change}");
                    Disposition::released(code)
                }
                None => after_a_bad_request(models, plan, error, code),
            }
        }
        Concern::Declined => after_refusal(models, plan),
        Concern::Question => after_a_bad_request(models, plan, error, code),
    }
}

/// Each of the service's models is asked once. A job that names its model gets no other.
pub(super) fn after_refusal(models: &Models, plan: &Plan) -> Disposition {
    let code = FailureCode::Refused;
    let refused_by: Vec<String> = plan.refused_by.iter().cloned().chain([plan.model().to_owned()]).collect();
    if plan.names_model || models.have_all_refused(&refused_by) {
        return Disposition::Fail { code };
    }
    Disposition::Retry { code, class: FailureClass::Refused, after: None }
}

fn after_passing(models: &Models, plan: &Plan, error: &CallError) -> Disposition {
    let code = code_of(error.kind);
    let retry = |class, after| Disposition::Retry { code, class, after };
    match error.kind {
        ErrorKind::ConnectFailed => retry(FailureClass::Connect, error.retry_after),
        // The same call would be cut again.
        ErrorKind::TotalTimeout if plan.is_reduced => Disposition::Fail { code },
        ErrorKind::TotalTimeout => retry(FailureClass::InvalidOutput, error.retry_after),
        // In the middle of an answer it may be billed, so it is bounded as what costs.
        ErrorKind::Overloaded if !error.may_have_been_billed() => {
            let has_another = !plan.names_model && models.pass_over(plan.model(), OVERLOADED_FOR);
            retry(FailureClass::Overload, if has_another { Some(Duration::ZERO) } else { error.retry_after })
        }
        _ => retry(FailureClass::Other, error.retry_after),
    }
}

fn after_our_model(models: &Models, plan: &Plan, error: &CallError, code: FailureCode) -> Disposition {
    let model = plan.model();
    let is_gone = error.kind == ErrorKind::NotFound && error.is_about(model);
    if !plan.names_model && error.is_certain && (is_gone || models.is_fallback(model)) {
        let another = models.pass_over(model, GONE_FOR);
        if another || models.is_fallback(model) {
            warn!(model, detail = error.message, "the model is unavailable: using another model");
            return Disposition::released(code);
        }
    }
    block(error, code, Scope::Model)
}

fn after_a_bad_request(models: &Models, plan: &Plan, error: &CallError, code: FailureCode) -> Disposition {
    if !error.is_certain {
        return block(error, code, Scope::Account);
    }
    if !plan.names_model && models.is_fallback(plan.model()) {
        models.pass_over(plan.model(), OVERLOADED_FOR);
        warn!(model = plan.model(), detail = error.message, "the fallback model refused the question");
        return Disposition::released(code);
    }
    let fail = Disposition::Fail { code };
    // These say themselves that it is the question.
    if error.kind == ErrorKind::TooLarge || error.concern() != error.kind.concern() || plan.is_of_caller {
        return fail;
    }
    let (scope, signature) = (Scope::Model, signature(letters(&error.message)));
    blocked(SharedFailure { code, scope, signature, witnesses: BREAKER_WITNESSES, opens_after: None }, fail)
}

/// Every call would fail alike until a person acts. A page that is not the API's may be the fault of one question.
fn block(error: &CallError, code: FailureCode, scope: Scope) -> Disposition {
    let witnesses = if error.is_certain { 1 } else { DOUBTFUL_WITNESSES };
    let failure = SharedFailure { code, scope, signature: signature(code), witnesses, opens_after: None };
    blocked(failure, set_aside(error, code))
}

fn blocked(failure: SharedFailure, alone: Disposition) -> Disposition {
    Disposition::Block { failure, alone: Box::new(alone) }
}

fn set_aside(error: &CallError, code: FailureCode) -> Disposition {
    Disposition::Retry { code, class: FailureClass::Suspect, after: error.retry_after }
}

fn after_a_callers_model(error: &CallError, code: FailureCode) -> Disposition {
    match error.kind {
        kind if error.is_certain || kind == ErrorKind::NotFound => Disposition::Fail { code },
        // A firewall's page is about the question, and may pass.
        _ => set_aside(error, code),
    }
}

fn signature(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// A message without its numbers, which differ from question to question.
fn letters(message: &str) -> String {
    message.chars().filter(|c| !c.is_ascii_digit()).collect()
}

pub(super) fn code_of(kind: ErrorKind) -> FailureCode {
    match kind {
        ErrorKind::InvalidRequest | ErrorKind::Parameter(_) => FailureCode::InvalidRequest,
        ErrorKind::Filtered => FailureCode::Refused,
        ErrorKind::TooLarge => FailureCode::RequestTooLarge,
        ErrorKind::Authentication => FailureCode::AuthenticationFailed,
        ErrorKind::Billing => FailureCode::BillingFailed,
        ErrorKind::Permission | ErrorKind::OnHold => FailureCode::PermissionDenied,
        ErrorKind::NotFound | ErrorKind::Redirect => FailureCode::ModelNotFound,
        ErrorKind::ProxyAuth => FailureCode::ProxyRefused,
        ErrorKind::RateLimit => FailureCode::RateLimited,
        ErrorKind::Overloaded => FailureCode::Overloaded,
        ErrorKind::ApiError => FailureCode::UpstreamError,
        ErrorKind::ConnectFailed => FailureCode::ConnectFailed,
        ErrorKind::ConnectionLost => FailureCode::ConnectionLost,
        ErrorKind::StreamCut => FailureCode::StreamCut,
        ErrorKind::StreamError => FailureCode::StreamError,
        ErrorKind::Timeout | ErrorKind::Silent => FailureCode::Timeout,
        ErrorKind::TotalTimeout => FailureCode::TimeLimit,
        ErrorKind::Malformed | ErrorKind::Page => FailureCode::MalformedResponse,
    }
}
