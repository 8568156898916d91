//! Copies the script and the typeface that npm installed to the build directory, and renders the guides in `docs/` as
//! HTML. The binary embeds both (`assets.rs`, `page/docs.rs`), so it needs no other files.

#[path = "build/guides.rs"]
mod guides;

use std::{env, error::Error, fs, path::PathBuf};

/// The script and the typeface: the name in the build directory, and the path in `node_modules`.
const FILES: [(&str, &str); 3] = [
    ("htmx.js", "htmx.org/dist/htmx.min.js"),
    ("geist.woff2", "@fontsource-variable/geist/files/geist-latin-wght-normal.woff2"),
    ("geist-license.txt", "@fontsource-variable/geist/LICENSE"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=package-lock.json");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for (name, path) in FILES {
        let from = PathBuf::from("node_modules").join(path);
        println!("cargo::rerun-if-changed={}", from.display());
        if !from.exists() {
            return Err(format!("{path} is missing: run `npm ci --prefix ui` first (or `make setup`)").into());
        }
        fs::copy(&from, out.join(name))?;
    }
    guides::render(&out)
}
