//! The example that trains (examples/c/digits): how well it learns, and that what it saves is what it
//! learnt.

mod native;

use std::process::Command;

use native::{fresh, good, release, root, tool};

/// The number before a sign of percent, after a text.
fn percent(printed: &str, after: &str) -> f64 {
    let rest = printed.split(after).nth(1).unwrap_or_else(|| panic!("no `{after}` in: {printed}"));
    rest.split('%').next().unwrap().trim().parse().unwrap()
}

#[test]
fn digits_are_learnt_with_ternary_weights() {
    let Some(cc) = tool("cc", "examples/c/digits") else { return };
    let folder = fresh("digits");
    let (program, model, curve) = (folder.join("digits"), folder.join("model.bl"), folder.join("curve.svg"));
    let source = root().join("examples/c/digits");
    let mut compile = Command::new(cc);
    compile.args(["-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]);
    compile.arg(root().join("include")).arg(source.join("digits.c")).arg("-o").arg(&program);
    compile.arg("-L").arg(release()).args(["-lbitlinear", "-lm"]);
    compile.arg(format!("-Wl,-rpath,{}", release().display()));
    good(&mut compile);
    let printed = good(Command::new(&program).arg(source.join("digits.bin")).arg(&model).arg(&curve));
    let (ternary, float) = (percent(&printed, "ternary:"), percent(&printed, "floats:"));
    // One in ten is chance; a layer that does not learn, or learns from wrong gradients, stays below.
    assert!(ternary >= 95.0 && float >= 95.0, "{printed}");
    assert_eq!(percent(&printed, "bytes of weights):"), ternary, "{printed}");
    assert!(printed.contains("logits the same to the bit"), "{printed}");
    // Two bits a weight and a scale a row, panels of 16 rows.
    assert!(std::fs::metadata(&model).unwrap().len() < 40_000);
    let picture = std::fs::read_to_string(curve).unwrap();
    assert!(picture.starts_with("<svg") && picture.matches("<polyline").count() == 2);

    // The same bits whatever kernels the forward calls take (on one CPU: gradients are a GEMM crate's): training is a
    // long chain in which one other bit would show.
    let again = fresh("digits-scalar").join("model.bl");
    let scalar = good(
        Command::new(&program).env("BITLINEAR_ISA", "scalar").arg(source.join("digits.bin")).arg(&again),
    );
    assert_eq!(scalar.replace(again.to_str().unwrap(), ""), printed.replace(model.to_str().unwrap(), ""));
    assert!(std::fs::read(again).unwrap() == std::fs::read(model).unwrap());
}
