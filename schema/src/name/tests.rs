//! Spelling rules.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

#[test]
fn app_names_are_dns_labels() {
    for good in ["a", "blog", "a-1", &"a".repeat(40)] {
        assert!(AppName::new(good).is_ok(), "{good}");
    }
    for bad in ["", "A", "1a", "-a", "a-", "a.b", "a_b", "é", &"a".repeat(41)] {
        assert!(AppName::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn keys_are_written_as_short_as_they_are_read() {
    for text in ["blog", "red/blog"] {
        assert_eq!(text.parse::<AppKey>().unwrap().to_string(), text);
    }
    assert_eq!("default/blog".parse::<AppKey>().unwrap().to_string(), "blog");
    assert!("a/b/c".parse::<AppKey>().is_err() && "/a".parse::<AppKey>().is_err() && "a/".parse::<AppKey>().is_err());
}

#[test]
fn paths_stay_in_the_repository() {
    for good in ["a", "a/b.yaml", "a/..b", "…"] {
        assert!(RepoPath::new(good).is_ok(), "{good}");
    }
    for bad in ["", "/a", "a/", "a//b", ".", "a/./b", "..", "a/../b", "a\\b", "a\0b"] {
        assert!(RepoPath::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn host_names_are_lower_case_and_without_port() {
    assert!(HostName::new("blog.example.org").is_ok());
    for bad in ["", "Blog.org", "a..b", "a:80", "-a.b", "a-.b", "*.a", &format!("{}.b", "a".repeat(64))] {
        assert!(HostName::new(bad).is_err(), "{bad}");
    }
}
