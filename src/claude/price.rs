//! What Claude's tokens cost: the one table of list prices, and what a setting changes of it.
//!
//! A model that is not in the table has no price, which is not the same as a price of zero. Keeping accounts is the
//! ledger's affair.

use std::{collections::BTreeMap, sync::Arc};

use super::wire::Usage;

/// A model's price. All arithmetic is in whole nano-dollars (1e-9 $), so sums are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Nano-dollars an input token: a price of $1 per million tokens is 1,000.
    pub input: u64,
    /// Nano-dollars an output token.
    pub output: u64,
}

/// List prices per model id, 2026-11.
const LIST: [(&str, Price); 3] = [
    ("claude-haiku-5-5", Price { input: 100, output: 500 }),
    ("claude-sonnet-5-5", Price { input: 2_000, output: 10_000 }),
    ("claude-opus-5-5", Price { input: 4_000, output: 20_000 }),
];

/// The prices in force. Clones share them.
#[derive(Debug, Clone)]
pub struct Prices(Arc<BTreeMap<String, Price>>);

impl Prices {
    /// The list with `others` added, which replace its own price where both have the model.
    pub fn new(others: impl IntoIterator<Item = (String, Price)>) -> Prices {
        let list = LIST.iter().map(|(model, price)| ((*model).to_owned(), *price));
        Prices(Arc::new(list.chain(others).collect()))
    }

    /// The price of `model`; `None` if it is not known.
    pub fn of(&self, model: &str) -> Option<Price> {
        self.0.get(model).copied()
    }
}

/// The models on the list, which are the current ones.
pub fn current_models() -> impl Iterator<Item = &'static str> {
    LIST.iter().map(|(model, _)| *model)
}

impl Price {
    /// What `usage` costs, in nano-dollars. Writing to the five-minute prompt cache costs 5/4 of the input price,
    /// reading from it 1/10 (Anthropic's published multipliers).
    pub fn cost(self, usage: &Usage) -> u64 {
        // Wide, as the counts come from the network and the sum must not overflow, whatever they say.
        let [input, output] = [self.input, self.output].map(u128::from);
        let sum = u128::from(usage.input_tokens) * input
            + u128::from(usage.cache_creation_input_tokens) * input * 5 / 4
            + u128::from(usage.cache_read_input_tokens) * input / 10
            + u128::from(usage.output_tokens) * output;
        u64::try_from(sum).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_tokens_cost_the_list_price() {
        let million = Usage { input_tokens: 1_000_000, ..Usage::default() };
        assert_eq!(Prices::new([]).of("claude-sonnet-5-5").unwrap().cost(&million), 2_000_000_000);
        let million = Usage { output_tokens: 1_000_000, ..Usage::default() };
        assert_eq!(Prices::new([]).of("claude-opus-5-5").unwrap().cost(&million), 20_000_000_000);
    }

    #[test]
    fn cache_writes_cost_a_quarter_more_and_cache_reads_a_tenth() {
        let price = Prices::new([]).of("claude-haiku-5-5").unwrap();
        assert_eq!(price.cost(&Usage { cache_creation_input_tokens: 1_000, ..Usage::default() }), 125_000);
        assert_eq!(price.cost(&Usage { cache_read_input_tokens: 1_000, ..Usage::default() }), 10_000);
    }

    #[test]
    fn an_unknown_model_has_no_price_until_it_is_given_one() {
        assert_eq!(Prices::new([]).of("claude-sonnet-6"), None);
        let own = Price { input: 1, output: 2 };
        let prices = Prices::new([("claude-sonnet-6".to_owned(), own), ("claude-haiku-5-5".to_owned(), own)]);
        assert_eq!([prices.of("claude-sonnet-6"), prices.of("claude-haiku-5-5")], [Some(own); 2]);
        assert!(prices.of("claude-opus-5-5").is_some(), "the others stay");
    }
}
