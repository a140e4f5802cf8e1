//! What every directory promises, whatever it was read from.

use bitlinear::container::{Directory, Item, Value};

pub fn directory(directory: &Directory, sources: &[&[u8]]) {
    for tensor in &directory.tensors {
        let end = tensor.offset.checked_add(tensor.bytes).unwrap();
        assert!(end <= sources[tensor.source as usize].len() as u64);
        assert!(tensor.dims <= 4);
        assert!(tensor.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).is_some());
        let name = directory.name(tensor);
        assert!(!name.contains(&0));
        assert!(std::ptr::eq(directory.tensor(name).unwrap(), tensor));
        // SAFETY: the directory's own strings end with a NUL.
        assert_eq!(unsafe { std::ffi::CStr::from_ptr(directory.texts.c_str(tensor.name)) }.to_bytes(), name);
    }
    for meta in &directory.metadata {
        let key = directory.texts.get(meta.key);
        assert!(std::ptr::eq(directory.meta(key).unwrap(), meta));
        if let Value::Array(array) = meta.value {
            for index in [0, array.count / 2, array.count.saturating_sub(1)] {
                let item = directory.item(&array, index, sources[0]);
                assert_eq!(item.is_some(), index < array.count && array.item != Item::Array);
            }
            assert!(directory.item(&array, array.count, sources[0]).is_none());
        }
    }
}
