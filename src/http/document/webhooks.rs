//! The requests that the service sends: `webhooks` of OpenAPI 3.1.

use utoipa::{
    Path,
    openapi::{
        HttpMethod, Paths,
        path::{Operation, PathItem},
    },
};

use crate::webhook::message::{Message, TestMessage};

/// A job has ended
///
/// Sent to the `callback_url` of a job when the job ends, and again for up to a day until the receiver answers `2xx`. Signed
/// as in Standard Webhooks: verify the signature, and check that `data.caller` and `data.callback_url` are your own.
#[utoipa::path(
    post, path = "/", operation_id = "job_webhook", tag = "webhooks",
    params(
        ("webhook-id" = String, Header, description = "The same for every try of a message. Ignore a message that you have"),
        ("webhook-timestamp" = i64, Header, description = "When this try was sent, in seconds since 1970"),
        ("webhook-signature" = String, Header, description = "`v1,` and the signature in base64, for each secret in use; \
            separated by spaces. Each is the HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<body>`")
    ),
    request_body = Message<'static>,
    responses(
        (status = "2XX", description = "The message is accepted"),
        (status = 410, description = "The receiver wants no further message of this job"),
        (status = "default", description = "The message is sent again later, or after the time of `Retry-After`")
    )
)]
#[expect(dead_code, reason = "only for the OpenAPI document")]
fn job_webhook() {}

/// A test
///
/// Sent once by `POST /api/v1/webhooks/test`, signed like the message of a job. It reports nothing.
#[utoipa::path(
    post, path = "/", operation_id = "webhook_test", tag = "webhooks",
    params(
        ("webhook-id" = String, Header, description = "The id of the message"),
        ("webhook-timestamp" = i64, Header, description = "When the message was sent, in seconds since 1970"),
        ("webhook-signature" = String, Header, description = "As that of the message of a job")
    ),
    request_body = TestMessage<'static>,
    responses(
        (status = "2XX", description = "The message is accepted"),
        (status = "default", description = "The test has failed")
    )
)]
#[expect(dead_code, reason = "only for the OpenAPI document")]
fn webhook_test() {}

pub(super) fn webhooks() -> Paths {
    let path = |mut operation: Operation| {
        operation.security = Some(Vec::new());
        PathItem::new(HttpMethod::Post, operation)
    };
    let (job, test) = (__path_job_webhook::operation(), __path_webhook_test::operation());
    Paths::builder().path("job", path(job)).path("test", path(test)).build()
}
