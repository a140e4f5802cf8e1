//! Writes GGUF files for tests, right ones and wrong ones.

#[derive(Clone)]
pub enum Kv {
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    Bytes(Vec<u8>),
    Strings(Vec<&'static str>),
    I8s(Vec<i8>),
    U32s(Vec<u32>),
    /// An array in an array in ... that many deep, the innermost of one byte.
    Nested(u32),
}

#[derive(Clone)]
pub struct TensorInfo {
    pub name: String,
    /// Innermost first, as the file has them.
    pub dims: Vec<u64>,
    pub id: u32,
    pub offset: u64,
}

#[derive(Clone)]
pub struct File {
    pub tensors: Vec<TensorInfo>,
    kvs: Vec<(String, Kv)>,
    alignment: usize,
    data: Vec<u8>,
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

impl File {
    pub fn new() -> File {
        File { tensors: Vec::new(), kvs: Vec::new(), alignment: 32, data: Vec::new() }
    }

    /// Pads to `alignment` (the key is the caller's to write).
    pub fn align(mut self, alignment: u32) -> File {
        self.alignment = alignment as usize;
        self
    }

    pub fn kv(mut self, key: &str, value: Kv) -> File {
        self.kvs.push((key.to_string(), value));
        self
    }

    /// A tensor of `bytes` bytes behind the ones before.
    pub fn tensor(self, name: &str, dims: &[u64], id: u32, bytes: usize) -> File {
        let data: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
        self.tensor_of(name, dims, id, &data)
    }

    /// A tensor of these bytes behind the ones before.
    pub fn tensor_of(mut self, name: &str, dims: &[u64], id: u32, data: &[u8]) -> File {
        let offset = self.data.len().next_multiple_of(self.alignment);
        self.data.resize(offset, 0);
        self.data.extend(data);
        self.tensors.push(TensorInfo {
            name: name.to_string(),
            dims: dims.to_vec(),
            id,
            offset: offset as u64,
        });
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.kvs.len() as u64).to_le_bytes());
        for (key, value) in &self.kvs {
            string(&mut out, key.as_bytes());
            let mut put = |kind: u32, bytes: &[u8]| {
                out.extend(kind.to_le_bytes());
                out.extend(bytes);
            };
            match value {
                Kv::U8(n) => put(0, &n.to_le_bytes()),
                Kv::U16(n) => put(2, &n.to_le_bytes()),
                Kv::U32(n) => put(4, &n.to_le_bytes()),
                Kv::U64(n) => put(10, &n.to_le_bytes()),
                Kv::Bytes(bytes) => {
                    put(8, &[]);
                    string(&mut out, bytes);
                }
                Kv::Strings(strings) => {
                    put(9, &8u32.to_le_bytes());
                    out.extend((strings.len() as u64).to_le_bytes());
                    strings.iter().for_each(|s| string(&mut out, s.as_bytes()));
                }
                Kv::I8s(values) => {
                    put(9, &1u32.to_le_bytes());
                    out.extend((values.len() as u64).to_le_bytes());
                    out.extend(values.iter().map(|v| *v as u8));
                }
                Kv::U32s(values) => {
                    put(9, &4u32.to_le_bytes());
                    out.extend((values.len() as u64).to_le_bytes());
                    values.iter().for_each(|v| out.extend(v.to_le_bytes()));
                }
                Kv::Nested(depth) => {
                    put(9, &[]);
                    for _ in 1..*depth {
                        out.extend(9u32.to_le_bytes());
                        out.extend(1u64.to_le_bytes());
                    }
                    out.extend(0u32.to_le_bytes());
                    out.extend(1u64.to_le_bytes());
                    out.push(42);
                }
            }
        }
        for tensor in &self.tensors {
            string(&mut out, tensor.name.as_bytes());
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.id.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}
