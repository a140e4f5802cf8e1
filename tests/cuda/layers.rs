//! Layers on the device give the bits of the CPU: every stored format, m and shape, everything that stands
//! around a product, several layers at a time, and the way back.

use bitlinear::capi::enums::*;
use bitlinear::capi::types::*;

use crate::emulated;
use crate::shipped::*;
use crate::{alone, attempt};

/// Rows of x of the calls; the shapes take every third of them, each other ones, where a schedule is one of many.
const BATCHES: [usize; 6] = [1, 3, 8, 17, 64, 200];

/// Takes every n-th case, where BITLINEAR_TEST_EVERY says so; which ones, the seed of the schedule says, so that
/// schedules with other seeds take others.
struct Every {
    each: usize,
    at: usize,
}

impl Every {
    fn new(first: usize) -> Every {
        let number = |name| std::env::var(name).ok().and_then(|v| v.parse().ok());
        let each = number("BITLINEAR_TEST_EVERY").unwrap_or(1);
        Every { each, at: first + number("BL_EMU_SEED").unwrap_or(0) }
    }
    fn takes(&mut self) -> bool {
        self.at += 1;
        self.at.is_multiple_of(self.each)
    }
}

/// The same y on the CPU and on the device, for every number of rows.
#[track_caller]
fn agrees(cpu: &Handle, device: &Handle, every: &mut Every, what: &str) {
    let info = describe(cpu);
    assert_eq!(describe(device).device, 1, "{what}");
    let (rows, columns) = (info.out_features as usize, info.in_features as usize);
    for m in BATCHES.into_iter().filter(|_| every.takes()) {
        let x = values(m * columns, m as u32);
        let (mut want, mut got) = (vec![0.5; m * rows], vec![0.5; m * rows]);
        let flags = if m == 3 { BL_RUN_ACCUMULATE } else { 0 };
        forward(cpu, m, &x, &mut want, flags).unwrap();
        forward(device, m, &x, &mut got, flags).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        same(&got, &want, &format!("{what}, m = {m}"));
    }
}

const ACTIVATIONS: [bl_activation; 9] = [
    bl_activation::BL_ACTIVATION_AUTO,
    bl_activation::BL_ACTIVATION_F32,
    bl_activation::BL_ACTIVATION_INT8_ROW,
    bl_activation::BL_ACTIVATION_INT8_GROUP,
    bl_activation::BL_ACTIVATION_INT4,
    bl_activation::BL_ACTIVATION_UINT8_POS,
    bl_activation::BL_ACTIVATION_INT8_MEAN_RANGE,
    bl_activation::BL_ACTIVATION_INT4_MEAN_RANGE,
    bl_activation::BL_ACTIVATION_UINT8_POS_MEAN_RANGE,
];

/// The formats that the golden GGUF file has a tensor of.
const STORED: [&str; 17] = [
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
    "iq1_s", "tq1_0", "tq2_0", "q1_0",
];

