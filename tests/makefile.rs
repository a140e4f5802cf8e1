//! The Makefile: what it is told reaches what it runs as it is, and it builds where cargo does.

mod native;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use native::{fresh, good, root};

/// A program that prints what it is called with, a line each.
const ECHO: &str = "#!/bin/sh\nprintf '%s\\n' \"$@\"\n";

/// What a shell or make would change, if either looked at it.
const ODD: &str = r#"What's "up", $5 for $(PROMPT) or `date` \ $HOME; #1"#;

fn script(path: PathBuf, text: &str) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn make(target: &Path, words: &[&str]) -> Command {
    let mut make = Command::new("make");
    make.current_dir(root()).env("CARGO_TARGET_DIR", target).arg("--silent").args(words);
    for name in ["MAKEFLAGS", "PROMPT", "PREFIX", "DESTDIR", "LIBDIR", "INCLUDEDIR"] {
        make.env_remove(name);
    }
    make
}

#[test]
fn a_prompt_is_not_read_by_a_shell() {
    let folder = fresh("make-demo");
    script(folder.join("examples/llm"), ECHO);
    let python = script(folder.join("python"), "#!/bin/sh\necho some.gguf\n");
    let python = format!("PYTHON={}", python.display());
    let words = ["demo", "--assume-old=build", &python];
    let said = good(make(&folder, &words).arg(format!("PROMPT={ODD}")));
    assert!(said.ends_with(&format!("\n--model\nsome.gguf\n--prompt\n{ODD}\n--length\n120\n")), "{said}");
    assert_eq!(good(make(&folder, &words).env("PROMPT", ODD)), said);
    assert!(good(&mut make(&folder, &words)).contains("--prompt\nWhy is the sky blue?\n"));
}

#[test]
fn folders_to_install_into_are_not_read_by_a_shell() {
    let folder = fresh("make-install");
    let cargo = format!("CARGO={}", script(folder.join("cargo"), ECHO).display());
    let mut install = make(&folder, &["install", &cargo]);
    install.arg(format!("PREFIX=/{ODD}")).arg(format!("DESTDIR={ODD}"));
    let said = good(&mut install);
    let expected =
        format!("xtask\ninstall\n--prefix\n/{ODD}\n--destdir\n{ODD}\n--libdir\n\n--includedir\n\n");
    assert_eq!(said, expected);
}

#[test]
fn what_is_built_lies_where_cargo_builds() {
    let folder = fresh("make-target");
    // Stands for cargo: puts what would be built where it was told to.
    let cargo = "#!/bin/sh\nsleep 1\nmkdir -p \"$CARGO_TARGET_DIR/release\" && : >\"$CARGO_TARGET_DIR/release/libbitlinear.so\"\n";
    let cargo = format!("CARGO={}", script(folder.join("cargo"), cargo).display());
    let cc = "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" = -o ] && : >\"$2\"; shift; done\n";
    let cc = format!("CC={}", script(folder.join("cc"), cc).display());
    good(&mut make(&folder, &["-j3", "build", &cargo, &cc]));
    assert!(folder.join("release/libbitlinear.so.0").exists());
    for name in ["digits", "gpu_layer", "one_layer", "llm", "embed"] {
        assert!(folder.join("examples").join(name).exists(), "{name}");
    }
    let said = good(Command::new("make").current_dir(root()).env("CARGO_TARGET_DIR", &folder).args([
        "--dry-run",
        "tool",
        "bench",
    ]));
    let elsewhere = |line: &&str| line.contains(" target/") || line.contains("=target/");
    assert_eq!(said.lines().find(elsewhere), None, "{said}");
    assert!(said.contains(&format!("{}/tool/release/bitlinear", folder.display())), "{said}");
}
