//! A FAKE of NVIDIA's NVML library (`libnvidia-ml.so`), for tests on machines without a GPU. Only tests may load it.
//! The library has the NVML functions that the worker calls. Its answers come from a JSON file, which the test writes.
//! The environment variable `GPUBNB_FAKE_NVML` has the path of the file. Example:
//! `{ "driver": "550", "gpus": [{ "uuid": "GPU-1", "total_mib": 81920, "trouble": "lost" }] }`.
//!
//! The structs and the versions of the functions are those that the crate `nvml-wrapper` uses (`nvml.h`, driver 550).

use std::{
    ffi::{c_char, c_int, c_uint, c_ulonglong},
    fs,
};

use serde::Deserialize;

// The return codes of `nvml.h` (`nvmlReturn_t`).
const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;
const NOT_SUPPORTED: c_int = 3;
const INSUFFICIENT_SIZE: c_int = 7;
const DRIVER_NOT_LOADED: c_int = 9;
const GPU_IS_LOST: c_int = 15;
const RESET_REQUIRED: c_int = 16;

/// The content of the JSON file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Machine {
    /// The version of the driver.
    driver: String,
    /// The CUDA version, as NVML encodes it: 12040 for CUDA 12.4.
    cuda: c_int,
    gpus: Vec<Gpu>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Gpu {
    uuid: String,
    name: String,
    total_mib: u64,
    used_mib: u64,
    /// Percent.
    utilisation: c_uint,
    celsius: c_uint,
    watts: c_uint,
    /// The processes that compute on the GPU.
    pids: Vec<c_uint>,
    /// The processes that draw with the GPU, and the bytes of the GPU's memory that each holds.
    graphics: Vec<(c_uint, c_ulonglong)>,
    /// The number of memory errors; `None` for a GPU that does not count them.
    ecc: Option<u64>,
    /// Why the GPU does not answer: `lost`, `reset` or `driver`. Empty for a GPU that works.
    trouble: String,
}

/// Reads the file. Each call of the library reads it again, so a test can change the answers. `None` if there is no
/// valid file: the library then answers as if no driver were loaded.
fn read_machine() -> Option<Machine> {
    let text = fs::read_to_string(std::env::var_os("GPUBNB_FAKE_NVML")?).ok()?;
    serde_json::from_str(&text).ok()
}

/// The GPU of a device handle. The handle is the GPU's index plus one, because a handle must not be null.
fn read_gpu(device: usize) -> Result<Gpu, c_int> {
    let machine = read_machine().ok_or(DRIVER_NOT_LOADED)?;
    let gpu = machine.gpus.into_iter().nth(device.wrapping_sub(1)).ok_or(INVALID_ARGUMENT)?;
    match gpu.trouble.as_str() {
        "lost" => Err(GPU_IS_LOST),
        "reset" => Err(RESET_REQUIRED),
        "driver" => Err(DRIVER_NOT_LOADED),
        _ => Ok(gpu),
    }
}

/// Writes a value to the caller's pointer, and returns the NVML return code.
fn write_value<T>(result: Result<T, c_int>, to: *mut T) -> c_int {
    match result {
        Ok(value) if !to.is_null() => {
            // SAFETY: nvml.h requires that the pointer is valid for one value of this type.
            unsafe { to.write(value) };
            SUCCESS
        }
        Ok(_) => INVALID_ARGUMENT,
        Err(code) => code,
    }
}

/// Writes a text and its final zero byte to the caller's buffer of `length` bytes, and returns the NVML return code.
fn write_text(result: Result<String, c_int>, to: *mut c_char, length: c_uint) -> c_int {
    let value = match result {
        Ok(value) => value,
        Err(code) => return code,
    };
    if to.is_null() || value.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    for (index, byte) in value.bytes().chain([0]).enumerate() {
        // SAFETY: nvml.h requires a buffer of `length` bytes, and the text with its zero byte is not longer.
        unsafe { to.add(index).write(byte.cast_signed()) };
    }
    SUCCESS
}

/// Exports functions under their C names.
macro_rules! export {
    ($($name:ident($($arg:ident: $kind:ty),*) $body:block)+) => {$(
        #[doc = concat!("The function `", stringify!($name), "` of nvml.h.")]
        ///
        /// # Safety
        /// Each pointer must be null or valid for a value of its type, as nvml.h requires.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, clippy::missing_safety_doc)]
        pub unsafe extern "C" fn $name($($arg: $kind),*) -> c_int $body
    )+};
}

/// The memory of a device (`nvmlMemory_v2_t`).
#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// The utilisation of a device (`nvmlUtilization_t`).
#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// The PCI address of a device (`nvmlPciInfo_t`).
#[repr(C)]
pub struct Pci {
    legacy: [c_char; 16],
    numbers: [c_uint; 5],
    bus_id: [c_char; 32],
}

