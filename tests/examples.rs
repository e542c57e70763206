//! What the declarations promise, kept by real microVMs: the example repository as it stands, and each rule of `sandbox.yaml` and of
//! the workspace.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

mod microvm {
    use std::fs;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc;

    use jiff::Timestamp;
    use serde_json::{Value, json};

    use crate::host::{Host, PATIENCE};

    /// The sensitive variable of the guestbook.
    const CLEAR_KEY: &str = "9d2f61c47ab05e83";

    #[test]
    fn the_example_repository_converges_as_it_stands() {
        let mut host = Host::real();
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/apps/.");
        assert!(Command::new("cp").arg("-r").arg(examples).arg(host.repo()).status().unwrap().success());
        host.commit("declare the examples");
        let config = host.repo().with_file_name("daemon.toml");
        fs::write(&config, "[converge]\nconcurrency = 2\n").unwrap();
        host.start_with(&[("SETPOINT_CONFIG", config.to_str().unwrap())]);

        // A static site, and two apps that belong together.
        host.wait_served("hello", "Hello from a microVM");
        host.wait_served("frontend", "/cgi-bin/greeting");
        host.wait_served_path("api", "/cgi-bin/greeting", "Hello from a microVM");
        assert_eq!(host.fetch("greetings.localhost", "/cgi-bin/greeting").unwrap().status, 200);
        assert_started_after_its_dependency(&host, "frontend", "api");

        // A web app with a build, a worker, a health path and an environment.
        host.wait_served("guestbook", "<h1>Guestbook</h1>");
        host.wait_served_path("guestbook", "/cgi-bin/health", "200 OK");
        assert_eq!(host.app("guestbook")["build"]["state"], "passed");
        host.wait_for("the worker's output", |host| {
            logs(host, "guestbook", "renderer").contains("rendered 0").then_some(())
        });
        let post = |path: &str, form: &str| post(host.ingress_address(), "guestbook.localhost", path, form);
        assert_eq!(post("/cgi-bin/sign", "text=I+was+here"), 303);
        host.wait_served("guestbook", "<li>I was here</li>");
        // A process has the text of a sensitive variable, which nothing shows.
        assert_eq!(post("/cgi-bin/clear", "a guess"), 403);
        assert_eq!(post("/cgi-bin/clear", CLEAR_KEY), 200);
        assert!(!host.api_answer("/v1/observed").unwrap().body.contains(CLEAR_KEY));
        assert!(!host.log().contains(CLEAR_KEY));

        // A worker-only app has no preview, and is ready all the same.
        let ticker = host.wait_for("the ticker", |host| Some(host.app("ticker")).filter(|app| app["ready"] == true));
        assert_eq!((&ticker["preview"], &ticker["web"], &ticker["urls"]), (&json!("none"), &Value::Null, &json!([])));
        host.wait_for("a tick", |host| logs(host, "ticker", "tick").contains("tick 1").then_some(()));

        // A template of the repository's own.
        host.wait_served("greeter", "Greetings from the template, world");

        host.wait_converged();
        assert_eq!(host.api("/v1/plan")["actions"], json!([]), "after it has converged nothing is left to do");
        let apps = host.api("/v1/apps")["items"].clone();
        let phases: Vec<_> = apps.as_array().unwrap().iter().map(|app| app["phase"].as_str().unwrap()).collect();
        assert_eq!(phases, ["ready"; 6]);
    }

