//! The machine's GPUs: NVIDIA's, which are read by NVML, or simulated ones where the owner asks for them, or none.

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
    error::NvmlError,
};
use tracing::{info, warn};

/// The machine's GPUs.
pub(crate) enum Gpus {
    /// The machine has none.
    None,
    /// NVIDIA's GPUs.
    Nvidia(Box<Nvidia>),
    /// So many simulated ones.
    Simulated(u32),
}

/// NVIDIA's GPUs as they were found at the start. A GPU that is lost does not tell its UUID any more, and is known by
/// its index.
pub(crate) struct Nvidia {
    nvml: Nvml,
    gpus: Vec<NvidiaGpu>,
    /// The trouble of each GPU, by its index, that was logged already.
    logged: Mutex<BTreeMap<u32, GpuTrouble>>,
}

/// A GPU as it was found at the start.
struct NvidiaGpu {
    index: u32,
    gpu: Gpu,
    /// Uncorrected memory errors until the start; `None` where the GPU does not count them.
    ecc: Option<u64>,
}

impl Gpus {
    /// Finds the GPUs of this machine.
    pub(crate) fn probe(simulate: u32, library: Option<&Path>) -> Self {
        if simulate > 0 {
            return Self::Simulated(simulate);
        }
        let nvml = match library {
            Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
            None => Nvml::init(),
        };
        match nvml {
            Ok(nvml) => Self::Nvidia(Box::new(Nvidia::find(nvml))),
            Err(NvmlError::LibloadingError(_)) => {
                info!("no NVIDIA driver here: the machine is listed as CPU-only");
                Self::None
            }
            Err(e) => {
                warn!(error = %e, "the NVIDIA driver does not answer: the machine is listed as CPU-only");
                Self::None
            }
        }
    }

    pub(crate) fn simulated(&self) -> bool {
        matches!(self, Self::Simulated(_))
    }

    pub(crate) fn driver(&self) -> Option<String> {
        match self {
            Self::Nvidia(nvidia) => nvidia.nvml.sys_driver_version().ok(),
            _ => None,
        }
    }

    pub(crate) fn cuda(&self) -> Option<String> {
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

    /// The present readings. Those of simulated GPUs only follow whether a job runs.
    pub(crate) fn readings(&self, busy: bool) -> Vec<GpuReading> {
        match self {
            Self::None => Vec::new(),
            Self::Simulated(count) => (0..*count)
                .map(|i| GpuReading {
                    uuid: simulated_uuid(i),
                    utilisation_percent: if busy { 90 } else { 0 },
                    memory_used: Mebibytes(if busy { 8_192 } else { 0 }),
                    celsius: if busy { 65 } else { 35 },
                    watts: if busy { 250 } else { 20 },
                    processes: u32::from(busy),
                    trouble: None,
                })
                .collect(),
            Self::Nvidia(nvidia) => nvidia.gpus.iter().map(|known| nvidia.reading(known)).collect(),
        }
    }

    /// Returns true where a process that is in none of these containers uses a GPU.
    pub(crate) fn used_by_others(&self, containers: &[String]) -> bool {
        let Self::Nvidia(nvidia) = self else { return false };
        nvidia.gpus.iter().any(|known| nvidia.pids(known.index).into_iter().any(|pid| !is_ours(pid, containers)))
    }
}

fn simulated_uuid(index: u32) -> String {
    format!("GPU-simulated-{index}")
}

/// Looks at a process's cgroup to tell whether the process runs in one of these containers. A worker that is in a
/// container itself cannot see the cgroups of others: then each process counts as a job's where any job runs.
fn is_ours(pid: u32, containers: &[String]) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/cgroup")) {
        Ok(cgroup) => containers.iter().any(|id| cgroup.contains(id.as_str())),
        Err(_) => !containers.is_empty(),
    }
}

impl Nvidia {
    fn find(nvml: Nvml) -> Self {
        let count = nvml.device_count().unwrap_or(0);
        let mut gpus = Vec::new();
        for index in 0..count {
            match nvml.device_by_index(index).and_then(|device| describe(&device)) {
                Ok((gpu, ecc)) => gpus.push(NvidiaGpu { index, gpu, ecc }),
                Err(error) => warn!(%error, index, "a GPU does not answer: it is not listed"),
            }
        }
        Self { nvml, gpus, logged: Mutex::default() }
    }

    fn reading(&self, known: &NvidiaGpu) -> GpuReading {
        let read = self.nvml.device_by_index(known.index).and_then(|device| {
            Ok(GpuReading {
                uuid: device.uuid()?,
                utilisation_percent: device.utilization_rates()?.gpu,
                memory_used: Mebibytes(device.memory_info()?.used >> 20),
                // A sensor that the card does not have reads as zero.
                celsius: device.temperature(TemperatureSensor::Gpu).unwrap_or(0),
                watts: device.power_usage().map_or(0, |milliwatts| milliwatts / 1_000),
                processes: u32::try_from(pids(&device).len()).unwrap_or(u32::MAX),
                trouble: ecc(&device).zip(known.ecc).and_then(|(now, then)| (now > then).then_some(GpuTrouble::Ecc)),
            })
        });
        let reading = read.unwrap_or_else(|e| GpuReading {
            uuid: known.gpu.uuid.clone(),
            utilisation_percent: 0,
            memory_used: Mebibytes(0),
            celsius: 0,
            watts: 0,
            processes: 0,
            trouble: Some(trouble(&e)),
        });
        self.log_change(known, reading.trouble);
        reading
    }

    /// Logs a trouble when it begins, and when it is over.
    fn log_change(&self, known: &NvidiaGpu, trouble: Option<GpuTrouble>) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match trouble {
            Some(trouble) => logged.insert(known.index, trouble),
            None => logged.remove(&known.index),
        };
        match trouble {
            Some(now) if before != trouble => warn!(gpu = known.gpu.uuid, trouble = ?now, "{}", now.description()),
            None if before.is_some() => info!(gpu = known.gpu.uuid, "the GPU works again"),
            _ => {}
        }
    }

    fn pids(&self, index: u32) -> Vec<u32> {
        self.nvml.device_by_index(index).map(|device| pids(&device)).unwrap_or_default()
    }
}

fn describe(device: &Device<'_>) -> Result<(Gpu, Option<u64>), NvmlError> {
    let capability = device.cuda_compute_capability().ok();
    let gpu = Gpu {
        uuid: device.uuid()?,
        model: device.name()?,
        memory: Mebibytes(device.memory_info()?.total >> 20),
        capability: capability.map(|c| format!("{}.{}", c.major, c.minor)),
        pci: device.pci_info().ok().map(|pci| pci.bus_id),
    };
    Ok((gpu, ecc(device)))
}

/// Uncorrected memory errors since the driver was loaded.
fn ecc(device: &Device<'_>) -> Option<u64> {
    device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok()
}

fn pids(device: &Device<'_>) -> Vec<u32> {
    let compute = device.running_compute_processes().unwrap_or_default();
    let graphics = device.running_graphics_processes().unwrap_or_default();
    compute.into_iter().chain(graphics).map(|process| process.pid).collect()
}

fn trouble(e: &NvmlError) -> GpuTrouble {
    match e {
        NvmlError::GpuLost => GpuTrouble::Lost,
        NvmlError::ResetRequired => GpuTrouble::ResetRequired,
        _ => GpuTrouble::Driver,
    }
}
