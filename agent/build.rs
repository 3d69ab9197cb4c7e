//! Puts the eBPF object where the agent's source can embed it: `OUT_DIR/slotmesh.bpf.o`.
//!
//! The object is built by another compiler (`cargo xtask ebpf`), so this only copies it, from
//! `SLOTMESH_BPF_OBJECT` or from `target/bpf/` of the workspace. Without it the agent still builds,
//! with an empty object that it refuses to load. A build with another record layout (`next-layout`)
//! has an object of its own.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const VARIABLE: &str = "SLOTMESH_BPF_OBJECT";

fn main() {
    let next_layout = env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some();
    let named = env::var_os(VARIABLE).filter(|path| !path.is_empty() && !next_layout);
    let object = named.map_or_else(
        || {
            let name = if next_layout { "next.bpf.o" } else { "slotmesh.bpf.o" };
            let object = root().join("target/bpf").join(name);
            leave_something_to_watch(&object);
            object
        },
        // A relative path would mean another file to cargo, to this script and to whoever set it.
        |path| root().join(path),
    );
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    println!("cargo:rerun-if-changed={}", object.display());

    let bytes = fs::read(&object).unwrap_or_default();
    if bytes.is_empty() {
        println!(
            "cargo:warning=the eBPF programs are not built: run `make ebpf` (or `cargo xtask ebpf`); \
             this build can't route connections"
        );
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("slotmesh.bpf.o");
    // Dependents are rebuilt by this file's content, and a failure here must not look like "not built".
    fs::write(&out, bytes).unwrap_or_else(|error| panic!("can't write {}: {error}", out.display()));
}

/// The root of the workspace: the script serves packages at different depths.
fn root() -> PathBuf {
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).expect("cargo sets CARGO_MANIFEST_DIR");
    let root = package.ancestors().find(|dir| dir.join("Cargo.lock").is_file());
    root.unwrap_or_else(|| panic!("{} lies in no workspace", package.display())).to_owned()
}

/// cargo takes a watched file that doesn't exist for changed, in every build, and would rebuild the
/// agent each time. An empty file stands for "not built" until the object replaces it; it is dated
/// back, because a file newer than this script's start counts as changed too.
fn leave_something_to_watch(object: &Path) {
    if object.exists() {
        return;
    }
    let placed = object
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| File::create_new(object))
        .and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH));
    // In a read-only checkout it can't be placed: the agent is then rebuilt more often than needed.
    drop(placed);
}
