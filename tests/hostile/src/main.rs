//! Jobs that try to harm the machine they run on, for `make hostile`. Each prints its attempts, and exits with 0 where
//! the sandbox held it and with 1 where it got through. Run one only inside a container.

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
    let held = match std::env::args().nth(1).as_deref() {
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
        Some("escape") => escape(),
        Some("deaf") => deaf(),
        Some("odd-files") => odd_files(),
        _ => {
            eprintln!("there is no such job");
            false
        }
    };
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints whether a call of the kernel failed, as it must.
///
/// SAFETY of all calls below: their arguments are plain numbers, or strings and buffers that outlive the call.
fn failed(call: &str, result: i64) -> bool {
    let error = io::Error::last_os_error();
    let held = result < 0;
    println!("{call}: {}", if held { format!("held ({error})") } else { "GOT THROUGH".to_owned() });
    held
}

/// Forks until the kernel refuses.
fn fork_bomb() -> bool {
    let mut children = 0;
    for _ in 0..100_000 {
        // SAFETY: see `failed`; the child only sleeps.
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

/// Leaves children that nobody waits for, again and again.
fn zombies() -> bool {
    let mut refused = 0;
    for _ in 0..20_000 {
        // SAFETY: see `failed`; the child makes an orphan and both end at once.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: as above.
                unsafe {
                    libc::fork();
                    libc::_exit(0)
                }
            }
            -1 => refused += 1,
            _ => {}
        }
    }
    println!("held: {refused} of 20,000 were refused");
    refused > 0
}

/// Allocates memory until the kernel kills the job.
fn memory_bomb() -> bool {
    let mut hoard = Vec::new();
    loop {
        hoard.push(vec![0x5a_u8; 16 << 20]);
        println!("{} MiB", hoard.len() * 16);
    }
}

/// Writes a file until there is no room, or it has `most` bytes. Returns the bytes that were written.
fn fill(path: &Path, most: u64) -> io::Result<u64> {
    let piece = vec![0x5a_u8; 1 << 20];
    let mut file = File::create(path)?;
    let mut written = 0;
    while written < most {
        match file.write(&piece) {
            Ok(bytes) => written += bytes as u64,
            Err(_) => break,
        }
    }
    Ok(written)
}

/// Fills each file system but the output. Only the small ones in memory may be written at all.
fn fill_disks() -> bool {
    // The limit on the size of a file does not help here, since there can be many files.
    // SAFETY: ignoring a signal installs no handler. Without the signal, a write past the limit fails.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let mut held = true;
    for (place, most) in [("/", 0), ("/etc", 0), ("/usr", 0), ("/tmp", 64 << 20), ("/dev/shm", 64 << 20)] {
        let files = (0..200).map(|index| fill(&Path::new(place).join(format!("fill-{index}")), 4 << 30).unwrap_or(0));
        let written: u64 = files.sum();
        let within = written <= most;
        println!("{place}: {} MiB {}", written >> 20, if within { "held" } else { "GOT THROUGH" });
        held &= within;
    }
    held
}

/// Fills the output with files of 1 MiB.
fn fill_output() -> bool {
    for index in 0.. {
        let name = format!("/output/{index}");
        match fill(Path::new(&name), 1 << 20) {
            Ok(bytes) if bytes >= 1 << 20 => {}
            other => {
                println!("no room after {index} MiB: {other:?}");
                return false;
            }
        }
    }
    false
}

/// Fills the output with files of one byte, which use up inodes and not bytes.
fn tiny_files() -> bool {
    for index in 0..1_000_000 {
        if let Err(e) = fs::write(format!("/output/{index}"), "x") {
            println!("no room after {index} files: {e}");
            return false;
        }
    }
    println!("a million files");
    false
}

/// Writes one file that is larger than the output may be.
fn huge_file() -> bool {
    println!("{:?}", fill(Path::new("/output/huge"), 10 << 30));
    false
}

/// Makes one file with a large size and no content.
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

/// Writes a file as large as the output allows, so that the upload after the job has something to carry.
fn large_file() -> bool {
    let written = fill(Path::new("/output/large.bin"), 80 << 20);
    println!("written: {written:?}");
    written.is_ok_and(|bytes| bytes == 80 << 20)
}

/// Writes to the log without end.
fn log_flood() -> bool {
    let line = "x".repeat(1_000);
    loop {
        println!("{line}");
    }
}

/// Tries to reach the network: the internet, the machine's own services, and names.
fn egress() -> bool {
    let patience = Duration::from_secs(2);
    let mut held = true;
    for to in
        ["1.1.1.1:53", "169.254.169.254:80", "172.17.0.1:2375", "10.0.0.1:80", "127.0.0.1:4222", "[2606:4700::1111]:53"]
    {
        let reached = to.parse().is_ok_and(|address| TcpStream::connect_timeout(&address, patience).is_ok());
        println!("{to}: {}", if reached { "GOT THROUGH" } else { "held" });
        held &= !reached;
    }
    let resolved = ("example.com", 80).to_socket_addrs().is_ok();
    let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", "1.1.1.1:53")).is_ok();
    println!("names: {resolved}, datagrams: {sent}");
    held && !resolved && !sent
}

