//! Jobs that try to harm the machine on which they run. `make hostile` runs them. A job prints the result of each
//! attempt: `held` if the sandbox stopped the attempt, `GOT THROUGH` if not. The exit code is 0 if the sandbox stopped
//! all attempts.
//!
//! Some jobs use up a resource until the kernel or the worker ends the job. These jobs exit with 1 or never end. The
//! jobs `large-file` and `odd-files` exit with 0 if their files are written. The jobs in `ordinary.rs` do no harm.
//!
//! DANGER: run these jobs only inside a container.

mod door;
mod ordinary;

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write as _},
    net::{TcpStream, ToSocketAddrs as _, UdpSocket},
    os::unix::fs::symlink,
    path::Path,
    process::ExitCode,
    thread::sleep,
    time::Duration,
};

fn main() -> ExitCode {
    let is_held = match std::env::args().nth(1).as_deref() {
        Some("fork-bomb") => fork_bomb(),
        Some("zombies") => zombies(),
        Some("memory-bomb") => memory_bomb(),
        Some("fill-disks") => fill_disks(),
        Some("fill-output") => fill_output(),
        Some("tiny-files") => tiny_files(),
        Some("huge-file") => huge_file(),
        Some("sparse-file") => sparse_file(),
        Some("large-file") => large_file(),
        Some("log-flood") => log_flood(),
        Some("egress") => egress(),
        Some("door") => door::try_all(egress),
        Some("hold-tunnel") => door::hold_tunnel(),
        Some("escape") => escape(),
        Some("deaf") => ignore_sigterm(),
        Some("odd-files") => odd_files(),
        Some("scratch") => ordinary::use_scratch(),
        Some("threads") => ordinary::have_threads(count()),
        Some("unfinished") => ordinary::draw_progress_bar(),
        Some("write-slowly") => ordinary::write_slowly(),
        Some("checkpoint") => ordinary::save_checkpoint(),
        Some("open-files") => ordinary::open_files(count()),
        Some("use-directory") => ordinary::use_directory(),
        Some("task") => ordinary::be_task(&std::env::args().nth(2).unwrap_or_default()),
        Some("succeed") => true,
        _ => {
            eprintln!("unknown job: give the name of a job as the first argument");
            false
        }
    };
    if is_held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The second argument, a number.
fn count() -> usize {
    std::env::args().nth(2).and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// Prints the result of a system call, which is negative if the call failed. Returns true if the call failed.
///
/// SAFETY of all system calls below: their arguments are numbers, or strings and buffers that live longer than the
/// call.
fn must_fail(call: &str, result: i64) -> bool {
    let error = io::Error::last_os_error();
    let is_held = result < 0;
    println!("{call}: {}", if is_held { format!("held ({error})") } else { "GOT THROUGH".to_owned() });
    is_held
}

/// Starts child processes until the kernel refuses. The sandbox must allow fewer than 600.
fn fork_bomb() -> bool {
    let mut children = 0;
    for _ in 0..100_000 {
        // SAFETY: see `must_fail`; the child only sleeps.
        match unsafe { libc::fork() } {
            0 => loop {
                sleep(Duration::from_secs(60));
            },
            -1 => {
                println!("held after {children} children");
                return children < 600;
            }
            _ => children += 1,
        }
    }
    println!("GOT THROUGH: {children} children");
    false
}

/// Makes zombies: processes that have ended, and for which no parent waits. The kernel must refuse more at some point.
fn zombies() -> bool {
    let mut refused = 0;
    for _ in 0..20_000 {
        // SAFETY: see `must_fail`; the child starts a process, and both end at once.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: see `must_fail`.
                unsafe {
                    libc::fork();
                    libc::_exit(0)
                }
            }
            -1 => refused += 1,
            _ => {}
        }
    }
    println!("held: {refused} of 20,000 processes were refused");
    refused > 0
}

/// Allocates memory until the kernel kills the job.
fn memory_bomb() -> bool {
    let mut blocks = Vec::new();
    loop {
        blocks.push(vec![0x5a_u8; 16 << 20]);
        println!("{} MiB", blocks.len() * 16);
    }
}

/// Writes a file until a write fails or the file has `limit` bytes. Returns the number of written bytes.
fn fill_file(path: &Path, limit: u64) -> io::Result<u64> {
    let block = vec![0x5a_u8; 1 << 20];
    let mut file = File::create(path)?;
    let mut written = 0;
    while written < limit {
        match file.write(&block) {
            Ok(bytes) => written += bytes as u64,
            Err(_) => break,
        }
    }
    Ok(written)
}

