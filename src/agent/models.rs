//! Which model is asked: the first of a list that is not out at the moment.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a model that was overloaded is passed over: an overload is over in seconds to minutes.
pub(super) const OVERLOADED_FOR: Duration = Duration::from_secs(30);

/// How long a model that is not there is passed over. Retired ones don't come back, but a gateway may be mended.
pub(super) const GONE_FOR: Duration = Duration::from_hours(1);

/// The models, the preferred one first. Clones share what is known of them.
#[derive(Clone, Debug)]
pub(super) struct Models(Arc<Vec<Model>>);

#[derive(Debug)]
struct Model {
    id: String,
    /// Passed over until then.
    out_until: Mutex<Option<Instant>>,
}

impl Models {
    /// `first`, and what stands in for it.
    pub(super) fn new(first: String, others: Vec<String>) -> Models {
        let models = std::iter::once(first).chain(others).map(|id| Model { id, out_until: Mutex::default() });
        Models(Arc::new(models.collect()))
    }

    /// The model to ask now. If all are out it is the preferred one, so that whatever ails it is heard of.
    pub(super) fn pick(&self) -> &str {
        let first = &self.0[0];
        &self.0.iter().find(|model| !model.is_out()).unwrap_or(first).id
    }

    /// Passes `id` over for a while. Tells whether another model can be asked meanwhile.
    pub(super) fn pass_over(&self, id: &str, time: Duration) -> bool {
        if let Some(model) = self.0.iter().find(|model| model.id == id) {
            *model.out_until.lock() = Some(Instant::now() + time);
        }
        self.0.iter().any(|model| !model.is_out())
    }

    /// All, the preferred one first.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|model| model.id.as_str())
    }
}

impl Model {
    fn is_out(&self) -> bool {
        self.out_until.lock().is_some_and(|until| until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_model_that_is_out_is_passed_over_for_a_while() {
        let models = Models::new("a".to_owned(), vec!["b".to_owned()]);
        assert_eq!(models.pick(), "a");
        assert!(models.pass_over("a", OVERLOADED_FOR));
        assert_eq!(models.pick(), "b");
        assert!(!models.pass_over("b", GONE_FOR));
        assert_eq!(models.pick(), "a", "if all are out, the first is asked");
        tokio::time::advance(OVERLOADED_FOR).await;
        assert_eq!(models.pick(), "a");
        assert!(!models.pass_over("a", GONE_FOR + OVERLOADED_FOR), "the other is still out");
        tokio::time::advance(GONE_FOR).await;
        assert_eq!(models.pick(), "b");
    }
}
