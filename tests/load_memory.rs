//! Loading streams: beside the packed weights it holds some rows for each thread and the pages of the file that
//! are being read. Alone in its process, so that what it measures is its own.
#![cfg(target_os = "linux")]

use std::ffi::CString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::ptr::{null, null_mut};

use bitlinear::capi::context::{bl_context_create, bl_free};
use bitlinear::capi::enums::*;
use bitlinear::capi::layer::{bl_layer_describe, bl_layer_open};
use bitlinear::capi::model::bl_load;
use bitlinear::capi::types::*;
use bitlinear::container::gguf;
use bitlinear::types::Type;

/// A line of what the system says of this process, in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn peak_memory_is_the_packed_weights_and_little_else() {
    const ROWS: u64 = 12_288;
    const COLUMNS: u64 = 4096;
    let path = std::env::temp_dir().join(format!("bitlinear-load-{}.gguf", std::process::id()));
    let mut header = gguf::Header::new().unwrap();
    header.tensor(b"a.weight", Type::Q8_0, &[ROWS, COLUMNS]).unwrap();
    let data = header.data();
    {
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
        file.write_all(&header.finish().unwrap()).unwrap();
        let row: Vec<u8> = (0..COLUMNS / 32 * 34).map(|i| (i % 64) as u8).collect();
        assert_eq!(row.len() as u64 * ROWS, data);
        (0..ROWS).for_each(|_| file.write_all(&row).unwrap());
    }
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    for threads in [1, 2, 3] {
        // SAFETY: all zeros are a value of both; every pointer below is valid for the call.
        unsafe {
            let mut options: bl_context_options = std::mem::zeroed();
            (options.struct_size, options.threads) = (size_of_val(&options) as u32, threads);
            let (mut context, mut model, mut layer) = (null_mut(), null_mut(), null_mut());
            assert_eq!(bl_context_create(&options, &mut context, null_mut()), bl_status::BL_OK);
            assert_eq!(bl_load(context, name.as_ptr(), null(), &mut model, null_mut()), bl_status::BL_OK);
            // The peak begins again here.
            std::fs::write("/proc/self/clear_refs", "5").unwrap();
            let before = status("VmRSS");
            let weight = c"a.weight".as_ptr();
            let opened = bl_layer_open(model, weight, null(), &mut layer, null_mut());
            assert_eq!(opened, bl_status::BL_OK);
            let mut info: bl_layer_info = std::mem::zeroed();
            info.struct_size = size_of_val(&info) as u32;
            assert_eq!(bl_layer_describe(layer, &mut info, null_mut()), bl_status::BL_OK);
            let beside = (status("VmHWM") - before).saturating_sub(info.bytes_packed);
            // The file is 53 MB. Pages go in stretches of 1 MiB, and threads may be in several.
            assert!(
                data > 50 << 20 && beside < 12 << 20,
                "{threads} threads: {beside} bytes beside the weights"
            );
            bl_free(layer.cast());
            bl_free(model.cast());
            bl_free(context.cast());
        }
    }
    std::fs::remove_file(&path).unwrap();
}
