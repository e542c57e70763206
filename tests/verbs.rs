//! The verbs that look at a daemon, as somebody on call uses them: on a terminal and off it, while things change, and when they
//! go wrong. What they print is checked in under `tests/snapshots/verbs`.

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
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use examples::daemon_on_examples;
use host::Host;
use terminal::{Going, on_terminal, seen};
use transcript::{assert_text, said, session};

fn assert_session(name: &str, host: &Host, commands: &[&[&str]]) {
    assert_text("verbs", name, &session(host, commands));
}

/// A daemon with an app that never gets ready, one that waits for it, and one with a mistake.
fn daemon_in_trouble() -> Host {
    let mut host = Host::sim();
    host.configure("[limits]\nmemory = \"4Gi\"\nvcpus = 16\ndisk = \"10Gi\"\nsandboxes = 20\n");
    fs::write(host.state().join("vmm/script.toml"), "[[fate]]\napp = \"db\"\nunhealthy = \"503\"\n").unwrap();
    host.write_app("db", "", "down");
    host.write_app("shop", "dependsOn: [db]", "waits");
    host.write_app("wiki", "", "fine");
    host.commit("declare");
    host.start();
    let settled = |host: &Host| {
        let apps = ["db", "shop", "wiki"].map(|name| host.app(name)["phase"].clone());
        (apps == ["unready", "blocked", "ready"]).then_some(())
    };
    host.wait_for("one app to be unready and one to be blocked", settled);
    host
}

#[test]
fn everything_about_an_app_is_on_one_page() {
    let host = daemon_on_examples();
    let commands: [&[&str]; 8] = [
        &["describe", "app", "guestbook", "--events", "0"],
        &["describe", "app", "default/frontend", "--events", "0"],
        &["describe", "app", "ticker", "--events", "0", "-o", "name"],
        &["describe", "app", "nobody"],
        &["tree"],
        &["tree", "frontend"],
        &["tree", "--invert"],
        &["tree", "nobody"],
    ];
    assert_session("describe", &host, &commands);
    let names = |args: &[&str]| String::from_utf8(host.run(args).stdout).unwrap().lines().count();
    assert_eq!(names(&["events", "--tail", "2", "-o", "name"]), 2);
    assert!(names(&["events", "hello", "--since", "1h", "-o", "name"]) >= 2);
    assert_eq!(names(&["events", "hello", "--since", "0s", "-o", "name"]), 0);
    assert_eq!(names(&["get", "events", "hello", "-o", "name"]), names(&["events", "hello", "-o", "name"]));
    let events = said(&host, &["describe", "app", "hello"]);
    assert!(events.contains("\nEvents\n  AGE    KIND") && events.contains("created"), "{events}");
    let whole: serde_json::Value =
        serde_json::from_slice(&host.run(&["describe", "app", "hello", "-o", "json"]).stdout).unwrap();
    assert_eq!(whole["app"], host.app("hello"));
    assert_eq!(whole["sandbox"]["app"], "hello");
    assert!(!whole["events"].as_array().unwrap().is_empty());
}

#[test]
fn an_app_that_is_not_as_declared_says_why_wherever_one_looks() {
    let host = daemon_in_trouble();
    let commands: [&[&str]; 5] = [
        &["get", "apps"],
        &["get", "apps", "--phase", "unready,blocked", "-o", "name"],
        &["tree"],
        &["describe", "app", "shop", "--events", "0"],
        &["wait", "shop", "--timeout", "100ms"],
    ];
    assert_session("trouble", &host, &commands);
}

#[test]
fn a_mistake_takes_one_line_of_the_history_and_of_the_log() {
    let mut host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    host.start();
    host.wait_converged();
    host.write("setpoint.toml", "[defaults.resources]\nmemroy = \"1Gi\"\n");
    host.commit("slip");
    let stalled = |host: &Host| Some(said(host, &["history"])).filter(|history| history.contains("stalled"));
    let history = host.wait_for("the revision to have ended", stalled);
    let mistake = "setpoint.toml:2:1: defaults.resources: unknown field `memroy`\n";
    assert!(history.contains(&format!("  {mistake}")), "{history}");
    assert!(host.log().contains(&format!("mistake={mistake}").trim_end().to_owned()), "{}", host.log());
    assert!(!host.log().contains("^^^"), "{}", host.log());
}

