//! Builds the relay (`relay/`) as a static program. The worker embeds the program, and runs it in a container that has
//! no other file, so there is no library to link to. This script calls `rustc` itself, because Cargo builds all
//! programs of a package with the same flags, and only the relay must be static.

use std::{
    env,
    error::Error,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> Result<(), Box<dyn Error>> {
    let source = Path::new("relay/src/main.rs");
    println!("cargo::rerun-if-changed={}", source.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "relay"]);
    rustc.args(["--target", &env::var("TARGET")?]);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = OsString::from("linker=");
        option.push(linker);
        rustc.arg("-C").arg(option);
    }
    for option in ["target-feature=+crt-static", "opt-level=s", "panic=abort", "strip=symbols"] {
        rustc.args(["-C", option]);
    }
    let status = rustc.arg(source).arg("-o").arg(out.join("relay")).status()?;
    if status.success() { Ok(()) } else { Err(format!("rustc cannot build {}: {status}", source.display()).into()) }
}