/// Every format of that file, whole and in ragged shards, as the library itself takes x.
#[test]
fn every_format_gives_the_bits_of_the_cpu() {
    let Some(driver) = emulated::driver() else { return };
    let file = model(None, "ggml_all_64x512.gguf");
    let mut every = Every::new(0);
    for name in STORED {
        let tensor = format!("blk.0.{name}.weight");
        let mut options = layer_options();
        // Whole; 21 or 22 of 64 rows; columns from a multiple of the group on.
        for (shard, rank, count) in [(0, 0, 0), (1, 1, 3), (2, 1, 2)] {
            (options.shard, options.shard_rank, options.shard_count) = (ShardArg(shard), rank, count);
            options.device = 0;
            let cpu = open(&file, &tensor, &options).unwrap();
            options.device = 1;
            let device = open(&file, &tensor, &options).unwrap();
            let (a, b) = (describe(&cpu), describe(&device));
            assert_eq!((a.first_row, a.first_column, a.r#type), (b.first_row, b.first_column, b.r#type));
            agrees(&cpu, &device, &mut every, &format!("{name}, shard {shard}"));
        }
    }
    assert!(driver.count("launches") > 0);
}

/// Formats that the file lacks: blocks of random bytes behind a sane scale.
#[test]
fn formats_of_bytes_give_the_bits_of_the_cpu() {
    if emulated::driver().is_none() {
        return;
    }
    let mut every = Every::new(2);
    let f16 = |block: &mut [u8], at: usize, n: u8| block[at..at + 2].copy_from_slice(&[n, 0x2c | n & 1]);
    let e8m0 = |block: &mut [u8], _: usize, n: u8| block[0] = 120 + n % 12;
    type Scale<'a> = &'a dyn Fn(&mut [u8], usize, u8);
    // Type, columns of a block, its bytes, where its scale lies.
    let formats: [(bl_type, usize, usize, usize, Scale<'_>); 6] = [
        (bl_type::BL_TYPE_IQ4_NL, 32, 18, 0, &f16),
        (bl_type::BL_TYPE_IQ4_XS, 256, 136, 0, &f16),
        (bl_type::BL_TYPE_MXFP4, 32, 17, 0, &e8m0),
        (bl_type::BL_TYPE_Q2_0, 64, 18, 0, &f16),
        (bl_type::BL_TYPE_PQ2_0, 128, 34, 0, &f16),
        (bl_type::BL_TYPE_PTQ1_0, 128, 28, 26, &f16),
    ];
    for (ty, block, bytes, at, scale) in formats {
        for (rows, blocks) in [(3usize, 1usize), (50, 3)] {
            let mut weights = vec![0u8; rows * blocks * bytes];
            for (i, chunk) in weights.chunks_exact_mut(bytes).enumerate() {
                let random = values(bytes, i as u32 + 1);
                chunk.iter_mut().zip(&random).for_each(|(byte, v)| *byte = (v * 1e5) as i32 as u8);
                let n = chunk[bytes / 2];
                scale(chunk, at, n);
            }
            let (rows, columns) = (rows as i64, (blocks * block) as i64);
            for activation in ACTIVATIONS {
                let mut options = layer_options();
                options.activation = ActivationArg(activation as u32);
                let made = |device: u32| {
                    let mut options = options;
                    options.device = device;
                    let mut out = std::ptr::null_mut();
                    let (null, ty) = (std::ptr::null(), TypeArg(ty as u32));
                    let bytes = weights.as_ptr().cast();
                    attempt!(layer::bl_layer_create(null, rows, columns, bytes, ty, 0, &options, &mut out))
                        .map(|()| Handle(out.cast()))
                };
                let cpu = made(0).unwrap();
                agrees(
                    &cpu,
                    &made(1).unwrap(),
                    &mut every,
                    &format!("{ty:?}, {activation:?}, {rows} x {columns}"),
                );
            }
        }
    }
}

/// Formats of other files: groups with zero points, several bases, groups of odd lengths.
#[test]
fn other_files_give_the_bits_of_the_cpu() {
    if emulated::driver().is_none() {
        return;
    }
    let mut every = Every::new(1);
    let mut layers = 0;
    for name in ["int4_layouts.safetensors", "cortex.safetensors", "ruvllm_t158_id30.gguf", "bitnet_i2s.gguf"]
    {
        let file = model(None, name);
        for index in 0.. {
            // SAFETY: zeros are an empty struct.
            let mut info: bl_model_layer_info = unsafe { std::mem::zeroed() };
            info.struct_size = size_of::<bl_model_layer_info>() as u32;
            let file = file.get::<bl_model>().cast_const();
            if attempt!(model::bl_model_layer(file, std::ptr::null(), index, &mut info)).is_err() {
                break;
            }
            // SAFETY: a text of the model's, which is alive.
            let layer = unsafe { std::ffi::CStr::from_ptr(info.name) }.to_string_lossy().into_owned();
            if info.status.0 != 0 {
                continue;
            }
            for activation in [bl_activation::BL_ACTIVATION_AUTO, bl_activation::BL_ACTIVATION_F32] {
                let mut options = layer_options();
                options.activation = ActivationArg(activation as u32);
                let cpu = open(&Borrowed(file).handle(), &layer, &options);
                let Ok(cpu) = cpu else { continue };
                layers += 1;
                let device = copy(&cpu, 1).unwrap();
                agrees(&cpu, &device, &mut every, &format!("{name}: {layer}, {activation:?}"));
            }
        }
    }
    assert!(layers >= 10, "{layers} layers");
}

/// A handle that another owns.
struct Borrowed(*const bl_model);

impl Borrowed {
    fn handle(&self) -> std::mem::ManuallyDrop<Handle> {
        std::mem::ManuallyDrop::new(Handle(self.0.cast_mut().cast()))
    }
}

/// Every activation with weights of one scale, of groups and of two levels.
#[test]
fn every_activation_gives_the_bits_of_the_cpu() {
    if emulated::driver().is_none() {
        return;
    }
    let file = model(None, "ggml_all_64x512.gguf");
    let mut every = Every::new(2);
    for name in ["tq2_0", "q4_0", "q4_1", "q4_k", "q6_k", "q5_0", "q8_0", "q1_0"] {
        let tensor = format!("blk.0.{name}.weight");
        for activation in ACTIVATIONS {
            let mut options = layer_options();
            options.activation = ActivationArg(activation as u32);
            let cpu = open(&file, &tensor, &options).unwrap();
            let device = copy(&cpu, 1).unwrap();
            agrees(&cpu, &device, &mut every, &format!("{name}, {activation:?}"));
        }
        let mut options = layer_options();
        options.activation_scale = 0.03125;
        let cpu = open(&file, &tensor, &options).unwrap();
        agrees(&cpu, &copy(&cpu, 1).unwrap(), &mut every, &format!("{name}, a fixed scale"));
    }
}

/// Shapes that are no multiple of anything, from floats.
#[test]
fn ragged_shapes_give_the_bits_of_the_cpu() {
    if emulated::driver().is_none() {
        return;
    }
    let mut every = Every::new(0);
    let kinds = [
        (bl_type::BL_TYPE_TERNARY, 0),
        (bl_type::BL_TYPE_BINARY, 0),
        (bl_type::BL_TYPE_INT8, 0),
        (bl_type::BL_TYPE_INT4, 24),
        (bl_type::BL_TYPE_INT4, 32),
        (bl_type::BL_TYPE_F32, 0),
        (bl_type::BL_TYPE_BF16, 0),
    ];
    for (rows, columns) in [(1, 1), (1, 40), (17, 33), (70, 200), (129, 260), (300, 516)] {
        let weights = values(rows * columns, (rows * columns) as u32);
        for (ty, group) in kinds {
            let mut options = layer_options();
            (options.r#type, options.group_size) = (TypeArg(ty as u32), group);
            let Ok(cpu) = create(None, (rows, columns), &weights, &options) else { continue };
            options.device = 1;
            let device = create(None, (rows, columns), &weights, &options).unwrap();
            agrees(&cpu, &device, &mut every, &format!("{ty:?} of {group}, {rows} x {columns}"));
        }
    }
}

/// Bias, norm, rotation, epilogues, a permutation of columns; and values of x that are not finite.
#[test]
fn what_stands_around_gives_the_bits_of_the_cpu() {
    if emulated::driver().is_none() {
        return;
    }
    let mut every = Every::new(1);
    let (rows, columns) = (70usize, 192usize);
    let weights = values(rows * columns, 5);
    let (bias, gain, offset) = (values(rows, 6), values(columns, 7), values(columns, 8));
    let signs: Vec<f32> = values(columns, 9).iter().map(|v| if *v < 0.0 { -1.0 } else { 1.0 }).collect();
    for ty in [bl_type::BL_TYPE_TERNARY, bl_type::BL_TYPE_INT4, bl_type::BL_TYPE_F16] {
        for norm in 0..3 {
            for rotation in [0, 64] {
                for epilogue in 0..6 {
                    let mut options = layer_options();
                    options.r#type = TypeArg(ty as u32);
                    options.group_size = if ty == bl_type::BL_TYPE_INT4 { 48 } else { 0 };
                    options.bias = bias.as_ptr();
                    options.norm = NormArg(norm);
                    if norm != 0 {
                        options.norm_weight = gain.as_ptr();
                    }
                    if norm == 1 {
                        options.norm_bias = offset.as_ptr();
                    }
                    options.rotation_block = rotation;
                    if rotation != 0 && epilogue % 2 == 0 {
                        options.rotation_signs = signs.as_ptr();
                    }
                    options.epilogue = EpilogueArg(epilogue);
                    options.epilogue_threshold = if epilogue == 1 { 0.125 } else { 0.0 };
                    let cpu = create(None, (rows, columns), &weights, &options).unwrap();
                    let device = copy(&cpu, 1).unwrap();
                    let (a, b) = (describe(&cpu), describe(&device));
                    assert_eq!(
                        (a.norm, a.epilogue, a.rotation_block),
                        (b.norm, b.epilogue, b.rotation_block)
                    );
                    let what = format!("{ty:?}, norm {norm}, rotation {rotation}, epilogue {epilogue}");
                    agrees(&cpu, &device, &mut every, &what);
                    // One row with a NaN, one with an infinity, others beside them.
                    let mut x = values(5 * columns, 10);
                    (x[columns + 3], x[3 * columns + 7]) = (f32::NAN, f32::INFINITY);
                    let (mut want, mut got) = (vec![0.0; 5 * rows], vec![0.0; 5 * rows]);
                    forward(&cpu, 5, &x, &mut want, 0).unwrap();
                    forward(&device, 5, &x, &mut got, 0).unwrap();
                    same(&got, &want, &format!("{what}, not finite"));
                }
            }
        }
    }
}

/// Several layers on one x: each as alone, whatever stands before it; f16 and bf16, strides, no alignment.
#[test]
fn many_layers_and_types_give_the_bits_of_the_cpu() {
    if emulated::driver().is_none() {
        return;
    }
    let columns = 256usize;
    let gain = values(columns, 1);
    let made: Vec<(Handle, Handle, usize)> = [
        (bl_type::BL_TYPE_TERNARY, 48, false),
        (bl_type::BL_TYPE_TERNARY, 33, false),
        (bl_type::BL_TYPE_INT4, 40, false),
        (bl_type::BL_TYPE_INT4, 64, true),
        (bl_type::BL_TYPE_INT8, 17, true),
        (bl_type::BL_TYPE_F32, 20, false),
    ]
    .into_iter()
    .map(|(ty, rows, norm)| {
        let mut options = layer_options();
        options.r#type = TypeArg(ty as u32);
        if norm {
            (options.norm, options.norm_weight) = (NormArg(2), gain.as_ptr());
        }
        let cpu = create(None, (rows, columns), &values(rows * columns, rows as u32), &options).unwrap();
        let device = copy(&cpu, 1).unwrap();
        (cpu, device, rows)
    })
    .collect();
    for (x_type, bytes) in [(bl_type::BL_TYPE_F32, 4), (bl_type::BL_TYPE_F16, 2), (bl_type::BL_TYPE_BF16, 2)]
    {
        for m in [1, 5, 70] {
            // An odd address and an odd stride.
            let stride = columns * bytes + 3;
            let mut x = vec![0u8; m * stride + 1];
            for (i, v) in values(m * columns, m as u32).into_iter().enumerate() {
                let at = 1 + i / columns * stride + i % columns * bytes;
                match x_type {
                    bl_type::BL_TYPE_F32 => x[at..at + 4].copy_from_slice(&v.to_le_bytes()),
                    bl_type::BL_TYPE_F16 => {
                        x[at..at + 2].copy_from_slice(&half::f16::from_f32(v).to_le_bytes())
                    }
                    _ => x[at..at + 2].copy_from_slice(&half::bf16::from_f32(v).to_le_bytes()),
                }
            }
            let run = |which: fn(&(Handle, Handle, usize)) -> &Handle| {
                let layers: Vec<*const bl_layer> =
                    made.iter().map(|l| which(l).get::<bl_layer>().cast_const()).collect();
                let mut ys: Vec<Vec<u8>> = made.iter().map(|l| vec![0u8; m * l.2 * bytes]).collect();
                let pointers: Vec<*mut std::ffi::c_void> =
                    ys.iter_mut().map(|y| y.as_mut_ptr().cast()).collect();
                let ty = TypeArg(x_type as u32);
                attempt!(forward::bl_forward_many(
                    layers.as_ptr(),
                    layers.len(),
                    m as i64,
                    x[1..].as_ptr().cast(),
                    ty,
                    stride as i64,
                    pointers.as_ptr(),
                    ty,
                    std::ptr::null(),
                    std::ptr::null(),
                ))
                .unwrap();
                ys
            };
            let (want, got) = (run(|l| &l.0), run(|l| &l.1));
            assert!(want == got, "{x_type:?}, m = {m}");
        }
    }
}

/// Weights come back exactly; a copy of a copy is the same layer; update and calibration work in place; a file
/// of a layer on the device is that of the layer on the CPU.
#[test]
fn weights_come_back() {
    let Some(driver) = emulated::driver() else { return };
    let file = model(None, "ggml_all_64x512.gguf");
    for name in ["q4_k", "q5_1", "tq1_0", "f16", "iq1_s"] {
        let cpu = open(&file, &format!("blk.0.{name}.weight"), &layer_options()).unwrap();
        let device = copy(&cpu, 1).unwrap();
        let back = copy(&device, 0).unwrap();
        assert_eq!(describe(&back).device, 0);
        let read = |layer: &Handle| {
            let mut weights = vec![0f32; 61 * 512];
            let (layer, dst) = (layer.get::<bl_layer>().cast_const(), weights.as_mut_ptr().cast());
            attempt!(layer::bl_layer_read(layer, 3, 61, dst, TypeArg(1), 0)).unwrap();
            weights
        };
        same(&read(&device), &read(&cpu), name);
        same(&read(&back), &read(&cpu), name);
        assert_eq!(saved(&device), saved(&cpu), "{name}: the files differ");
    }
    // Other weights, in place.
    let (rows, columns) = (40usize, 96usize);
    let (first, second) = (values(rows * columns, 1), values(rows * columns, 2));
    let mut options = layer_options();
    options.r#type = TypeArg(bl_type::BL_TYPE_INT8 as u32);
    let cpu = create(None, (rows, columns), &second, &options).unwrap();
    options.device = 1;
    let device = create(None, (rows, columns), &first, &options).unwrap();
    let allocations = driver.count("live_allocations");
    let f32s = TypeArg(bl_type::BL_TYPE_F32 as u32);
    attempt!(layer::bl_layer_update(device.get::<bl_layer>(), second.as_ptr().cast(), f32s, 0)).unwrap();
    let mut every = Every { each: 1, at: 0 };
    agrees(&cpu, &device, &mut every, "updated");
    let mut bad = second.clone();
    bad[100] = f32::NAN;
    attempt!(layer::bl_layer_update(device.get::<bl_layer>(), bad.as_ptr().cast(), f32s, 0)).unwrap_err();
    agrees(&cpu, &device, &mut every, "a failed update");
    assert!(driver.count("live_allocations") <= allocations + 1); // a lane's memory
    // A scale for all of x.
    let x = values(7 * columns, 3);
    for layer in [&cpu, &device] {
        attempt!(train::bl_layer_calibrate(layer.get::<bl_layer>(), 7, x.as_ptr().cast(), f32s, 0)).unwrap();
    }
    agrees(&cpu, &device, &mut every, "calibrated");
}

/// The bytes of a packed file of one layer.
fn saved(layer: &Handle) -> Vec<u8> {
    let path = crate::fresh("cuda-saved").join("layer.bl");
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let named = bl_named_layer { name: c"w".as_ptr(), layer: layer.get::<bl_layer>().cast_const() };
    attempt!(save::bl_save(path.as_ptr(), &named, 1, std::ptr::null(), 0)).unwrap();
    std::fs::read(path.to_str().unwrap()).unwrap()
}

/// What a context counts: bytes on the device, calls and kernels.
#[test]
fn contexts_count_what_is_on_the_device() {
    if emulated::driver().is_none() {
        return;
    }
    let mut options = context_options();
    options.flags = BL_CONTEXT_PROFILE;
    let context = context(&options);
    let memory = || memory(&context);
    let mut options = layer_options();
    options.device = 1;
    let (rows, columns) = (64usize, 256usize);
    let layer = create(Some(&context), (rows, columns), &values(rows * columns, 1), &options).unwrap();
    let info = describe(&layer);
    assert!(info.bytes_packed >= (rows * columns / 4) as u64 && info.bytes_mapped == 0);
    assert_eq!((memory().device, memory().packed, memory().handles), (info.bytes_packed, 0, 1));
    let mut y = vec![0.0; 3 * rows];
    forward(&layer, 3, &values(3 * columns, 2), &mut y, 0).unwrap();
    // SAFETY: zeros are an empty entry.
    let mut entries: [bl_profile_entry; 16] = unsafe { std::mem::zeroed() };
    let mut count = 0usize;
    let (place, handle) = (entries.as_mut_ptr(), context.get::<bl_context>().cast_const());
    attempt!(profile::bl_profile(handle, place, 16, &mut count, 0)).unwrap();
    // SAFETY: static texts.
    let names: Vec<_> =
        entries[..count].iter().map(|e| unsafe { std::ffi::CStr::from_ptr(e.kernel) }).collect();
    assert!(names.contains(&c"bl_prepare") && names.contains(&c"call"), "{names:?}");
    // SAFETY: a static text.
    let kernel = unsafe { std::ffi::CStr::from_ptr(plan(&layer, 3).kernel) };
    let product = &entries[names.iter().position(|n| *n == kernel).unwrap()];
    assert_eq!((product.calls, product.operations), (1, 2 * 3 * (rows * columns) as u64));
    drop(layer);
    assert!(memory().device < info.bytes_packed + (1 << 20) && memory().handles == 0);
}

/// Device 2 is another one: its layers give the same, and no call mixes them.
#[test]
fn two_devices() {
    alone("layers::on_two_devices", &[("BL_EMU_DEVICES", "2"), ("BL_EMU_CC", "80,90")]);
}

#[test]
#[ignore = "run by two_devices in a process of its own"]
fn on_two_devices() {
    let Some(driver) = emulated::driver() else { return };
    let (rows, columns) = (40usize, 128usize);
    let options = layer_options();
    let cpu = create(None, (rows, columns), &values(rows * columns, 1), &options).unwrap();
    let layers = [copy(&cpu, 1).unwrap(), copy(&cpu, 2).unwrap()];
    let x = values(9 * columns, 2);
    let mut want = vec![0.0; 9 * rows];
    forward(&cpu, 9, &x, &mut want, 0).unwrap();
    for (i, layer) in layers.iter().enumerate() {
        assert_eq!(describe(layer).device, i as u32 + 1);
        let mut got = vec![0.0; 9 * rows];
        forward(layer, 9, &x, &mut got, 0).unwrap();
        same(&got, &want, "two devices");
    }
    // A copy from device to device.
    let across = copy(&layers[0], 2).unwrap();
    let mut got = vec![0.0; 9 * rows];
    forward(&across, 9, &x, &mut got, 0).unwrap();
    same(&got, &want, "across");
    let both = [&layers[0], &layers[1]].map(|l| l.get::<bl_layer>().cast_const());
    let (mut a, mut b) = (vec![0f32; rows], vec![0f32; rows]);
    let ys: [*mut std::ffi::c_void; 2] = [a.as_mut_ptr().cast(), b.as_mut_ptr().cast()];
    let f32s = TypeArg(bl_type::BL_TYPE_F32 as u32);
    let x = x.as_ptr().cast();
    let null = std::ptr::null();
    let mixed = attempt!(forward::bl_forward_many(
        both.as_ptr(),
        2,
        1,
        x,
        f32s,
        0,
        ys.as_ptr(),
        f32s,
        null,
        null_run()
    ));
    let (status, text) = mixed.unwrap_err();
    assert!(status == bl_status::BL_ERROR_INVALID_ARGUMENT && text.contains("on device 2"), "{text}");
    let mut info = device_info();
    attempt!(profile::bl_device_describe(std::ptr::null(), 2, &mut info)).unwrap();
    assert_eq!((info.kind.0, info.arch), (bl_device_kind::BL_DEVICE_CUDA as u32, 90));
    assert!(info.memory_free > 0 && info.memory_free <= info.memory_total && info.compute_units > 0);
    let missing = attempt!(profile::bl_device_describe(std::ptr::null(), 3, &mut info)).unwrap_err();
    assert!(missing.0 == bl_status::BL_ERROR_NOT_FOUND && missing.1.contains("device 3 of 3"), "{missing:?}");
    assert_eq!(driver.count("retained"), 2);
}

fn null_run() -> *const bl_run_options {
    std::ptr::null()
}
