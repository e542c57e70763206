//! Amounts as people write them in declarations: `512Mi`, `5Gi`, `90s`, `24h`.

use std::fmt;
use std::str::FromStr;

/// Why an amount was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QuantityError(pub &'static str);

/// A size in bytes, written with a binary unit: `512Mi`, `5Gi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, schemars::JsonSchema)]
#[schemars(with = "String", extend("pattern" = "^(0|[0-9]+(Ki|Mi|Gi|Ti))$"))]
pub struct ByteSize(u64);

impl ByteSize {
    /// `n` bytes.
    #[must_use]
    pub const fn bytes(n: u64) -> Self {
        Self(n)
    }

    /// `n` mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` gibibytes.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// The size in mebibytes, rounded up.
    #[must_use]
    pub const fn as_mib(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }

    /// The sum, or the largest size there is.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// Largest first, so that formatting takes the largest unit that divides evenly.
const UNITS: [(&str, u64); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((suffix, unit)) => f.pad(&format!("{}{suffix}", self.0 / unit)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

impl FromStr for ByteSize {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        const RULE: QuantityError =
            QuantityError("must be a whole number with a unit of Ki, Mi, Gi or Ti, such as `512Mi`");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| RULE)?;
        let unit = match suffix {
            "" if number == 0 => 1,
            suffix => UNITS.iter().find(|(name, _)| *name == suffix).ok_or(RULE)?.1,
        };
        number.checked_mul(unit).map(Self).ok_or(QuantityError("is larger than any machine"))
    }
}

/// A length of time, written with a unit: `500ms`, `90s`, `10m`, `24h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, schemars::JsonSchema)]
#[schemars(with = "String", extend("pattern" = "^[0-9]+(ms|s|m|h|d)$"))]
pub struct Span(u64);

impl Span {
    /// `n` milliseconds.
    #[must_use]
    pub const fn millis(n: u64) -> Self {
        Self(n)
    }

    /// `n` seconds.
    #[must_use]
    pub const fn secs(n: u64) -> Self {
        Self(n * 1000)
    }

    /// The span in milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The span as a standard duration.
    #[must_use]
    pub const fn as_duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

/// Largest first. `ms` stands before `m` and `s`, so that suffix matching by equality stays unambiguous.
const SPANS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SPANS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((suffix, unit)) => f.pad(&format!("{}{suffix}", self.0 / unit)),
            None => f.pad("0s"),
        }
    }
}

impl FromStr for Span {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        const RULE: QuantityError =
            QuantityError("must be a whole number with a unit of ms, s, m, h or d, such as `90s`");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| RULE)?;
        let unit = SPANS.iter().find(|(name, _)| *name == suffix).ok_or(RULE)?.1;
        number.checked_mul(unit).map(Self).ok_or(QuantityError("is longer than any life"))
    }
}

/// Reads a whole number as YAML 1.2 writes it: decimal without leading zeros, or after `0x`, `0o` or `0b`, with a sign or not.
#[must_use]
pub fn parse_integer(text: &str) -> Option<i128> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let radixes = [("0x", 16), ("0o", 8), ("0b", 2)];
    let based = radixes.iter().find_map(|(prefix, radix)| unsigned.strip_prefix(prefix).map(|digits| (digits, *radix)));
    let (digits, radix) = based.unwrap_or((unsigned, 10));
    let zero_first = radix == 10 && digits.len() > 1 && digits.starts_with('0');
    // The standard library would take a second sign.
    if zero_first || !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

crate::text::as_text!(ByteSize, recorded_size);
crate::text::as_text!(Span);

/// As people write it, or bytes without a unit, as records hold sizes that no unit divides.
fn recorded_size(text: &str) -> Result<ByteSize, QuantityError> {
    text.parse().or_else(|error| text.parse().map(ByteSize).map_err(|_| error))
}

#[cfg(test)]
mod tests;