/// Tries the known ways out of a container: mounts, namespaces, devices, privileged calls, files of the kernel.
fn escape() -> bool {
    let text = |text: &str| CString::new(text).unwrap_or_default();
    let (none, proc, root, device) = (text("none"), text("proc"), text("/"), text("/tmp/disk"));
    let mut held = true;
    // SAFETY: see `failed`, for each of these calls.
    unsafe {
        held &= failed(
            "mount",
            libc::mount(none.as_ptr(), text("/tmp").as_ptr(), proc.as_ptr(), 0, std::ptr::null()).into(),
        );
        held &= failed(
            "remount /",
            libc::mount(none.as_ptr(), root.as_ptr(), std::ptr::null(), libc::MS_REMOUNT, std::ptr::null()).into(),
        );
        held &= failed("unshare user", libc::unshare(libc::CLONE_NEWUSER).into());
        held &= failed("unshare mount", libc::unshare(libc::CLONE_NEWNS).into());
        held &= failed("unshare net", libc::unshare(libc::CLONE_NEWNET).into());
        held &= failed("mknod", libc::mknod(device.as_ptr(), libc::S_IFBLK | 0o666, libc::makedev(8, 0)).into());
        held &= failed("setuid", libc::setuid(0).into());
        held &= failed("setgid", libc::setgid(0).into());
        held &= failed("chroot", libc::chroot(root.as_ptr()).into());
        held &= failed("keyctl", libc::syscall(libc::SYS_keyctl, 0, -3, 0));
        held &= failed(
            "add_key",
            libc::syscall(libc::SYS_add_key, text("user").as_ptr(), text("k").as_ptr(), b"v".as_ptr(), 1, -3),
        );
        held &= failed("bpf", libc::syscall(libc::SYS_bpf, 0, 0, 0));
        held &= failed("kexec", libc::syscall(libc::SYS_kexec_load, 0, 0, 0, 0));
        held &= failed("init_module", libc::syscall(libc::SYS_init_module, 0, 0, 0));
        held &= failed("reboot", libc::syscall(libc::SYS_reboot, 0, 0, 0, 0));
        held &= failed("swapoff", libc::swapoff(device.as_ptr()).into());
        held &= failed(
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
        let opened = fs::OpenOptions::new().write(true).open(path).is_ok();
        println!("{path}: {}", if opened { "GOT THROUGH" } else { "held" });
        held &= !opened;
    }
    // Only this process and the container's init may be visible, and none of the machine's processes.
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let seen = processes.filter(|p| p.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())).count();
    println!("processes: {seen} {}", if seen <= 2 { "held" } else { "GOT THROUGH" });
    held &= seen <= 2;
    // SAFETY: a process that is not there cannot be traced.
    held &= failed("ptrace", unsafe { libc::ptrace(libc::PTRACE_ATTACH, 4_000_000, 0, 0) });
    let socket = Path::new("/var/run/docker.sock").exists() || Path::new("/run/docker.sock").exists();
    // SAFETY: as above.
    let root = unsafe { libc::geteuid() } == 0;
    println!("docker's socket: {socket}, root: {root}");
    held && !socket && !root
}

/// Ignores SIGTERM.
fn deaf() -> bool {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    println!("deaf");
    loop {
        sleep(Duration::from_secs(60));
    }
}

/// Leaves files whose names or contents would mislead whoever reads the output.
fn odd_files() -> bool {
    let made = || -> io::Result<()> {
        symlink("/etc/shadow", "/output/shadow")?;
        symlink("/", "/output/everything")?;
        symlink("..", "/output/up")?;
        fs::write("/output/new\nline", "x")?;
        fs::write("/output/\u{1b}[31mred", "x")?;
        fs::write("/output/<img src=x onerror=y>", "x")?;
        fs::write("/output/..hidden", "x")?;
        let fifo = CString::new("/output/pipe").unwrap_or_default();
        // SAFETY: see `failed`.
        unsafe { libc::mkfifo(fifo.as_ptr(), 0o666) };
        let mut deep = String::from("/output");
        for _ in 0..40 {
            deep += "/deep";
            fs::create_dir(&deep)?;
        }
        fs::write(format!("{deep}/bottom"), "x")?;
        // The name promises an archive. Its content is none, and must be unpacked by nobody.
        fs::write("/output/bomb.tar.gz", vec![0x1f; 10_000])?;
        println!("\u{1b}]0;title\u{7}\u{1b}[2J<script>alert(1)</script>");
        Ok(())
    };
    match made() {
        Ok(()) => true,
        Err(e) => {
            println!("{e}");
            false
        }
    }
}
