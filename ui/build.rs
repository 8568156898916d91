//! Copies the scripts that npm installed to the build directory, and renders the guides in `docs/` as HTML. The binary
//! embeds both (`assets.rs`, `page/docs.rs`), so it needs no other files.

#[path = "build/guides.rs"]
mod guides;

use std::{env, error::Error, fs, path::PathBuf};

/// The scripts: the name in the build directory, and the path in `node_modules`.
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
    guides::render(&out)
}
