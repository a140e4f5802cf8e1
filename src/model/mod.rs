//! From the tensors of a model to its layers: which tensors belong together, by naming rules.
//!
//! A layer `p` is found by the tensor that holds its weights; what stands beside it is looked up by
//! name. Tensors in brackets may be missing; a layer that lacks another is listed, and opening it says
//! what it lacks. Nothing is read as another format because a part of the first is missing.
//!
//! ```text
//! format                 weights             beside them                                      source
//! GGUF, any type         p.weight            [p.scale] [p.bias]                               ggml; llama.cpp, build_lora_mm
//! floats, safetensors    p.weight F*         [p.bias] [p.rms_norm.weight]                     torch.nn.Linear
//! BitNet, packed         p.weight U8         p.weight_scale [p.bias] [p.rms_norm.weight]      transformers, integrations/bitnet.py
//! BitNet, online         p.weight F*         the same without the scale; config.json says it  transformers, AutoBitLinear
//! cortex ternary         p.weight_packed U8  p.scales [p.bias]                                Bit-TTT-Engine
//! cortex int4            p.weight_4bit       p.scales_4bit [p.bias]                           Bit-TTT-Engine
//! GPTQ                   p.qweight           p.qzeros p.scales [p.g_idx] [p.bias]             AutoGPTQ, GPTQModel
//! AWQ                    p.qweight           p.qzeros p.scales [p.bias]                       AutoAWQ, version "gemm"
//! compressed-tensors     p.weight_packed I32 p.weight_scale p.weight_shape                    compressed-tensors
//!                                            [p.weight_zero_point] [p.weight_g_idx] [p.bias]
//! MLX                    p.weight U32        p.scales p.biases [p.bias]                       mlx.nn.QuantizedLinear
//! burn_dragon            p                   p.scale                                          burn_dragon_core
//! bitlinear's own        p                   in the same layer (container::packed)            this library
//! ```
//! In GGUF and among floats only tensors of two or three dimensions are layers: a vector called
//! `p.weight` is a norm's. Three dimensions are several matrices (experts): [`Request::slice`].
//!
//! What neither tensors nor `config.json` tell is an error that names the option that decides.

mod bitnet;
mod cortex;
mod flat;
mod groups;
mod parts;
mod plan;
mod rotation;
mod saved;
mod whole;

pub use saved::{Saved, saved};

pub use plan::{Plan, Request};
pub use rotation::Declared;

use crate::container::{Files, Kind, Quoted, Str, Tensor, Texts};
use crate::error::{Error, Result, fail};
use crate::memory::reserve;
use crate::order;
use crate::types::Type;
use parts::Parts;
use rotation::Rotation;

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Role {
    /// The weights, packed or plain.
    Weight,
    /// Scales of the weights.
    Scales,
    /// Zero points or minima of groups.
    Zeros,
    /// The group of each column.
    GroupIndex,
    /// The shape of packed weights.
    Shape,
    /// A factor of the product.
    ProductScale,
    /// What is added to the outputs.
    Bias,
    /// The weights of a norm before the layer.
    Norm,
}

const ROLES: usize = 8;

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// One tensor holds the weights by itself: GGUF.
    Whole,
    /// The same in safetensors, where `config.json` may have floats ternarised.
    Floats,
    /// BitNet of transformers, packed.
    BitnetHf,
    /// cortex, ternary.
    Ternary,
    /// cortex, 4 bits.
    Int4,
    /// GPTQ.
    Gptq,
    /// AWQ.
    Awq,
    /// compressed-tensors.
    CompressedTensors,
    /// MLX.
    Mlx,
    /// burn_dragon.
    Artifact,
    /// bitlinear's own file: see [`saved`].
    Saved,
    /// Scales without weights: what the weights would be called, and what is there.
    Orphan(&'static str, &'static str),
}

/// A layer as the names tell it.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// Its name, in [`Layers::texts`].
    pub name: Str,
    /// How it is stored.
    pub family: Family,
    /// The format of its weights; of an incomplete layer as far as its names tell.
    pub ty: Type,
    tensors: [Option<u32>; ROLES],
}

impl Layer {
    /// The index of the tensor in that role.
    pub fn index(&self, role: Role) -> Option<u32> {
        self.tensors[role as usize]
    }

    /// The tensor in that role; the files are those that the layer was listed of.
    pub fn tensor<'a>(&self, files: &'a Files, role: Role) -> Option<&'a Tensor> {
        files.directory.tensor_at(self.tensors[role as usize]? as u64)
    }
}