/// A process on a device (`nvmlProcessInfo_t`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Process {
    pid: c_uint,
    memory: c_ulonglong,
    /// The MIG instances of the process. `c_uint::MAX` stands for a GPU that is not split by MIG.
    instance: c_uint,
    compute: c_uint,
}

/// Writes the list of processes on a device. `count` has the length of the caller's list. If the list is too short,
/// only the needed length is written to `count`.
fn write_processes(
    processes: Result<Vec<(c_uint, c_ulonglong)>, c_int>,
    count: *mut c_uint,
    list: *mut Process,
) -> c_int {
    let processes = match processes {
        Ok(processes) => processes,
        Err(code) => return code,
    };
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    let needed = c_uint::try_from(processes.len()).unwrap_or(c_uint::MAX);
    // SAFETY: `count` is not null, and nvml.h requires that it points to the length of `list`.
    let capacity = unsafe { count.read() };
    // SAFETY: `count` is not null, and nvml.h requires that the caller can read its new value.
    unsafe { count.write(needed) };
    if capacity < needed {
        return INSUFFICIENT_SIZE;
    }
    for (index, (pid, memory)) in processes.into_iter().enumerate() {
        // SAFETY: the list has `capacity` entries, and at most as many processes are written.
        unsafe { list.add(index).write(Process { pid, memory, instance: c_uint::MAX, compute: c_uint::MAX }) };
    }
    SUCCESS
}

export! {
    nvmlInit_v2() { if read_machine().is_some() { SUCCESS } else { DRIVER_NOT_LOADED } }
    nvmlShutdown() { SUCCESS }
    nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) {
        write_text(read_machine().map(|m| m.driver).ok_or(DRIVER_NOT_LOADED), to, length)
    }
    nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) {
        write_value(read_machine().map(|m| m.cuda).ok_or(DRIVER_NOT_LOADED), to)
    }
    nvmlDeviceGetCount_v2(to: *mut c_uint) {
        let count = read_machine().map(|m| c_uint::try_from(m.gpus.len()).unwrap_or(0));
        write_value(count.ok_or(DRIVER_NOT_LOADED), to)
    }
    nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut usize) { write_value(Ok(index as usize + 1), to) }
    nvmlDeviceGetUUID(device: usize, to: *mut c_char, length: c_uint) {
        write_text(read_gpu(device).map(|g| g.uuid), to, length)
    }
    nvmlDeviceGetName(device: usize, to: *mut c_char, length: c_uint) {
        write_text(read_gpu(device).map(|g| g.name), to, length)
    }
    nvmlDeviceGetMemoryInfo_v2(device: usize, to: *mut Memory) {
        write_value(read_gpu(device).map(|g| Memory {
            version: 0,
            total: g.total_mib << 20,
            reserved: 0,
            free: g.total_mib.saturating_sub(g.used_mib) << 20,
            used: g.used_mib << 20,
        }), to)
    }
    nvmlDeviceGetUtilizationRates(device: usize, to: *mut Utilization) {
        write_value(read_gpu(device).map(|g| Utilization { gpu: g.utilisation, memory: 0 }), to)
    }
    nvmlDeviceGetTemperature(device: usize, _sensor: c_uint, to: *mut c_uint) {
        write_value(read_gpu(device).map(|g| g.celsius), to)
    }
    nvmlDeviceGetPowerUsage(device: usize, to: *mut c_uint) {
        write_value(read_gpu(device).map(|g| g.watts * 1_000), to)
    }
    nvmlDeviceGetCudaComputeCapability(device: usize, major: *mut c_int, minor: *mut c_int) {
        match write_value(read_gpu(device).map(|_| 9), major) {
            SUCCESS => write_value(Ok(0), minor),
            code => code,
        }
    }
    nvmlDeviceGetPciInfo_v3(device: usize, to: *mut Pci) {
        let mut bus_id = [0; 32];
        for (to, byte) in bus_id.iter_mut().zip(format!("00000000:{device:02X}:00.0").bytes()) {
            *to = byte.cast_signed();
        }
        write_value(read_gpu(device).map(|_| Pci { legacy: [0; 16], numbers: [0; 5], bus_id }), to)
    }
    nvmlDeviceGetComputeRunningProcesses_v3(device: usize, count: *mut c_uint, list: *mut Process) {
        write_processes(read_gpu(device).map(|g| g.pids.into_iter().map(|pid| (pid, 0)).collect()), count, list)
    }
    nvmlDeviceGetGraphicsRunningProcesses_v3(device: usize, count: *mut c_uint, list: *mut Process) {
        write_processes(read_gpu(device).map(|g| g.graphics), count, list)
    }
    nvmlDeviceGetTotalEccErrors(device: usize, _kind: c_uint, _counter: c_uint, to: *mut c_ulonglong) {
        write_value(read_gpu(device).and_then(|g| g.ecc.ok_or(NOT_SUPPORTED)), to)
    }
}
