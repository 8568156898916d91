//! The specification of a job and the offer of a machine: the values inside events and commands. Must not come here:
//! the rules that a submission or an offer must keep (`services/domain`).

mod cuda;
mod egress;
mod hours;
mod image_name;
mod machine;
mod placement;

use serde::{Deserialize, Serialize};

pub use self::{
    cuda::CudaVersion,
    egress::{
        Egress, EgressForm, HostTraffic, InvalidPattern, MAX_HOST, MAX_HOST_PATTERNS, MAX_TRAFFIC_HOSTS, OTHER_HOSTS,
        Traffic, canonical_host,
    },
    hours::{Hours, minute_of_day},
    image_name::{DEFAULT_REGISTRY, ImageName, WELL_KNOWN_REGISTRIES, is_digest, is_in_registries},
    machine::{Gpu, Hardware, MAX_OPEN_FILES, MAX_PIDS, MachineSettings, Offer, OwnerPolicy, Setting},
    placement::{
        Chosen, Placement, PlacementExplanation, Reject, RejectCount, Requirements, Strategy, WinReason, Winner,
    },
};
use crate::{
    batch::Task,
    dataset::DatasetId,
    ids::{AccountId, CommandId, Seq},
    money::{HourlyRate, MicroUsd},
    time::{Millis, Seconds},
};

/// Mebibytes (1,048,576 bytes).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Mebibytes(pub u64);

impl Mebibytes {
    /// The same size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }
}

/// The specification of a job: the program and its resources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobSpec {
    /// A name for people.
    pub name: String,
    /// The id of the job's template; `None` for a custom image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Image reference: the template's image, or a custom image pinned by digest.
    pub image: String,
    /// Arguments for the image's entry point.
    #[serde(default)]
    pub command: Vec<String>,
    /// The directory that the program starts in, an absolute path; `None`: `/output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The resources that the job may use.
    pub resources: Resources,
    /// The hosts of the internet that the job may reach, on a machine whose owner allows all of them.
    #[serde(default)]
    pub egress: Egress,
    /// Names of the environment variables. The values are secrets, and never enter an event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Those names of `env` whose values are named secrets of the account.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The input files, which the job finds below `/input`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// The datasets, each in a directory of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<DatasetMount>,
    /// The task that the job is; `None` for a job that belongs to no batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
}

impl JobSpec {
    /// A specification with an image, its arguments and resources, and defaults for all else. Code that sets only some
    /// fields starts from this function, so that a new field does not change that code.
    pub fn for_image(name: &str, image: &str, command: Vec<String>, resources: Resources) -> Self {
        Self {
            name: name.to_owned(),
            template: None,
            image: image.to_owned(),
            command,
            workdir: None,
            resources,
            egress: Egress::default(),
            env: Vec::new(),
            secrets: Vec::new(),
            inputs: Vec::new(),
            datasets: Vec::new(),
            task: None,
        }
    }
}

/// An input file of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Input {
    /// The id of the upload.
    pub input: CommandId,
    /// Path below `/input`, with `/` between its parts.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in hex.
    pub sha256: String,
}

/// A dataset of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatasetMount {
    /// The id of the dataset.
    #[schema(value_type = String)]
    pub dataset: DatasetId,
    /// The name of the directory at which the job finds the dataset: `/data/<directory>`, read-only, or
    /// `/scratch/<directory>`.
    pub directory: String,
    /// True if the job gets a copy in `/scratch`, which it may change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writable: bool,
    /// Number of files and links.
    pub files: u32,
    /// Size of all files, bytes.
    pub bytes: u64,
}

impl DatasetMount {
    /// The room that a copy takes on a disk, bytes: each file takes up to a block more than its size, and often a
    /// directory.
    pub fn bytes_on_disk(&self) -> u64 {
        self.bytes.saturating_add(u64::from(self.files) * 8_192)
    }

    /// The absolute path of the directory in the job.
    pub fn path(&self) -> String {
        format!("/{}/{}", if self.writable { "scratch" } else { "data" }, self.directory)
    }
}

/// Room on the job's disk beside the output, unless the job asks for another size.
pub const DEFAULT_SCRATCH: Mebibytes = Mebibytes(256);
/// The most processes and threads of a job that asks for no other number.
pub const DEFAULT_PIDS: u32 = 512;
/// The most open files of each process of a job that asks for no other number.
pub const DEFAULT_OPEN_FILES: u32 = 4_096;

/// The limits of a job's container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Resources {
    /// CPU time in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory; there is no swap.
    pub memory: Mebibytes,
    /// Size of `/dev/shm`, which counts as memory; `None`: a quarter of the memory, at most 1 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm: Option<Mebibytes>,
    /// The most that is kept of the files in `/output`.
    pub output: Mebibytes,
    /// Size of the job's disk, which holds `/output`, `/scratch` and the volumes of the image; `None`: the output and
    /// [`DEFAULT_SCRATCH`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Mebibytes>,
    /// The most processes and threads of the job; `None`: [`DEFAULT_PIDS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// The most files that a process of the job can have open; `None`: [`DEFAULT_OPEN_FILES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// Number of GPUs. A job gets whole GPUs.
    #[serde(default)]
    pub gpus: u32,
    /// Least memory of each GPU.
    #[serde(default)]
    pub vram: Mebibytes,
}

