//! The request for a job: one type, which the web form, the API and the client `gpubnb` write. "Run again" on a job's
//! page makes the request anew from the job.
//!
//! Belongs here: the fields with their units, the way from a request to a command, and the way from a job back to a
//! request. Must not come here: the rules that a job must keep (`services/domain/src/submission.rs`).
//!
//! All fields use the same units: thousandths of a core, MiB, seconds, and dollars as text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    command::{Secret, SubmitJob},
    ids::{CommandId, JobId, MachineId},
    money::{HourlyRate, MicroUsd},
    refusal::{Refusal, invalid},
    spec::{
        DatasetMount, Egress, Input, InvalidPattern, JobSpec, Limits, Mebibytes, Placement, Requirements, Resources,
        Strategy,
    },
    template::Template,
    time::Seconds,
};

/// An uploaded input file, and its path in the container. The size and the hash of the file are not part of the
/// request: the store of uploads knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputRequest {
    /// The id under which the file was uploaded: `PUT /inputs/{id}`.
    #[schema(value_type = String, format = Uuid)]
    pub input: CommandId,
    /// Path of the file below `/input` in the container.
    pub path: String,
}

/// A dataset of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetRequest {
    /// The name of one of your datasets, or its id. A name stands for the newest dataset with this name.
    pub dataset: String,
    /// The name of the directory at which the job finds the dataset: `/data/<directory>`. The dataset's name if
    /// missing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub directory: Option<String>,
    /// True if the job needs a copy that it may change. The copy is `/scratch/<directory>`, on the job's disk.
    #[serde(deserialize_with = "check_box", skip_serializing_if = "is_false", default)]
    pub writable: bool,
}

/// The request for a job, from `POST /api/v1/jobs`, from the web form, or from `gpubnb run`. Numbers may be given as
/// text, as a form sends them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JobRequest {
    /// The id of the job, a UUID of version 7; the server makes one if it is missing. A second request with the same id
    /// is the same job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The id of a template of the market. A request with a template needs no image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The values of the template's fields, by the names of the fields.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// A custom image, pinned by digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Arguments for a custom image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The directory that the program starts in, an absolute path; the image's own, or `/output`, if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// CPU, thousandths of a core.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Memory, MiB.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Size of `/dev/shm`, MiB, which counts as memory; a quarter of the memory (at most 1 GiB) if missing.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub shm_mib: Option<u64>,
    /// The most that is kept of the files in `/output`, MiB.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub output_mib: Option<u64>,
    /// Size of the job's disk, MiB, which holds `/output`, `/scratch` and the volumes of the image; 256 more than the
    /// output if missing.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    /// The most processes and threads; 512 if missing.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// The most open files of each process; 4,096 if missing.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// Number of GPUs.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// Least memory of each GPU, MiB.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub vram_mib: Option<u64>,
    /// The hosts of the internet that the job may reach, such as `pypi.org`; `*.pypi.org` for all names below it, too;
    /// `*` for every public host.
    #[serde(skip_serializing_if = "Egress::is_none")]
    pub egress: Egress,
    /// The machine on which the job must run; the market chooses one if it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// Highest price of the machine per hour, dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_cap_usd: Option<String>,
    /// Part of the name of the GPU model that the machine must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_model: Option<String>,
    /// The oldest CUDA version that the machine's driver must support, such as `12.4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cuda: Option<String>,
    /// The region in which the machine must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The strategy by which the market chooses, if the request names no machine; `cheapest` if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Least reliability of the machine: the share of its attempts that ended without a fault of the machine, percent.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub min_reliability: Option<u32>,
    /// True if the machine must have passed its self-test. Recommendations of the self-test do not count.
    #[serde(deserialize_with = "check_box", skip_serializing_if = "is_false")]
    pub verified: bool,
    /// True if the machine may have simulated GPUs.
    #[serde(deserialize_with = "check_box", skip_serializing_if = "is_false")]
    pub allow_simulated: bool,
    /// Time limit of a run, seconds.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub time_seconds: Option<u64>,
    /// Most that the job may cost, dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_usd: Option<String>,
    /// The number of times that the job may start.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The longest time that the job waits for a machine, seconds.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub queue_seconds: Option<u64>,
    /// The job's environment variables. The values are secrets: they are given to the machine that runs the job, and to
    /// nobody else.
    #[schema(value_type = BTreeMap<String, String>)]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
    /// The names of your stored secrets that the job gets as environment variables of the same names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The input files of the job.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputRequest>,
    /// The datasets of the job.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<DatasetRequest>,
}

