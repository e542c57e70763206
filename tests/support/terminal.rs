//! Runs the binary on a terminal of its own, as somebody at a keyboard has it.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::host::Host;

/// Runs `command` to its end on a terminal this wide; what is seen there, escapes as `␛`, and the exit code.
pub fn on_terminal(mut command: Command, columns: u16) -> String {
    let (master, slave) = open(columns);
    command.env_remove("NO_COLOR").env("TERM", "xterm");
    let stream = || Stdio::from(slave.try_clone().unwrap());
    let mut child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
    // Only the child's ends stay open, so that reading ends with it.
    drop(command);
    drop(slave);
    let mut seen = Vec::new();
    // The terminal of an ended program answers with an error instead of an end.
    drop(File::from(master).read_to_end(&mut seen));
    let status = child.wait().unwrap();
    let mut text = String::from_utf8_lossy(&seen).replace("\r\n", "\n").replace('\u{1b}', "␛");
    if !status.success() {
        text.push_str(&format!("exit {}\n", status.code().unwrap_or(-1)));
    }
    text
}

/// What commands print on a terminal of this width.
pub fn seen(host: &Host, columns: u16, commands: &[&[&str]]) -> String {
    let show = |args: &&[&str]| {
        let text = on_terminal(host.command(args), columns).replace(&host.dir().display().to_string(), "[HOST]");
        format!("$ setpoint {}\n{text}", args.join(" "))
    };
    commands.iter().map(show).collect::<Vec<_>>().join("\n")
}

fn open(columns: u16) -> (OwnedFd, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (master, slave)
}

/// A command that goes on, read line by line, and ended when dropped.
pub struct Going {
    child: Child,
    lines: Receiver<String>,
}

impl Going {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (read, lines) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| read.send(line)));
        Self { child, lines }
    }

    /// The next line that says `words`; those before it are passed over.
    pub fn line_with(&self, words: &str) -> String {
        let mut passed = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(60)) {
            if line.contains(words) {
                return line;
            }
            passed.push(line);
        }
        panic!("no line says {words:?}; there were {passed:#?}");
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