    #[test]
    fn what_a_guest_streams_arrives_as_it_is_written() {
        let mut host = Host::real();
        host.write_app("live", "env: {COLOR: green}\nexpose: {ports: [4000]}", "");
        let workers = "workers:\n  - name: notes\n    command: echo color=$COLOR; touch notes; exec tail -f notes\n  \
                       - name: echo\n    command: exec nc -ll -p 4000 -e sh echo.sh\n";
        host.write("apps/live/sandbox.yaml", &format!("version: 1\nweb:\n  command: exec httpd -f -p 3000\n{workers}"));
        write_script(&host, "apps/live/cgi-bin/note", "echo \"noted $QUERY_STRING\" >>../notes\n");
        let slow = "echo first; while [ ! -e ../released ]; do sleep 0.1; done; echo second\n";
        write_script(&host, "apps/live/cgi-bin/slow", slow);
        write_script(&host, "apps/live/cgi-bin/release", "touch ../released\n");
        // Answers an upgrade, then sends back whatever it is sent.
        let upgrade = "HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n\\r\\n";
        let echo = format!(
            "while read -r line && [ \"$line\" != \"$(printf '\\r')\" ]; do :; done\nprintf '{upgrade}'\nexec cat\n"
        );
        host.write("apps/live/echo.sh", &echo);
        host.commit("add live");
        host.start();
        host.wait_served_path("live", "/echo.sh", "exec cat");

        // A log is followed live, and shows the declared environment.
        let follower = Follower::new(&host, "live", "notes");
        assert_eq!(follower.next_line(), "color=green");
        host.fetch("live.localhost", "/cgi-bin/note?one").unwrap();
        assert_eq!(follower.next_line(), "noted one");

        // A body is passed on piece by piece: its first line is here before its second one is written.
        let mut slow = Client::connect(host.ingress_address());
        slow.write(b"GET /cgi-bin/slow HTTP/1.1\r\nHost: live.localhost\r\n\r\n");
        let begun = slow.read_until(b"first\n");
        assert!(begun.starts_with("HTTP/1.1 200") && !begun.contains("second"), "{begun}");
        host.fetch("live.localhost", "/cgi-bin/release").unwrap();
        slow.read_until(b"second\n");

        // An upgraded connection is a tunnel in both directions, for as many messages as are sent.
        let mut socket = Client::connect(host.ingress_address());
        let request = "GET / HTTP/1.1\r\nHost: 4000-live.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.write(request.as_bytes());
        let answer = socket.read_until(b"\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        for message in [&b"\x81\x85mask\x05\x04\x1f\x07\x02"[..], b"\x81\x03two"] {
            socket.write(message);
            socket.read_until(message);
        }
    }

    #[test]
    fn a_failed_build_leaves_the_old_processes_running_and_an_empty_one_is_skipped() {
        let mut host = Host::real();
        let declare = |host: &Host, build: &str, page: &str| {
            host.write_app("site", "", page);
            let web = "web:\n  command: echo started >>starts; exec httpd -f -p 3000\n";
            host.write("apps/site/sandbox.yaml", &format!("version: 1\nbuild:\n  command: {build}\n{web}"));
            host.commit(page);
        };
        declare(&host, "echo built from $(cat index.html) >built", "one");
        host.start();
        host.wait_served_path("site", "/built", "built from one");
        assert_eq!(build_of(&host, "site")["state"], "passed");

        declare(&host, "'echo no compiler; exit 3'", "two");
        let build = host.wait_for("the build to fail", |host| {
            Some(build_of(host, "site")).filter(|build| build["state"] == "failed")
        });
        assert!(build["reason"].as_str().unwrap().contains("no compiler"), "{build}");
        let (status, why) = ready_of(&host, "site");
        assert!(status == "False" && why.contains("build failed"), "{why}");
        assert!(logs(&host, "site", "build").contains("no compiler"));
        let web = host.app("site")["web"].clone();
        assert_eq!(web, json!({"process": {"state": "running", "restarts": 0}, "health": {"state": "healthy"}}));
        host.wait_served_path("site", "/built", "built from one");

        declare(&host, "''", "three");
        host.wait_for("the build to be skipped", |host| {
            (build_of(host, "site") == json!({"state": "skipped"})).then_some(())
        });
        host.wait_served("site", "three");
        // Once for the first revision and once for the third: nothing was restarted for the build that failed.
        host.wait_for("the second start", |host| {
            let starts = host.fetch("site.localhost", "/starts").filter(|answer| answer.status == 200)?.body;
            (starts == "started\nstarted\n").then_some(())
        });
    }

