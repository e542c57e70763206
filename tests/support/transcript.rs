//! What commands say, as texts that are compared with checked-in ones. `INSTA_UPDATE=always` writes those anew.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::process::Output;

use crate::host::Host;

/// What differs from run to run, and what stands in its place.
const FILTERS: [(&str, &str); 18] = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[TIME]"),
    (r"\b\d{8}T\d+Z\b", "[TIME]"),
    (r"\b[0-9a-f]{64}\b", "[DIGEST]"),
    (r"\b[0-9a-f]{40}\b", "[COMMIT]"),
    (r"\b[0-9a-f]{32}\b", "[NONCE]"),
    (r"\b([Rr]evision|at|from|to|with) (`?)[0-9a-f]{10}\b", "$1 $2[REVISION]"),
    (r"\b([a-z][a-z0-9-]*)-[0-9a-f]{8}\b", "$1-[ID]"),
    // A boot in a table, and the machine's name after it.
    (r"(?m) [0-9a-f]{8}( |$)", " [BOOT]$1"),
    (r"\[BOOT\]  \S+ +", "[BOOT]  [HOSTNAME]  "),
    (r"(?m)^( *Host: +).*$", "$1[HOSTNAME]"),
    (r"\b[0-9a-f]{10}\b", "[REVISION]"),
    (r#""host": "[^"]+""#, "\"host\": \"[HOSTNAME]\""),
    (r"\b(127\.0\.0\.1|localhost):\d+", "$1:[PORT]"),
    (r"\bprocess \d+\b", "process [PID]"),
    // Ages: columns of them are padded to one width, so that what follows stands where it stood.
    (r"(?m)(^|[ (,])\d+(\.\d)?(ms|s|m|h|d)(  +|$)", "$1[AGE]  "),
    (r"(?m)\[AGE\]  \d+(\.\d)?(ms|s|m|h|d)(  +|$)", "[AGE]  [AGE]  "),
    (r"\b\d+(s|m|h|d)( ago|\))", "[AGE]$2"),
    (r"(?m) +$", ""),
];

/// Runs a command; its text is the command, what it printed, standard error marked, and its exit code where that is not 0.
pub fn said(host: &Host, args: &[&str]) -> String {
    shown(host, args, &host.run(args))
}

/// Runs several commands one after the other.
pub fn session(host: &Host, commands: &[&[&str]]) -> String {
    let texts: Vec<_> = commands.iter().map(|args| said(host, args)).collect();
    texts.join("\n")
}

/// The text of a command that has run.
pub fn shown(host: &Host, args: &[&str], output: &Output) -> String {
    let quoted = |arg: &&str| if arg.contains(' ') { format!(" '{arg}'") } else { format!(" {arg}") };
    let command: String = args.iter().map(quoted).collect();
    let mut text = format!("$ setpoint{command}\n{}", String::from_utf8_lossy(&output.stdout));
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        text.push_str(format!("2> {line}").trim_end());
        text.push('\n');
    }
    if !output.status.success() {
        let code = output.status.code().map_or_else(|| output.status.to_string(), |code| code.to_string());
        text.push_str(&format!("exit {code}\n"));
    }
    text.replace(&host.dir().display().to_string(), "[HOST]")
}

/// Compares a text with `tests/snapshots/<group>/<name>.snap`.
pub fn assert_text(group: &str, name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(format!("../snapshots/{group}"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_filters(FILTERS);
    settings.bind(|| insta::assert_snapshot!(name, text));
}
