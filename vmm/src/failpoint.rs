//! The points at which crash tests cut the work short.

use crate::driver::Result;

/// A point of the name `step`. Armed through FAILPOINTS with `return(error)` it fails there, with any other `return` the whole
/// process ends as if it had been killed. Without the feature it is nothing.
pub(crate) fn reach(step: &str) -> Result<()> {
    fail::fail_point!(step, |what| match what.as_deref() {
        Some("error") =>
            Err(crate::driver::VmmError::Vmm { vmm: "failpoint", problem: format!("{step} was told to fail") }),
        _ => std::process::abort(),
    });
    let _ = step;
    Ok(())
}
