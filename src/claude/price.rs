//! What Claude's tokens cost: the list prices, and those of the settings.
//!
//! An unknown model has no price, which is not the same as a price of zero.

use std::{collections::BTreeMap, sync::Arc};

use jiff::civil::Date;

use super::message::Usage;

/// Prices that were looked up longer ago are to be checked.
pub const MAX_AGE_DAYS: i32 = 60;

/// List prices, in nano-dollars a token (a price of $1 per million tokens is 1,000), each with the date of the look-up.
const LIST: [(&str, Price); 5] = [
    ("claude-fable-5-2", Price::listed(8_000, 40_000, "2026-11-27")),
    ("claude-fable-5-1", Price { read: 25, ..Price::listed(10_000, 50_000, "2026-11-27") }),
    ("claude-opus-5-5", Price { read: 50, ..Price::listed(4_000, 20_000, "2026-11-27") }),
    ("claude-sonnet-5-5", Price { read: 50, ..Price::listed(2_000, 10_000, "2026-11-27") }),
    (
        "claude-haiku-5-5",
        Price { long: Some(Rates { input: 500, output: 2_500 }), ..Price::listed(100, 500, "2026-11-27") },
    ),
];

/// Up to so many input tokens, cached ones included, a call costs the normal rates.
const LONG_PROMPT: u64 = 100_000;

/// Writing to the prompt cache for five minutes, in thousandths of the input rate.
const WRITE_5M: u64 = 1_250;

const WRITE_1H: u64 = 2_000;

/// Answering in the United States only, in thousandths of the whole price.
const US: u64 = 1_100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rates {
    input: u64,
    output: u64,
}

/// A model's price. All arithmetic is in whole nano-dollars (1e-9 $), so sums are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    rates: Rates,
    /// For all tokens of a call whose prompt is longer than [`LONG_PROMPT`].
    long: Option<Rates>,
    /// Reading from the prompt cache, in thousandths of the input rate.
    read: u64,
    /// When it was looked up; `None` for a price of the settings.
    as_of: Option<&'static str>,
}

#[derive(Debug, Clone)]
pub struct Prices(Arc<BTreeMap<String, Price>>);

impl Prices {
    /// The list, with the models of `others` at their input and output rates instead, in nano-dollars a token.
    pub fn new(others: impl IntoIterator<Item = (String, u64, u64)>) -> Prices {
        let mut prices: BTreeMap<String, Price> =
            LIST.iter().map(|(model, price)| ((*model).to_owned(), *price)).collect();
        for (model, input, output) in others {
            let read = prices.get(&model).map_or(100, |price| price.read);
            prices.insert(model, Price { rates: Rates { input, output }, long: None, read, as_of: None });
        }
        Prices(Arc::new(prices))
    }

    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn of(&self, model: &str) -> Option<Price> {
        self.0.get(model).copied()
    }
}

pub fn current_models() -> impl Iterator<Item = &'static str> {
    LIST.iter().map(|(model, _)| *model)
}

impl Price {
    const fn listed(input: u64, output: u64, as_of: &'static str) -> Price {
        Price { rates: Rates { input, output }, long: None, read: 100, as_of: Some(as_of) }
    }

    pub fn cost(self, usage: &Usage) -> u64 {
        let written_1h = usage.cache_creation_1h_input_tokens.min(usage.cache_creation_input_tokens);
        let written_5m = usage.cache_creation_input_tokens - written_1h;
        let input = [
            (usage.input_tokens, 1_000),
            (written_5m, WRITE_5M),
            (written_1h, WRITE_1H),
            (usage.cache_read_input_tokens, self.read),
        ];
        let long = self.long.filter(|_| usage.total_input() > LONG_PROMPT);
        let Rates { input: rate, output } = long.unwrap_or(self.rates);
        // Wide, as the counts come from the network and must not overflow the sum.
        let part = |tokens: u64, rate: u64, thousandths: u64| {
            u128::from(tokens) * u128::from(rate) * u128::from(thousandths) / 1_000
        };
        let input: u128 = input.into_iter().map(|(tokens, thousandths)| part(tokens, rate, thousandths)).sum();
        let sum = input + part(usage.output_tokens, output, 1_000);
        let sum = if usage.is_us { sum * u128::from(US) / 1_000 } else { sum };
        u64::try_from(sum).unwrap_or(u64::MAX)
    }

    /// The most that a call can cost: its whole prompt may be written to the cache for an hour, in the United States only.
    pub fn most(self, input_tokens: u64, output_tokens: u64) -> u64 {
        self.cost(&Usage {
            cache_creation_input_tokens: input_tokens,
            cache_creation_1h_input_tokens: input_tokens,
            output_tokens,
            is_us: true,
            ..Usage::default()
        })
    }

