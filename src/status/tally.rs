//! What a pass amounts to as a whole: how much of the host is taken, and which templates are in use.

use std::collections::BTreeMap;

use setpoint_schema::name::TemplateName;
use setpoint_schema::observed::VmState;
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::wire;

use crate::converge::Pass;

/// The templates that apps start from, each as the newest revision has it.
pub(super) fn templates(pass: &Pass) -> BTreeMap<TemplateName, wire::Template> {
    let desired = &pass.followed.desired;
    let mut templates = BTreeMap::new();
    for (key, app) in &desired.apps {
        let (name, digest) = (&app.spec.app.template, &app.spec.template);
        let describe = || wire::Template { name: name.clone(), digest: digest.clone(), root: None, apps: 0 };
        let template: &mut wire::Template = templates.entry(name.clone()).or_insert_with(describe);
        template.apps += 1;
        // An app with mistakes is kept as it last was, and its template with it.
        if template.root.is_none() || !desired.kept.contains_key(key) {
            template.digest = digest.clone();
            template.root = desired.templates.get(digest).map(|template| (&template.root).into());
        }
    }
    templates
}

/// How much of what may run on this host is taken.
pub(super) fn usage(pass: &Pass) -> wire::Limits {
    let observed = &pass.observed;
    let running = || observed.sandboxes.values().filter(|sandbox| matches!(sandbox.vm, VmState::Running { .. }));
    let memory = running().map(|sandbox| sandbox.record.machine.memory_mib).sum();
    let disk = observed.disks.values().fold(ByteSize::default(), |sum, disk| sum.saturating_add(disk.size));
    let count = u32::try_from(observed.sandboxes.len()).unwrap_or(u32::MAX);
    wire::Limits {
        memory: wire::Usage { used: ByteSize::mib(memory), total: observed.limits.memory },
        vcpus: wire::Usage {
            used: running().map(|sandbox| sandbox.record.machine.vcpus).sum(),
            total: observed.limits.vcpus,
        },
        disk: wire::Usage { used: disk, total: observed.limits.disk },
        sandboxes: wire::Usage { used: count, total: observed.limits.sandboxes },
    }
}
