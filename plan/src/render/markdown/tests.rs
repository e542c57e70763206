//! Room is divided fairly, and nothing that a declaration holds has an effect on the page.

use super::escape::{code, fence};
use super::room::{list, shares};

#[test]
fn small_wishes_are_met_and_large_ones_share_the_rest() {
    assert_eq!(shares(100, &[10, 20, 30]), [10, 20, 30]);
    assert_eq!(shares(1000, &[9000, 10, 9000]), [495, 10, 495]);
    assert_eq!(shares(510, &[9000, 10, 9000, 10]), [250, 10, 250, 0], "what is of no use to all goes to the first");
    assert_eq!(shares(0, &[5, 5]), [0, 0]);
    assert_eq!(shares(10, &[]), [0; 0]);
}

#[test]
fn code_cannot_be_left() {
    let hostile = "</code>|`@all` #1 https://evil.example [x](y) **b** \u{202e}$x$ <img src=x>\nnext\\|";
    let shown = code(hostile);
    let inner = shown.strip_prefix("<code>").and_then(|rest| rest.strip_suffix("</code>"));
    let inner = inner.map(|inner| inner.replace("&#", "")).unwrap_or_default();
    assert!(!inner.is_empty());
    for active in ["<", ">", "|", "`", "@", "#", ":/", "[", "*", "\n", "\\", "$", "\u{202e}"] {
        assert!(!inner.replace("\\u{202e}", "").contains(active), "{active:?} in {inner}");
    }
}

#[test]
fn a_fence_is_longer_than_what_it_holds() {
    assert_eq!(fence(["a `` b"].into_iter()), "```");
    assert_eq!(fence(["```", "a ````` b"].into_iter()), "``````");
    assert_eq!(fence(std::iter::empty()), "```");
}

#[test]
fn a_list_says_how_many_names_are_missing() {
    let names: Vec<String> = (0..100).map(|n| format!("app-{n}")).collect();
    let line = list("create", &names, 100);
    assert!(line.len() <= 100 && line.contains("app-3") && line.ends_with("more\n"), "{line}");
    let whole = list("create", &names[..2], 100);
    assert_eq!(whole, "- **create** (2): app-0, app-1\n");
}
