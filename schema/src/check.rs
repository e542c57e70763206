//! The rules that declared values keep beyond their types, each as a [`Check`](crate::decode::Check) beside its reason.
//! Named in the field lists of [`declared!`](crate::declared).

use std::collections::BTreeSet;
use std::io;

use serde::Serialize;

use crate::app::{DiskSize, Retain};
use crate::env::EnvValue;
use crate::name::{DirName, EnvName, HostName, TemplateName, WorkerName};
use crate::notes::Notes;
use crate::quantity::{ByteSize, Span};
use crate::shared::SmallMap;
use crate::window::{Day, Windows};

type Verdict = Result<(), &'static str>;

fn rule(kept: bool, rule: &'static str) -> Verdict {
    if kept { Ok(()) } else { Err(rule) }
}

/// No rule beyond the type.
///
/// # Errors
/// Never.
pub fn anything<T>(_: &T) -> Verdict {
    Ok(())
}

/// Whether a value takes more bytes than this as JSON, found out without writing it.
pub(crate) fn json_is_longer(value: &impl Serialize, most: usize) -> bool {
    struct Room(usize);
    impl io::Write for Room {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // Declared values hold only maps with text keys, so that nothing else can fail.
    serde_json::to_writer(Room(most), value).is_err()
}

pub(crate) fn vcpus(vcpus: &u32) -> Verdict {
    rule((1..=64).contains(vcpus), "must be 1 to 64")
}

/// Below 96Mi a distribution kernel does not unpack its initramfs.
pub(crate) fn memory(memory: &ByteSize) -> Verdict {
    let whole = memory.as_bytes().is_multiple_of(ByteSize::mib(1).as_bytes());
    rule(*memory >= ByteSize::mib(96) && whole, "must be at least 96Mi, in whole Mi")
}

/// Below 16Mi a journalled file system has no room for files.
pub(crate) fn disk(disk: &DiskSize) -> Verdict {
    rule(disk.0 >= ByteSize::mib(16), "must be at least 16Mi")
}

/// Some of what one app may declare ends up in one record of the store, which holds 64 kB.
const MAX_ENV_BYTES: usize = 16 << 10;

pub(crate) fn env(env: &SmallMap<EnvName, EnvValue>) -> Verdict {
    let bytes: usize = env.iter().map(|(name, value)| name.as_str().len() + value.reveal().map_or(0, str::len)).sum();
    rule(bytes <= MAX_ENV_BYTES, "must have at most 16384 bytes, names and values together")
}

/// For `metadata.labels` and `metadata.annotations`.
pub(crate) fn notes(notes: &Notes) -> Verdict {
    let bytes: usize = notes.iter().map(|(name, value)| name.len() + value.len()).sum();
    let names = notes.keys().all(|name| name.len() <= 128 && !name.chars().any(|c| c.is_control() || c == ' '));
    rule(names, "must have names of at most 128 characters, without blanks")
        .and(rule(notes.len() <= 64 && bytes <= 4096, "must have at most 64 entries and 4096 bytes"))
}

/// Logs are addressed by the name of a process, and these two are taken.
pub(crate) fn worker_name(name: &WorkerName) -> Verdict {
    rule(!matches!(name.as_str(), "web" | "build"), "is reserved, so a worker must have another name")
}

pub(crate) fn port(port: &u16) -> Verdict {
    rule(*port > 0, "must be 1 to 65535")
}

pub(crate) fn ports(ports: &BTreeSet<u16>) -> Verdict {
    rule(!ports.contains(&0), "must be ports from 1 to 65535").and(rule(ports.len() <= 64, "must be at most 64 ports"))
}

pub(crate) fn hosts(hosts: &BTreeSet<HostName>) -> Verdict {
    rule(hosts.len() <= 64, "must be at most 64 host names")
}

/// A day is longer than anybody waits, and keeps sums of times far from overflow.
pub(crate) fn wait(span: &Span) -> Verdict {
    rule((Span::millis(1)..=Span::secs(86_400)).contains(span), "must be longer than nothing and at most 24h")
}

/// Shorter would rest an app between two requests of one visit; longer is for ever in all but name.
pub(crate) fn idle_after(span: &Span) -> Verdict {
    rule((Span::secs(1)..=Span::secs(365 * 86_400)).contains(span), "must be 1s to 365d")
}

/// Whoever asks has given up by then.
pub(crate) fn wake_hold(span: &Span) -> Verdict {
    rule(*span <= Span::secs(300), "must be at most 5m")
}

/// Longer is for ever in all but name, and would carry the end past what a calendar knows.
pub(crate) fn retain(retain: &Retain) -> Verdict {
    const LONGEST: Span = Span::secs(3650 * 86_400);
    match retain {
        Retain::None => Ok(()),
        Retain::For(span) => rule(*span <= LONGEST, "must be at most 3650d"),
    }
}

/// Each of several generations takes up room.
pub(crate) fn keep(generations: &u32) -> Verdict {
    rule((1..=100).contains(generations), "must be 1 to 100")
}

/// The agent of whatever begins from the snapshot takes no more names.
pub(crate) fn exclude(names: &BTreeSet<DirName>) -> Verdict {
    rule(names.len() <= 64, "must be at most 64 names")
}

#[expect(clippy::ptr_arg, reason = "a check is given the field as it is declared")]
pub(crate) fn token(token: &String) -> Verdict {
    rule(token.len() <= 256, "must have at most 256 bytes")
}

/// A restore without a token of its own would be carried out once and for all.
pub(crate) fn restore_token(token: &String) -> Verdict {
    rule(!token.is_empty(), "must not be empty").and(self::token(token))
}

pub(crate) fn timeout_seconds(seconds: &u32) -> Verdict {
    rule((1..=86_400).contains(seconds), "must be 1 to 86400")
}

/// A script longer than this belongs in a file of the workspace.
const MAX_COMMAND_BYTES: usize = 8 << 10;

pub(crate) fn command(command: &impl AsRef<str>) -> Verdict {
    let command = command.as_ref();
    rule(!command.trim().is_empty(), "must not be empty").and(command_length(command))
}

/// Empty is a meaning of its own here.
pub(crate) fn build_command(command: &Option<String>) -> Verdict {
    command.as_deref().map_or(Ok(()), command_length)
}

fn command_length(command: &str) -> Verdict {
    rule(command.len() <= MAX_COMMAND_BYTES, "must have at most 8192 bytes; put longer scripts into a file")
}

/// It becomes part of a request line.
pub(crate) fn health_path(path: &impl AsRef<str>) -> Verdict {
    let path = path.as_ref();
    let printable = path.bytes().all(|byte| byte.is_ascii_graphic());
    rule(path.starts_with('/'), "must start with `/`")
        .and(rule(printable && path.len() <= 1024, "must be printable ASCII without blanks, at most 1024 characters"))
}

pub(crate) fn template_name(name: &TemplateName) -> Verdict {
    rule(*name != TemplateName::minimal(), "is built in, so a template must have another name")
}

/// Each is looked at in every pass while a change waits.
pub(crate) fn windows(windows: &Windows) -> Verdict {
    rule(windows.0.len() <= 16, "must be at most 16 windows")
}

/// Every day is what leaving the field out means; an empty list may as well mean none.
pub(crate) fn days(days: &BTreeSet<Day>) -> Verdict {
    rule(!days.is_empty(), "must name a day; leave it out for every day")
}
