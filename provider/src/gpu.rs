//! The machine's GPUs: NVIDIA GPUs, read through NVML (NVIDIA's management library); or simulated GPUs, if the owner
//! asks for them; or none.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use gpubnb_events::{
    spec::{Gpu, Mebibytes},
    telemetry::{GpuReading, GpuTrouble},
};
use nvml_wrapper::{
    Device, Nvml,
    enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor},
    enums::device::UsedGpuMemory,
    error::NvmlError,
    struct_wrappers::device::ProcessInfo,
};
use tracing::{info, warn};

/// The machine's GPUs.
pub(crate) enum Gpus {
    /// The machine has none.
    None,
    /// NVIDIA's GPUs.
    Nvidia(Box<NvidiaGpus>),
    /// This number of simulated GPUs.
    Simulated(u32),
}

/// A process that only draws, and holds at most this many bytes of the GPU's memory, does not count as a use of the
/// GPU. The display server and each window of a desktop hold less. A game or a renderer holds more.
const MAX_DISPLAY_MEMORY: u64 = 512 << 20;
/// Readings in a row that must fail before an error of the driver counts as a loss of the GPU.
const MIN_FAILURES: u32 = 3;

/// The failures of one GPU.
#[derive(Debug, Default)]
struct Failures {
    /// Failed readings since the last one that succeeded.
    in_a_row: u32,
    /// The trouble that was last logged.
    logged: Option<GpuTrouble>,
}

/// The NVIDIA GPUs that were found when the worker started. A lost GPU does not answer with its UUID, so each GPU is
/// identified by its index.
pub(crate) struct NvidiaGpus {
    nvml: Nvml,
    gpus: Vec<NvidiaGpu>,
    /// The failures of each GPU, by the GPU's index.
    failures: Mutex<BTreeMap<u32, Failures>>,
}

/// An NVIDIA GPU that was found when the worker started.
struct NvidiaGpu {
    index: u32,
    gpu: Gpu,
    /// Uncorrected memory errors before the worker started; `None` if the GPU does not count them.
    ecc_errors: Option<u64>,
}

impl Gpus {
    /// Finds the GPUs of this machine. `simulate` is a number of simulated GPUs, and replaces the real GPUs. `library`
    /// is the file of NVML; `None` for the driver's own.
    pub(crate) fn probe(simulate: u32, library: Option<&Path>) -> Self {
        if simulate > 0 {
            return Self::Simulated(simulate);
        }
        let nvml = match library {
            Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
            None => Nvml::init(),
        };
        match nvml {
            Ok(nvml) => Self::Nvidia(Box::new(NvidiaGpus::find(nvml))),
            Err(NvmlError::LibloadingError(_)) => {
                info!("no NVIDIA driver on this machine: the machine is listed as CPU-only");
                Self::None
            }
            Err(e) => {
                warn!(error = %e, "the NVIDIA driver does not answer: the machine is listed as CPU-only");
                Self::None
            }
        }
    }

    pub(crate) fn is_simulated(&self) -> bool {
        matches!(self, Self::Simulated(_))
    }

    pub(crate) fn driver_version(&self) -> Option<String> {
        match self {
            Self::Nvidia(nvidia) => nvidia.nvml.sys_driver_version().ok(),
            _ => None,
        }
    }

    /// The newest CUDA version that the driver supports, such as `12.4`.
    pub(crate) fn cuda_version(&self) -> Option<String> {
        let Self::Nvidia(nvidia) = self else { return None };
        let version = nvidia.nvml.sys_cuda_driver_version().ok()?;
        Some(format!("{}.{}", version / 1_000, version % 1_000 / 10))
    }

    /// The descriptions of the GPUs.
    pub(crate) fn list(&self) -> Vec<Gpu> {
        match self {
            Self::None => Vec::new(),
            Self::Simulated(count) => (0..*count)
                .map(|i| Gpu {
                    uuid: simulated_uuid(i),
                    model: "Simulated GPU".to_owned(),
                    memory: Mebibytes(24_576),
                    capability: None,
                    pci: None,
                })
                .collect(),
            Self::Nvidia(nvidia) => nvidia.gpus.iter().map(|known| known.gpu.clone()).collect(),
        }
    }

