//! Calls on a host's own stream with a host's own memory: what they compute, what they ask of the driver, that
//! they can be captured, and what they refuse.

use std::ffi::c_void;
use std::ptr::null;

use bitlinear::capi::enums::*;
use bitlinear::capi::types::*;

use crate::emulated::{self, Memory};
use crate::shipped::*;
use crate::{alone, attempt};

const F32: TypeArg = TypeArg(bl_type::BL_TYPE_F32 as u32);

/// A layer on both sides.
fn pair(rows: usize, columns: usize, ty: bl_type) -> (Handle, Handle) {
    let mut options = layer_options();
    options.r#type = TypeArg(ty as u32);
    let cpu = create(None, (rows, columns), &values(rows * columns, rows as u32), &options).unwrap();
    let device = copy(&cpu, 1).unwrap();
    (cpu, device)
}

/// One call on a stream, f32, rows that touch.
fn enqueue(
    layers: &[&Handle],
    m: usize,
    x: &Memory,
    ys: &[&Memory],
    space: &Memory,
    size: u64,
    stream: *mut c_void,
) -> Outcome {
    let mut options = run_options();
    (options.workspace, options.workspace_size) = (space.pointer(), size as usize);
    let layers: Vec<_> = layers.iter().map(|l| l.get::<bl_layer>().cast_const()).collect();
    let ys: Vec<_> = ys.iter().map(|y| y.pointer()).collect();
    let x = x.pointer().cast_const();
    attempt!(device::bl_forward_device(
        layers.as_ptr(),
        layers.len(),
        m as i64,
        x,
        F32,
        0,
        ys.as_ptr(),
        F32,
        null(),
        &options,
        stream,
    ))
}

#[test]
fn calls_on_a_stream() {
    alone("streams::on_a_stream", &[]);
}

/// The same bits, and nothing but launches.
#[test]
#[ignore = "run by calls_on_a_stream in a process of its own"]
fn on_a_stream() {
    let Some(driver) = emulated::driver() else { return };
    let host = driver.host(0);
    let stream = host.stream();
    let (a, b) = (pair(48, 256, bl_type::BL_TYPE_TERNARY), pair(33, 256, bl_type::BL_TYPE_INT4));
    for m in [1usize, 5, 64, 200] {
        let x = values(m * 256, m as u32);
        let on_device = host.memory(&x);
        let ys = [host.memory(&vec![0f32; m * 48]), host.memory(&vec![0f32; m * 33])];
        let size = plan(&a.1, m).workspace_size + plan(&b.1, m).workspace_size;
        let space = host.room(size as usize);
        let calls = driver.count("calls");
        let launches = driver.count("calls:cuLaunchKernel");
        let current = driver.count("calls:cuCtxGetCurrent");
        enqueue(&[&a.1, &b.1], m, &on_device, &[&ys[0], &ys[1]], &space, size, stream).unwrap();
        let launched = driver.count("calls:cuLaunchKernel") - launches;
        assert!((2..=4).contains(&launched), "{launched} launches");
        assert_eq!(driver.count("calls") - calls, launched + driver.count("calls:cuCtxGetCurrent") - current);
        host.wait(stream);
        for (y, (layer, rows)) in ys.iter().zip([(&a.0, 48), (&b.0, 33)]) {
            let mut want = vec![0.0; m * rows];
            forward(layer, m, &x, &mut want, 0).unwrap();
            same(&host.read(y, m * rows), &want, &format!("m = {m}, {rows} rows"));
        }
    }
    // f16 in, bf16 out, strides, accumulated.
    let (m, rows) = (7usize, 48usize);
    let x: Vec<u16> = values(m * 260, 1).iter().map(|v| half::f16::from_f32(*v).to_bits()).collect();
    let y: Vec<u16> = values(m * 50, 2).iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
    let (x_there, y_there) = (host.memory(&x), host.memory(&y));
    let mut options = run_options();
    let size = plan(&a.1, m).workspace_size;
    let space = host.room(size as usize);
    (options.workspace, options.workspace_size) = (space.pointer(), size as usize);
    options.flags = BL_RUN_ACCUMULATE | BL_RUN_CHECK;
    let (f16, bf16) = (TypeArg(bl_type::BL_TYPE_F16 as u32), TypeArg(bl_type::BL_TYPE_BF16 as u32));
    let layers = [a.1.get::<bl_layer>().cast_const()];
    let (ys, strides) = ([y_there.pointer()], [100i64]);
    attempt!(device::bl_forward_device(
        layers.as_ptr(),
        1,
        m as i64,
        x_there.pointer().cast_const(),
        f16,
        520,
        ys.as_ptr(),
        bf16,
        strides.as_ptr(),
        &options,
        stream,
    ))
    .unwrap();
    host.wait(stream);
    let mut want = y.clone();
    let mut options = run_options();
    options.flags = BL_RUN_ACCUMULATE;
    let (cpu, want_at) = (a.0.get::<bl_layer>().cast_const(), want.as_mut_ptr().cast());
    attempt!(forward::bl_forward(cpu, m as i64, x.as_ptr().cast(), f16, 520, want_at, bf16, 100, &options))
        .unwrap();
    assert!(rows * 2 < 100 && want == host.read::<u16>(&y_there, m * 50));
    // SAFETY: made by `stream`.
    unsafe { (driver.stream_destroy)(stream) };
}

