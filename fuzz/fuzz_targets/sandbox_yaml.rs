//! A `sandbox.yaml` from an untrusted repository.

#![no_main]

mod text;

use libfuzzer_sys::fuzz_target;
use setpoint_schema::name::RepoPath;
use setpoint_schema::{sandbox, yaml};

fuzz_target!(|input: &str| {
    let path = RepoPath::new("sandbox.yaml").expect("a plain path");
    match sandbox::parse(&path, input) {
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "what cannot be used has a reason");
            text::assert_sound(&mistakes, input);
        }
        Ok(runtime) => {
            let mut names: Vec<_> = runtime.workers.iter().map(|worker| &worker.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), runtime.workers.len(), "workers' names are unique");
            assert!(runtime.web.as_ref().is_none_or(|web| web.port != 0));
            // What was read can be written, and is then read as the same. What is not there is left out.
            let mut written = serde_json::to_value(&runtime).expect("a runtime can be written");
            leave_out_nulls(&mut written);
            let written = yaml::to_string(&written).expect("a runtime can be written");
            assert_eq!(sandbox::parse(&path, &format!("version: 1\n{written}")).as_ref(), Ok(&runtime), "{written}");
        }
    }
});

fn leave_out_nulls(value: &mut serde_json::Value) {
    if let serde_json::Value::Object(fields) = value {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(leave_out_nulls);
    }
}