impl JobRequest {
    /// The command that submits the job. The id of the job is `job` if the request has none. `inputs` and `datasets`
    /// are those of the request, as the store of files describes them.
    ///
    /// Refuses a request without an image, values that the template's fields do not allow, texts that are no amount,
    /// no CUDA version or no host, and a request that names a machine and also demands a GPU model, a CUDA version, a
    /// region, a reliability or a self-test.
    pub fn into_command(
        self,
        job: JobId,
        template: Option<&Template>,
        inputs: Vec<Input>,
        datasets: Vec<DatasetMount>,
    ) -> Result<SubmitJob, Refusal> {
        let mut placement = self.placement()?;
        let requirements = &mut placement.requirements;
        if requirements.machine.is_none() {
            requirements.min_cuda = requirements.min_cuda.or(template.and_then(|template| template.min_cuda));
        }
        if self.template.as_deref() != template.map(|t| t.id.as_str()) {
            return Err(invalid("template", "There is no such template. The page Templates lists them."));
        }
        let base = template.map_or_else(custom_resources, |t| t.resources.clone());
        let resources = self.resources(&base, &datasets);
        let command = match template {
            Some(template) => template.arguments(&self.parameters)?,
            None => self.command,
        };
        let image = match (template, self.image) {
            (Some(template), _) => template.image.clone(),
            (None, Some(image)) => image,
            (None, None) => return Err(invalid("image", "Choose a template, or name an image.")),
        };
        let name = self.name.filter(|n| !n.trim().is_empty());
        // A JSON list of hosts may have capital letters. Parsing the hosts makes the letters small.
        let needed = template.map(|template| template.egress.patterns()).unwrap_or_default();
        let egress = [needed, self.egress.patterns()].concat();
        let egress = egress.join(" ").parse().map_err(|e: InvalidPattern| invalid("egress", e.to_string()))?;
        let secrets: BTreeSet<String> = self.secrets.into_iter().collect();
        if let Some(name) = secrets.iter().find(|name| self.env.contains_key(*name)) {
            return Err(invalid("secrets", format!("{name} is a variable and a secret of this job: leave one out.")));
        }
        let spec = JobSpec {
            name: name.unwrap_or_else(|| template.map_or("Custom image", |t| &t.title).to_owned()),
            template: template.map(|t| t.id.clone()),
            image,
            command,
            workdir: not_blank(self.workdir.as_deref()).map(ToOwned::to_owned),
            resources,
            egress,
            env: self.env.keys().chain(&secrets).cloned().collect::<BTreeSet<_>>().into_iter().collect(),
            secrets: secrets.into_iter().collect(),
            inputs,
            datasets,
            task: None,
        };
        Ok(SubmitJob {
            job: self.job.unwrap_or(job),
            spec,
            placement,
            time: Seconds(self.time_seconds.unwrap_or_else(|| template.map_or(3_600, |t| t.seconds))),
            budget: dollars("budget", self.budget_usd.as_deref())?,
            max_attempts: self.max_attempts,
            queue: self.queue_seconds.map(Seconds),
            env: self.env,
        })
    }

    /// The resources of the job: those of the request, and else those of `base`.
    fn resources(&self, base: &Resources, datasets: &[DatasetMount]) -> Resources {
        let mut resources = Resources {
            cpu_millis: self.cpu_millis.unwrap_or(base.cpu_millis),
            memory: self.memory_mib.map_or(base.memory, Mebibytes),
            shm: self.shm_mib.map(Mebibytes).or(base.shm),
            output: self.output_mib.map_or(base.output, Mebibytes),
            disk: self.disk_mib.map(Mebibytes).or(base.disk),
            pids: self.pids.or(base.pids),
            open_files: self.open_files.or(base.open_files),
            gpus: self.gpus.unwrap_or(base.gpus),
            vram: self.vram_mib.map_or(base.vram, Mebibytes),
        };
        // The copies of datasets must not take the room that the job expects.
        let copied: u64 = datasets.iter().filter(|mount| mount.writable).map(DatasetMount::bytes_on_disk).sum();
        if self.disk_mib.is_none() && copied > 0 {
            resources.disk = Some(Mebibytes(resources.disk_size().0.saturating_add(copied.div_ceil(1 << 20))));
        }
        resources
    }

    /// The machine that the request names, or the requirements by which the market chooses one.
    fn placement(&self) -> Result<Placement, Refusal> {
        let price_cap = dollars("price_cap", self.price_cap_usd.as_deref())?.map(HourlyRate);
        let (gpu_model, region) = (not_blank(self.gpu_model.as_deref()), not_blank(self.region.as_deref()));
        let min_cuda = not_blank(self.min_cuda.as_deref()).map(str::parse).transpose();
        let min_cuda = min_cuda.map_err(|_| invalid("min_cuda", "Write the CUDA version as 12.4."))?;
        if let Some(machine) = self.machine {
            let has_other = gpu_model.is_some() || region.is_some() || min_cuda.is_some();
            if has_other || self.min_reliability.is_some() || self.verified {
                let message = "You named a machine: leave out GPU model, CUDA version, region, reliability and \
                    self-test, or name no machine.";
                return Err(invalid("machine", message));
            }
            return Ok(Placement::on_machine(machine, price_cap));
        }
        let requirements = Requirements {
            machine: None,
            price_cap,
            gpu_model: gpu_model.map(ToOwned::to_owned),
            region: region.map(ToOwned::to_owned),
            min_cuda,
            allow_simulated: self.allow_simulated,
            reliability: self.min_reliability,
            verified: self.verified,
        };
        Ok(Placement { strategy: self.strategy.unwrap_or_default(), requirements })
    }