#[test]
fn captured_calls() {
    alone("streams::captured", &[]);
}

/// A graph of two calls, launched again and again; slow calls beside it leave the capture alone.
#[test]
#[ignore = "run by captured_calls in a process of its own"]
fn captured() {
    let Some(driver) = emulated::driver() else { return };
    let host = driver.host(0);
    let stream = host.stream();
    let (first, second) = (pair(128, 64, bl_type::BL_TYPE_TERNARY), pair(40, 128, bl_type::BL_TYPE_INT8));
    let m = 5usize;
    let (x, middle, y) = (host.room(m * 64 * 4), host.room(m * 128 * 4), host.room(m * 40 * 4));
    let size = plan(&first.1, m).workspace_size.max(plan(&second.1, m).workspace_size);
    let space = host.room(size as usize);
    let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: a stream, and places for handles.
    assert_eq!(unsafe { (driver.capture)(stream, 0) }, 0);
    enqueue(&[&first.1], m, &x, &[&middle], &space, size, stream).unwrap();
    // Making, reading and freeing a layer would break a capture of global mode, if nobody took care.
    let other = copy(&first.0, 1).unwrap();
    drop(copy(&other, 0).unwrap());
    let mut alone = vec![0.0; 128];
    forward(&other, 1, &values(64, 1), &mut alone, 0).unwrap();
    drop(other);
    enqueue(&[&second.1], m, &middle, &[&y], &space, size, stream).unwrap();
    // SAFETY: as above.
    unsafe {
        assert_eq!((driver.capture_end)(stream, &mut graph), 0);
        assert_eq!((driver.instantiate)(&mut exec, graph, 0), 0);
    }
    let check = |seed: u32| {
        let values = values(m * 64, seed);
        // SAFETY: m * 64 floats on both sides.
        assert_eq!(unsafe { (driver.to_device)(x.address, values.as_ptr().cast(), m * 64 * 4) }, 0);
        // SAFETY: a graph and a stream.
        assert_eq!(unsafe { (driver.graph_launch)(exec, stream) }, 0);
        host.wait(stream);
        let (mut between, mut want) = (vec![0.0; m * 128], vec![0.0; m * 40]);
        forward(&first.0, m, &values, &mut between, 0).unwrap();
        forward(&second.0, m, &between, &mut want, 0).unwrap();
        same(&host.read(&y, m * 40), &want, "a graph");
    };
    (1..4).for_each(check);
    // New weights, and the same graph.
    let weights = values(128 * 64, 77);
    for layer in [&first.0, &first.1] {
        attempt!(layer::bl_layer_update(layer.get::<bl_layer>(), weights.as_ptr().cast(), F32, 0)).unwrap();
    }
    check(9);
    // SAFETY: made above.
    unsafe {
        (driver.exec_destroy)(exec);
        (driver.graph_destroy)(graph);
        (driver.stream_destroy)(stream);
    }
}

#[test]
fn the_current_context_stays() {
    alone("streams::current_context", &[("BL_EMU_DEVICES", "2")]);
}

