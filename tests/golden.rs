//! Golden sessions of every verb over `examples/apps`: in a pipe and on a terminal, doing its work and refusing wrong input. They
//! are checked in under `tests/snapshots/golden`, a file for each verb; the first test says which verb has none.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/examples.rs"]
mod examples;
#[path = "support/host.rs"]
mod host;
#[path = "support/terminal.rs"]
mod terminal;
#[path = "support/transcript.rs"]
mod transcript;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use examples::{copy_examples, daemon_on_examples};
use host::{Host, signal};
use terminal::{on_terminal, seen};
use transcript::{assert_text, said, shown};

/// Wide enough for most lines, and narrow enough that some are cut.
const COLUMNS: u16 = 100;
/// Nobody listens on port 1.
const NOBODY: &str = "127.0.0.1:1";

/// The two ways in which each verb is shown.
const WAYS: [&str; 2] = ["# in a pipe", "# on a terminal"];
/// What works and is not in the help, for packages.
const HIDDEN: [&str; 1] = ["man"];

/// How a command is shown in each way.
const SHOW: [fn(&Host, &[&str]) -> String; 2] = [said, |host, args| seen(host, COLUMNS, &[args])];

#[test]
fn every_verb_has_a_golden_session() {
    let mut verbs = verbs(&[]);
    verbs.extend(HIDDEN.map(str::to_owned));
    assert!(verbs.len() > 25 && verbs.iter().any(|verb| verb == "token new"), "{verbs:?}");
    let sessions = sessions();
    let mut missing = Vec::new();
    for verb in &verbs {
        for way in WAYS {
            let of_verb = |session: &&Session| session.way == way && is_about(&session.command, verb);
            let (done, refused): (Vec<_>, Vec<_>) = sessions.iter().filter(of_verb).partition(|session| session.done);
            let lacks = [("that does its work", done.is_empty()), ("that is refused", refused.is_empty())];
            missing
                .extend(lacks.iter().filter(|(_, lacks)| *lacks).map(|(what, _)| format!("{verb}: none {way} {what}")));
        }
    }
    assert!(missing.is_empty(), "write these sessions in tests/golden.rs:\n{}", missing.join("\n"));
}

#[test]
fn the_manual_names_every_verb() {
    let manual = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md")).unwrap();
    let verbs = verbs(&[]).into_iter().map(|verb| verb.split(' ').next().unwrap().to_owned());
    let unnamed: Vec<_> = verbs.filter(|verb| !manual.contains(&format!("`{verb}"))).collect();
    assert!(unnamed.is_empty(), "docs/cli.md does not name {unnamed:?}");
}

/// Every verb below `path` that does something, as its help lists them, with each kind of object that it takes.
fn verbs(path: &[&str]) -> Vec<String> {
    let help = host::setpoint().args(path).arg("-h").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let section = |name: &str| {
        let lines = help.lines().skip_while(|line| *line != name).skip(1).take_while(|line| !line.is_empty());
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let below: Vec<String> = section("Commands:")
        .iter()
        .filter_map(|line| Some(line.strip_prefix("  ")?.split(' ').next()?.to_owned()))
        .collect();
    if !below.is_empty() {
        // What a long line is broken into begins with a blank.
        let below = below.iter().filter(|verb| !matches!(verb.as_str(), "help" | ""));
        return below.flat_map(|verb| verbs(&[path, &[verb]].concat())).collect();
    }
    let arguments = section("Arguments:").join(" ");
    let words = arguments.split_whitespace().collect::<Vec<_>>().join(" ");
    let kinds = words.split_once("KIND").and_then(|(_, rest)| rest.split_once("[possible values: ")?.1.split_once(']'));
    match kinds {
        Some((kinds, _)) => kinds.split(", ").map(|kind| format!("{} {kind}", path.join(" "))).collect(),
        None => vec![path.join(" ")],
    }
}

/// One command of a golden session.
struct Session {
    way: String,
    command: String,
    /// Whether it did what it was told.
    done: bool,
}

fn sessions() -> Vec<Session> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/golden");
    let mut sessions: Vec<Session> = Vec::new();
    for file in fs::read_dir(dir).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let mut way = "";
        for line in text.lines() {
            if WAYS.contains(&line) {
                way = line;
            } else if let Some(command) = line.strip_prefix("$ setpoint ") {
                sessions.push(Session { way: way.to_owned(), command: command.to_owned(), done: true });
            } else if line.starts_with("exit ")
                && let Some(last) = sessions.last_mut()
            {
                last.done = false;
            }
        }
    }
    sessions
}

