//! Limits of temperature as people write them: for every GPU, and for a product.

use super::{ConfigError, invalid};
use serde::Deserialize;
use std::str::FromStr;
use std::time::Duration;

/// Temperatures in °C that can be limits at all.
pub(super) const LIMIT_RANGE: std::ops::RangeInclusive<u32> = 30..=120;

/// When a GPU is withheld, and when it is offered again.
#[derive(Clone, Copy, Debug)]
pub(super) struct TemperatureRule {
    pub(super) withhold: u32,
    pub(super) restore: u32,
    pub(super) dwell: Duration,
}

impl TemperatureRule {
    /// Below where every NVIDIA card slows down.
    pub(super) const DEFAULT: Self = Self { withhold: 85, restore: 75, dwell: Duration::from_secs(10) };

    pub(super) fn checked(self, whose: &str) -> Result<Self, ConfigError> {
        let Self { withhold, restore, .. } = self;
        if !LIMIT_RANGE.contains(&withhold) || !LIMIT_RANGE.contains(&restore) {
            return Err(invalid(format!(
                "temperature limits{whose} must be between {} and {} °C, and they are {withhold} and {restore} °C",
                LIMIT_RANGE.start(),
                LIMIT_RANGE.end()
            )));
        }
        if restore >= withhold {
            return Err(invalid(format!(
                "restoreTemperature{whose} ({restore} °C) must be below withholdTemperature ({withhold} °C): \
                 a GPU that is withheld must cool down before it is offered again"
            )));
        }
        Ok(self)
    }
}

/// Temperatures of a product. What is absent is as for every GPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProductTemperatures {
    /// Text that the product's name contains, in any case.
    product: String,
    withhold_temperature: Option<u32>,
    restore_temperature: Option<u32>,
    dwell: Option<Period>,
}

impl FromStr for ProductTemperatures {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (product, rule) = text.split_once('=')?;
            let mut parts = rule.split('/');
            let mut degrees = || parts.next()?.parse().ok();
            let (withhold, restore) = (degrees()?, degrees()?);
            let dwell = parts.next().map(str::parse).transpose().ok()?;
            let complete = parts.next().is_none() && !product.is_empty();
            complete.then(|| Self {
                product: product.to_owned(),
                withhold_temperature: Some(withhold),
                restore_temperature: Some(restore),
                dwell,
            })
        };
        parse().ok_or_else(|| {
            format!("{text:?} is no rule for a product: write for example 'A100=80/70/30s' or 'A100=80/70'")
        })
    }
}

impl ProductTemperatures {
    pub(super) fn rule(&self, default: TemperatureRule) -> Result<ProductRule, ConfigError> {
        let rule = TemperatureRule {
            withhold: self.withhold_temperature.unwrap_or(default.withhold),
            restore: self.restore_temperature.unwrap_or(default.restore),
            dwell: self.dwell.map_or(default.dwell, |Period(period)| period),
        }
        .checked(&format!(" for the product {:?}", self.product))?;
        Ok(ProductRule { product: self.product.to_lowercase(), rule })
    }
}

/// The limits of a product.
#[derive(Clone, Debug)]
pub(super) struct ProductRule {
    /// In lower case.
    pub(super) product: String,
    pub(super) rule: TemperatureRule,
}

/// A span of time as people write it: `500ms`, `10s`, `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|duration| Duration::try_from(duration).ok())
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no span of time: write for example 500ms, 10s or 2m"))
    }
}

impl TryFrom<String> for Period {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
