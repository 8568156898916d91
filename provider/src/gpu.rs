//! The machine's GPUs: NVIDIA's by NVML, simulated ones if the owner says so, or none.

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
    /// There are none.
    None,
    /// NVIDIA's.
    Nvidia(Box<Nvidia>),
    /// This many pretended ones.
    Simulated(u32),
}

/// NVIDIA's GPUs, as they were found at the start. One that is lost does not say any more which it is.
pub(crate) struct Nvidia {
    nvml: Nvml,
    found: Vec<Found>,
    /// What was said of a GPU already.
    said: Mutex<BTreeMap<u32, GpuTrouble>>,
}

struct Found {
    index: u32,
    gpu: Gpu,
    /// Uncorrected memory errors from before; `None` where it does not count them.
    ecc: Option<u64>,
}

impl Gpus {
    /// Looks for them.
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

    /// What they are.
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
            Self::Nvidia(nvidia) => nvidia.found.iter().map(|found| found.gpu.clone()).collect(),
        }
    }

    /// How they fare. Simulated ones follow whether a job runs: no number is made up beyond that.
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
            Self::Nvidia(nvidia) => nvidia.found.iter().map(|found| nvidia.reading(found)).collect(),
        }
    }

    /// Whether a process uses one of them that is in none of these containers.
    pub(crate) fn used_by_others(&self, containers: &[String]) -> bool {
        let Self::Nvidia(nvidia) = self else { return false };
        nvidia.found.iter().any(|found| nvidia.pids(found.index).into_iter().any(|pid| !is_ours(pid, containers)))
    }
}

fn simulated_uuid(index: u32) -> String {
    format!("GPU-simulated-{index}")
}

/// Whether a process runs in one of these containers, by its cgroup. A process of which nothing is known (the worker
/// is in a container itself) counts as a job's where there is one.
fn is_ours(pid: u32, containers: &[String]) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/cgroup")) {
        Ok(cgroup) => containers.iter().any(|id| cgroup.contains(id.as_str())),
        Err(_) => !containers.is_empty(),
    }
}

impl Nvidia {
    fn find(nvml: Nvml) -> Self {
        let count = nvml.device_count().unwrap_or(0);
        let mut found = Vec::new();
        for index in 0..count {
            match nvml.device_by_index(index).and_then(|device| describe(&device)) {
                Ok((gpu, ecc)) => found.push(Found { index, gpu, ecc }),
                Err(error) => warn!(%error, index, "a GPU does not answer: it is not listed"),
            }
        }
        Self { nvml, found, said: Mutex::default() }
    }

    fn reading(&self, found: &Found) -> GpuReading {
        let read = self.nvml.device_by_index(found.index).and_then(|device| {
            Ok(GpuReading {
                uuid: device.uuid()?,
                utilisation_percent: device.utilization_rates()?.gpu,
                memory_used: Mebibytes(device.memory_info()?.used >> 20),
                // Sensors that a card does not have read as zero.
                celsius: device.temperature(TemperatureSensor::Gpu).unwrap_or(0),
                watts: device.power_usage().map_or(0, |milliwatts| milliwatts / 1_000),
                processes: u32::try_from(pids(&device).len()).unwrap_or(u32::MAX),
                trouble: ecc(&device).zip(found.ecc).and_then(|(now, then)| (now > then).then_some(GpuTrouble::Ecc)),
            })
        });
        let reading = read.unwrap_or_else(|e| GpuReading {
            uuid: found.gpu.uuid.clone(),
            utilisation_percent: 0,
            memory_used: Mebibytes(0),
            celsius: 0,
            watts: 0,
            processes: 0,
            trouble: Some(trouble(&e)),
        });
        self.say(found, reading.trouble);
        reading
    }

    /// Says what is wrong when it becomes so, and when it is over.
    fn say(&self, found: &Found, trouble: Option<GpuTrouble>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match trouble {
            Some(trouble) => said.insert(found.index, trouble),
            None => said.remove(&found.index),
        };
        match trouble {
            Some(now) if before != trouble => warn!(gpu = found.gpu.uuid, trouble = ?now, "{}", now.description()),
            None if before.is_some() => info!(gpu = found.gpu.uuid, "the GPU is well again"),
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