fn is_about(command: &str, verb: &str) -> bool {
    command.strip_prefix(verb).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// Compares both ways of showing these commands with `tests/snapshots/golden/<verb>.snap`.
fn assert_golden(verb: &str, host: &Host, commands: &[&[&str]]) {
    let [piped, seen] = SHOW.map(|show| commands.iter().map(move |args| show(host, args)));
    assert_recorded(verb, piped, seen);
}

fn assert_recorded(verb: &str, piped: impl Iterator<Item = String>, seen: impl Iterator<Item = String>) {
    let texts =
        |texts: &mut dyn Iterator<Item = String>| texts.map(|text| lasting(&text)).collect::<Vec<_>>().join("\n");
    let [pipe, terminal] = WAYS;
    let text = format!("{pipe}\n\n{}\n{terminal}\n\n{}", texts(&mut { piped }), texts(&mut { seen }));
    assert_text("golden", verb, &text);
}

/// A text without what differs from run to run, and is not for filters: secrets, users, and long documents that have tests of
/// their own.
fn lasting(text: &str) -> String {
    const SHOWN: usize = 90;
    const KEPT: usize = 12;
    let user = Command::new("id").arg("-u").output().unwrap().stdout;
    let by = format!("uid {}", String::from_utf8(user).unwrap().trim());
    let text = text.replace(&by, "[USER]");
    let mut pieces = text.split("setpoint_");
    let first = pieces.next().unwrap().to_owned();
    let is_secret = |piece: &str| piece.bytes().take_while(u8::is_ascii_hexdigit).count() == 64;
    let text = pieces.fold(first, |text, piece| {
        if is_secret(piece) {
            format!("{text}setpoint_[TOKEN]{}", &piece[64..])
        } else {
            format!("{text}setpoint_{piece}")
        }
    });
    // What is under way at a moment, and how much waits, is for chance to say.
    let is_progress = |line: &&str| line.starts_with("working on ") || line.starts_with("waiting for apps");
    let text: String = text.lines().filter(|line| !is_progress(line)).map(|line| format!("{line}\n")).collect();
    let lines: Vec<_> = text.lines().collect();
    match lines.len() {
        ..=SHOWN => text,
        _ => format!("{}\n[…]\n", lines[..KEPT].join("\n")),
    }
}

/// The rows of a table of events, in an order that does not depend on which task was the first to tell.
fn in_order(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().collect();
    if let Some(rows) = lines.get_mut(2..).filter(|_| !text.contains("exit ")) {
        rows.sort_by_key(|row| row.split_once("  ").map_or("", |(_, rest)| rest));
    }
    format!("{}\n", lines.join("\n"))
}

#[test]
fn verbs_that_look_at_a_daemon() {
    let host = daemon_on_examples();
    let commit = host.git(&["rev-parse", "HEAD"]);
    let commit = commit.as_str();
    let get: [&[&str]; 15] = [
        &["get", "apps"],
        &["get", "apps", "-o", "wide", "hello"],
        &["get", "apps", "-o", "name"],
        &["get", "apps", "nobody"],
        &["get", "sandboxes"],
        &["get", "sandboxes", "nobody"],
        &["get", "templates"],
        &["get", "templates", "tols"],
        &["get", "revisions"],
        &["get", "revisions", "0123456789"],
        &["get", "settings", "converge"],
        &["get", "settings", "convrge"],
        &["get", "apps", "--server", NOBODY],
        &["get", "apps", "-o", "toml"],
        &["get", "apps", "--phase", "happy"],
    ];
    assert_golden("get", &host, &get);
    let describe: [&[&str]; 12] = [
        &["describe", "app", "hello", "--events", "0"],
        &["describe", "app", "nobody"],
        &["describe", "app", "Not A Name"],
        &["describe", "sandbox", "hello", "--events", "0"],
        &["describe", "sandbox", "hello", "-o", "name"],
        &["describe", "sandbox", "nobody"],
        &["describe", "template", "tools"],
        &["describe", "template", "tools", "-o", "yaml"],
        &["describe", "template", "tols"],
        &["describe", "revision", commit],
        &["describe", "revision", "0123456789"],
        &["describe", "app", "hello", "--server", NOBODY],
    ];
    assert_golden("describe", &host, &describe);
    let tree: [&[&str]; 7] = [
        &["tree"],
        &["tree", "--invert"],
        &["tree", "frontend", "-o", "json"],
        &["tree", "frontend", "-o", "yaml"],
        &["tree", "nobody"],
        &["tree", "frontend", "--team", "default"],
        &["tree", "--server", NOBODY],
    ];
    assert_golden("tree", &host, &tree);
    let wait: [&[&str]; 5] = [
        &["wait", "hello", "ticker"],
        &["wait", "hello", "--for", "lunch"],
        &["wait", "hello", "--for=deleted", "--timeout", "50ms"],
        &["wait", "nobody", "--timeout", "50ms"],
        &["wait", "hello", "--server", NOBODY],
    ];
    assert_golden("wait", &host, &wait);
}

#[test]
fn verbs_that_tell_what_happened() {
    let host = daemon_on_examples();
    let events: [&[&str]; 6] = [
        &["events", "hello"],
        &["events", "nobody"],
        &["events", "Not A Name"],
        &["events", "--since", "yesterday"],
        &["events", "--server", NOBODY],
        &["get", "events", "hello"],
    ];
    let refused: &[&str] = &["get", "events", "--server", NOBODY];
    let events = events.iter().chain([&refused]);
    let [piped, seen] = SHOW.map(|show| events.clone().map(|args| in_order(&show(&host, args))).collect::<Vec<_>>());
    assert_recorded("events", piped.into_iter(), seen.into_iter());
    let history: [&[&str]; 5] = [
        &["history"],
        &["history", "hello"],
        &["history", "nobody"],
        &["history", "-n", "many"],
        &["history", "--server", NOBODY],
    ];
    assert_golden("history", &host, &history);
    let logs: [&[&str]; 4] = [
        &["logs", "guestbook", "renderer"],
        &["logs", "guestbook", "rendrer"],
        &["logs", "nobody"],
        &["logs", "guestbook", "--server", NOBODY],
    ];
    assert_golden("logs", &host, &logs);
    let version: [&[&str]; 3] = [&["version"], &["version", "-o", "json"], &["version", "--server", NOBODY]];
    assert_golden("version", &host, &version);
    let server = host.api_address().to_string();
    let doctor: [&[&str]; 5] = [
        &["doctor", "state", "daemon", "journal", "machines"],
        &["doctor", "--server", &server, "reach", "ready", "version", "apps"],
        &["doctor", "daemon", "-o", "json"],
        &["doctor", "aura"],
        &["doctor", "--server", NOBODY],
    ];
    assert_golden("doctor", &host, &doctor);
}

#[test]
fn verbs_that_change_what_a_daemon_does() {
    let (host, elsewhere) = (daemon_on_examples(), Host::sim());
    for (begin, end) in [("suspend", "resume"), ("pause", "wake")] {
        // One after the other, because what one begins the next one ends.
        let [piped, seen] = SHOW.map(|show| {
            [begin, end].map(|verb| {
                let asked: [&[&str]; 4] =
                    [&[verb, "hello"], &[verb, "hello"], &[verb, "nobody"], &[verb, "Not A Name"]];
                let texts = asked.iter().map(|args| show(&host, args));
                texts.chain([show(&elsewhere, &[verb, "hello"])]).collect::<Vec<_>>()
            })
        });
        for ((verb, piped), seen) in [begin, end].into_iter().zip(piped).zip(seen) {
            assert_recorded(verb, piped.into_iter(), seen.into_iter());
        }
    }
}

#[test]
fn an_app_at_rest() {
    let host = daemon_on_examples();
    assert!(host.run(&["pause", "hello"]).status.success());
    host.wait_for("its rest", |host| (host.app("hello")["phase"] == "paused").then_some(()));
    let look: [&[&str]; 5] = [
        &["get", "apps", "hello", "ticker"],
        &["get", "apps", "hello", "ticker", "-o", "wide"],
        &["wait", "hello", "ticker"],
        &["wait", "hello", "--for=condition=Ready=False"],
        &["wait", "hello", "--for=condition=Ready", "--timeout", "50ms"],
    ];
    assert_golden("resting", &host, &look);
}

#[test]
fn keeping_an_app_awake() {
    let (host, elsewhere) = (daemon_on_examples(), Host::sim());
    let asked: [&[&str]; 7] = [
        &["keepalive", "hello", "--end"],
        &["keepalive", "hello", "2h"],
        &["keepalive", "hello", "0"],
        &["keepalive", "hello", "2d"],
        &["keepalive", "hello"],
        &["keepalive", "hello", "long"],
        &["keepalive", "nobody", "2h"],
    ];
    let [piped, seen] = SHOW.map(|show| {
        let texts = asked.iter().map(|args| show(&host, args));
        texts.chain([show(&elsewhere, &["keepalive", "hello", "2h"])]).collect::<Vec<_>>()
    });
    assert_recorded("keepalive", piped.into_iter(), seen.into_iter());
}

#[test]
fn keeping_moments() {
    let (host, elsewhere) = (daemon_on_examples(), Host::sim());
    // Each way has names of its own, because a second moment of one name is another generation.
    let taken = [("piped", SHOW[0]), ("seen", SHOW[1])].map(|(name, show)| {
        let disk = format!("{name}-disk");
        let asked: [&[&str]; 7] = [
            &["snapshot", "hello", "--name", name],
            &["snapshot", "hello", "--name", &disk, "--disk-only", "--retain", "2d"],
            &["snapshot", "ticker", "--name", name],
            &["snapshot", "hello", "--name", "Not A Name"],
            &["snapshot", "hello", "--retain", "long"],
            &["snapshot", "nobody"],
            &["snapshot"],
        ];
        let texts = asked.iter().map(|args| show(&host, args));
        texts.chain([show(&elsewhere, &["snapshot", "hello"])]).collect::<Vec<_>>()
    });
    let [piped, seen] = taken;
    assert_recorded("snapshot", piped.into_iter(), seen.into_iter());
    host.wait_for("the snapshots", |host| {
        let listed = host.api("/v1/snapshots");
        let listed = listed["items"].as_array()?;
        (listed.len() == 4 && listed.iter().all(|snapshot| snapshot["state"] == "kept")).then_some(())
    });
    let look: [&[&str]; 6] = [
        &["get", "snapshots"],
        &["get", "snapshots", "hello", "-o", "name"],
        &["get", "snapshots", "nothing"],
        &["describe", "snapshot", "piped-disk"],
        &["describe", "snapshot", "nothing"],
        &["describe", "snapshot", "Not A Name"],
    ];
    assert_golden("snapshots", &host, &look);
}

#[test]
fn verbs_on_the_state_of_a_daemon() {
    let mut host = daemon_on_examples();
    let state: [&[&str]; 3] = [&["state", "show"], &["state", "rebuild"], &["state"]];
    let mut texts = SHOW.map(|show| state.iter().map(|args| show(&host, args)).collect::<Vec<_>>());
    assert_eq!(host.stop_daemon(), Some(0));
    for (text, show) in texts.iter_mut().zip(SHOW) {
        text.push(show(&host, &["state", "rebuild"]));
    }
    fs::remove_dir_all(host.state()).unwrap();
    fs::write(host.state(), "no directory").unwrap();
    for (text, show) in texts.iter_mut().zip(SHOW) {
        text.push(show(&host, &["state", "show"]));
    }
    let [piped, seen] = texts;
    assert_recorded("state", piped.into_iter(), seen.into_iter());
}

#[test]
fn verbs_that_need_no_daemon() {
    let host = Host::sim();
    copy_examples(&host);
    host.commit("examples");
    host.write("file", "not a directory");
    let validate: [&[&str]; 4] =
        [&["validate", "."], &["validate", "apps"], &["validate", "nowhere"], &["validate", ".", "-o", "xml"]];
    assert_golden("validate", &host, &validate);
    let schema: [&[&str]; 11] = [
        &["schema", "app"],
        &["schema", "app", "web"],
        &["schema", "template"],
        &["schema", "template", "web"],
        &["schema", "sandbox"],
        &["schema", "sandbox", "web"],
        &["schema", "project"],
        &["schema", "project", "web"],
        &["schema", "snapshot"],
        &["schema", "snapshot", "web"],
        &["schema", "pod"],
    ];
    assert_golden("schema", &host, &schema);
    let token: [&[&str]; 3] = [&["token", "new", "ci"], &["token", "new", "a b"], &["token", "new"]];
    assert_golden("token", &host, &token);
    let completions: [&[&str]; 4] =
        [&["completions", "bash"], &["completions", "zsh"], &["completions", "fish"], &["completions", "tcsh"]];
    assert_golden("completions", &host, &completions);
    assert_golden("man", &host, &[&["man", "pages"], &["man", "file/pages"], &["man"]]);
    let init = |dir: &'static str| [["init", dir], ["init", dir], ["init", "file/site"]];
    let piped = init("site").map(|args| said(&host, &args));
    let seen = init("other").map(|args| SHOW[1](&host, &args));
    assert_recorded("init", piped.into_iter(), seen.into_iter());
}

#[test]
fn verbs_that_converge() {
    let hosts = [Host::sim(), Host::sim()];
    let [piped, seen] = [0, 1].map(|way| {
        let host = &hosts[way];
        copy_examples(host);
        host.commit("examples");
        host.configure(
            "[limits]\nmemory = \"4Gi\"\nvcpus = 16\ndisk = \"10Gi\"\nsandboxes = 20\n[converge]\nconcurrency = 1\n",
        );
        let commands: [&[&str]; 8] = [
            &["reconcile", "--dry-run"],
            &["reconcile", "--dry-run", "-o", "markdown"],
            &["reconcile", "--dry-run", "--rev", "nowhere"],
            &["reconcile", "--dry-run", "--worktree", "--rev", "HEAD"],
            &["reconcile", "nowhere.plan"],
            &["reconcile"],
            &["reconcile", "--repo", "."],
            &["reconcile", "--dry-run"],
        ];
        commands.map(|args| SHOW[way](host, args))
    });
    assert_recorded("reconcile", piped.into_iter(), seen.into_iter());
}

#[test]
fn the_daemon_itself() {
    let host = Host::sim();
    copy_examples(&host);
    host.commit("examples");
    let run = || {
        let _ = fs::remove_file(host.state().join("daemon.json"));
        let mut command = host.command(&["--api-listen", "127.0.0.1:0", "--ingress-listen", "127.0.0.1:0"]);
        // The rest of the log is times, and in no order.
        command.arg("--repo").arg(host.repo()).arg("run").env("RUST_LOG", "setpoint::cli=info");
        command
    };
    let ended_when_up = |command: Command, end: &(dyn Fn(Command) -> String + Sync)| {
        std::thread::scope(|scope| {
            let running = scope.spawn(move || end(command));
            signal(host.wait_for("the daemon to be up", pid), "TERM");
            running.join().unwrap()
        })
    };
    let in_vain = || {
        let mut command = host.command(&["run"]);
        command.current_dir(host.dir());
        command
    };
    let piped =
        ended_when_up(run(), &|mut command| shown(&host, &["run"], &command.stdin(Stdio::null()).output().unwrap()));
    let refused = shown(&host, &["run"], &in_vain().output().unwrap());
    let on_one = |command| format!("$ setpoint run\n{}", on_terminal(command, COLUMNS));
    let seen = [ended_when_up(run(), &on_one), on_one(in_vain())];
    assert_recorded("run", [piped, refused].into_iter(), seen.into_iter());
}

/// The daemon's process, once it has told where it is.
fn pid(host: &Host) -> Option<u32> {
    let beacon: serde_json::Value = serde_json::from_slice(&fs::read(host.state().join("daemon.json")).ok()?).ok()?;
    u32::try_from(beacon["pid"].as_u64()?).ok()
}
