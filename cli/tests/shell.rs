//! What shells and manuals get of the command line, and the version.

use std::process::{Command, Output};

use serde_json::Value;

fn slotmesh(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotmesh"));
    command.args(args).env_clear().output().expect("the binary starts")
}

fn text(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn bash_completes_commands_and_values() {
    let script = text(&slotmesh(&["completion", "bash"]));
    let complete = |words: &str, at: usize| {
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={at}; _slotmesh slotmesh \"${{COMP_WORDS[{at}]}}\" \
             \"${{COMP_WORDS[{at} - 1]}}\"; printf '%s\\n' \
             \"${{COMPREPLY[@]}}\""
        );
        let output = Command::new("bash").args(["--norc", "-c", &ask]).output().expect("bash starts");
        let found = text(&output);
        found.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete("slotmesh lin", 1), ["lint"]);
    let values = complete("slotmesh lint --fail-on ''", 3);
    assert!(values.iter().any(|value| value == "not-supported"), "{values:?}");
}

#[test]
fn other_shells_have_scripts_that_name_all_commands() {
    for shell in ["zsh", "fish"] {
        let script = text(&slotmesh(&["completion", shell]));
        for command in ["up", "lint", "reports", "version"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    assert_eq!(slotmesh(&["completion", "tcsh"]).status.code(), Some(2));
}

#[test]
fn each_command_has_a_manual_page() {
    let page = text(&slotmesh(&["man", "lint"]));
    assert!(page.contains(".TH slotmesh-lint 1") && page.contains("fail\\-on"), "{page}");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_str().expect("UTF-8");
    text(&slotmesh(&["man", "--dir", path]));
    for name in ["slotmesh.1", "slotmesh-lint.1", "slotmesh-up.1"] {
        assert!(dir.path().join(name).is_file(), "{name}");
    }
    let unknown = slotmesh(&["man", "nothing"]);
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(!unknown.status.success() && said.contains("lint"), "{said}");
}

#[test]
fn the_version_of_the_client_needs_nobody() {
    let table = text(&slotmesh(&["version", "--client"]));
    assert!(table.starts_with("COMPONENT   VERSION") && table.contains("client      0."), "{table}");
    let json = text(&slotmesh(&["version", "--admin", "127.0.0.1:1", "-o", "json"]));
    let found: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(found[0]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn nobody_who_reports_is_told_with_the_addresses_that_were_tried() {
    let output = slotmesh(&["reports", "--admin", "127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("127.0.0.1:1") && said.contains("--admin") && said.contains("port-forward"),
        "{said}"
    );
}

/// kubectl starts what is called `kubectl-slotmesh`.
#[test]
fn as_a_plugin_of_kubectl_it_calls_itself_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let plugin = dir.path().join("kubectl-slotmesh");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_slotmesh"), &plugin).expect("a link");
    let run =
        |args: &[&str]| Command::new(&plugin).args(args).env_clear().output().expect("the plugin starts");
    assert!(text(&run(&["--help"])).contains("Usage: kubectl slotmesh <COMMAND>"));
    assert!(text(&run(&["status", "--help"])).contains("Usage: kubectl slotmesh status"));
    // It asks the cluster by itself, and here is none.
    let output = run(&["reports"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("no cluster"), "{said}");
}
