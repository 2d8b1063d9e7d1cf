//! The networks as they were before a batch, which a step that fails goes back to: in a file without a name where there
//! is a folder for it, since it is seldom read and as large as adapters and moments together; else in memory. Never
//! decides when to go back.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use candle_core::Tensor;

use super::network::{Network, Saved};
use crate::error::{Error, Result};
use crate::files;

/// Policy and critic before a batch.
pub(super) enum Networks {
    Memory([Saved; 2]),
    File(File),
}

impl Networks {
    /// Keeps them, in memory if the folder takes no file of that size.
    pub fn keep(networks: [&Network; 2], folder: Option<&Path>) -> Result<Self> {
        if let Some(folder) = folder {
            match write(networks, folder) {
                Ok(file) => return Ok(Self::File(file)),
                Err(error) => tracing::warn!(%error, "what a failed step goes back to is kept in memory"),
            }
        }
        let [policy, critic] = networks;
        Ok(Self::Memory([policy.save()?, critic.save()?]))
    }

    /// Puts them back. If the file can't be read, what is in the networks then is of no use.
    pub fn restore(self, networks: [&mut Network; 2]) -> Result<()> {
        match self {
            Self::Memory(saved) => networks.into_iter().zip(saved).try_for_each(|(to, saved)| to.restore(saved)),
            Self::File(file) => {
                let read = read(file, networks);
                read.map_err(|e| e.context("going back to the state before the batch"))
            }
        }
    }
}

fn write(networks: [&Network; 2], folder: &Path) -> Result<File> {
    let path = folder.join(format!(".before-batch-{}", std::process::id()));
    // Of a process that ended between the next two lines.
    let _ = fs::remove_file(&path);
    let file = files::private_file().create_new(true).open(&path);
    let file = file.map_err(|e| Error::from(e).context(path.display()))?;
    // From here on it ends with its last handle.
    fs::remove_file(&path)?;
    let mut out = BufWriter::new(&file);
    for network in networks {
        out.write_all(&network.optimizer.updates.to_le_bytes())?;
        let vars = network.vars().iter().map(|var| var.as_tensor());
        for tensor in vars.chain(network.optimizer.moments.iter().flat_map(|m| [&m.first, &m.second])) {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            let mut bytes = vec![0; values.len() * 4];
            bytes.chunks_exact_mut(4).zip(&values).for_each(|(to, value)| to.copy_from_slice(&value.to_le_bytes()));
            out.write_all(&bytes)?;
        }
    }
    out.flush()?;
    drop(out);
    Ok(file)
}

fn read(mut file: File, networks: [&mut Network; 2]) -> Result<()> {
    file.rewind()?;
    let mut input = BufReader::new(file);
    for network in networks {
        let mut updates = [0; 8];
        input.read_exact(&mut updates)?;
        network.optimizer.updates = u64::from_le_bytes(updates);
        let mut next = |like: &Tensor| -> Result<Tensor> {
            let mut bytes = vec![0; like.elem_count() * 4];
            input.read_exact(&mut bytes)?;
            let value = |b: &[u8]| b.try_into().map_or(f32::NAN, f32::from_le_bytes);
            let values: Vec<f32> = bytes.chunks_exact(4).map(value).collect();
            Ok(Tensor::from_vec(values, like.shape(), like.device())?)
        };
        network.vars().iter().try_for_each(|var| Ok::<_, Error>(var.set(&next(var)?)?))?;
        for moments in &mut network.optimizer.moments {
            moments.first = next(&moments.first)?;
            moments.second = next(&moments.second)?;
        }
    }
    Ok(())
}
