//! From a tensor of a file to a matrix of weights: which codec reads it, and in which shape.

use crate::codec::transposed::Transposed;
use crate::codec::{self, Matrix};
use crate::container::{Files, Tensor};
use crate::error::{Result, fail};

/// The matrix that a tensor holds: its last dimension are the columns, the ones before it the rows. A
/// vector is one row.
pub fn matrix<'a>(files: &'a Files, tensor: &Tensor) -> Result<Box<dyn Matrix + 'a>> {
    let name = String::from_utf8_lossy(files.directory.name(tensor));
    let shape = &tensor.shape[..tensor.dims as usize];
    let (rows, columns) = match *shape {
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        _ => {
            return Err(fail!(
                Unsupported,
                "tensor {name} has {} dimensions; a layer is a matrix [out_features, in_features]",
                tensor.dims
            ));
        }
    };
    let size = |n: u64| usize::try_from(n).map_err(|_| fail!(Unsupported, "tensor {name}: {n} is too large"));
    let (rows, columns) = (size(rows)?, size(columns)?);
    let bytes = files.bytes(tensor);
    let within = |e: crate::error::Error| e.within(format_args!("tensor {name}"));
    codec::open(tensor.ty, rows, columns, bytes).map_err(within)
}

/// The matrix that a tensor of floats holds the other way round: its rows are the columns of x.
pub fn transposed<'a>(files: &'a Files, tensor: &Tensor) -> Result<Box<dyn Matrix + 'a>> {
    let name = String::from_utf8_lossy(files.directory.name(tensor));
    let [rows, columns] = tensor.shape[..tensor.dims as usize] else {
        return Err(fail!(
            Unsupported,
            "tensor {name} has {} dimensions; a transposed layer is a matrix [in_features, out_features]",
            tensor.dims
        ));
    };
    let size = |n: u64| usize::try_from(n).map_err(|_| fail!(Unsupported, "tensor {name}: {n} is too large"));
    let within = |e: crate::error::Error| e.within(format_args!("tensor {name}"));
    let matrix =
        Transposed::new(tensor.ty, size(columns)?, size(rows)?, files.bytes(tensor)).map_err(within)?;
    Ok(Box::new(matrix))
}