/// Tries to fill every file system except the job's disk. Only `/tmp` and `/dev/shm`, which are small and in memory,
/// may accept data.
fn fill_disks() -> bool {
    // A write beyond the limit on a file's size would end the job by SIGXFSZ. If the signal is ignored, the write
    // fails, and the job can go on with the next file. SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let mut all_held = true;
    for (path, limit) in [("/", 0), ("/etc", 0), ("/usr", 0), ("/tmp", 64 << 20), ("/dev/shm", 64 << 20)] {
        let files =
            (0..200).map(|index| fill_file(&Path::new(path).join(format!("fill-{index}")), 4 << 30).unwrap_or(0));
        let written: u64 = files.sum();
        let is_held = written <= limit;
        println!("{path}: {} MiB {}", written >> 20, if is_held { "held" } else { "GOT THROUGH" });
        all_held &= is_held;
    }
    all_held
}

/// Fills `/output` with files of 1 MiB.
fn fill_output() -> bool {
    for index in 0.. {
        let name = format!("/output/{index}");
        match fill_file(Path::new(&name), 1 << 20) {
            Ok(bytes) if bytes >= 1 << 20 => {}
            other => {
                println!("refused after {index} MiB: {other:?}");
                return false;
            }
        }
    }
    false
}

/// Fills `/output` with files of one byte. Such files use up the inodes of a file system long before its bytes.
fn tiny_files() -> bool {
    for index in 0..1_000_000 {
        if let Err(e) = fs::write(format!("/output/{index}"), "x") {
            println!("refused after {index} files: {e}");
            return false;
        }
    }
    println!("wrote a million files");
    false
}

/// Writes one file that is larger than the limit of `/output`.
fn huge_file() -> bool {
    println!("{:?}", fill_file(Path::new("/output/huge"), 10 << 30));
    false
}

/// Makes a sparse file: a file with a size of 10 GiB that uses no disk space.
fn sparse_file() -> bool {
    let file = match File::create("/output/sparse") {
        Ok(file) => file,
        Err(e) => {
            println!("{e}");
            return false;
        }
    };
    println!("{:?}", file.set_len(10 << 30));
    false
}

/// Writes a file of 80 MiB, so that the upload after the job takes some time.
fn large_file() -> bool {
    let written = fill_file(Path::new("/output/large.bin"), 80 << 20);
    println!("written: {written:?}");
    written.is_ok_and(|bytes| bytes == 80 << 20)
}

/// Writes lines to the log forever.
fn log_flood() -> bool {
    let line = "x".repeat(1_000);
    loop {
        println!("{line}");
    }
}

/// Tries to reach the internet, services of the machine, and a name server.
fn egress() -> bool {
    let timeout = Duration::from_secs(2);
    let mut all_held = true;
    for to in
        ["1.1.1.1:53", "169.254.169.254:80", "172.17.0.1:2375", "10.0.0.1:80", "127.0.0.1:4222", "[2606:4700::1111]:53"]
    {
        let is_reached = to.parse().is_ok_and(|address| TcpStream::connect_timeout(&address, timeout).is_ok());
        println!("{to}: {}", if is_reached { "GOT THROUGH" } else { "held" });
        all_held &= !is_reached;
    }
    let is_resolved = ("example.com", 80).to_socket_addrs().is_ok();
    let is_sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", "1.1.1.1:53")).is_ok();
    println!("name resolved: {is_resolved}, datagram sent: {is_sent}");
    all_held && !is_resolved && !is_sent
}