    #[test]
    fn a_worker_that_ends_at_once_is_given_up_and_says_so() {
        let mut host = Host::real();
        host.write_app("shop", "", "open");
        let web = "version: 1\nweb:\n  command: exec httpd -f -p 3000\nworkers:\n  - name: mailer\n    command: ";
        host.write("apps/shop/sandbox.yaml", &format!("{web}echo no mail server; exit 7\n"));
        host.commit("add a worker that cannot run");
        host.start();
        let worker = host.wait_for("the worker to be given up", |host| {
            let worker = host.app("shop")["workers"][0]["process"].clone();
            (worker["state"] == "gaveUp").then_some(worker)
        });
        let reason = worker["reason"].as_str().unwrap();
        assert!(reason.contains('7') && reason.contains("no mail server"), "{reason}");
        let (status, why) = ready_of(&host, "shop");
        assert!(status == "False" && why.contains("worker mailer gave up"), "{why}");
        host.wait_served("shop", "open");
        let table = host.run(&["get", "apps", "--server", &host.api_address().to_string()]);
        assert!(String::from_utf8_lossy(&table.stdout).contains("worker mailer gave up"), "{table:?}");
        let boot = host.boot_of("shop");

        host.write("apps/shop/sandbox.yaml", &format!("{web}exec sleep 1000000\n"));
        host.commit("mend the worker");
        host.wait_for("the app to be ready", |host| (host.app("shop")["ready"] == true).then_some(()));
        assert_eq!(host.boot_of("shop"), boot, "a worker is mended without a reboot");
    }