#[test]
fn a_terminal_gets_colours_and_lines_that_fit() {
    let host = daemon_in_trouble();
    let commands: [&[&str]; 6] = [
        &["get", "apps"],
        &["get", "apps", "-o", "wide", "db"],
        &["get", "apps", "--no-color"],
        &["tree"],
        &["describe", "app", "db", "--events", "0"],
        &["get", "apps", "nobody"],
    ];
    assert_text("verbs", "terminal", &seen(&host, 72, &commands));
    // What is piped is whole and plain.
    let piped = said(&host, &["get", "apps", "shop"]);
    assert!(!piped.contains('…') && !piped.contains('\u{1b}'), "{piped}");
    let mut quiet = host.command(&["get", "apps", "db"]);
    quiet.env("NO_COLOR", "1");
    let shown = on_terminal(quiet, 200);
    assert!(shown.contains("␛") && shown.contains("unready"), "the terminal helper takes NO_COLOR away: {shown}");
    let mut forced = host.command(&["get", "apps", "db"]);
    forced.env_remove("NO_COLOR").env("CLICOLOR_FORCE", "1");
    assert!(String::from_utf8_lossy(&forced.output().unwrap().stdout).contains("\u{1b}[31munready\u{1b}[0m"));
}

#[test]
fn a_watch_prints_a_line_for_each_change() {
    let host = daemon_on_examples();
    let apps = Going::start(host.command(&["get", "apps", "--watch", "-o", "wide"]));
    let one = Going::start(host.command(&["get", "apps", "hello", "-w", "-o", "json"]));
    let events = Going::start(host.command(&["events", "--watch", "--tail", "1"]));
    assert!(apps.line_with("ticker").starts_with("ticker     ready"));
    one.line_with("\"name\":\"hello\"");
    events.line_with("MESSAGE");

    host.write("apps/hello/app.yaml", &hello("96Mi"));
    host.commit("give it less memory");
    assert!(apps.line_with("96Mi").starts_with("hello"));
    one.line_with("\"memory\":\"96Mi\"");
    events.line_with("rebooted");

    host.remove("apps/ticker");
    host.commit("remove");
    apps.line_with("ticker     deleted");
}

fn hello(memory: &str) -> String {
    format!(
        "apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: hello\nspec:\n  resources:\n    memory: {memory}\n    disk: 64Mi\n"
    )
}

#[test]
fn watches_outlive_a_restart_of_the_daemon() {
    let mut host = Host::sim();
    host.configure(&format!("[api]\nsocket = {:?}\n", host.dir().join("api.sock")));
    host.write_app("blog", "", "first");
    host.commit("declare");
    host.start();
    host.wait_converged();
    let apps = Going::start(host.command(&["get", "apps", "--watch", "-o", "wide"]));
    let events = Going::start(host.command(&["events", "--watch", "-o", "json"]));
    apps.line_with("blog");
    let first = events.line_with("created");
    assert_eq!(host.stop_daemon(), Some(0));
    host.write_app("shop", "", "open");
    host.commit("open a shop meanwhile");
    host.start();
    assert!(apps.line_with("shop").starts_with("shop"));
    let second = events.line_with("\"app\":\"shop\"");
    assert!(first != second);
}

#[test]
fn events_are_waited_for_where_streams_do_not_come_through() {
    let mut host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    host.start();
    host.wait_converged();
    let server = without_streams(&host);
    let events = Going::start(host.command(&["events", "--watch", "--server", &server, "-o", "json"]));
    events.line_with("created");
    host.write_app("shop", "", "open");
    host.commit("open a shop");
    events.line_with("\"app\":\"shop\"");
}

/// A way to the status API that lets no requests for streams through; its address.
fn without_streams(host: &Host) -> String {
    let (listener, api) = (TcpListener::bind("127.0.0.1:0").unwrap(), host.api_address());
    let address = listener.local_addr().unwrap().to_string();
    let pass = move |mut client: TcpStream| {
        let mut head = [0; 4096];
        let length = client.read(&mut head)?;
        let head = String::from_utf8_lossy(&head[..length]).replace("text/event-stream", "application/json");
        let mut daemon = TcpStream::connect(api)?;
        daemon.write_all(head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes())?;
        std::io::copy(&mut daemon, &mut client).map(drop)
    };
    std::thread::spawn(move || {
        // Whoever asks may leave before there is an answer.
        listener.incoming().flatten().for_each(|client| drop(std::thread::spawn(move || pass(client))));
    });
    address
}

/// Apps that are declared and never started, one more than a page of the API holds.
fn declare_more_than_a_page(host: &Host) {
    for number in 0..=1000 {
        let app = format!("app-{number:04}");
        let text = format!(
            "apiVersion: setpoint/v1\nkind: App\nmetadata: {{name: {app}}}\nspec: {{suspend: true, runtime: {{web: {{command: x}}}}}}\n"
        );
        host.write(&format!("apps/{app}/app.yaml"), &text);
    }
}

