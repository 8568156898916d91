//! Files that make the worker part of a desktop: an entry in the menu of programs that opens the worker's page, and an
//! entry that starts the worker when the user signs in. The formats are freedesktop.org's *Desktop Entry Specification*
//! and *Desktop Application Autostart Specification*.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::config::DesktopEntryArgs;

/// The name of both files. The directory decides what an entry is for.
const FILE: &str = "gpubnb-provider.desktop";

/// Writes the entries for the user of this process. `state` is the worker's directory, `config` its file of options.
pub fn write_entries(state: &Path, config: Option<&Path>, args: DesktopEntryArgs) -> anyhow::Result<()> {
    check_owner(state)?;
    let program = env::current_exe().context("the path of this program is not known")?;
    let command = |verb: &str| -> anyhow::Result<String> {
        let mut parts = vec![program.clone(), "--state".into(), std::path::absolute(state)?];
        if let Some(config) = config {
            parts.extend(["--config".into(), std::path::absolute(config)?]);
        }
        parts.push(verb.into());
        parts.iter().map(|part| quoted(part)).collect::<anyhow::Result<Vec<_>>>().map(|parts| parts.join(" "))
    };
    let menu = directory("XDG_DATA_HOME", ".local/share")?.join("applications");
    write(&menu, &entry("GPUbnb worker", "Your machine on the market: state, earnings, pause", &command("open")?))?;
    if args.autostart {
        let autostart = directory("XDG_CONFIG_HOME", ".config")?.join("autostart");
        write(&autostart, &entry("GPUbnb worker", "Shares this machine while it is spare", &command("run")?))?;
    }
    Ok(())
}

/// Fails if the worker's directory belongs to another user: an entry of this user could neither open its page nor start
/// it.
fn check_owner(state: &Path) -> anyhow::Result<()> {
    let owner = fs::metadata(state).with_context(|| format!("no worker has run with {}", state.display()))?.uid();
    anyhow::ensure!(
        owner == rustix::process::getuid().as_raw(),
        "{} belongs to another user, so this user cannot open the page from the menu. Use `sudo gpubnb-provider open`",
        state.display()
    );
    Ok(())
}

/// A base directory of the *XDG Base Directory Specification*.
fn directory(variable: &str, in_home: &str) -> anyhow::Result<PathBuf> {
    let set = env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let in_home = || Some(PathBuf::from(env::var_os("HOME")?).join(in_home));
    set.or_else(in_home).with_context(|| format!("neither {variable} nor HOME is set"))
}

fn write(directory: &Path, text: &str) -> anyhow::Result<()> {
    let path = directory.join(FILE);
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("Written: {}", path.display());
    Ok(())
}

fn entry(name: &str, comment: &str, command: &str) -> String {
    format!(
        "[Desktop Entry]\nType=Application\nName={name}\nComment={comment}\nExec={command}\nIcon=computer\n\
         Terminal=false\nCategories=System;Monitor;\n"
    )
}

/// A part of a command line, for the key `Exec`.
fn quoted(part: &Path) -> anyhow::Result<String> {
    let text = part.to_str().with_context(|| format!("{} is not readable as text", part.display()))?;
    anyhow::ensure!(!text.contains(char::is_control), "{} has a line break in its name", part.display());
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            // The quotes ask for one backslash, and each backslash of a value of an entry is written twice.
            '"' | '`' | '$' => quoted.extend(['\\', '\\', letter]),
            '\\' => quoted.push_str("\\\\\\\\"),
            '%' => quoted.push_str("%%"),
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_change_the_command_of_an_entry() {
        let text = |path: &str| quoted(Path::new(path)).unwrap();
        assert_eq!(text("/opt/my dir/x"), "\"/opt/my dir/x\"");
        assert_eq!(text("/a\"b"), "\"/a\\\\\"b\"");
        assert_eq!(text("/a$b`c"), "\"/a\\\\$b\\\\`c\"");
        assert_eq!(text("/a\\b"), "\"/a\\\\\\\\b\"");
        assert_eq!(text("/100%f"), "\"/100%%f\"");
        assert!(quoted(Path::new("/a\nExec=x")).is_err());
    }
}
