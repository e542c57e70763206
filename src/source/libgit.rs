//! Process-wide settings of libgit2. The only unsafe code of the source: libgit2 takes these through a C variadic function.

use std::ffi::c_int;
use std::sync::Once;

/// How long connecting to a server may take.
const CONNECT_TIMEOUT_MS: c_int = 10_000;
/// How long a server may be silent.
const SILENCE_TIMEOUT_MS: c_int = 60_000;
/// The largest object that is accepted from a server. Larger ones could not be read under the default limits anyway.
const MAX_FETCHED_OBJECT_BYTES: usize = 256 << 20;
/// The most objects that are accepted in one pack.
const MAX_FETCHED_OBJECTS: usize = 5_000_000;

/// Sets them, once, before the first repository is opened.
pub(super) fn set_limits() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: libgit2 reads these globals when it connects or receives a pack. Every use of it in this process goes through
        // `Repository`, which calls this function first, so that no other thread of ours is in libgit2 yet. The types behind the
        // variadic options are those that libgit2's documentation gives: `size_t` for both pack limits.
        unsafe {
            // No call can fail: each stores an integer.
            let _ = git2::opts::set_server_connect_timeout_in_milliseconds(CONNECT_TIMEOUT_MS);
            let _ = git2::opts::set_server_timeout_in_milliseconds(SILENCE_TIMEOUT_MS);
            // Trees are taken apart and kept by the source; libgit2 would keep each a second time, for every handle.
            let _ = git2::opts::set_cache_object_limit(git2::ObjectType::Tree, 0);
            libgit2_sys::git_libgit2_opts(
                libgit2_sys::GIT_OPT_SET_PACK_MAX_OBJECT_SIZE as c_int,
                MAX_FETCHED_OBJECT_BYTES,
            );
            libgit2_sys::git_libgit2_opts(libgit2_sys::GIT_OPT_SET_PACK_MAX_OBJECTS as c_int, MAX_FETCHED_OBJECTS);
        }
    });
}
