//! Ordinary programs that need more than a small sandbox gives: programs in the home directory, large caches, many
//! threads and many open files. They are in this image because it is the only image of the tests with a program of
//! ours.

use std::{
    env, fs,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// Installs a program into the home directory, runs it, and keeps 200 MiB in the cache and a temporary file.
pub(crate) fn use_scratch() -> bool {
    let directory = |name: &str| env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let program = directory("HOME").join("bin/program");
    let works = (|| {
        fs::create_dir_all(program.parent().unwrap_or(Path::new("/")))?;
        fs::copy("/proc/self/exe", &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let runs = Command::new(&program).arg("succeed").status()?.success();
        let cache = directory("XDG_CACHE_HOME");
        fs::create_dir_all(&cache)?;
        fs::write(cache.join("kernels"), vec![0x5a; 200 << 20])?;
        fs::write(directory("TMPDIR").join("file"), "temporary")?;
        Ok::<_, std::io::Error>(runs)
    })();
    println!("scratch: {works:?}");
    matches!(works, Ok(true))
}

/// Starts `count` threads that run at the same time. Fails if the kernel refuses one of them.
pub(crate) fn have_threads(count: usize) -> bool {
    for number in 0..count {
        let started = thread::Builder::new().stack_size(64 << 10).spawn(|| thread::sleep(Duration::from_secs(600)));
        if let Err(e) = started {
            println!("can't start new thread: {e} (after {number})");
            // The worker reads the kernel's count of refused threads ten times a second, and only while the container
            // runs. An interpreter such as Python also takes some time to end.
            thread::sleep(Duration::from_secs(3));
            return false;
        }
    }
    true
}

/// Begins a line and does not finish it. Meanwhile draws a progress bar that writes over itself, for a minute.
pub(crate) fn draw_progress_bar() -> bool {
    print!("whole line\nloading... ");
    let begun = io::stdout().flush();
    for step in 0..2_400 {
        eprint!("\rstep {step}");
        thread::sleep(Duration::from_millis(25));
    }
    println!("done");
    begun.is_ok()
}

/// Writes a little into the output again and again, until the disk is full.
pub(crate) fn write_slowly() -> bool {
    println!("waiting");
    for number in 0..2_000 {
        if let Err(e) = fs::write(format!("/output/{number}"), [0x5a; 4096]) {
            println!("write: {e}");
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
    true
}

/// Saves a checkpoint, and goes on working.
pub(crate) fn save_checkpoint() -> bool {
    let saved = fs::write("/output/checkpoint.bin", "step 1").is_ok();
    println!("saved");
    thread::sleep(Duration::from_secs(600));
    saved
}

/// Keeps `count` files open at the same time. Fails if the kernel refuses one of them.
pub(crate) fn open_files(count: usize) -> bool {
    let files: Vec<_> = (0..count).map(|_| File::open("/proc/self/exe")).collect();
    let refused = files.iter().find_map(|file| file.as_ref().err());
    println!("{count} files: {refused:?}");
    refused.is_none()
}

/// Works in a copy of a directory, beside a dataset that it can only read: the working directory has a program, a link
/// and a file that the job changes. The result is `/output/sum.txt`.
pub(crate) fn use_directory() -> bool {
    let works = || -> std::io::Result<bool> {
        let directory = std::env::current_dir()?;
        let text = fs::read_to_string("latest")?;
        fs::write("input.txt", "changed")?;
        fs::write("made.txt", "made")?;
        let is_program = |path: &str| Ok::<_, std::io::Error>(fs::metadata(path)?.permissions().mode() & 0o100 != 0);
        let is_right = directory == Path::new("/scratch/code") && is_program("bin/run.sh")? && !is_program("made.txt")?;
        let shared = fs::read_to_string("/data/words/deep/a.txt")?;
        let is_read_only =
            ["/data/words/deep/a.txt", "/data/words/new"].iter().all(|path| fs::write(path, "x").is_err())
                && fs::remove_file("/data/words/deep/a.txt").is_err();
        let hardens = fs::set_permissions("/data/words/deep/a.txt", fs::Permissions::from_mode(0o777)).is_err();
        fs::write("/output/sum.txt", format!("{text}{shared}"))?;
        Ok(is_right && is_read_only && hardens)
    };
    works().unwrap_or_else(|e| {
        eprintln!("the directory is not as it should be: {e}");
        false
    })
}

/// A task of a batch. The value is a file to copy, or a word; the task fails for the word `fail`.
pub(crate) fn be_task(value: &str) -> bool {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| "none".to_owned());
    let content = fs::read_to_string(value).unwrap_or_else(|_| value.to_owned());
    let [index, tasks, secret] = ["GPUBNB_TASK_INDEX", "GPUBNB_TASK_COUNT", "TOKEN"].map(variable);
    let mut parameters: Vec<String> = env::vars()
        .filter(|(name, _)| name.starts_with("GPUBNB_PARAM_"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    parameters.sort();
    println!("::metric score={index}");
    let result = format!("{index} of {tasks}: {content} [{}] {secret}", parameters.join(" "));
    let written = fs::write("/output/result.txt", result);
    written.is_ok() && value != "fail"
}