#[test]
fn a_list_of_several_pages_is_shown_and_watched_whole() {
    let mut host = Host::sim();
    declare_more_than_a_page(&host);
    host.commit("declare");
    host.start();
    host.wait_for("all apps", |host| (host.api("/v1/status")["apps"]["total"] == 1001).then_some(()));
    let names = String::from_utf8(host.run(&["get", "apps", "-o", "name"]).stdout).unwrap();
    assert_eq!((names.lines().count(), names.lines().last()), (1001, Some("app-1000")));
    let watch = Going::start(host.command(&["get", "apps", "-w"]));
    watch.line_with("app-1000");
    host.remove("apps/app-1000");
    host.commit("remove the only one of the second page");
    watch.line_with("app-1000  deleted");
    host.write("apps/app-2000/app.yaml", &hello("128Mi").replace("hello", "app-2000"));
    host.write("apps/app-2000/sandbox.yaml", "version: 1\nweb: {command: x}\n");
    host.commit("begin a second page again");
    watch.line_with("app-2000");
}

#[test]
fn a_wait_ends_when_the_app_is_so_and_not_before() {
    let mut host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    host.start();
    // One that is not declared yet is on its way, as just after a push.
    let shop = host.command(&["wait", "shop", "blog", "--for=ready"]).stdout(Stdio::piped()).spawn().unwrap();
    host.write_app("shop", "", "open");
    let commit = host.commit("open a shop");
    let output = shop.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "shop: ready\nblog: ready\n");
    let commands: [&[&str]; 6] = [
        &["wait", "shop", "--for", "condition=Reconciling=False"],
        &["wait", "default/shop", "--rev", &commit],
        &["wait", "shop", "--rev", "0123456789", "--timeout", "50ms"],
        &["wait", "--all"],
        &["wait", "nobody", "--timeout", "50ms"],
        &["wait", "nobody", "--for=deleted"],
    ];
    assert_session("wait", &host, &commands);
    let gone = host.command(&["wait", "shop", "--for=deleted"]).stdout(Stdio::piped()).spawn().unwrap();
    host.remove("apps/shop");
    host.commit("close it");
    assert!(gone.wait_with_output().unwrap().status.success());
    assert!(said(&host, &["history", "shop"]).contains("deleted"));
}

