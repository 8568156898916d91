//! Downloads the input files of a job, and makes them read-only.

use std::{
    io,
    path::{Path, PathBuf},
};

use gpubnb_events::{command::Grant, event::Reason};

use super::{Problem, context::AttemptContext, download::download};

/// Downloads all input files into the directory `input` below the attempt's directory. Returns the path of `input`;
/// `None` if the job has no input files.
pub(super) async fn fetch(context: &AttemptContext, grant: &Grant) -> Result<Option<PathBuf>, Problem> {
    if grant.spec.inputs.is_empty() {
        return Ok(None);
    }
    let root = context.directory().join("input");
    if grant.inputs.len() != grant.spec.inputs.len() {
        return Err(Problem::new(Reason::BadInput, "the market stores no files"));
    }
    for (input, url) in grant.spec.inputs.iter().zip(&grant.inputs) {
        let path = path_below(&root, &input.path)?;
        download(&context.tools.http, url, &path, input).await?;
        give_to_job(context, &root, &path).map_err(|e| {
            Problem::caused(Reason::RuntimeMisconfigured, anyhow::Error::new(e).context(input.path.clone()))
        })?;
    }
    Ok(Some(root))
}

/// Gives a file, and each directory between the file and the root, to the user of jobs.
fn give_to_job(context: &AttemptContext, root: &Path, file: &Path) -> io::Result<()> {
    let disks = &context.tools.job_disks;
    disks.give_to_job(file, 0o400)?;
    let directories = file.ancestors().skip(1).take_while(|directory| directory.starts_with(root));
    directories.into_iter().try_for_each(|directory| disks.give_to_job(directory, 0o700))
}

/// Joins the root and a relative path. Fails if the result would not be below the root. The market has checked the
/// path, but this machine does not rely on that.
fn path_below(root: &Path, path: &str) -> Result<PathBuf, Problem> {
    let is_name = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if path.split('/').all(is_name) {
        Ok(root.join(path))
    } else {
        Err(Problem::new(Reason::BadInput, "a path leads out of the directory of inputs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_path_that_leads_out_of_its_directory_is_refused() {
        let root = Path::new("/lease/input");
        assert_eq!(path_below(root, "a/b.txt").unwrap(), Path::new("/lease/input/a/b.txt"));
        for path in ["", "/etc/passwd", "..", "a/../../b", "./a", "a//b", "a/", "a\0b"] {
            assert_eq!(path_below(root, path).unwrap_err().reason, Reason::BadInput, "{path:?}");
        }
    }
}
