//! Embeds the scripts that npm brought, so that the binary serves its pages without anything beside it.

use std::{env, error::Error, fs, path::PathBuf};

const SCRIPTS: [(&str, &str); 1] = [("htmx.js", "htmx.org/dist/htmx.min.js")];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=package-lock.json");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for (name, path) in SCRIPTS {
        let from = PathBuf::from("node_modules").join(path);
        println!("cargo::rerun-if-changed={}", from.display());
        if !from.exists() {
            return Err(format!("{path} is missing: run `npm ci --prefix ui` first (or `make setup`)").into());
        }
        fs::copy(&from, out.join(name))?;
    }
    Ok(())
}
