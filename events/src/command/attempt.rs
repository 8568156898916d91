//! The commands of a machine about its attempts, from the acceptance of a job to the report of its end, and their
//! answers.

use serde::{Deserialize, Serialize};

use crate::{
    event::{DeclineReason, Reason},
    ids::{JobId, Lease},
    signed_log::SignedLog,
    spec::{Artifact, JobSpec, LeftOut, MachineSettings, Traffic, Usage},
    time::{Millis, Timestamp},
};

/// `cmd.machine.<id>.accept`: a machine takes the job that was assigned to it. Answer: [`Grant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
}

/// Everything that a worker needs for one attempt. A second `accept` with the same lease returns the same specification
/// and limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The image, the arguments and the resources of the job.
    pub spec: JobSpec,
    /// The job's time limit.
    pub time: Millis,
    /// The time for which the job's budget pays the machine; `None` if the machine costs nothing.
    pub budget: Option<Millis>,
    /// True if the attempt's `Started` is already in the log.
    pub started: bool,
    /// Permission to upload the files in `/output`; `None` where the market keeps no files.
    pub upload: Option<UploadGrant>,
    /// The addresses from which to download the job's input files, in the order of the specification.
    #[serde(default)]
    pub inputs: Vec<String>,
    /// The permissions to download the job's datasets, in the order of the specification.
    #[serde(default)]
    pub datasets: Vec<DatasetGrant>,
    /// The values of the job's environment, sealed for this machine; `None` where the job has none.
    #[serde(default)]
    pub env: Option<SealedEnv>,
}

/// Permission to download one dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetGrant {
    /// The address of the manifest. The address of the bytes of some files is the same with `?first=…&count=…`: the
    /// index of the first of the manifest's different contents, and their number.
    pub url: String,
    /// The part of the machine's cache that this dataset may share with others, 64 hexadecimal digits: it is the same
    /// for all jobs of one account, and for no others.
    pub cache: String,
}

/// The values of a job's environment, encrypted for one machine. The plain text is a JSON object of names and values.
/// The encryption is `crypto_box` of `NaCl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedEnv {
    /// The market's x25519 public key, which the machine needs for decryption.
    pub from: String,
    /// The encrypted text, hexadecimal.
    pub sealed: String,
}

/// Permission to upload the files of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadGrant {
    /// The address to which the files are sent: `PUT <url>/<path>` for each file.
    pub url: String,
    /// Bearer token, which is valid only for this attempt.
    pub token: String,
    /// When the token expires.
    pub expires: Timestamp,
}

/// `cmd.machine.<id>.decline`: a machine does not take the job that was assigned to it. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decline {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
    /// The reason why the machine does not take the job.
    pub reason: DeclineReason,
}

/// `cmd.machine.<id>.start`: a machine says that it is about to start the container. Answer: [`Done`]. If the answer is
/// a refusal, the machine removes the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
    /// Digest of the image.
    pub image_digest: String,
}

/// `cmd.machine.<id>.exit`: the job's program has ended, and the machine begins to upload the files. Answer: [`Done`].
/// A machine that has nothing to upload reports at once instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
    /// The resources that the attempt used.
    pub usage: Usage,
}

/// `cmd.machine.<id>.report`: a machine reports the end of an attempt. Answer: [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
    /// The end of the attempt.
    pub outcome: Outcome,
    /// The files that the attempt left in `/output`.
    #[serde(default)]
    pub outputs: Vec<Artifact>,
    /// The entries of `/output` that are no artifacts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// The resources that the attempt used; `None` if the job's code never ran.
    pub usage: Option<Usage>,
    /// The traffic with the internet; `None` if the job asked for no host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// The time of the end, by the worker's clock.
    pub occurred_at: Timestamp,
    /// The machine's signature over the list of files ([`crate::manifest::signed_text`]), base64url.
    #[serde(default)]
    pub signature: Option<String>,
    /// The log of the attempt, signed; `None` if the job's code never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<SignedLog>,
}

/// The end of an attempt, as the worker saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The job ended with exit code 0.
    Completed,
    /// The attempt failed.
    Failed {
        /// The reason.
        reason: Reason,
        /// Details of the reason, for people to read.
        #[serde(default)]
        detail: String,
    },
    /// The worker stopped the attempt because the consumer cancelled the job.
    Cancelled,
}

/// `cmd.machine.<id>.sync`: the attempts that a worker still works on. Answer: [`DesiredMachineState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The job and the lease of each attempt.
    pub leases: Vec<Accept>,
}

/// Answer of `cmd.machine.<id>.sync`: the state in which the platform wants each attempt to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredMachineState {
    /// One desired state per attempt, in the order of the inventory.
    pub leases: Vec<(Lease, DesiredLeaseState)>,
    /// True if the machine takes new jobs; false, for example, while it is paused or drains.
    pub takes_jobs: bool,
    /// The settings that the owner wants the machine to have; `None` if the machine is not listed. An old market says
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<MachineSettings>,
}

/// The state in which the platform wants an attempt to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesiredLeaseState {
    /// The attempt goes on.
    Keep,
    /// The consumer cancelled the job: stop the attempt, and report its end.
    Cancel,
    /// The platform has already ended the attempt: stop the attempt, and report nothing.
    Abandon,
}