    /// The current reading of each GPU, for display. A failed reading does not count as a failure of the GPU.
    pub(crate) fn shown_readings(&self, is_busy: bool) -> Vec<GpuReading> {
        match self {
            Self::Nvidia(nvidia) => nvidia.gpus.iter().map(|known| nvidia.reading(known, false)).collect(),
            Self::None | Self::Simulated(_) => self.readings(is_busy),
        }
    }

    /// The current reading of each GPU. `is_busy` is true while a job runs; simulated GPUs then report load.
    pub(crate) fn readings(&self, is_busy: bool) -> Vec<GpuReading> {
        match self {
            Self::None => Vec::new(),
            Self::Simulated(count) => (0..*count)
                .map(|i| GpuReading {
                    uuid: simulated_uuid(i),
                    utilisation_percent: if is_busy { 90 } else { 0 },
                    memory_used: Mebibytes(if is_busy { 8_192 } else { 0 }),
                    celsius: if is_busy { 65 } else { 35 },
                    watts: if is_busy { 250 } else { 20 },
                    processes: u32::from(is_busy),
                    trouble: None,
                })
                .collect(),
            Self::Nvidia(nvidia) => nvidia.gpus.iter().map(|known| nvidia.reading(known, true)).collect(),
        }
    }

    /// The readings after [`MIN_FAILURES`] tries, so that an error of the driver is certain. For the self-test, when no
    /// job runs.
    pub(crate) fn confirmed_readings(&self) -> Vec<GpuReading> {
        (0..MIN_FAILURES).map(|_| self.readings(false)).next_back().unwrap_or_default()
    }

    /// Returns true if a process outside of these containers uses a GPU. `containers` are Docker's ids. A process that
    /// only draws, and holds little of the GPU's memory, does not count: the display server of a desktop is one.
    pub(crate) fn is_used_by_others(&self, containers: &[String]) -> bool {
        let Self::Nvidia(nvidia) = self else { return false };
        nvidia
            .gpus
            .iter()
            .any(|known| nvidia.using_pids(known.index).into_iter().any(|pid| !is_in_containers(pid, containers)))
    }
}

fn simulated_uuid(index: u32) -> String {
    format!("GPU-simulated-{index}")
}

/// Returns true if a process belongs to one of these containers, by the process's cgroup. A worker that is itself in a
/// container cannot see the cgroups of other processes. Then each process counts as a job's process while any job runs.
fn is_in_containers(pid: u32, containers: &[String]) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/cgroup")) {
        Ok(cgroup) => containers.iter().any(|id| cgroup.contains(id.as_str())),
        Err(_) => !containers.is_empty(),
    }
}

impl NvidiaGpus {
    fn find(nvml: Nvml) -> Self {
        let count = nvml.device_count().unwrap_or(0);
        let mut gpus = Vec::new();
        for index in 0..count {
            match nvml.device_by_index(index).and_then(|device| describe(&device)) {
                Ok((gpu, ecc_errors)) => gpus.push(NvidiaGpu { index, gpu, ecc_errors }),
                Err(error) => warn!(%error, index, "a GPU does not answer: the GPU is not listed"),
            }
        }
        Self { nvml, gpus, failures: Mutex::default() }
    }

