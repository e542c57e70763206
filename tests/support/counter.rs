//! An app whose web process is beside a worker that counts in its own memory: whoever asks for the number sees whether that memory
//! goes on, and whether a boot found on the disk what the one before had counted up to.

use crate::host::Host;

/// The worker shows the number in the file `count`, and in `last` what it was when the microVM booted, unless it never had before.
pub const COUNTER: &str = "version: 1\nweb:\n  command: exec busybox httpd -f -p 3000\nworkers:\n  - name: counter\n    command: \
                           test -e count && cp count last; i=0; while :; do i=$((i+1)); echo $i > count.tmp; mv count.tmp count; sleep 0.05; done\n";

/// The number in `blog`, if it answers.
pub fn count(host: &Host) -> Option<u64> {
    read(host, "count")
}

/// The number in a file of `blog`, if it answers.
pub fn read(host: &Host, file: &str) -> Option<u64> {
    let answer = host.fetch("blog.localhost", &format!("/{file}")).filter(|answer| answer.status == 200)?;
    answer.body.trim().parse().ok()
}
