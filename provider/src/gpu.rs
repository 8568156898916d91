//! The machine's GPUs: NVIDIA's by NVML, simulated ones if the owner says so, or none.

use std::path::Path;

use gpubnb_events::{
    spec::{Gpu, Mebibytes},
    telemetry::GpuReading,
};
use nvml_wrapper::{Device, Nvml, enum_wrappers::device::TemperatureSensor, error::NvmlError};
use tracing::{info, warn};

/// The machine's GPUs.
pub(crate) enum Gpus {
    /// There are none.
    None,
    /// NVIDIA's.
    Nvidia(Box<Nvml>),
    /// This many pretended ones.
    Simulated(u32),
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
            Ok(nvml) => Self::Nvidia(Box::new(nvml)),
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
            Self::Nvidia(nvml) => nvml.sys_driver_version().ok(),
            _ => None,
        }
    }

    pub(crate) fn cuda(&self) -> Option<String> {
        let Self::Nvidia(nvml) = self else { return None };
        let version = nvml.sys_cuda_driver_version().ok()?;
        Some(format!("{}.{}", version / 1_000, version % 1_000 / 10))
    }

    /// What they are.
    pub(crate) fn list(&self) -> Vec<Gpu> {
        match self {
            Self::None => Vec::new(),
            Self::Simulated(count) => (0..*count)
                .map(|i| Gpu { uuid: simulated_uuid(i), model: "Simulated GPU".to_owned(), memory: Mebibytes(24_576) })
                .collect(),
            Self::Nvidia(nvml) => each(nvml, |device| {
                Ok(Gpu {
                    uuid: device.uuid()?,
                    model: device.name()?,
                    memory: Mebibytes(device.memory_info()?.total >> 20),
                })
            }),
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
                })
                .collect(),
            Self::Nvidia(nvml) => each(nvml, |device| {
                Ok(GpuReading {
                    uuid: device.uuid()?,
                    utilisation_percent: device.utilization_rates()?.gpu,
                    memory_used: Mebibytes(device.memory_info()?.used >> 20),
                    // Sensors that a card does not have read as zero.
                    celsius: device.temperature(TemperatureSensor::Gpu).unwrap_or(0),
                    watts: device.power_usage().map_or(0, |milliwatts| milliwatts / 1_000),
                })
            }),
        }
    }
}

fn simulated_uuid(index: u32) -> String {
    format!("GPU-simulated-{index}")
}

/// Reads each device; one that does not answer is left out and said so.
fn each<T>(nvml: &Nvml, read: impl Fn(&Device<'_>) -> Result<T, NvmlError>) -> Vec<T> {
    let count = nvml.device_count().unwrap_or(0);
    let device = |index| nvml.device_by_index(index).and_then(|device| read(&device));
    let (read, failed): (Vec<_>, Vec<_>) = (0..count).map(device).partition(Result::is_ok);
    for error in failed.into_iter().filter_map(Result::err) {
        warn!(%error, "a GPU does not answer");
    }
    read.into_iter().filter_map(Result::ok).collect()
}
