//! The tensors of one layer, and what is asked of them.

use super::{ROLES, Role, join};
use crate::codec::Floats;
use crate::container::{Config, Files, Tensor};
use crate::error::{Result, fail};

/// A layer's tensors by role.
pub(super) struct Parts<'a, 'n> {
    pub(super) files: &'a Files,
    /// The layer's name.
    pub(super) name: &'n [u8],
    pub(super) tensors: &'n [Option<u32>; ROLES],
}

impl<'a> Parts<'a, '_> {
    /// The tensor in that role, if there is one.
    pub(super) fn get(&self, role: Role) -> Option<&'a Tensor> {
        self.files.directory.tensor_at(self.tensors[role as usize]? as u64)
    }

    /// The tensor in that role; `name` is how its name ends, and `weights` how that of the weights does.
    pub(super) fn need(&self, role: Role, name: &str, weights: &str) -> Result<&'a Tensor> {
        self.get(role)
            .ok_or_else(|| fail!(BadFile, "{weights} is there, but {name}, which goes with it, is missing"))
    }

    /// The weights. Every layer but an orphan has them.
    pub(super) fn weight(&self) -> Result<&'a Tensor> {
        self.get(Role::Weight).ok_or_else(|| fail!(Internal, "a layer without weights"))
    }

    /// The tensor whose name is the layer's with `.suffix`.
    pub(super) fn beside(&self, suffix: &str) -> Result<Option<&'a Tensor>> {
        let mut room = Vec::new();
        Ok(self.files.directory.tensor(join(&mut room, self.name, suffix)?))
    }

    /// The bytes of a tensor.
    pub(super) fn bytes(&self, tensor: &Tensor) -> &'a [u8] {
        self.files.bytes(tensor)
    }

    /// The floats of a tensor that messages call `what`.
    pub(super) fn floats(&self, tensor: &Tensor, what: &str) -> Result<Floats<'a>> {
        Floats::new(tensor.ty, self.files.bytes(tensor)).map_err(|e| e.within(format_args!("{what}")))
    }

    /// What `config.json` says.
    pub(super) fn config(&self) -> Option<&'a Config> {
        self.files.config.as_ref()
    }

    /// `quantization_config.quant_method`, where it is that.
    pub(super) fn is_method(&self, method: &str) -> bool {
        self.config().is_some_and(|c| c.is(&["quantization_config", "quant_method"], method))
    }
}

/// A dimension as a size in memory.
pub(super) fn size(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| fail!(Unsupported, "a dimension of {n}"))
}

/// A tensor's dimensions as sizes: two.
pub(super) fn matrix(tensor: &Tensor, what: &str) -> Result<[usize; 2]> {
    match *shape(tensor) {
        [rows, columns] => Ok([size(rows)?, size(columns)?]),
        _ => Err(fail!(BadFile, "{what}: two dimensions expected, found {:?}", shape(tensor))),
    }
}

/// The dimensions that count.
pub(super) fn shape(tensor: &Tensor) -> &[u64] {
    &tensor.shape[..tensor.dims as usize]
}

/// Refuses a tensor of another shape.
pub(super) fn expect(tensor: &Tensor, what: &str, expected: &[usize]) -> Result<()> {
    let found = shape(tensor);
    if found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| *f == *e as u64) {
        return Ok(());
    }
    Err(fail!(BadFile, "{what}: shape {expected:?} expected, found {found:?}"))
}

/// Refuses a tensor of another element type.
pub(super) fn expect_type(tensor: &Tensor, what: &str, expected: crate::types::Type) -> Result<()> {
    if tensor.ty == expected {
        return Ok(());
    }
    Err(fail!(Unsupported, "{what}: {} expected, found {}", expected.name(), tensor.ty.name()))
}
