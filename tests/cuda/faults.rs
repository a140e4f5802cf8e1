//! What is missing, too old, full, broken or gone: a status with its reason, nothing printed, nothing left behind.

use std::process::Command;

use bitlinear::capi::enums::*;
use bitlinear::capi::types::*;

use crate::shipped::*;
use crate::{alone, attempt, emulated, native, shipped};

/// A small layer on the device.
fn layer_on(context: Option<&Handle>, device: u32) -> Outcome<Handle> {
    let mut options = layer_options();
    options.device = device;
    create(context, (40, 96), &values(40 * 96, 1), &options)
}

/// Says that this process's driver answers with that status and text, whatever is asked, and that the CPU works.
fn refused(status: bl_status, text: &str) {
    for _ in 0..2 {
        let found = layer_on(None, 1).err().unwrap();
        assert!(found.0 == status && found.1.contains(text), "{found:?} is not {status:?} `{text}`");
    }
    let cpu = layer_on(None, 0).unwrap();
    let found = copy(&cpu, 1).err().unwrap();
    assert!(found.0 == status && found.1.contains(text), "{found:?}");
    let mut y = vec![0.0; 40];
    forward(&cpu, 1, &values(96, 2), &mut y, 0).unwrap();
    let mut info = device_info();
    attempt!(profile::bl_device_describe(std::ptr::null(), 0, &mut info)).unwrap();
}

/// A child that is told by `BITLINEAR_WANT` what it will find.
#[test]
#[ignore = "run by others in processes of their own"]
fn answers() {
    let want = std::env::var("BITLINEAR_WANT").unwrap();
    let mut words = want.splitn(3, '|');
    let (status, text, emulator) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let status = match status {
        "NO_DRIVER" => bl_status::BL_ERROR_NO_DRIVER,
        "DRIVER_TOO_OLD" => bl_status::BL_ERROR_DRIVER_TOO_OLD,
        "NO_DEVICE" => bl_status::BL_ERROR_NO_DEVICE,
        "UNSUPPORTED_DEVICE" => bl_status::BL_ERROR_UNSUPPORTED_DEVICE,
        "DEVICE" => bl_status::BL_ERROR_DEVICE,
        other => panic!("{other}"),
    };
    if emulator == "emulated" {
        emulated::driver().unwrap();
    }
    refused(status, text);
    // A GPU that is too old is listed; nothing else is.
    let mut info = device_info();
    let listed = attempt!(profile::bl_device_describe(std::ptr::null(), 1, &mut info));
    match (status, listed) {
        (bl_status::BL_ERROR_UNSUPPORTED_DEVICE, listed) => listed.unwrap(),
        (_, listed) => {
            let (found, reason) = listed.unwrap_err();
            assert!(found == bl_status::BL_ERROR_NOT_FOUND && reason.contains(text), "{reason}");
        }
    }
}

#[test]
fn no_driver() {
    // SAFETY: a name.
    if !unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY) }.is_null() {
        // Whether the emulated one or the machine's.
        if emulated::driver().is_none() || std::path::Path::new("/proc/driver/nvidia").exists() {
            return native::not_run("a machine without a CUDA driver: this one has one");
        }
    }
    alone("faults::answers", &[("BITLINEAR_WANT", "NO_DRIVER|libcuda.so.1|"), ("LD_LIBRARY_PATH", "")]);
}

#[test]
fn a_function_is_missing() {
    let Some(compiler) = native::tool("cc", "a driver without functions") else { return };
    let folder = crate::fresh("half-a-driver");
    let source = folder.join("half.c");
    std::fs::write(&source, "int cuInit(unsigned flags) { return (int)flags; }\n").unwrap();
    let library = folder.join("libcuda.so.1");
    native::good(Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source));
    let folder = folder.to_str().unwrap();
    let want = "DRIVER_TOO_OLD|has no cuDriverGetVersion|";
    alone("faults::answers", &[("BITLINEAR_WANT", want), ("LD_LIBRARY_PATH", folder)]);
}

#[test]
fn drivers_that_do_not_do() {
    let cases = [
        ("BL_EMU_INIT", "100", "NO_DEVICE|sees no GPU"),
        ("BL_EMU_DEVICES", "0", "NO_DEVICE|sees no GPU"),
        ("BL_EMU_INIT", "34", "NO_DRIVER|stub"),
        ("BL_EMU_INIT", "999", "DEVICE|(999) in cuInit"),
        ("BL_EMU_DRIVER", "11080", "DRIVER_TOO_OLD|CUDA 11.8"),
        ("BL_EMU_CC", "70", "UNSUPPORTED_DEVICE|7.0"),
    ];
    for (key, value, want) in cases {
        let want = format!("{want}|emulated");
        // A GPU that is too old is found, and refused.
        alone("faults::answers", &[("BITLINEAR_WANT", &want), (key, value)]);
    }
}