/// All layers of a model.
#[derive(Debug)]
pub struct Layers {
    /// Their names.
    pub texts: Texts,
    list: Vec<Layer>,
    /// Indices of `list` in the order of names.
    by_name: Vec<u32>,
    rotation: Rotation,
}

/// Weights in safetensors: how the tensor's name ends, and what stands beside it.
const WEIGHTS: [(&str, &[(Role, &str)]); 4] = [
    ("weight", &[(Role::Bias, "bias"), (Role::Norm, "rms_norm.weight")]),
    ("weight_packed", &[(Role::Bias, "bias")]),
    ("weight_4bit", &[(Role::Scales, "scales_4bit"), (Role::Bias, "bias")]),
    (
        "qweight",
        &[
            (Role::Scales, "scales"),
            (Role::Zeros, "qzeros"),
            (Role::GroupIndex, "g_idx"),
            (Role::Bias, "bias"),
        ],
    ),
];

/// What else stands beside the weights, by family.
fn beside(family: Family) -> &'static [(Role, &'static str)] {
    match family {
        Family::BitnetHf => &[(Role::Scales, "weight_scale")],
        Family::Mlx => &[(Role::Scales, "scales"), (Role::Zeros, "biases")],
        Family::Ternary => &[(Role::Scales, "scales")],
        Family::CompressedTensors => &[
            (Role::Scales, "weight_scale"),
            (Role::Zeros, "weight_zero_point"),
            (Role::GroupIndex, "weight_g_idx"),
            (Role::Shape, "weight_shape"),
        ],
        _ => &[],
    }
}

/// Names that only stand beside weights, and what those may be called: one of them without any is a
/// layer that lacks its weights.
const COMPANIONS: [(&str, &[&str], Type); 9] = [
    ("qzeros", &["qweight"], Type::Gptq),
    ("g_idx", &["qweight"], Type::Gptq),
    ("scales_4bit", &["weight_4bit"], Type::Int4),
    ("weight_shape", &["weight_packed"], Type::CompressedTensors),
    ("weight_zero_point", &["weight_packed", "weight"], Type::CompressedTensors),
    ("weight_g_idx", &["weight_packed", "weight"], Type::CompressedTensors),
    ("weight_scale", &["weight", "weight_packed"], Type::BitnetHf),
    ("scales", &["weight_packed", "qweight", "weight"], Type::Ternary),
    ("biases", &["weight"], Type::Mlx),
];

impl Layers {
    /// Lists the layers of a model.
    pub fn of(files: &Files) -> Result<Layers> {
        let mut layers = Layers {
            texts: Texts::new(),
            list: Vec::new(),
            by_name: Vec::new(),
            rotation: Rotation::of(files)?,
        };
        let mut room = Vec::new();
        let directory = &files.directory;
        for (index, tensor) in directory.tensors.iter().enumerate() {
            let name = directory.name(tensor);
            match directory.kind {
                Kind::Gguf => layers.gguf(files, index as u32, tensor, name, &mut room)?,
                Kind::Artifact => layers.artifact(files, index as u32, tensor, name, &mut room)?,
                Kind::Packed => {
                    let ty = directory.layer(tensor).map_or(tensor.ty, |layer| layer.line.ty);
                    layers.push(files, name, Family::Saved, ty, index as u32, &[], &mut room)?;
                }
                Kind::Safetensors => {
                    layers.safetensors(files, index as u32, tensor, name, &mut room)?;
                }
            }
        }
        reserve(&mut layers.by_name, layers.list.len(), "layers by name")?;
        layers.by_name.extend(0..layers.list.len() as u32);
        let Layers { texts, list, by_name, .. } = &mut layers;
        order::sort(by_name, &|a, b| {
            let name = |i: u32| texts.get(list[i as usize].name);
            name(a).cmp(name(b)).then(a.cmp(&b))
        });
        Ok(layers)
    }

    /// All of them, in the order of their weights in the file.
    pub fn list(&self) -> &[Layer] {
        &self.list
    }

    /// The name of a layer.
    pub fn name(&self, layer: &Layer) -> &[u8] {
        self.texts.get(layer.name)
    }

    /// The layer of that name; where several are stored under it, the one of type `ty`.
    pub fn find(&self, name: &[u8], ty: Option<Type>) -> Result<Option<&Layer>> {
        let name_of = |i: &u32| self.texts.get(self.list[*i as usize].name);
        let first = self.by_name.partition_point(|i| name_of(i) < name);
        let end = first + self.by_name[first..].partition_point(|i| name_of(i) == name);
        let mut found = self.by_name[first..end].iter().map(|&i| &self.list[i as usize]);
        match (found.clone().count(), ty) {
            (0, _) => Ok(None),
            (1, _) => Ok(found.next()),
            (_, Some(ty)) if found.clone().any(|layer| layer.ty == ty) => {
                Ok(found.find(|layer| layer.ty == ty))
            }
            _ => {
                let mut types = found.map(|layer| layer.ty.name());
                Err(fail!(
                    InvalidArgument,
                    "layer {} is there as {} and as {}: bl_layer_options.type says which",
                    Quoted(name),
                    types.next().unwrap_or(""),
                    types.next().unwrap_or("")
                ))
            }
        }
    }