impl Resources {
    /// Resources without a GPU. `cpu_millis` is in thousandths of a core, `output` is the size of `/output`.
    pub const fn new(cpu_millis: u32, memory: Mebibytes, output: Mebibytes) -> Self {
        Self {
            cpu_millis,
            memory,
            shm: None,
            output,
            disk: None,
            pids: None,
            open_files: None,
            gpus: 0,
            vram: Mebibytes(0),
        }
    }

    /// The size of the job's disk.
    pub fn disk_size(&self) -> Mebibytes {
        self.disk.unwrap_or(Mebibytes(self.output.0.saturating_add(DEFAULT_SCRATCH.0)))
    }

    /// The most processes and threads of the job.
    pub fn max_pids(&self) -> u32 {
        self.pids.unwrap_or(DEFAULT_PIDS)
    }

    /// The most open files of each process.
    pub fn max_open_files(&self) -> u32 {
        self.open_files.unwrap_or(DEFAULT_OPEN_FILES)
    }

    /// The same resources with GPUs. Each GPU has at least `vram` memory.
    #[must_use]
    pub const fn with_gpus(mut self, gpus: u32, vram: Mebibytes) -> Self {
        (self.gpus, self.vram) = (gpus, vram);
        self
    }
}

/// The limits of a job's time, cost and attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Limits {
    /// The longest time of a run, by the wall clock.
    pub time: Seconds,
    /// The highest cost of the job. The submission holds this amount.
    pub budget: MicroUsd,
    /// The number of times that the job may start. A job with 1 is not started again after a fault of a machine.
    pub max_attempts: u32,
    /// The longest time that the job waits for a machine.
    pub queue: Seconds,
    /// The highest price of a machine that may run the job. The market sets this limit for a submission without a
    /// budget: the budget is then the cost of the full time at this price. `None` if the consumer set the budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_price: Option<HourlyRate>,
}

/// The terms of an assignment. Later changes of the price do not change them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Terms {
    /// Price per hour of metered time.
    pub price: HourlyRate,
    /// The platform's share of the cost, in ten-thousandths.
    pub fee_basis_points: u32,
    /// The account that earns.
    pub provider: AccountId,
}

/// A file that a job left in `/output`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Artifact {
    /// Path below `/output`, with `/` between its parts.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in hex.
    pub sha256: String,
}

/// Entries of `/output` that are no artifacts, all for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeftOut {
    /// The reason.
    pub reason: LeftOutReason,
    /// The number of entries.
    pub entries: u64,
    /// The path of one of the entries, without the characters that no path of an artifact may have.
    pub example: String,
}

/// The reason why an entry of `/output` is no artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub enum LeftOutReason {
    /// The name is no UTF-8, or has a character that is invisible or changes the direction of the text.
    UnusableName,
    /// The path is longer than 512 bytes.
    LongPath,
    /// The entry is below more than 16 directories.
    TooDeep,
    /// The entry is a link, a pipe, a socket or a device.
    NotAFile,
    /// The entry cannot be read.
    Unreadable,
    /// A job keeps at most 1,000 files, with 96 KiB of names.
    TooManyFiles,
    /// The files before this one took up the whole size that the job asked for.
    TooLarge,
    /// The market's store of files was full.
    StoreFull,
    /// Another file has the same name in other characters: `é` as one character, and `é` as an `e` with an accent.
    SameName,
}

impl LeftOutReason {
    /// The reason in words, after "because".
    pub fn describe(self) -> &'static str {
        match self {
            Self::UnusableName => "the name is no UTF-8 text, or has invisible characters",
            Self::LongPath => "the path is longer than 512 bytes",
            Self::TooDeep => "the entry is below more than 16 directories",
            Self::NotAFile => "the entry is a link, a pipe, a socket or a device",
            Self::Unreadable => "the entry cannot be read",
            Self::TooManyFiles => "a job keeps at most 1,000 files, with 96 KiB of names: pack them into an archive",
            Self::StoreFull => "the market's store of files, or your share of the store, was full",
            Self::SameName => "another file has the same name, written with other characters",
            Self::TooLarge => "the files are larger than the output that the job asked for (output_mib)",
        }
    }
}

/// The resources that a run used, as the worker measured them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// Run time by the worker's monotonic clock.
    pub run: Millis,
}

/// The calculation of the billed time: the smallest of `broker`, `worker`, `limit` and `budget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Metering {
    /// The time from `Started` to the event `ended`, by the broker's clock.
    pub broker: Millis,
    /// The run time by the worker's monotonic clock; `None` if the worker reported none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Millis>,
    /// The job's time limit.
    pub limit: Millis,
    /// The time that the budget pays for; `None` if the price is zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Millis>,
    /// The time that is billed.
    pub billed: Millis,
    /// The sequence of `Started`.
    pub started: Seq,
    /// The sequence of the event at which `broker` ends: the first of `Exited`, the event that ended the job and, for
    /// a cancelled job, `CancelRequested`. (Bills of rule 1 do not use `Exited`.)
    pub ended: Seq,
}
