//! JSON files: a config, an artifact, an index.
#![no_main]

#[path = "../check.rs"]
mod check;

use bitlinear::container::{Access, Config, Files, Source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let copy = || Source::copy(bytes).unwrap();
    if let Ok(config) = Config::new(copy()) {
        let path = ["quantization_config", "bits"];
        assert_eq!(config.text().as_bytes(), bytes);
        config.is(&path, "4");
        if let Some(n) = config.integer(&path) {
            assert!(config.has(&path) && config.number(&path) == Some(n as f64));
        }
        config.bool(&path[..1]);
        config.any(&path[..1], |text| text.count() == 3);
    }
    if let Ok(files) = Files::of(copy()) {
        let sources: Vec<&[u8]> = files.sources.iter().map(Source::bytes).collect();
        check::directory(&files.directory, &sources);
    }
    if bytes.windows(6).any(|w| w == b"weight") {
        // An index needs a folder. What it may name there is nothing, or itself.
        let folder = std::env::temp_dir().join(format!("bitlinear-fuzz-{}", std::process::id()));
        let _ = std::fs::create_dir(&folder);
        let path = folder.join("i");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(files) = Files::open(&path, Access::Read) {
            let sources: Vec<&[u8]> = files.sources.iter().map(Source::bytes).collect();
            check::directory(&files.directory, &sources);
        }
    }
});