#[test]
fn a_server_that_is_not_setpoint_is_told_apart() {
    let address = answer_with("text/html", "<html>hello</html>");
    let host = Host::sim();
    let older = answer_with("application/json", r#"{"items": [{"name": "hello"}], "next": null}"#);
    let commands: [&[&str]; 5] = [
        &["get", "apps", "--server", &older],
        &["get", "apps", "--server", &address],
        &["describe", "app", "blog", "--server", &address],
        &["version", "--server", &address],
        &["doctor", "--server", &address],
    ];
    assert_session("not-setpoint", &host, &commands);
}

/// A server that says the same to everybody; its address.
fn answer_with(kind: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    address
}

#[test]
fn a_machine_without_qemu_or_virtio_is_told_what_to_install() {
    let host = Host::sim();
    let modules = host.dir().join("lib/modules/6.1.0-test");
    fs::create_dir_all(modules.join("kernel")).unwrap();
    fs::write(host.dir().join("vmlinuz"), "a kernel").unwrap();
    let config = host.dir().join("qemu.toml");
    let kernel = host.dir().join("vmlinuz");
    let text = format!("[vmm]\nqemu = \"/nowhere/qemu\"\nkernel = {kernel:?}\nmodules = {modules:?}\n");
    fs::write(&config, text).unwrap();
    let mut command = host::setpoint();
    command.arg("--config").arg(&config).arg("--state-dir").arg(host.state()).args(["doctor", "qemu", "kernel"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_text("verbs", "doctor-qemu", &String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_daemon_elsewhere_is_examined_through_its_api() {
    let host = daemon_in_trouble();
    let server = host.api_address().to_string();
    let elsewhere = Host::sim();
    let commands: [&[&str]; 3] = [
        &["doctor", "--server", &server],
        &["doctor", "--server", &server, "version", "-o", "json"],
        &["version", "--server", &server, "-o", "json"],
    ];
    let text = session(&elsewhere, &commands).replace(&host.dir().display().to_string(), "[HOST]");
    assert_text("verbs", "doctor-server", &text);
}

#[test]
fn a_doctor_finds_what_a_killed_daemon_left_and_who_has_its_port() {
    let mut host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    host.start();
    host.wait_converged();
    host.kill_daemon();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    host.configure(&format!("[api]\nlisten = \"{}\"\n", taken.local_addr().unwrap()));
    let own = format!("process {} (", std::process::id());
    let before = traces(&host);
    let text = said(&host, &["doctor", "api", "ingress", "state", "daemon", "journal", "machines"]);
    assert!(text.contains(&own), "{text}");
    assert_text("verbs", "doctor-left", &cut_names(&text));
    assert_eq!(traces(&host), before, "a doctor changes nothing");
    let all = host.run(&["doctor", "-o", "json"]);
    let all: serde_json::Value = serde_json::from_slice(&all.stdout).unwrap();
    let names: Vec<_> = all["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    let expected = [
        "source",
        "credentials",
        "api",
        "ingress",
        "files",
        "inotify",
        "clock",
        "space",
        "state",
        "daemon",
        "journal",
        "machines",
        "snapshots",
    ];
    assert_eq!(names, expected);
    assert_eq!(all["status"], "fail");
    assert!(said(&host, &["doctor", "aura"]).contains("error: there is no check aura here"));
}

/// Names of processes as the kernel cuts them depend on the test runner.
fn cut_names(text: &str) -> String {
    let (before, rest) = text.split_once("(").unwrap();
    let (_, after) = rest.split_once(")").unwrap();
    format!("{before}([NAME]){after}")
}

fn traces(host: &Host) -> Vec<(std::path::PathBuf, std::time::SystemTime)> {
    let mut open = vec![host.state()];
    let mut found = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            }
            found.push((entry.path(), entry.metadata().unwrap().modified().unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn ssh_credentials_are_looked_at_without_asking_anybody() {
    let host = Host::sim();
    let home = host.dir().join("home");
    fs::create_dir_all(home.join(".ssh")).unwrap();
    let doctor = |url: &str| {
        let mut command = host.command(&["--repo", url, "doctor", "credentials"]);
        command.env("HOME", &home).env_remove("SSH_AUTH_SOCK");
        String::from_utf8_lossy(&command.output().unwrap().stdout).replace(&home.display().to_string(), "[HOME]")
    };
    let url = "git@git.example.org:team/declarations.git";
    let mut text = doctor(url);
    fs::write(home.join(".ssh/known_hosts"), "git.example.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAA\n").unwrap();
    text += &doctor(url);
    let key =
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n-----END OPENSSH PRIVATE KEY-----\n";
    fs::write(home.join(".ssh/id_ed25519"), key).unwrap();
    text += &doctor(url);
    text += &doctor("ssh://git@git.example.org:2222/declarations");
    text += &doctor("https://git.example.org/declarations.git");
    text += &doctor("http://git.example.org/declarations.git");
    assert_text("verbs", "credentials", &text);
}

#[test]
fn shells_and_man_get_their_pages_from_the_command_line_itself() {
    let host = Host::sim();
    for (shell, check) in
        [("bash", Some("bash")), ("zsh", None), ("fish", None), ("elvish", None), ("powershell", None)]
    {
        let script = host.run(&["completions", shell]);
        assert!(script.status.success() && String::from_utf8_lossy(&script.stdout).contains("describe"), "{shell}");
        if let Some(program) = check {
            let mut child = Command::new(program).arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(&script.stdout).unwrap();
            assert!(child.wait().unwrap().success(), "{shell} does not read its completions");
        }
    }
    let pages = host.dir().join("man");
    assert!(host.command(&["man"]).arg(&pages).status().unwrap().success());
    let mut names: Vec<_> = fs::read_dir(&pages).unwrap().map(|page| page.unwrap().file_name()).collect();
    names.sort();
    let names: Vec<_> = names.iter().map(|name| name.to_str().unwrap()).collect();
    assert!(names.contains(&"setpoint.1") && names.contains(&"setpoint-get.1"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("vm-shim") || name.contains("render-child")), "{names:?}");
    let top = fs::read_to_string(pages.join("setpoint.1")).unwrap();
    assert!(top.contains("Exit codes") && top.contains("setpoint\\-get(1)"), "{top}");
}

#[test]
fn exit_codes_are_said_in_the_help_and_in_the_manual_alike() {
    let host = Host::sim();
    let help = String::from_utf8(host.run(&["--help"]).stdout).unwrap();
    let codes = &help[help.find("Exit codes:").unwrap()..];
    // The terminal's width may break the lines of the help.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let manual = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md")).unwrap();
    assert!(words(&manual).contains(&words(codes)), "docs/cli.md does not hold:\n{codes}");
}
