//! Projections of heads.

use crate::error::{Result, fail};

/// Columns of the matrix of a decoder tail: every head's latent features in runs of 16.
pub fn tail_columns(heads: usize, latent: usize) -> Result<usize> {
    if heads == 0 || latent == 0 || !latent.is_multiple_of(heads) {
        return Err(fail!(InvalidArgument, "{latent} latent features of {heads} heads"));
    }
    Ok((latent / heads).next_multiple_of(16) * heads)
}