/// Whatever was current before a call is after it: nothing, the device's own, another one's.
#[test]
#[ignore = "run by the_current_context_stays in a process of its own"]
fn current_context() {
    let Some(driver) = emulated::driver() else { return };
    let (one, two) = (driver.host(0), driver.host(1));
    let (cpu, device) = pair(40, 128, bl_type::BL_TYPE_INT4);
    let x = values(128, 3);
    for before in [std::ptr::null_mut(), one.context, two.context] {
        // SAFETY: a context, or none.
        assert_eq!(unsafe { (driver.set_current)(before) }, 0);
        let stays = |what: &str| assert_eq!(driver.current(), before, "{what}");
        let layer = copy(&cpu, 1).unwrap();
        stays("bl_layer_copy");
        let mut y = vec![0.0; 40];
        forward(&layer, 1, &x, &mut y, 0).unwrap();
        stays("bl_forward");
        let mut info = device_info();
        attempt!(profile::bl_device_describe(null(), 2, &mut info)).unwrap();
        stays("bl_device_describe");
        let mut weights = vec![0f32; 128];
        let (handle, dst) = (layer.get::<bl_layer>().cast_const(), weights.as_mut_ptr().cast());
        attempt!(layer::bl_layer_read(handle, 39, 1, dst, F32, 0)).unwrap();
        stays("bl_layer_read");
        drop(layer);
        stays("bl_free");
        copy(&cpu, 3).err().unwrap();
        stays("a failure");
    }
    // A call on a stream, from a thread where the other device is current; and on the other device's stream.
    // SAFETY: a context.
    unsafe { (driver.set_current)(one.context) };
    let (x_there, y_there) = (one.memory(&x), one.memory(&[0f32; 40]));
    let size = plan(&device, 1).workspace_size;
    let (space, stream) = (one.room(size as usize), one.stream());
    // SAFETY: a context.
    unsafe { (driver.set_current)(two.context) };
    let foreign = two.stream();
    enqueue(&[&device], 1, &x_there, &[&y_there], &space, size, stream).unwrap();
    assert_eq!(driver.current(), two.context);
    let wrong = enqueue(&[&device], 1, &x_there, &[&y_there], &space, size, foreign).unwrap_err();
    assert!(wrong.0 == bl_status::BL_ERROR_INVALID_ARGUMENT && wrong.1.contains("stream"), "{wrong:?}");
    assert_eq!(driver.current(), two.context);
    // Asked whose memory it is.
    let elsewhere = two.memory(&x);
    let checked = |x: *const c_void| {
        let mut options = run_options();
        (options.workspace, options.workspace_size) = (space.pointer(), size as usize);
        options.flags = BL_RUN_CHECK;
        let (layers, ys) = ([device.get::<bl_layer>().cast_const()], [y_there.pointer()]);
        attempt!(device::bl_forward_device(
            layers.as_ptr(),
            1,
            1,
            x,
            F32,
            0,
            ys.as_ptr(),
            F32,
            null(),
            &options,
            stream,
        ))
    };
    checked(x_there.pointer()).unwrap();
    for (address, text) in
        [(elsewhere.pointer().cast_const(), "on device 2"), (x.as_ptr().cast(), "no memory of")]
    {
        let wrong = checked(address).unwrap_err();
        assert!(wrong.0 == bl_status::BL_ERROR_INVALID_ARGUMENT && wrong.1.contains(text), "{wrong:?}");
    }
    drop((elsewhere, foreign));
    // SAFETY: a context.
    unsafe { (driver.set_current)(one.context) };
    one.wait(stream);
    drop((x_there, y_there, space));
}

/// What a call on a stream refuses: before anything is launched.
#[test]
fn wrong_calls_on_a_stream() {
    let Some(driver) = emulated::driver() else { return };
    let host = driver.host(0);
    let (cpu, device) = pair(16, 64, bl_type::BL_TYPE_INT4);
    let (x, y) = (host.memory(&values(64, 1)), host.memory(&[0f32; 16]));
    let size = plan(&device, 1).workspace_size as usize;
    let space = host.room(size);
    let call = |layer: &Handle,
                m: i64,
                x: usize,
                x_stride: i64,
                y: usize,
                flags: u32,
                workspace: (*mut c_void, usize)| {
        let mut options = run_options();
        (options.flags, options.workspace, options.workspace_size) = (flags, workspace.0, workspace.1);
        let (layers, ys) = ([layer.get::<bl_layer>().cast_const()], [std::ptr::without_provenance_mut(y)]);
        let x = std::ptr::without_provenance(x);
        attempt!(device::bl_forward_device(
            layers.as_ptr(),
            1,
            m,
            x,
            F32,
            x_stride,
            ys.as_ptr(),
            F32,
            null(),
            &options,
            std::ptr::null_mut(),
        ))
    };
    let (at, to, room) = (x.address as usize, y.address as usize, (space.pointer(), size));
    let wrong = [
        (call(&cpu, 1, at, 0, to, 0, room), bl_status::BL_ERROR_INVALID_ARGUMENT, "on the CPU"),
        (call(&device, 1, at + 2, 0, to, 0, room), bl_status::BL_ERROR_INVALID_ARGUMENT, "multiples of 4"),
        (call(&device, 1, at, 258, to, 0, room), bl_status::BL_ERROR_INVALID_ARGUMENT, "multiples of 4"),
        (call(&device, 1, at, 0, to + 1, 0, room), bl_status::BL_ERROR_INVALID_ARGUMENT, "multiples of 4"),
        (call(&device, 1, 0, 0, to, 0, room), bl_status::BL_ERROR_INVALID_ARGUMENT, "x is NULL"),
        (call(&device, 1, at, 0, 0, 0, room), bl_status::BL_ERROR_INVALID_ARGUMENT, "a y is NULL"),
        (call(&device, 1, at, 0, to, 4, room), bl_status::BL_ERROR_INVALID_ARGUMENT, "flags"),
        (call(&device, -1, at, 0, to, 0, room), bl_status::BL_ERROR_INVALID_ARGUMENT, "m = -1"),
        (call(&device, 1, at, 252, to, 0, room), bl_status::BL_ERROR_INVALID_ARGUMENT, "row stride of x"),
        (
            call(&device, 1, at, 0, to, 0, (std::ptr::null_mut(), 0)),
            bl_status::BL_ERROR_BUFFER_TOO_SMALL,
            "workspace",
        ),
        (
            call(&device, 1, at, 0, to, 0, (space.pointer(), 1)),
            bl_status::BL_ERROR_BUFFER_TOO_SMALL,
            "workspace",
        ),
    ];
    for (result, status, text) in wrong {
        let found = result.unwrap_err();
        assert!(found.0 == status && found.1.contains(text), "{found:?} is not {status:?} {text}");
    }
    call(&device, 0, 0, 0, 0, 0, (std::ptr::null_mut(), 0)).unwrap(); // no rows
    // Host calls take no workspace there.
    let mut options = run_options();
    (options.workspace, options.workspace_size) = (space.pointer(), size);
    let (handle, row, mut out) = (device.get::<bl_layer>().cast_const(), values(64, 1), vec![0f32; 16]);
    let (row, out) = (row.as_ptr().cast(), out.as_mut_ptr().cast());
    let taken = attempt!(forward::bl_forward(handle, 1, row, F32, 0, out, F32, 0, &options)).unwrap_err();
    assert!(taken.0 == bl_status::BL_ERROR_INVALID_ARGUMENT && taken.1.contains("workspace"), "{taken:?}");
}