    /// How to make the matrix of the tensor or, where there is none, of the layer of that name.
    pub fn plan_named<'a>(&self, files: &'a Files, name: &[u8], request: &Request<'a>) -> Result<Plan<'a>> {
        // Artifacts' tensors have the names of their layers, and are nothing without their scales.
        let tensor = files.directory.tensor(name).filter(|_| files.directory.kind != Kind::Artifact);
        if let Some(tensor) = tensor {
            return self.plan_tensor(files, tensor, request);
        }
        match self.find(name, request.ty)? {
            Some(layer) => self.plan(files, layer, request),
            None => Err(fail!(NotFound, "no layer or tensor is named {}", Quoted(name))),
        }
    }

    /// How to make the matrix of a layer.
    pub fn plan<'a>(&self, files: &'a Files, layer: &Layer, request: &Request<'a>) -> Result<Plan<'a>> {
        let name = self.name(layer);
        let within = |e: Error| e.within(format_args!("layer {}", Quoted(name)));
        let parts = Parts { files, name, tensors: &layer.tensors };
        let plan = || {
            self.rotation.check()?;
            let mut plan = match layer.family {
                Family::Whole => whole::gguf(&parts, request)?,
                Family::Floats => bitnet::floats(&parts, request)?,
                Family::BitnetHf => bitnet::packed(&parts, request)?,
                Family::Ternary => cortex::ternary(&parts, request)?,
                Family::Int4 => cortex::int4(&parts, request)?,
                Family::Gptq => groups::gptq(&parts, request)?,
                Family::Awq => groups::awq(&parts, request)?,
                Family::CompressedTensors => groups::compressed_tensors(&parts, request)?,
                Family::Mlx => groups::mlx(&parts, request)?,
                Family::Artifact => flat::artifact(&parts, request)?,
                Family::Saved => saved::plan(&parts)?,
                Family::Orphan(weights, found) => {
                    return Err(fail!(BadFile, "{found} is there, but its weights ({weights}) are missing"));
                }
            };
            plan.add_bias(&parts, request)?;
            plan.add_norm(&parts, request)?;
            plan.check_request(request)?;
            if let Some(index) = layer.tensors[Role::Weight as usize] {
                plan.rotation = self.rotation.of_tensor(files, index, plan.in_features)?;
            }
            Ok(plan)
        };
        plan().map_err(within)
    }

