//! A FAKE of NVIDIA's `libnvidia-ml.so` for tests on machines without a GPU. Nothing but tests may load it. It has the
//! functions that the worker calls, and answers from the JSON file that `GPUBNB_FAKE_NVML` names, which a test writes:
//! `{ "driver": "550", "gpus": [{ "uuid": "GPU-1", "total_mib": 81920, "trouble": "lost" }] }`.
//!
//! The structs are those of `nvml.h` (NVML API reference, driver 550), in the versions that nvml-wrapper asks for.

use std::{
    ffi::{c_char, c_int, c_uint, c_ulonglong},
    fs,
};

use serde::Deserialize;

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;
const NOT_SUPPORTED: c_int = 3;
const INSUFFICIENT_SIZE: c_int = 7;
const DRIVER_NOT_LOADED: c_int = 9;
const GPU_IS_LOST: c_int = 15;
const RESET_REQUIRED: c_int = 16;

/// The content of the file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Machine {
    driver: String,
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
    utilisation: c_uint,
    celsius: c_uint,
    watts: c_uint,
    pids: Vec<c_uint>,
    ecc: Option<u64>,
    /// Why the GPU does not answer: `lost`, `reset` or `driver`. Empty for a GPU that works.
    trouble: String,
}

/// Reads the file again at each call, so that a test can change the answers. `None` stands for a driver that is not
/// loaded.
fn machine() -> Option<Machine> {
    let text = fs::read_to_string(std::env::var_os("GPUBNB_FAKE_NVML")?).ok()?;
    serde_json::from_str(&text).ok()
}

/// The GPU of a handle. The handle is the GPU's index plus one, so that no handle is null.
fn gpu(device: usize) -> Result<Gpu, c_int> {
    let machine = machine().ok_or(DRIVER_NOT_LOADED)?;
    let gpu = machine.gpus.into_iter().nth(device.wrapping_sub(1)).ok_or(INVALID_ARGUMENT)?;
    match gpu.trouble.as_str() {
        "lost" => Err(GPU_IS_LOST),
        "reset" => Err(RESET_REQUIRED),
        "driver" => Err(DRIVER_NOT_LOADED),
        _ => Ok(gpu),
    }
}

/// Writes a value where the caller wants it, and returns the code for the caller.
fn answer<T>(found: Result<T, c_int>, to: *mut T) -> c_int {
    match found {
        Ok(value) if !to.is_null() => {
            // SAFETY: the pointer leads to a place for one value of this type, as nvml.h demands.
            unsafe { to.write(value) };
            SUCCESS
        }
        Ok(_) => INVALID_ARGUMENT,
        Err(code) => code,
    }
}

/// Writes a text with its final zero where the caller wants it.
fn text(found: Result<String, c_int>, to: *mut c_char, length: c_uint) -> c_int {
    let value = match found {
        Ok(value) => value,
        Err(code) => return code,
    };
    if to.is_null() || value.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    for (index, byte) in value.bytes().chain([0]).enumerate() {
        // SAFETY: the pointer leads to `length` bytes, and no more than that are written.
        unsafe { to.add(index).write(byte.cast_signed()) };
    }
    SUCCESS
}

macro_rules! export {
    ($($name:ident($($arg:ident: $kind:ty),*) $body:block)+) => {$(
        #[doc = concat!("`", stringify!($name), "` of nvml.h.")]
        ///
        /// # Safety
        /// As nvml.h demands, each pointer leads to a place of its type.
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
    instance: c_uint,
    compute: c_uint,
}

/// Writes the processes on a device. As with NVML, a caller whose list is too short is told the length that it needs.
fn processes(device: usize, count: *mut c_uint, list: *mut Process) -> c_int {
    let pids = match gpu(device) {
        Ok(gpu) => gpu.pids,
        Err(code) => return code,
    };
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    let most = c_uint::try_from(pids.len()).unwrap_or(c_uint::MAX);
    // SAFETY: `count` is not null, and leads to the length of `list`, as nvml.h demands.
    let room = unsafe { count.read() };
    // SAFETY: as above.
    unsafe { count.write(most) };
    if room < most {
        return INSUFFICIENT_SIZE;
    }
    for (index, pid) in pids.into_iter().enumerate() {
        // SAFETY: the list has room for `room` processes, and no more than that are written.
        unsafe { list.add(index).write(Process { pid, memory: 0, instance: c_uint::MAX, compute: c_uint::MAX }) };
    }
    SUCCESS
}

export! {
    nvmlInit_v2() { if machine().is_some() { SUCCESS } else { DRIVER_NOT_LOADED } }
    nvmlShutdown() { SUCCESS }
    nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) {
        text(machine().map(|m| m.driver).ok_or(DRIVER_NOT_LOADED), to, length)
    }
    nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) {
        answer(machine().map(|m| m.cuda).ok_or(DRIVER_NOT_LOADED), to)
    }
    nvmlDeviceGetCount_v2(to: *mut c_uint) {
        let count = machine().map(|m| c_uint::try_from(m.gpus.len()).unwrap_or(0));
        answer(count.ok_or(DRIVER_NOT_LOADED), to)
    }
    nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut usize) { answer(Ok(index as usize + 1), to) }
    nvmlDeviceGetUUID(device: usize, to: *mut c_char, length: c_uint) {
        text(gpu(device).map(|g| g.uuid), to, length)
    }
    nvmlDeviceGetName(device: usize, to: *mut c_char, length: c_uint) {
        text(gpu(device).map(|g| g.name), to, length)
    }
    nvmlDeviceGetMemoryInfo_v2(device: usize, to: *mut Memory) {
        answer(gpu(device).map(|g| Memory {
            version: 0,
            total: g.total_mib << 20,
            reserved: 0,
            free: g.total_mib.saturating_sub(g.used_mib) << 20,
            used: g.used_mib << 20,
        }), to)
    }
    nvmlDeviceGetUtilizationRates(device: usize, to: *mut Utilization) {
        answer(gpu(device).map(|g| Utilization { gpu: g.utilisation, memory: 0 }), to)
    }
    nvmlDeviceGetTemperature(device: usize, _sensor: c_uint, to: *mut c_uint) {
        answer(gpu(device).map(|g| g.celsius), to)
    }
    nvmlDeviceGetPowerUsage(device: usize, to: *mut c_uint) { answer(gpu(device).map(|g| g.watts * 1_000), to) }
    nvmlDeviceGetCudaComputeCapability(device: usize, major: *mut c_int, minor: *mut c_int) {
        match answer(gpu(device).map(|_| 9), major) {
            SUCCESS => answer(Ok(0), minor),
            code => code,
        }
    }
    nvmlDeviceGetPciInfo_v3(device: usize, to: *mut Pci) {
        let mut bus_id = [0; 32];
        for (to, byte) in bus_id.iter_mut().zip(format!("00000000:{device:02X}:00.0").bytes()) {
            *to = byte.cast_signed();
        }
        answer(gpu(device).map(|_| Pci { legacy: [0; 16], numbers: [0; 5], bus_id }), to)
    }
    nvmlDeviceGetComputeRunningProcesses_v3(device: usize, count: *mut c_uint, list: *mut Process) {
        processes(device, count, list)
    }
    nvmlDeviceGetGraphicsRunningProcesses_v3(_device: usize, count: *mut c_uint, _list: *mut Process) {
        answer(Ok(0), count)
    }
    nvmlDeviceGetTotalEccErrors(device: usize, _kind: c_uint, _counter: c_uint, to: *mut c_ulonglong) {
        answer(gpu(device).and_then(|g| g.ecc.ok_or(NOT_SUPPORTED)), to)
    }
}