    #[test]
    fn a_sync_keeps_what_git_never_had_and_the_modes_and_links_that_it_has() {
        let mut host = Host::real();
        host.write_app("files", "", "first page");
        write_script(&host, "apps/files/cgi-bin/list", "cd ..; find . -exec stat -c '%A %N' {} + | grep -v cgi-bin\n");
        let make = "cd ..; mkdir -p data; echo mine >data/mine; echo mine >lib/mine\n";
        write_script(&host, "apps/files/cgi-bin/make", make);
        write_script(&host, "apps/files/tool", "");
        for file in ["old", "gone/deep/file", "lib/theirs"] {
            host.write(&format!("apps/files/{file}"), "from git\n");
        }
        symlink("index.html", host.repo().join("apps/files/link")).unwrap();
        host.commit("add files");
        host.start();
        host.wait_served("files", "first page");
        let list = |host: &Host| {
            host.wait_for("the list", |host| {
                host.fetch("files.localhost", "/cgi-bin/list").filter(|answer| answer.status == 200)
            })
            .body
        };
        let declared = ["-rwxr-xr-x ./tool", "'./link' -> 'index.html'", "./gone/deep/file", "./lib/theirs"];
        assert_lists(&list(&host), &declared);
        host.fetch("files.localhost", "/cgi-bin/make").unwrap();
        assert_lists(&list(&host), &["./data/mine", "./lib/mine"]);

        for gone in ["old", "gone", "lib"] {
            host.remove(&format!("apps/files/{gone}"));
        }
        let tool = host.repo().join("apps/files/tool");
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o644)).unwrap();
        fs::remove_file(host.repo().join("apps/files/link")).unwrap();
        symlink("lib/mine", host.repo().join("apps/files/link")).unwrap();
        host.write("apps/files/index.html", "second page");
        host.commit("change files");
        host.wait_converged();
        host.wait_served("files", "second page");
        let after = list(&host);
        assert_lists(&after, &["./data/mine", "./lib/mine", "-rw-r--r-- ./tool", "'./link' -> 'lib/mine'"]);
        for gone in ["./old", "./gone", "./lib/theirs"] {
            assert!(!after.contains(gone), "{gone} is still there:\n{after}");
        }
    }

    fn assert_lists(list: &str, wanted: &[&str]) {
        for wanted in wanted {
            assert!(list.contains(wanted), "{wanted} is not in\n{list}");
        }
    }

    /// The dependent's microVM came into being no sooner than its dependency was ready.
    fn assert_started_after_its_dependency(host: &Host, dependent: &str, dependency: &str) {
        let time = |value: &Value| value.as_str().unwrap().parse::<Timestamp>().unwrap();
        let conditions = host.app(dependency)["conditions"].clone();
        let ready = conditions.as_array().unwrap().iter().find(|condition| condition["type"] == "Ready").unwrap();
        assert!(time(&ready["since"]) <= time(&host.sandbox_of(dependent)["createdAt"]));

        let events = host.api("/v1/events?limit=1000");
        let events = events["items"].as_array().unwrap();
        let at = |app: &str, kind: &str| {
            events.iter().position(|event| event["app"] == app && event["kind"] == kind).unwrap()
        };
        assert!(at(dependency, "ready") < at(dependent, "created"), "{events:#?}");
    }

    fn build_of(host: &Host, app: &str) -> Value {
        host.app(app)["build"].clone()
    }

    /// The status and the message of an app's `Ready` condition.
    fn ready_of(host: &Host, app: &str) -> (String, String) {
        let app = host.app(app);
        let ready =
            app["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == "Ready").unwrap();
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        (text("status"), text("message"))
    }

    /// Writes an executable that answers as plain text.
    fn write_script(host: &Host, path: &str, script: &str) {
        host.write(path, &format!("#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n{script}"));
        fs::set_permissions(host.repo().join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What `setpoint logs` prints.
    fn logs(host: &Host, app: &str, process: &str) -> String {
        let output = host.run(&["logs", app, process, "--server", &host.api_address().to_string()]);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Posts a form.
    /// Sends a form; returns the status of the answer.
    fn post(ingress: SocketAddr, host: &str, path: &str, form: &str) -> u16 {
        let mut client = Client::connect(ingress);
        let kind = "application/x-www-form-urlencoded";
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {}", form.len());
        client.write(format!("{head}\r\n\r\n{form}").as_bytes());
        let answer = client.read_until(b"\r\n\r\n");
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    /// A connection that is read piece by piece.
    struct Client(TcpStream);

    impl Client {
        fn connect(address: SocketAddr) -> Self {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            Self(stream)
        }

        fn write(&mut self, bytes: &[u8]) {
            self.0.write_all(bytes).unwrap();
        }

        /// Reads up to the end of `mark`, and whatever came along with it.
        fn read_until(&mut self, mark: &[u8]) -> String {
            let mut answer = Vec::new();
            let mut piece = [0; 4096];
            while !answer.windows(mark.len()).any(|window| window == mark) {
                let length = self.0.read(&mut piece).unwrap();
                assert!(length > 0, "the connection ended after {:?}", String::from_utf8_lossy(&answer));
                answer.extend(&piece[..length]);
            }
            String::from_utf8_lossy(&answer).into_owned()
        }
    }

    /// `setpoint logs --follow`, line by line as they come.
    struct Follower {
        process: Child,
        lines: mpsc::Receiver<String>,
    }

    impl Follower {
        fn new(host: &Host, app: &str, process: &str) -> Self {
            let mut command = host.command(&["logs", "--follow", app, process]);
            command.arg("--server").arg(host.api_address().to_string());
            let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
            let output = BufReader::new(process.stdout.take().unwrap());
            let (sender, lines) = mpsc::channel();
            std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
            Self { process, lines }
        }

        fn next_line(&self) -> String {
            self.lines.recv_timeout(PATIENCE).unwrap()
        }
    }

    impl Drop for Follower {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}