    /// How to make the matrix of one tensor, as it is stored: nothing that stands beside it is used.
    pub fn plan_tensor<'a>(
        &self,
        files: &'a Files,
        tensor: &'a Tensor,
        request: &Request<'a>,
    ) -> Result<Plan<'a>> {
        let name = files.directory.name(tensor);
        let within = |e: Error| e.within(format_args!("tensor {}", Quoted(name)));
        let plan = || {
            self.rotation.check()?;
            let mut plan = match request.ty {
                Some(ty) if tensor.ty != ty && flat::is_apart(ty) => {
                    flat::tensor(files, tensor, ty, request)?
                }
                _ => whole::tensor(files, tensor, request).map_err(|e| self.hint(files, tensor, e))?,
            };
            plan.check_request(request)?;
            if let Some(index) = files.directory.index(name) {
                plan.rotation = self.rotation.of_tensor(files, index, plan.in_features)?;
            }
            Ok(plan)
        };
        plan().map_err(within)
    }

    /// Says, where a tensor cannot be opened alone, which layer it belongs to.
    fn hint(&self, files: &Files, tensor: &Tensor, error: Error) -> Error {
        let index = files.directory.index(files.directory.name(tensor));
        let whole = |layer: &Layer| matches!(layer.family, Family::Whole | Family::Floats);
        let of = |layer: &&Layer| !whole(layer) && layer.tensors.contains(&index);
        match self.list.iter().find(of) {
            Some(layer) if index.is_some() => {
                let name = Quoted(self.name(layer));
                Error::new(error.status(), format_args!("{}; it is a part of layer {name}", error.text()))
            }
            _ => error,
        }
    }

    fn gguf(
        &mut self,
        files: &Files,
        index: u32,
        tensor: &Tensor,
        name: &[u8],
        room: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(prefix) = prefix(name, "weight") else { return Ok(()) };
        if !(2..=3).contains(&tensor.dims) {
            return Ok(());
        }
        let beside = [(Role::ProductScale, "scale"), (Role::Bias, "bias")];
        self.push(files, prefix, Family::Whole, tensor.ty, index, &[&beside], room)
    }

    fn artifact(
        &mut self,
        files: &Files,
        index: u32,
        tensor: &Tensor,
        name: &[u8],
        room: &mut Vec<u8>,
    ) -> Result<()> {
        if !matches!(tensor.ty, Type::Binary | Type::Ternary2 | Type::Int8) {
            return Ok(());
        }
        self.push(files, name, Family::Artifact, tensor.ty, index, &[&[(Role::Scales, "scale")]], room)
    }

    fn safetensors(
        &mut self,
        files: &Files,
        index: u32,
        tensor: &Tensor,
        name: &[u8],
        room: &mut Vec<u8>,
    ) -> Result<()> {
        for (suffix, always) in WEIGHTS {
            let Some(prefix) = prefix(name, suffix) else { continue };
            let (family, ty) = match (suffix, tensor.ty) {
                // One dimension: a norm's gain, or an embedding of one row.
                ("weight", _) if !(2..=3).contains(&tensor.dims) => return Ok(()),
                ("weight", Type::U8) => (Family::BitnetHf, Type::BitnetHf),
                ("weight", Type::U32) => (Family::Mlx, Type::Mlx),
                ("weight", ty) => (Family::Floats, ty),
                ("weight_packed", Type::I32) => (Family::CompressedTensors, Type::CompressedTensors),
                ("weight_packed", _) => (Family::Ternary, Type::Ternary),
                ("weight_4bit", _) => (Family::Int4, Type::Int4),
                _ if groups::is_awq(files, tensor, join(room, prefix, "scales")?) => (Family::Awq, Type::Awq),
                _ => (Family::Gptq, Type::Gptq),
            };
            return self.push(files, prefix, family, ty, index, &[always, beside(family)], room);
        }
        self.orphan(files, index, name, room)
    }

    /// Lists a layer that lacks its weights, once: under the first of its companions in the table.
    fn orphan(&mut self, files: &Files, index: u32, name: &[u8], room: &mut Vec<u8>) -> Result<()> {
        let mut has = |prefix: &[u8], suffix: &str| -> Result<bool> {
            Ok(files.directory.index(join(room, prefix, suffix)?).is_some())
        };
        let Some((at, prefix)) = COMPANIONS
            .iter()
            .enumerate()
            .find_map(|(at, (suffix, ..))| prefix(name, suffix).map(|prefix| (at, prefix)))
        else {
            return Ok(());
        };
        let (suffix, weights, ty) = COMPANIONS[at];
        for weight in weights {
            if has(prefix, weight)? {
                return Ok(());
            }
        }
        for (earlier, weights, _) in &COMPANIONS[..at] {
            let mut lacks = has(prefix, earlier)?;
            for weight in *weights {
                lacks = lacks && !has(prefix, weight)?;
            }
            if lacks {
                return Ok(());
            }
        }
        let family = Family::Orphan(weights[0], suffix);
        self.push(files, prefix, family, ty, index, &[], room)
    }

    fn push(
        &mut self,
        files: &Files,
        prefix: &[u8],
        family: Family,
        ty: Type,
        index: u32,
        beside: &[&[(Role, &str)]],
        room: &mut Vec<u8>,
    ) -> Result<()> {
        let mut tensors = [None; ROLES];
        if !matches!(family, Family::Orphan(..)) {
            tensors[Role::Weight as usize] = Some(index);
        }
        for (role, suffix) in beside.iter().copied().flatten() {
            tensors[*role as usize] = files.directory.index(join(room, prefix, suffix)?);
        }
        let name = self.texts.push(prefix)?;
        reserve(&mut self.list, 1, "layers")?;
        self.list.push(Layer { name, family, ty, tensors });
        Ok(())
    }
}

/// `p` of `p.suffix`.
fn prefix<'a>(name: &'a [u8], suffix: &str) -> Option<&'a [u8]> {
    name.strip_suffix(suffix.as_bytes())?.strip_suffix(b".")
}

/// `prefix.suffix`, in reused room.
fn join<'a>(room: &'a mut Vec<u8>, prefix: &[u8], suffix: &str) -> Result<&'a [u8]> {
    room.clear();
    reserve(room, prefix.len() + 1 + suffix.len(), "a name")?;
    room.extend_from_slice(prefix);
    room.push(b'.');
    room.extend_from_slice(suffix.as_bytes());
    Ok(room)
}
