//! How long ago something was, in one number and one unit: `12s`, `3m`, `5h`, `9d`.

use jiff::Timestamp;

/// The least width of a column of ages, so that a table does not move when 9 s become 10 s.
pub const WIDTH: usize = 5;

/// From `since` to `now`. Clocks that disagree give `0s` rather than a time to come.
#[must_use]
pub fn age(since: Timestamp, now: Timestamp) -> String {
    duration(now.duration_since(since).as_secs().unsigned_abs() * u64::from(now > since))
}

/// A number of seconds. Units change at twice their size, so that `90s` is not rounded to a minute.
#[must_use]
pub fn duration(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / MINUTE),
        7_200..=172_799 => format!("{}h", seconds / HOUR),
        172_800.. => format!("{}d", seconds / DAY),
    }
}

/// A number of milliseconds, for things that are quick.
#[must_use]
pub fn milliseconds(millis: u64) -> String {
    match millis {
        0..=999 => format!("{millis}ms"),
        1_000..=9_999 => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
        10_000.. => duration(millis / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_one_number_and_one_unit() {
        let shown: Vec<_> = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(duration).into();
        assert_eq!(shown, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
        assert_eq!(
            [0, 999, 1000, 9999, 10_000, 250_000].map(milliseconds),
            ["0ms", "999ms", "1.0s", "9.9s", "10s", "4m"]
        );
    }

    #[test]
    fn what_another_clock_has_in_its_future_is_new() {
        let now = Timestamp::UNIX_EPOCH;
        let later = Timestamp::new(60, 0).unwrap_or(now);
        assert_eq!((age(later, now), age(now, later)), ("0s".to_owned(), "60s".to_owned()));
    }
}