/// A layer in the host's own memory.
#[test]
fn memory_of_the_host() {
    let Some(driver) = emulated::driver() else { return };
    let host = driver.host(0);
    let (cpu, _) = pair(100, 96, bl_type::BL_TYPE_INT4);
    let make = |memory: *mut c_void, size: *mut usize| {
        let mut out = std::ptr::null_mut();
        let from = cpu.get::<bl_layer>().cast_const();
        attempt!(device::bl_layer_copy(from, 1, memory, size, &mut out)).map(|()| Handle(out.cast()))
    };
    let mut size = 0usize;
    assert!(make(std::ptr::null_mut(), &mut size).unwrap().0.is_null() && size > 100 * 96 / 2);
    let need = size;
    let memory = host.room(need + 256);
    let mut small = need - 1;
    let short = make(memory.pointer(), &mut small).err().unwrap();
    assert!(short.0 == bl_status::BL_ERROR_BUFFER_TOO_SMALL && small == need, "{short:?}");
    let odd = make(memory.pointer().wrapping_byte_add(64), &mut size).err().unwrap();
    assert!(odd.0 == bl_status::BL_ERROR_INVALID_ARGUMENT && odd.1.contains("256"), "{odd:?}");
    assert!(make(memory.pointer(), std::ptr::null_mut()).is_err());
    let layer = make(memory.pointer(), &mut size).unwrap();
    let x = values(9 * 96, 4);
    let (mut want, mut got) = (vec![0.0; 900], vec![0.0; 900]);
    forward(&cpu, 9, &x, &mut want, 0).unwrap();
    forward(&layer, 9, &x, &mut got, 0).unwrap();
    same(&got, &want, "the host's memory");
    drop(layer);
    let _: Vec<u8> = host.read(&memory, need); // still there
}

/// One layer, four threads; layers made and freed beside them.
#[test]
fn several_threads() {
    let Some(_driver) = emulated::driver() else { return };
    let (cpu, device) = pair(64, 256, bl_type::BL_TYPE_INT4);
    let (cpu, device) = (cpu.0.expose_provenance(), device.0.expose_provenance()); // the owners live on
    let handle =
        |address: usize| std::mem::ManuallyDrop::new(Handle(std::ptr::with_exposed_provenance_mut(address)));
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            scope.spawn(move || {
                for round in 0..6 {
                    let m = 1 + (thread as usize + round) % 9;
                    let x = values(m * 256, thread * 10 + round as u32);
                    let (mut want, mut got) = (vec![0.0; m * 64], vec![0.0; m * 64]);
                    forward(&handle(cpu), m, &x, &mut want, 0).unwrap();
                    forward(&handle(device), m, &x, &mut got, 0).unwrap();
                    same(&got, &want, "threads");
                    drop(copy(&handle(cpu), 1).unwrap());
                }
            });
        }
    });
}
