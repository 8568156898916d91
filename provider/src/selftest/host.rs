//! Checks of the machine itself: disk, CPU, memory and GPUs.

use std::{
    fs::{self, File},
    hint::black_box,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use gpubnb_events::event::Check;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::{check, with_requirement};
use crate::{gpu::Gpus, hardware};

/// Least free disk space, MiB.
const MIN_FREE_MIB: u64 = 1_024;
/// Bytes that are written, read and hashed to measure the disk and the CPU.
const SAMPLE_BYTES: usize = 16 << 20;
/// Bytes that are written, read or hashed at once. glibc would keep the memory of a larger buffer while the worker
/// runs.
const CHUNK_BYTES: usize = 128 << 10;

pub(super) async fn checks(state: &Path, gpus: &Gpus) -> Vec<Check> {
    let state: PathBuf = state.to_owned();
    let measured = tokio::task::spawn_blocking(move || {
        let mut checks = disk(&state);
        checks.extend([cpu_cores(), cpu_hash(), cpu_matmul()]);
        checks
    });
    let mut checks = measured.await.unwrap_or_else(|e| {
        warn!(error = %e, "the disk and the CPU could not be measured");
        Vec::new()
    });
    if let Ok(memory) = hardware::machine_memory() {
        checks.push(check("memory.total", memory.0.to_string(), "MiB"));
    }
    for (index, gpu) in gpus.list().iter().enumerate() {
        let capability = gpu.capability.as_deref().unwrap_or("unknown");
        checks.push(check(&format!("gpu.{index}.memory"), gpu.memory.0.to_string(), "MiB"));
        checks.push(check(&format!("gpu.{index}.model"), format!("{}, capability {capability}", gpu.model), ""));
    }
    for reading in gpus.confirmed_readings() {
        if let Some(trouble) = reading.trouble {
            checks.push(with_requirement(check("gpu.health", reading.uuid, ""), "well", false, trouble.description()));
        }
    }
    checks
}

fn disk(state: &Path) -> Vec<Check> {
    let remedy = "Make room on this disk, or choose another directory with --state.";
    let free_mib =
        rustix::fs::statvfs(nearest_directory(state)).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize) >> 20);
    let is_enough = free_mib >= MIN_FREE_MIB;
    let room =
        with_requirement(check("disk.room", free_mib.to_string(), "MiB"), &MIN_FREE_MIB.to_string(), is_enough, remedy);
    let path = nearest_directory(state).join("self-test.tmp");
    let speed = write_and_read(&path);
    if path.exists()
        && let Err(e) = fs::remove_file(&path)
    {
        warn!(path = %path.display(), error = %e, "the test file of the disk check cannot be removed");
    }
    match speed {
        Ok((write, read)) => vec![
            room,
            with_requirement(
                check("disk.write", write.to_string(), "MB/s"),
                "20",
                write >= 20,
                "The disk is slow: jobs that write much will be slow.",
            ),
            check("disk.read", read.to_string(), "MB/s, from the cache"),
        ],
        Err(e) => vec![room, with_requirement(check("disk.write", e.to_string(), ""), "20", false, remedy)],
    }
}

/// The path itself, or its nearest parent that is an existing directory.
fn nearest_directory(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

/// The speed of writing and of reading a file, MB/s.
fn write_and_read(path: &Path) -> std::io::Result<(u64, u64)> {
    let mut chunk = vec![0x5a_u8; CHUNK_BYTES];
    let began = Instant::now();
    let mut file = File::create(path)?;
    for _ in 0..SAMPLE_BYTES / CHUNK_BYTES {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    let write = per_microsecond(SAMPLE_BYTES, began);
    let began = Instant::now();
    let mut file = File::open(path)?;
    for _ in 0..SAMPLE_BYTES / CHUNK_BYTES {
        file.read_exact(&mut chunk)?;
    }
    Ok((write, per_microsecond(SAMPLE_BYTES, began)))
}

/// The rate of `count` things since a moment: per microsecond, which is millions per second.
fn per_microsecond(count: usize, since: Instant) -> u64 {
    let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    count as u64 / micros
}

fn cpu_cores() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    check("cpu.cores", cores.to_string(), "")
}

/// The speed at which one core hashes.
fn cpu_hash() -> Check {
    let chunk = vec![0x5a_u8; CHUNK_BYTES];
    let began = Instant::now();
    let mut hash = Sha256::new();
    for _ in 0..SAMPLE_BYTES / CHUNK_BYTES {
        hash.update(&chunk);
    }
    black_box(hash.finalize());
    check("cpu.sha256", per_microsecond(SAMPLE_BYTES, began).to_string(), "MB/s a core")
}

/// The speed at which one core multiplies matrices with a plain loop. The GPUs are measured in `matmul.rs`.
fn cpu_matmul() -> Check {
    const N: usize = 192;
    let (a, b) = (vec![1.5_f32; N * N], vec![0.5_f32; N * N]);
    let mut c = vec![0_f32; N * N];
    let began = Instant::now();
    for i in 0..N {
        for k in 0..N {
            let left = a[i * N + k];
            for (out, right) in c[i * N..(i + 1) * N].iter_mut().zip(&b[k * N..(k + 1) * N]) {
                *out += left * right;
            }
        }
    }
    black_box(&c);
    // A step is a multiplication and an addition. Operations per microsecond are MFLOPS.
    check("cpu.matmul", per_microsecond(2 * N * N * N, began).to_string(), "MFLOPS a core")
}