/// Which image is loaded on which GPU: counted by the emulation, which takes only what fits.
#[test]
fn the_image_suits_the_gpu() {
    // Machine code where there is some for the major version; else the newest PTX. On 9.0 the module of warpgroups,
    // which is for 9.0 alone, comes last.
    for (arch, image) in [
        ("75", "ptx 75"),
        ("80", "cubin 80"),
        ("86", "cubin 80"),
        ("89", "cubin 80"),
        ("90", "cubin 90"),
        ("100", "ptx 80"),
        ("120", "ptx 80"),
    ] {
        let ptx = match arch {
            "75" => "ptx 75",
            "90" => "ptx 90",
            _ => "ptx 80",
        };
        for (only, image) in [("", image), ("1", ptx)] {
            let environment = [("BL_EMU_CC", arch), ("BITLINEAR_CUDA_PTX", only), ("BITLINEAR_WANT", image)];
            alone("faults::image", &environment);
        }
    }
}

#[test]
#[ignore = "run by the_image_suits_the_gpu in processes of their own"]
fn image() {
    let Some(driver) = emulated::driver() else { return };
    let layers = [layer_on(None, 1).unwrap(), layer_on(None, 1).unwrap()];
    // Two modules, and that of warpgroups on 9.0, each once and all of one kind.
    let modules = if std::env::var("BL_EMU_CC").as_deref() == Ok("90") { 3 } else { 2 };
    assert_eq!(driver.count("modules"), modules);
    let kind = if driver.count("modules:ptx") == modules { "ptx" } else { "cubin" };
    assert_eq!(driver.count("modules:cubin"), if kind == "cubin" { modules } else { 0 });
    let found = format!("{kind} {}", driver.count("last_target"));
    assert_eq!(found, std::env::var("BITLINEAR_WANT").unwrap());
    drop(layers);
}

