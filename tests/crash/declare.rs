//! Declarations for the crash tests: small apps of which every part can be varied.

use crate::host::Host;

/// Room for everything that a test declares, whatever the machine has.
pub const ROOMY: &str = "[limits]\nmemory = \"64Gi\"\nvcpus = 256\ndisk = \"64Gi\"\nsandboxes = 500\n";

/// One app. Each test sets what it varies.
#[derive(Clone)]
pub struct App {
    pub name: String,
    pub uid: Option<String>,
    pub template: &'static str,
    pub memory: String,
    pub disk: String,
    pub retain: &'static str,
    pub power: &'static str,
    pub depends_on: Vec<String>,
    /// The value of an environment variable.
    pub setting: String,
    pub page: String,
    /// Further lines of its spec.
    pub extra: &'static str,
}

impl App {
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            uid: None,
            template: "minimal",
            memory: "128Mi".to_owned(),
            disk: "64Mi".to_owned(),
            retain: "none",
            power: "running",
            depends_on: Vec::new(),
            setting: "first".to_owned(),
            page: "first".to_owned(),
            extra: "",
        }
    }

    /// Writes its folder of the repository.
    pub fn write(&self, host: &Host) {
        let Self { name, uid, template, memory, disk, retain, power, depends_on, setting, page, extra } = self;
        let uid = uid.as_ref().map(|uid| format!("  uid: {uid}\n")).unwrap_or_default();
        let depends_on = depends_on.join(", ");
        let app = format!(
            "apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: {name}\n{uid}spec:\n  template: {template}\n  \
             resources: {{memory: {memory}, disk: {disk}, shrink: replace}}\n  retain: {retain}\n  power: {power}\n  \
             dependsOn: [{depends_on}]\n  env: {{SETTING: \"{setting}\"}}\n{extra}"
        );
        host.write(&format!("apps/{name}/app.yaml"), &app);
        host.write(
            &format!("apps/{name}/sandbox.yaml"),
            "version: 1\nweb:\n  command: exec busybox httpd -f -p 3000\n",
        );
        host.write(&format!("apps/{name}/index.html"), page);
    }
}

/// A template beside the built-in one.
pub fn write_template(host: &Host) {
    let template = "apiVersion: setpoint/v1\nkind: Template\nmetadata:\n  name: other\nspec:\n  rootfs:\n    path: templates/other\n";
    host.write("templates/other.yaml", template);
    host.write("templates/other/etc/motd", "other");
}

/// A snapshot of an app.
#[cfg(feature = "failpoints")]
pub fn declare_snapshot(host: &Host, name: &str, spec: &str) {
    let text = format!("apiVersion: setpoint/v1\nkind: Snapshot\nmetadata:\n  name: {name}\nspec: {{{spec}}}\n");
    host.write(&format!("apps/{name}/app.yaml"), &text);
}