    /// When the price was looked up, if that is longer ago than [`MAX_AGE_DAYS`]. `today` is a date such as 2026-11-27.
    pub fn outdated(self, today: &str) -> Option<Date> {
        let as_of: Date = self.as_of?.parse().ok()?;
        let age = today.parse::<Date>().ok()?.since(as_of).ok()?;
        (age.get_days() > MAX_AGE_DAYS).then_some(as_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of a call: fresh input, output, written for five minutes, written for an hour, read.
    type Tokens = [u64; 5];

    /// Model, tokens, whether in the United States only, nano-dollars. From the price list by hand: dollars a million
    /// tokens are thousands of nano-dollars a token. Fable 5.2 8/40, Fable 5.1 10/50, Opus 4/20, Sonnet 2/10, Haiku
    /// 0.10/0.50 and over 100,000 tokens 0.50/2.50; written ×1.25 and ×2; read ×0.1, Fable 5.1 ×0.025, Opus and Sonnet
    /// ×0.05; United States ×1.1.
    const ROWS: [(&str, Tokens, bool, u64); 60] = [
        ("claude-fable-5-2", [1000, 0, 0, 0, 0], false, 8_000_000),
        ("claude-fable-5-2", [0, 1000, 0, 0, 0], false, 40_000_000),
        ("claude-fable-5-2", [0, 0, 1000, 0, 0], false, 10_000_000),
        ("claude-fable-5-2", [0, 0, 0, 1000, 0], false, 16_000_000),
        ("claude-fable-5-2", [0, 0, 0, 0, 1000], false, 800_000),
        ("claude-fable-5-2", [900, 700, 0, 0, 0], true, 38_720_000),
        ("claude-fable-5-2", [1200, 3500, 1800, 0, 0], false, 167_600_000),
        ("claude-fable-5-2", [1200, 3500, 0, 0, 1800], true, 166_144_000),
        ("claude-fable-5-2", [300, 16000, 0, 2500, 0], false, 682_400_000),
        ("claude-fable-5-2", [40, 5000, 100, 200, 60000], false, 252_520_000),
        ("claude-fable-5-2", [100000, 1000, 0, 0, 0], false, 840_000_000),
        ("claude-fable-5-2", [100001, 1000, 0, 0, 0], true, 924_008_800),
        ("claude-fable-5-1", [1000, 0, 0, 0, 0], false, 10_000_000),
        ("claude-fable-5-1", [0, 1000, 0, 0, 0], false, 50_000_000),
        ("claude-fable-5-1", [0, 0, 1000, 0, 0], false, 12_500_000),
        ("claude-fable-5-1", [0, 0, 0, 1000, 0], false, 20_000_000),
        ("claude-fable-5-1", [0, 0, 0, 0, 1000], false, 250_000),
        ("claude-fable-5-1", [900, 700, 0, 0, 0], true, 48_400_000),
        ("claude-fable-5-1", [1200, 3500, 1800, 0, 0], false, 209_500_000),
        ("claude-fable-5-1", [1200, 3500, 0, 0, 1800], true, 206_195_000),
        ("claude-fable-5-1", [300, 16000, 0, 2500, 0], false, 853_000_000),
        ("claude-fable-5-1", [40, 5000, 100, 200, 60000], false, 270_650_000),
        ("claude-fable-5-1", [100000, 1000, 0, 0, 0], false, 1_050_000_000),
        ("claude-fable-5-1", [100001, 1000, 0, 0, 0], true, 1_155_011_000),
        ("claude-opus-5-5", [1000, 0, 0, 0, 0], false, 4_000_000),
        ("claude-opus-5-5", [0, 1000, 0, 0, 0], false, 20_000_000),
        ("claude-opus-5-5", [0, 0, 1000, 0, 0], false, 5_000_000),
        ("claude-opus-5-5", [0, 0, 0, 1000, 0], false, 8_000_000),
        ("claude-opus-5-5", [0, 0, 0, 0, 1000], false, 200_000),
        ("claude-opus-5-5", [900, 700, 0, 0, 0], true, 19_360_000),
        ("claude-opus-5-5", [1200, 3500, 1800, 0, 0], false, 83_800_000),
        ("claude-opus-5-5", [1200, 3500, 0, 0, 1800], true, 82_676_000),
        ("claude-opus-5-5", [300, 16000, 0, 2500, 0], false, 341_200_000),
        ("claude-opus-5-5", [40, 5000, 100, 200, 60000], false, 114_260_000),
        ("claude-opus-5-5", [100000, 1000, 0, 0, 0], false, 420_000_000),
        ("claude-opus-5-5", [100001, 1000, 0, 0, 0], true, 462_004_400),
        ("claude-sonnet-5-5", [1000, 0, 0, 0, 0], false, 2_000_000),
        ("claude-sonnet-5-5", [0, 1000, 0, 0, 0], false, 10_000_000),
        ("claude-sonnet-5-5", [0, 0, 1000, 0, 0], false, 2_500_000),
        ("claude-sonnet-5-5", [0, 0, 0, 1000, 0], false, 4_000_000),
        ("claude-sonnet-5-5", [0, 0, 0, 0, 1000], false, 100_000),
        ("claude-sonnet-5-5", [900, 700, 0, 0, 0], true, 9_680_000),
        ("claude-sonnet-5-5", [1200, 3500, 1800, 0, 0], false, 41_900_000),
        ("claude-sonnet-5-5", [1200, 3500, 0, 0, 1800], true, 41_338_000),
        ("claude-sonnet-5-5", [300, 16000, 0, 2500, 0], false, 170_600_000),
        ("claude-sonnet-5-5", [40, 5000, 100, 200, 60000], false, 57_130_000),
        ("claude-sonnet-5-5", [100000, 1000, 0, 0, 0], false, 210_000_000),
        ("claude-sonnet-5-5", [100001, 1000, 0, 0, 0], true, 231_002_200),
        ("claude-haiku-5-5", [1000, 0, 0, 0, 0], false, 100_000),
        ("claude-haiku-5-5", [0, 1000, 0, 0, 0], false, 500_000),
        ("claude-haiku-5-5", [0, 0, 1000, 0, 0], false, 125_000),
        ("claude-haiku-5-5", [0, 0, 0, 1000, 0], false, 200_000),
        ("claude-haiku-5-5", [0, 0, 0, 0, 1000], false, 10_000),
        ("claude-haiku-5-5", [900, 700, 0, 0, 0], true, 484_000),
        ("claude-haiku-5-5", [1200, 3500, 1800, 0, 0], false, 2_095_000),
        ("claude-haiku-5-5", [1200, 3500, 0, 0, 1800], true, 2_076_800),
        ("claude-haiku-5-5", [300, 16000, 0, 2500, 0], false, 8_530_000),
        ("claude-haiku-5-5", [40, 5000, 100, 200, 60000], false, 3_156_500),
        ("claude-haiku-5-5", [100000, 1000, 0, 0, 0], false, 10_500_000),
        ("claude-haiku-5-5", [100001, 1000, 0, 0, 0], true, 57_750_550),
    ];

    fn usage([input_tokens, output_tokens, written_5m, written_1h, read]: Tokens, is_us: bool) -> Usage {
        Usage {
            input_tokens,
            output_tokens,
            cache_creation_input_tokens: written_5m + written_1h,
            cache_creation_1h_input_tokens: written_1h,
            cache_read_input_tokens: read,
            is_us,
        }
    }

    #[test]
    fn every_kind_of_token_costs_what_the_list_says() {
        let prices = Prices::new([]);
        for (model, tokens, is_us, nanodollars) in ROWS {
            let cost = prices.of(model).unwrap().cost(&usage(tokens, is_us));
            assert_eq!(cost, nanodollars, "{model} {tokens:?} {is_us}");
        }
    }

    #[test]
    fn no_call_costs_more_than_the_most_of_its_tokens() {
        let prices = Prices::new([]);
        for (model, tokens, is_us, nanodollars) in ROWS {
            let usage = usage(tokens, is_us);
            assert!(prices.of(model).unwrap().most(usage.total_input(), usage.output_tokens) >= nanodollars, "{model}");
        }
    }

    #[test]
    fn counts_that_no_call_has_do_not_overflow() {
        let most = usage([u64::MAX, u64::MAX, u64::MAX / 2, u64::MAX / 2, u64::MAX], true);
        assert_eq!(Prices::new([]).of("claude-fable-5-2").unwrap().cost(&most), u64::MAX);
    }

    #[test]
    fn an_unknown_model_has_no_price_until_it_is_given_one() {
        assert_eq!(Prices::new([]).of("claude-sonnet-6"), None);
        let own = |model: &str| (model.to_owned(), 1_000, 2_000);
        let prices = Prices::new([own("claude-sonnet-6"), own("claude-haiku-5-5")]);
        let cost = |model: &str| prices.of(model).unwrap().cost(&usage([200_000, 10, 0, 0, 0], false));
        assert_eq!([cost("claude-sonnet-6"), cost("claude-haiku-5-5")], [200_020_000; 2]);
        assert!(prices.of("claude-opus-5-5").is_some(), "the others stay");
    }

    #[test]
    fn a_price_is_outdated_after_sixty_days_unless_a_setting_gives_it() {
        let prices = Prices::new([("own".to_owned(), 1, 2)]);
        let outdated = |model: &str, today: &str| prices.of(model).unwrap().outdated(today).is_some();
        assert!(!outdated("claude-sonnet-5-5", "2026-11-27") && !outdated("claude-sonnet-5-5", "2027-01-26"));
        assert!(outdated("claude-sonnet-5-5", "2027-01-27") && !outdated("own", "2030-01-01"));
        assert!(LIST.iter().all(|(_, price)| price.as_of.is_some_and(|date| date.parse::<Date>().is_ok())));
    }
}