/// The example in C: on the CPU, and on the GPU with the same y.
#[test]
fn the_example_runs_on_both() {
    let (Some(compiler), Some(folder)) = (native::tool("cc", "examples/c/gpu_layer.c"), emulated::folder())
    else {
        return;
    };
    let binary = crate::fresh("gpu-layer").join("gpu_layer");
    let mut cc = Command::new(compiler);
    cc.args(["-std=c99", "-O1", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror", "-I"]);
    cc.arg(native::root().join("include")).arg(native::root().join("examples/c/gpu_layer.c"));
    cc.arg("-L").arg(native::release()).args(["-lbitlinear", "-ldl", "-o"]).arg(&binary);
    cc.arg(format!("-Wl,-rpath,{}", native::release().display()));
    native::good(&mut cc);
    let run = |libraries: &std::path::Path| {
        let mut program = Command::new(&binary);
        program.arg(native::root().join("tests/data/golden/ggml_all_64x512.gguf")).arg("blk.0.q4_k.weight");
        native::good(program.env("LD_LIBRARY_PATH", libraries))
    };
    let (without, with) = (run(std::path::Path::new("")), run(folder));
    let y = |line: &str| line.split_once(": y").unwrap().1.to_owned();
    assert!(with.starts_with("Emulated") || !with.starts_with("CPU"), "{with}");
    assert_eq!(y(&with), y(&without));
}

#[test]
fn no_memory() {
    alone("faults::memory", &[]);
}

/// Every allocation on the device, and of pinned memory, fails once.
#[test]
#[ignore = "run by no_memory in a process of its own"]
fn memory() {
    let Some(driver) = emulated::driver() else { return };
    let context = context(&context_options());
    // The context of the device and its modules stay with ours: not part of what is compared.
    drop(layer_on(Some(&context), 1).unwrap());
    let x = values(96 * 5, 1);
    let mut failures = 0;
    for nth in 1.. {
        let before = driver.alive();
        driver.choose("fail_allocation", &(driver.count("allocations") + nth).to_string());
        let layer = layer_on(Some(&context), 1);
        let result = match &layer {
            Ok(layer) => forward(layer, 5, &x, &mut [0.0; 200], 0),
            Err(e) => Err(e.clone()),
        };
        driver.choose("fail_allocation", "");
        drop(layer);
        match result {
            Ok(()) => break,
            Err((status, text)) => {
                assert!(
                    status == bl_status::BL_ERROR_OUT_OF_MEMORY && text.contains("bytes"),
                    "{status:?} {text}"
                );
                assert_eq!(driver.alive(), before, "{text}");
                failures += 1;
            }
        }
    }
    assert!(failures >= 4, "{failures}"); // pinned memory and weights; x and y on both sides
    // More than the device has.
    driver.choose("memory", "65536");
    let mut options = layer_options();
    options.device = 1;
    let large = create(Some(&context), (512, 1024), &values(512 * 1024, 1), &options).err().unwrap();
    assert_eq!(large.0, bl_status::BL_ERROR_OUT_OF_MEMORY);
    assert!(large.1.contains("CUDA_ERROR_OUT_OF_MEMORY (2) in cuMemAlloc"), "{}", large.1);
    drop(context);
    assert_eq!(driver.alive(), [0; 6]);
}

#[test]
fn nothing_stays_with_a_host() {
    alone("faults::freed", &[]);
}

/// A host that uses the device too keeps it and all that is on it alive: what is freed must be given back one by one,
/// and `bl_memory` tells what is left.
#[test]
#[ignore = "run by nothing_stays_with_a_host in a process of its own"]
fn freed() {
    let Some(driver) = emulated::driver() else { return };
    let host = driver.host(0);
    let before = driver.alive();
    let context = context(&context_options());
    let used = || shipped::memory(&context).device;
    let first = layer_on(Some(&context), 1).unwrap();
    forward(&first, 3, &values(96 * 3, 1), &mut [0.0; 120], 0).unwrap();
    let with_one = used();
    let second = layer_on(Some(&context), 1).unwrap();
    assert!(with_one > 0 && used() > with_one);
    drop(second);
    assert_eq!(used(), with_one);
    drop(first);
    assert!(used() < with_one);
    drop(context);
    assert_eq!(driver.alive(), before);
    drop(host);
}

#[test]
fn a_device_is_lost() {
    alone("faults::lost", &[]);
}

/// After a sticky error every call says so, everything can be freed, and then the device works again.
#[test]
#[ignore = "run by a_device_is_lost in a process of its own"]
fn lost() {
    let Some(driver) = emulated::driver() else { return };
    let context = context(&context_options());
    let (layer, other) = (layer_on(Some(&context), 1).unwrap(), layer_on(Some(&context), 1).unwrap());
    let (x, mut y) = (values(96, 1), vec![0.0; 40]);
    forward(&layer, 1, &x, &mut y, 0).unwrap();
    driver.choose("lose_at_launch", &(driver.count("launches") + 1).to_string());
    let first = forward(&layer, 1, &x, &mut y, 0).unwrap_err();
    let named = first.1.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)") && first.1.contains("device 1 is lost");
    assert!(first.0 == bl_status::BL_ERROR_DEVICE_LOST && named, "{first:?}");
    driver.choose("lose_at_launch", "");
    let mut weights = vec![0f32; 96];
    let (handle, dst) = (other.get::<bl_layer>().cast_const(), weights.as_mut_ptr().cast());
    let later = [
        forward(&other, 1, &x, &mut y, 0),
        attempt!(layer::bl_layer_read(handle, 0, 1, dst, TypeArg(1), 0)),
        layer_on(Some(&context), 1).map(|_| ()),
        layer_on(None, 1).map(|_| ()),
        copy(&other, 1).map(|_| ()),
    ];
    for result in later {
        let found = result.unwrap_err();
        assert!(found.0 == bl_status::BL_ERROR_DEVICE_LOST && found.1.contains("700"), "{found:?}");
    }
    let cpu = layer_on(Some(&context), 0).unwrap();
    forward(&cpu, 1, &x, &mut y, 0).unwrap();
    drop((layer, other));
    let again = layer_on(Some(&context), 1).unwrap();
    let mut got = vec![0.0; 40];
    forward(&again, 1, &x, &mut got, 0).unwrap();
    same(&got, &y, "after a device was lost");
}

#[test]
fn children_of_fork() {
    alone("faults::forked", &[]);
}

/// The child is refused and may free what it has; the parent goes on.
#[test]
#[ignore = "run by children_of_fork in a process of its own"]
fn forked() {
    let Some(driver) = emulated::driver() else { return };
    let layer = layer_on(None, 1).unwrap();
    let (x, mut y) = (values(96, 1), vec![0.0; 40]);
    forward(&layer, 1, &x, &mut y, 0).unwrap();
    let calls = driver.count("calls");
    // SAFETY: the child makes calls of the library only, and ends without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = |result: Outcome| matches!(result, Err((bl_status::BL_ERROR_FORKED, _)));
        let mut info = device_info();
        let good = refused(forward(&layer, 1, &x, &mut y, 0))
            && refused(layer_on(None, 1).map(|_| ()))
            && refused(attempt!(profile::bl_device_describe(std::ptr::null(), 1, &mut info)))
            && layer_on(None, 0).is_ok();
        drop(layer);
        let silent = driver.count("calls") == calls;
        // SAFETY: ends the child.
        unsafe { libc::_exit(if good && silent { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: a place for the status.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    forward(&layer, 1, &x, &mut y, 0).unwrap();
}

#[test]
fn the_driver_ends_first() {
    alone("faults::ended", &[]);
}

/// Handles that go when the driver has shut down already.
#[test]
#[ignore = "run by the_driver_ends_first in a process of its own"]
fn ended() {
    let Some(driver) = emulated::driver() else { return };
    let context = context(&context_options());
    let layer = layer_on(Some(&context), 1).unwrap();
    driver.choose("deinitialized", "1");
    let found = forward(&layer, 1, &values(96, 1), &mut [0.0; 40], 0).unwrap_err();
    assert!(found.0 == bl_status::BL_ERROR_DEVICE && found.1.contains("(4)"), "{found:?}");
    drop((layer, context));
}
