//! Amounts read as they are written.

use proptest::prelude::*;

use super::*;

#[test]
fn sizes_have_binary_units() {
    assert_eq!("512Mi".parse(), Ok(ByteSize::mib(512)));
    assert_eq!("0".parse(), Ok(ByteSize::bytes(0)));
    for text in
        ["", "512", "512MB", "512M", "Mi", "-1Mi", "+1Mi", "1.5Gi", " 1Gi", "1Gi ", "1 Gi", "16777216Ti", "１Mi"]
    {
        assert!(text.parse::<ByteSize>().is_err(), "{text}");
    }
}

#[test]
fn sizes_show_the_largest_whole_unit() {
    assert_eq!(ByteSize::mib(1024).to_string(), "1Gi");
    assert_eq!(ByteSize::mib(1536).to_string(), "1536Mi");
    assert_eq!(format!("{:>6}", ByteSize::mib(1)), "   1Mi");
}

#[test]
fn times_have_units() {
    assert_eq!("90s".parse(), Ok(Span::secs(90)));
    assert_eq!("500ms".parse(), Ok(Span::millis(500)));
    for text in ["", "90", "s", "1.5h", "-1s", "1m30s", "1w", "99999999999999999999d"] {
        assert!(text.parse::<Span>().is_err(), "{text}");
    }
}

#[test]
fn integers_are_those_of_yaml() {
    assert_eq!(parse_integer("-0x1F"), Some(-31));
    assert_eq!(parse_integer("+7"), Some(7));
    for text in ["", "-", "0x", "007", "--1", "+-1", "0x-1", "1_000", "1e3", "é"] {
        assert_eq!(parse_integer(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn sizes_survive_being_written(bytes in (0..u64::MAX / 1024).prop_map(|kib| kib * 1024)) {
        let size = ByteSize::bytes(bytes);
        prop_assert_eq!(size.to_string().parse(), Ok(size));
    }

    #[test]
    fn times_survive_being_written(millis: u64) {
        let span = Span::millis(millis);
        prop_assert_eq!(span.to_string().parse(), Ok(span));
    }

    #[test]
    fn reading_never_panics(text in r"\PC{0,12}") {
        let _ = (text.parse::<ByteSize>().is_ok(), text.parse::<Span>().is_ok(), parse_integer(&text));
    }
}
