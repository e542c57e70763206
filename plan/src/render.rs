//! Shows plans: as text to people, as JSON to programs. Neither looks at anything but the plan.

mod json;
mod summary;
mod text;

use serde_json::Value;
use setpoint_schema::disruption::FieldChange;

pub use json::{json, reason_code};
pub use summary::Summary;
pub use text::{Color, text};

/// The values of a change as they may be shown. Whatever must never be seen is masked here, for every form of output.
fn shown(change: &FieldChange) -> (&Value, &Value) {
    let FieldChange { path: _, before, after, disruption: _ } = change;
    (before, after)
}
