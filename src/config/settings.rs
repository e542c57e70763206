//! The configuration as the status API shows it: every key with its value and where that comes from, and no secret.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::Value;
use setpoint_schema::observed::Limits;
use setpoint_schema::wire::{RedactedUrl, Setting, SettingOrigin, Settings};

use super::{Config, Overrides};

/// Keys, or sections, that a reload takes up.
const RELOADS: &[&str] = &["limits.", "converge.", "api.tokens", "log."];

fn reloads(key: &str) -> bool {
    RELOADS.iter().any(|reloads| key.starts_with(reloads))
}

/// Where the values of a configuration come from, noted when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origins {
    file: Option<PathBuf>,
    read_at: Timestamp,
    keys: BTreeMap<String, SettingOrigin>,
}

impl Origins {
    /// Those of a file's text, if there is one, and of what was set over it.
    pub(super) fn of(file: Option<(PathBuf, &str)>, overrides: &Overrides) -> Self {
        let mut this = Self { read_at: Timestamp::now(), ..Self::default() };
        if let Some((path, text)) = file {
            this.file = Some(path);
            let table = toml::from_str::<toml::Table>(text).unwrap_or_default();
            for (section, value) in &table {
                let keys = value.as_table().into_iter().flat_map(toml::Table::keys);
                this.keys.extend(keys.map(|key| (format!("{section}.{key}"), SettingOrigin::File)));
            }
        }
        // Destructured whole, so that a new flag cannot be forgotten here.
        let Overrides { config: _, repo, branch, state_dir, driver, accel, kernel, api_listen, ingress_listen } =
            overrides;
        this.set_over("source.url", "SETPOINT_REPO", repo.clone());
        this.set_over("source.branch", "SETPOINT_BRANCH", branch.clone());
        this.set_over("state.dir", "SETPOINT_STATE_DIR", state_dir.as_ref().map(|dir| dir.display().to_string()));
        this.set_over("vmm.driver", "SETPOINT_DRIVER", driver.as_ref().map(word));
        this.set_over("vmm.accel", "SETPOINT_ACCEL", accel.as_ref().map(word));
        this.set_over("vmm.kernel", "SETPOINT_KERNEL", kernel.as_ref().map(|file| file.display().to_string()));
        this.set_over("api.listen", "SETPOINT_API_LISTEN", api_listen.map(|address| address.to_string()));
        this.set_over("ingress.listen", "SETPOINT_INGRESS_LISTEN", ingress_listen.map(|address| address.to_string()));
        this
    }

    /// Those of a configuration after a reload: what it does not take up still comes from where it came from.
    pub(crate) fn reloaded(&self, new: &Self) -> Self {
        let kept = self.keys.iter().filter(|(key, _)| !reloads(key));
        let taken = new.keys.iter().filter(|(key, _)| reloads(key));
        let keys = kept.chain(taken).map(|(key, origin)| (key.clone(), *origin)).collect();
        Self { file: new.file.clone(), read_at: new.read_at, keys }
    }

    /// A flag that says what the environment says is the same either way.
    fn set_over(&mut self, key: &str, variable: &str, value: Option<String>) {
        let Some(value) = value else { return };
        let from_environment = std::env::var(variable).is_ok_and(|set| set == value);
        let origin = if from_environment { SettingOrigin::Environment } else { SettingOrigin::Flag };
        self.keys.insert(key.to_owned(), origin);
    }
}

impl Config {
    /// What is in force; `limits` are those that the host gives where the configuration names none.
    #[must_use]
    pub fn settings(&self, limits: Limits) -> Settings {
        let sections = serde_json::to_value(self).expect("a configuration holds only maps with text keys");
        let mut settings = Vec::new();
        for (section, keys) in sections.as_object().into_iter().flatten() {
            for (key, value) in keys.as_object().into_iter().flatten() {
                let key = format!("{section}.{key}");
                let value = shown(&key, value, limits);
                let origin = self.origins.keys.get(&key).copied().unwrap_or(SettingOrigin::Default);
                settings.push(Setting { reloads: reloads(&key), key, value, origin });
            }
        }
        let Origins { file, read_at, keys: _ } = &self.origins;
        Settings { file: file.as_ref().map(|file| file.display().to_string()), read_at: *read_at, settings }
    }
}

/// A value as others may see it, with what stands in for one that is not set.
fn shown(key: &str, value: &Value, limits: Limits) -> Value {
    match (key, value) {
        ("source.url", Value::String(url)) => RedactedUrl::new(url).as_str().into(),
        ("api.tokens", Value::Array(tokens)) => tokens.iter().map(|token| token["name"].clone()).collect(),
        ("limits.memory", Value::Null) => limits.memory.to_string().into(),
        ("limits.vcpus", Value::Null) => limits.vcpus.into(),
        ("limits.disk", Value::Null) => limits.disk.to_string().into(),
        ("limits.sandboxes", Value::Null) => limits.sandboxes.into(),
        (_, value) => value.clone(),
    }
}

fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use setpoint_schema::quantity::ByteSize;

    use super::*;

    #[test]
    fn every_value_says_where_it_comes_from_and_no_secret_is_among_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.toml");
        let digest = "ab".repeat(32);
        let text = format!(
            "[source]\nurl = 'https://bot:s3cret@git.example.org/a'\n[limits]\nvcpus = 3\n\
             [api]\ntokens = [{{ name = 'ci', sha256 = '{digest}' }}]\n"
        );
        std::fs::write(&path, text).unwrap();
        let overrides = Overrides { config: Some(path), branch: Some("release".to_owned()), ..Overrides::default() };
        let limits = Limits { memory: ByteSize::gib(4), vcpus: 8, disk: ByteSize::gib(9), sandboxes: 50 };
        let settings = Config::load(&overrides).unwrap().settings(limits);
        let of = |key: &str| {
            let setting = settings.settings.iter().find(|setting| setting.key == key).unwrap();
            (setting.value.clone(), setting.origin, setting.reloads)
        };
        assert_eq!(of("source.url"), ("https://git.example.org/a".into(), SettingOrigin::File, false));
        assert_eq!(of("source.branch"), ("release".into(), SettingOrigin::Flag, false));
        assert_eq!(of("api.tokens"), (Value::from(vec!["ci"]), SettingOrigin::File, true));
        assert_eq!(of("api.listen"), ("127.0.0.1:7878".into(), SettingOrigin::Default, false));
        assert_eq!(of("limits.vcpus"), (3.into(), SettingOrigin::File, true));
        assert_eq!(of("limits.memory"), ("4Gi".into(), SettingOrigin::Default, true));
        let all = serde_json::to_string(&settings).unwrap();
        assert!(!all.contains("s3cret") && !all.contains(&digest), "{all}");
    }
}