    /// The request that asks for the same job once more, with every default filled in. Each value of the environment is
    /// empty, because the market deletes the values when the job ends: the user has to enter them again.
    ///
    /// `template` is the template that the market has now under the id in the specification. If the job was not made
    /// from it, because it has changed, the request names the image and the command.
    pub fn from_job(spec: &JobSpec, placement: &Placement, limits: &Limits, template: Option<&Template>) -> Self {
        // Every struct is taken apart by the names of its fields, so that a forgotten new field does not compile.
        let JobSpec {
            name,
            template: id,
            image,
            command,
            workdir,
            resources,
            egress,
            env,
            secrets,
            inputs,
            datasets,
            task: _,
        } = spec;
        let Resources { cpu_millis, memory, shm, output, disk, pids, open_files, gpus, vram } = resources;
        let Placement { strategy, requirements } = placement;
        let Limits { time, budget, max_attempts, queue, max_price } = limits;
        let Requirements { machine, price_cap, gpu_model, region, min_cuda, allow_simulated, reliability, verified } =
            requirements;
        // A template that needs more hosts by now would give the job hosts that it did not have.
        let has_all = |t: &Template| t.egress.patterns().iter().all(|host| egress.patterns().contains(host));
        let template = template.filter(|t| id.as_ref() == Some(&t.id) && *image == t.image && has_all(t));
        let template = template.and_then(|t| Some((t.id.clone(), t.parameters(command)?)));
        let without_sign = |amount: MicroUsd| amount.to_string().replace('$', "");
        Self {
            job: None,
            name: Some(name.clone()),
            image: template.is_none().then(|| image.clone()),
            command: if template.is_none() { command.clone() } else { Vec::new() },
            template: template.as_ref().map(|(id, _)| id.clone()),
            parameters: template.map(|(_, parameters)| parameters).unwrap_or_default(),
            workdir: workdir.clone(),
            cpu_millis: Some(*cpu_millis),
            memory_mib: Some(memory.0),
            shm_mib: shm.map(|shm| shm.0),
            output_mib: Some(output.0),
            disk_mib: disk.map(|disk| disk.0),
            pids: *pids,
            open_files: *open_files,
            gpus: Some(*gpus),
            vram_mib: Some(vram.0),
            egress: egress.clone(),
            machine: *machine,
            price_cap_usd: price_cap.map(|cap| without_sign(cap.0)),
            gpu_model: gpu_model.clone(),
            min_cuda: min_cuda.map(|version| version.to_string()),
            region: region.clone(),
            strategy: machine.is_none().then_some(*strategy),
            min_reliability: *reliability,
            verified: *verified,
            allow_simulated: *allow_simulated && machine.is_none(),
            time_seconds: Some(time.0),
            // A budget that the market chose may be another one the next time.
            budget_usd: max_price.is_none().then(|| without_sign(*budget)),
            max_attempts: Some(*max_attempts),
            queue_seconds: Some(queue.0),
            env: env
                .iter()
                .filter(|name| !secrets.contains(name))
                .map(|n| (n.clone(), Secret(String::new())))
                .collect(),
            secrets: secrets.clone(),
            inputs: inputs.iter().map(|i| InputRequest { input: i.input, path: i.path.clone() }).collect(),
            datasets: datasets.iter().map(DatasetRequest::from).collect(),
        }
    }
}

impl From<&DatasetMount> for DatasetRequest {
    fn from(mount: &DatasetMount) -> Self {
        let DatasetMount { dataset, directory, writable, files: _, bytes: _ } = mount;
        Self { dataset: dataset.to_string(), directory: Some(directory.clone()), writable: *writable }
    }
}

/// The resources of a job with a custom image, where the request leaves them out.
const fn custom_resources() -> Resources {
    Resources::new(1_000, Mebibytes(1_024), Mebibytes(1_024))
}

fn not_blank(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|t| !t.is_empty())
}

/// Parses an amount in dollars, such as `12.50`; `None` if the text is missing or blank.
pub fn dollars(field: &str, text: Option<&str>) -> Result<Option<MicroUsd>, Refusal> {
    let parsed = not_blank(text).map(MicroUsd::from_str).transpose();
    parsed.map_err(|e| invalid(field, e.to_string()))
}

/// Reads a number that is given as a number or as text. An empty text and null are read as `None`.
fn number<'de, D: Deserializer<'de>, T: FromStr + Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given<T> {
        Number(T),
        Text(String),
        Nothing(()),
    }
    match Given::<T>::deserialize(from).map_err(|_| de::Error::custom("expected a whole number"))? {
        Given::Number(number) => Ok(Some(number)),
        Given::Nothing(()) => Ok(None),
        Given::Text(text) => match text.trim() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| de::Error::custom("expected a whole number")),
        },
    }
}

/// Reads true or false, or `on`, which a form sends for a checked box.
fn check_box<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    struct CheckBox;

    impl de::Visitor<'_> for CheckBox {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true, false or `on`")
        }

        fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
            Ok(value)
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<bool, E> {
            match value {
                "on" | "true" => Ok(true),
                "" | "false" => Ok(false),
                other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
            }
        }
    }

    from.deserialize_any(CheckBox)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(value: &bool) -> bool {
    !*value
}
