//! config.json: what a safetensors model says about itself beside its tensors.
//!
//! It must be read with them: the scale of a BitNet layer is a factor or a divisor depending on
//! `quantization_config.linear_class` (docs/formats.md). The text is kept as it is and searched on
//! demand; it has a few thousand bytes.
//!
//! Older GPTQ models have their `quantization_config` in a file of its own, quantize_config.json; it
//! is found under the same path as if it were in config.json.

use std::path::Path;

use super::Source;
use super::json::{Kind, Reader};
use crate::error::{Result, fail};
use crate::limits::CONFIG_MAX;

const WHAT: &str = "config.json";
const OLDER_GPTQ: &str = "quantize_config.json";
const QUANTIZATION: &str = "quantization_config";

/// A config.json, checked to be JSON (with Python's `NaN` and `Infinity`).
#[derive(Debug)]
pub struct Config {
    main: Source,
    /// What stands for `quantization_config` where `main` has none.
    quantization: Option<Source>,
}

impl Config {
    /// The one in that folder, if there is one.
    pub(super) fn beside(folder: &Path) -> Result<Option<Config>> {
        let read = |name: &str| {
            let path = folder.join(name);
            if !path.exists() {
                return Ok(None);
            }
            // A copy: it is small, and not worth a mapping that others could cut.
            let source = Source::read_at_most(&path, CONFIG_MAX)?;
            check(&source).map_err(|e| e.within(format_args!("{}", path.display())))?;
            Ok(Some(source))
        };
        let (main, quantization) = (read(WHAT)?, read(OLDER_GPTQ)?);
        if main.is_none() && quantization.is_none() {
            return Ok(None);
        }
        let main = main.map_or_else(|| Source::copy(b"{}"), Ok)?;
        Ok(Some(Config { main, quantization }))
    }

    /// The config in these bytes.
    pub fn new(source: Source) -> Result<Config> {
        check(&source)?;
        Ok(Config { main: source, quantization: None })
    }

    /// The text as it is in the file.
    pub fn text(&self) -> &str {
        str::from_utf8(self.main.bytes()).unwrap_or("") // `check` let it pass
    }

    fn find(&self, path: &[&str]) -> Option<Reader<'_>> {
        fn find<'a>(source: &'a Source, path: &[&str]) -> Option<Reader<'a>> {
            Reader::python(source.bytes(), WHAT).ok()?.find(path)
        }
        match (&self.quantization, path) {
            (Some(other), [QUANTIZATION, rest @ ..]) if find(&self.main, &[QUANTIZATION]).is_none() => {
                find(other, rest)
            }
            _ => find(&self.main, path),
        }
    }

    /// Whether there is a value other than null under that path of keys.
    pub fn has(&self, path: &[&str]) -> bool {
        self.find(path).is_some_and(|mut json| json.peek().is_ok_and(|kind| kind != Kind::Null))
    }

    /// Whether the value under that path is the string `text`.
    pub fn is(&self, path: &[&str], text: &str) -> bool {
        self.find(path).is_some_and(|mut json| json.string().is_ok_and(|s| s.is(text)))
    }

    /// The whole number under that path.
    pub fn integer(&self, path: &[&str]) -> Option<u64> {
        self.find(path)?.u64().ok()
    }

    /// The number under that path.
    pub fn number(&self, path: &[&str]) -> Option<f64> {
        self.find(path)?.number().ok()?.parse().ok()
    }

    /// The truth value under that path.
    pub fn bool(&self, path: &[&str]) -> Option<bool> {
        self.find(path)?.bool().ok()
    }

    /// Whether the value under that path is an array with a string for which `found` is true (it is
    /// given the characters).
    pub fn any(&self, path: &[&str], mut found: impl FnMut(&mut dyn Iterator<Item = char>) -> bool) -> bool {
        let mut search = || -> Option<bool> {
            let mut json = self.find(path)?;
            json.open_array().ok()?;
            while json.next_item().ok()? {
                if json.peek().ok()? != Kind::String {
                    json.skip().ok()?;
                } else if found(&mut json.string().ok()?.chars()) {
                    return Some(true);
                }
            }
            Some(false)
        };
        search().unwrap_or(false)
    }
}

/// Refuses what is no JSON object.
fn check(source: &Source) -> Result<()> {
    let mut json = Reader::python(source.bytes(), WHAT)?;
    if json.peek()? != Kind::Object {
        return Err(fail!(BadFile, "{WHAT}: an object expected"));
    }
    json.skip()?;
    json.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config> {
        Config::new(Source::copy(text.as_bytes())?)
    }

    #[test]
    fn values_are_found() -> Result<()> {
        let c = config(
            r#"{"rms_norm_eps": 1e-05, "limits": [0.0, Infinity], "quantization_config": {"bits": 4, "sym": true,
                "quant_method": "bitnet", "skip": ["lm_head", 7, "a"], "none": null, "minus": -1}}"#,
        )?;
        let q = |key| ["quantization_config", key];
        assert_eq!(c.number(&["rms_norm_eps"]), Some(1e-5));
        assert_eq!(c.integer(&q("bits")), Some(4));
        assert_eq!((c.integer(&q("minus")), c.number(&q("minus"))), (None, Some(-1.0)));
        assert_eq!(c.bool(&q("sym")), Some(true));
        assert!(c.is(&q("quant_method"), "bitnet") && !c.is(&q("quant_method"), "gptq"));
        assert!(c.has(&["quantization_config"]) && !c.has(&q("none")) && !c.has(&q("missing")));
        assert!(c.any(&q("skip"), |s| s.eq("a".chars())) && !c.any(&q("skip"), |s| s.eq("b".chars())));
        assert!(!c.any(&q("bits"), |_| true));
        assert!(c.text().starts_with("{\"rms"));
        Ok(())
    }

    #[test]
    fn what_is_no_config_is_refused() {
        for text in ["", "[]", "{", "{}x", "7", "{\"a\":nan}"] {
            assert!(config(text).is_err(), "{text}");
        }
    }
}