    fn reading(&self, known: &NvidiaGpu, counts: bool) -> GpuReading {
        let read = self.nvml.device_by_index(known.index).and_then(|device| {
            Ok(GpuReading {
                uuid: device.uuid()?,
                // A missing sensor, or one that the GPU does not support, reads as 0.
                utilisation_percent: if_supported(device.utilization_rates())?.map_or(0, |rates| rates.gpu),
                memory_used: Mebibytes(if_supported(device.memory_info())?.map_or(0, |memory| memory.used >> 20)),
                celsius: device.temperature(TemperatureSensor::Gpu).unwrap_or(0),
                watts: device.power_usage().map_or(0, |milliwatts| milliwatts / 1_000),
                processes: u32::try_from(pids(&device).len()).unwrap_or(u32::MAX),
                trouble: ecc_errors(&device)
                    .zip(known.ecc_errors)
                    .and_then(|(now, at_start)| (now > at_start).then_some(GpuTrouble::Ecc)),
            })
        });
        let failure = match &read {
            Ok(reading) => reading.trouble,
            Err(e) => Some(trouble(e)),
        };
        let reading = read.unwrap_or_else(|_| GpuReading {
            uuid: known.gpu.uuid.clone(),
            utilisation_percent: 0,
            memory_used: Mebibytes(0),
            celsius: 0,
            watts: 0,
            processes: 0,
            trouble: None,
        });
        GpuReading { trouble: self.confirm(known, failure, counts), ..reading }
    }

    /// Returns the trouble that is reported for a GPU, and logs its beginning and its end. An error of the driver
    /// counts after [`MIN_FAILURES`] readings in a row: one failed reading is no proof that the GPU is lost.
    fn confirm(&self, known: &NvidiaGpu, failure: Option<GpuTrouble>, counts: bool) -> Option<GpuTrouble> {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = all.entry(known.index).or_default();
        if !counts {
            return failures.logged;
        }
        let is_driver_error = failure == Some(GpuTrouble::Driver);
        failures.in_a_row = if is_driver_error { failures.in_a_row.saturating_add(1) } else { 0 };
        let is_certain = !is_driver_error || failures.in_a_row >= MIN_FAILURES;
        let confirmed = failure.filter(|_| is_certain);
        match (failures.logged, confirmed) {
            (before, Some(now)) if before != confirmed => {
                warn!(gpu = known.gpu.uuid, trouble = ?now, "{}", now.description());
            }
            (Some(_), None) => info!(gpu = known.gpu.uuid, "the GPU works again"),
            _ => {}
        }
        failures.logged = confirmed;
        confirmed
    }

    /// The processes that use a GPU: those that compute, and those that draw and hold much of the GPU's memory.
    fn using_pids(&self, index: u32) -> Vec<u32> {
        let Ok(device) = self.nvml.device_by_index(index) else { return Vec::new() };
        let draws_much = |process: &ProcessInfo| match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => bytes > MAX_DISPLAY_MEMORY,
            UsedGpuMemory::Unavailable => false,
        };
        let compute = device.running_compute_processes().unwrap_or_default();
        let graphics = device.running_graphics_processes().unwrap_or_default();
        compute.into_iter().chain(graphics.into_iter().filter(draws_much)).map(|process| process.pid).collect()
    }
}

/// The value of a sensor; `None` if the GPU does not support the sensor.
fn if_supported<T>(read: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(NvmlError::NotSupported) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The description of a GPU, and its count of uncorrected memory errors.
fn describe(device: &Device<'_>) -> Result<(Gpu, Option<u64>), NvmlError> {
    let capability = device.cuda_compute_capability().ok();
    let gpu = Gpu {
        uuid: device.uuid()?,
        model: device.name()?,
        memory: Mebibytes(device.memory_info()?.total >> 20),
        capability: capability.map(|c| format!("{}.{}", c.major, c.minor)),
        pci: device.pci_info().ok().map(|pci| pci.bus_id),
    };
    Ok((gpu, ecc_errors(device)))
}

/// Uncorrected memory errors since the driver was loaded; `None` if the GPU does not count them.
fn ecc_errors(device: &Device<'_>) -> Option<u64> {
    device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok()
}

fn pids(device: &Device<'_>) -> Vec<u32> {
    let compute = device.running_compute_processes().unwrap_or_default();
    let graphics = device.running_graphics_processes().unwrap_or_default();
    compute.into_iter().chain(graphics).map(|process| process.pid).collect()
}

/// The trouble of a GPU for which NVML returned an error.
fn trouble(e: &NvmlError) -> GpuTrouble {
    match e {
        NvmlError::GpuLost => GpuTrouble::Lost,
        NvmlError::ResetRequired => GpuTrouble::ResetRequired,
        _ => GpuTrouble::Driver,
    }
}