/// Tries the known ways to escape from a container: mounts, namespaces, devices, privileged system calls, and files of
/// the kernel.
fn escape() -> bool {
    let c_string = |text: &str| CString::new(text).unwrap_or_default();
    let (none, proc, root, device) = (c_string("none"), c_string("proc"), c_string("/"), c_string("/tmp/disk"));
    let mut all_held = true;
    // SAFETY: see `must_fail`. This is true of each call in this block.
    unsafe {
        all_held &= must_fail(
            "mount",
            libc::mount(none.as_ptr(), c_string("/tmp").as_ptr(), proc.as_ptr(), 0, std::ptr::null()).into(),
        );
        all_held &= must_fail(
            "remount /",
            libc::mount(none.as_ptr(), root.as_ptr(), std::ptr::null(), libc::MS_REMOUNT, std::ptr::null()).into(),
        );
        all_held &= must_fail("unshare user", libc::unshare(libc::CLONE_NEWUSER).into());
        all_held &= must_fail("unshare mount", libc::unshare(libc::CLONE_NEWNS).into());
        all_held &= must_fail("unshare net", libc::unshare(libc::CLONE_NEWNET).into());
        all_held &= must_fail("mknod", libc::mknod(device.as_ptr(), libc::S_IFBLK | 0o666, libc::makedev(8, 0)).into());
        all_held &= must_fail("setuid", libc::setuid(0).into());
        all_held &= must_fail("setgid", libc::setgid(0).into());
        all_held &= must_fail("chroot", libc::chroot(root.as_ptr()).into());
        all_held &= must_fail("keyctl", libc::syscall(libc::SYS_keyctl, 0, -3, 0));
        all_held &= must_fail(
            "add_key",
            libc::syscall(libc::SYS_add_key, c_string("user").as_ptr(), c_string("k").as_ptr(), b"v".as_ptr(), 1, -3),
        );
        all_held &= must_fail("bpf", libc::syscall(libc::SYS_bpf, 0, 0, 0));
        all_held &= must_fail("kexec", libc::syscall(libc::SYS_kexec_load, 0, 0, 0, 0));
        all_held &= must_fail("init_module", libc::syscall(libc::SYS_init_module, 0, 0, 0));
        all_held &= must_fail("reboot", libc::syscall(libc::SYS_reboot, 0, 0, 0, 0));
        all_held &= must_fail("swapoff", libc::swapoff(device.as_ptr()).into());
        all_held &= must_fail(
            "settimeofday",
            libc::settimeofday(&libc::timeval { tv_sec: 0, tv_usec: 0 }, std::ptr::null()).into(),
        );
    }
    for path in [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/sys/kernel/uevent_helper",
        "/dev/mem",
        "/dev/kmsg",
        "/sys/fs/cgroup/release_agent",
    ] {
        let is_opened = fs::OpenOptions::new().write(true).open(path).is_ok();
        println!("{path}: {}", if is_opened { "GOT THROUGH" } else { "held" });
        all_held &= !is_opened;
    }
    // The job may see its own process and the init process of the container, but no process of the machine.
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let process_count =
        processes.filter(|p| p.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())).count();
    println!("processes: {process_count} {}", if process_count <= 2 { "held" } else { "GOT THROUGH" });
    all_held &= process_count <= 2;
    // SAFETY: no process has this id, so no process is traced.
    all_held &= must_fail("ptrace", unsafe { libc::ptrace(libc::PTRACE_ATTACH, 4_000_000, 0, 0) });
    let has_socket = Path::new("/var/run/docker.sock").exists() || Path::new("/run/docker.sock").exists();
    // SAFETY: the call only reads the user id.
    let is_root = unsafe { libc::geteuid() } == 0;
    println!("docker's socket: {has_socket}, root: {is_root}");
    all_held && !has_socket && !is_root
}

/// Ignores SIGTERM and never ends.
fn ignore_sigterm() -> bool {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    println!("deaf");
    loop {
        sleep(Duration::from_secs(60));
    }
}

/// Leaves files with dangerous names, types or contents: links out of `/output`, control sequences, HTML, a pipe, deep
/// folders, and a false archive. Also prints control sequences and HTML to the log.
fn odd_files() -> bool {
    let make_files = || -> io::Result<()> {
        symlink("/etc/shadow", "/output/shadow")?;
        symlink("/", "/output/everything")?;
        symlink("..", "/output/up")?;
        fs::write("/output/new\nline", "x")?;
        fs::write("/output/\u{1b}[31mred", "x")?;
        fs::write("/output/<img src=x onerror=y>", "x")?;
        fs::write("/output/..hidden", "x")?;
        let fifo = CString::new("/output/pipe").unwrap_or_default();
        // SAFETY: see `must_fail`.
        unsafe { libc::mkfifo(fifo.as_ptr(), 0o666) };
        let mut deep = String::from("/output");
        for _ in 0..40 {
            deep += "/deep";
            fs::create_dir(&deep)?;
        }
        fs::write(format!("{deep}/bottom"), "x")?;
        // By its name the file is an archive, but its content is not. Nobody may unpack it.
        fs::write("/output/bomb.tar.gz", vec![0x1f; 10_000])?;
        println!("\u{1b}]0;title\u{7}\u{1b}[2J<script>alert(1)</script>");
        Ok(())
    };
    match make_files() {
        Ok(()) => true,
        Err(e) => {
            println!("{e}");
            false
        }
    }
}
