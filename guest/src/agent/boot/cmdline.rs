//! What the host tells the agent on the kernel's command line.

/// The words that begin with `setpoint.`.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// This boot's nonce.
    pub nonce: String,
    /// Where the template is.
    pub root: Root,
    /// The machine's name.
    pub hostname: String,
    /// How it begins.
    pub begins: Begins,
}

/// How a machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// As a sandbox's, with its data disk.
    AsItself,
    /// As nobody's, to be saved and restored as many sandboxes': it waits to be told whose.
    Blank,
}

/// Where the template is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// In the initramfs.
    Minimal,
    /// On a disk of its own.
    Disk,
}

impl CommandLine {
    /// # Errors
    /// A word that the agent cannot do without is missing or wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value =
            |key: &str| text.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let nonce = value("setpoint.nonce").filter(|nonce| !nonce.is_empty()).ok_or("setpoint.nonce is missing")?;
        let root = match value("setpoint.root") {
            None | Some("minimal") => Root::Minimal,
            Some("disk") => Root::Disk,
            Some(other) => return Err(format!("setpoint.root={other} is neither minimal nor disk")),
        };
        let hostname = value("setpoint.hostname").filter(|name| !name.is_empty()).unwrap_or("setpoint");
        let begins = match value("setpoint.begin") {
            None => Begins::AsItself,
            Some("blank") => Begins::Blank,
            Some(other) => return Err(format!("setpoint.begin={other} is not blank")),
        };
        Ok(Self { nonce: nonce.to_owned(), root, hostname: hostname.to_owned(), begins })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    #[test]
    fn the_hosts_words_are_found_among_the_kernels() {
        let line = "console=ttyS0 setpoint.nonce=00ff setpoint.root=disk panic=-1 setpoint.hostname=blog\n";
        let expected =
            CommandLine { nonce: "00ff".into(), root: Root::Disk, hostname: "blog".into(), begins: Begins::AsItself };
        assert_eq!(CommandLine::parse(line).unwrap(), expected);
        let blank = CommandLine::parse("setpoint.nonce=00ff setpoint.begin=blank").unwrap();
        assert_eq!(blank.begins, Begins::Blank);
    }

    #[test]
    fn a_boot_without_a_nonce_is_refused() {
        assert!(CommandLine::parse("console=ttyS0 setpoint.nonce=").is_err());
        assert!(CommandLine::parse("setpoint.nonce=1 setpoint.root=floppy").is_err());
    }
}
