//! The services and the state that handlers share.

use std::sync::Arc;

use async_nats::jetstream::Context;
use gpubnb_events::{
    Actor, Chain, Clock, JobId, Timestamp,
    job_request::JobRequest,
    spec::{JobSpec, Limits, Placement},
    subject,
    template::Template,
};
use gpubnb_files::Files;
use gpubnb_query::{QueryClient, view::TypicalRun};
use gpubnb_runtime::{
    permit::PermitKey,
    rpc::{Caller, RpcError},
    trace::{self, SpanFields},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::{
    access::{MailedLinks, OpenStreams, Passkeys, RateLimits, Sessions, SignIns, Users},
    image_names::ImageNames,
    request_span,
    state::{Changes, Datasets, MachineCache, Notifications, RecentSums, Uploads, WorkerProgram},
    templates::Templates,
};

/// The broker's address and certificate for machines.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    /// The address at which machines reach the broker.
    pub(crate) url: String,
    /// The certificate (PEM) of the authority that signed the broker's certificate. `None` for a public authority.
    pub(crate) authority: Option<String>,
}

/// The services and the state that handlers share. Clones share everything.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) users: Users,
    pub(crate) sessions: Sessions,
    pub(crate) sign_ins: SignIns,
    pub(crate) passkeys: Passkeys,
    /// The address at which people open the pages, if the operator says it.
    pub(crate) url: Option<Arc<str>>,
    pub(crate) links: MailedLinks,
    pub(crate) notifications: Notifications,
    pub(crate) rate_limits: RateLimits,
    pub(crate) streams: OpenStreams,
    /// True if this server runs behind a proxy. Then the client's address is taken from `X-Forwarded-For`.
    pub(crate) behind_proxy: bool,
    pub(crate) broker: Broker,
    pub(crate) caller: Caller,
    pub(crate) queries: QueryClient,
    pub(crate) js: Context,
    pub(crate) artifacts: Files,
    pub(crate) inputs: Files,
    pub(crate) uploads: Uploads,
    pub(crate) datasets: Datasets,
    /// The digests of images that people name by a tag.
    pub(crate) image_names: Arc<ImageNames>,
    pub(crate) templates: Arc<Templates>,
    /// The host and port that webhooks may reach without TLS.
    pub(crate) webhook_host: Option<Arc<str>>,
    /// The terms of use; empty if the operator wrote none.
    pub(crate) terms: Arc<str>,
    /// The worker's program for owners of machines.
    pub(crate) worker: WorkerProgram,
    pub(crate) changes: Changes,
    pub(crate) ledger_sums: RecentSums,
    pub(crate) machines: MachineCache,
    /// Limits the number of concurrent searches through logs.
    pub(crate) searches: Arc<Semaphore>,
    /// The key that signs and verifies permits, most of them for the transfer of files.
    pub(crate) permit_key: PermitKey,
    pub(crate) clock: Arc<dyn Clock>,
}

impl App {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// All templates, each with the usual time and cost of its jobs: `None` before the first completed run, and while
    /// nobody can say.
    pub(crate) async fn listed_templates(&self, actor: Actor) -> Vec<(Arc<Template>, Option<TypicalRun>)> {
        let missing = |e: &RpcError| warn!(error = %Chain(e), "the templates are listed without their usual times");
        let typical = self.queries.typical_runs(actor).await.inspect_err(missing).unwrap_or_default();
        let of = |template: &Template| typical.iter().find(|run| run.template == template.id).cloned();
        self.templates.all().iter().map(|template| (Arc::clone(template), of(template))).collect()
    }

    /// The request that submits a job with this specification again.
    pub(crate) fn request_again(&self, spec: &JobSpec, placement: &Placement, limits: &Limits) -> JobRequest {
        let template = spec.template.as_deref().and_then(|id| self.templates.find(id));
        JobRequest::from_job(spec, placement, limits, template.as_deref())
    }

    /// Sends a command in the name of an actor. `area` and `verb` form the command's subject, for example `account` and
    /// `deposit`.
    pub(crate) async fn command<T: DeserializeOwned>(
        &self,
        area: &str,
        verb: &str,
        actor: Actor,
        body: &(impl Serialize + Sync),
    ) -> Result<T, RpcError> {
        let call = self.caller.call(subject::command(area, verb), actor, body);
        trace::in_span(&trace::new_trace(), request_span::current(), SpanFields::default(), call).await
    }

    /// Sends a command about a job. The command's span becomes part of the job's trace.
    pub(crate) async fn job_command<T: DeserializeOwned>(
        &self,
        verb: &str,
        actor: Actor,
        job: JobId,
        body: &(impl Serialize + Sync),
    ) -> Result<T, RpcError> {
        let call = self.caller.call(subject::command("job", verb), actor, body);
        trace::in_span(&trace::job_context(job), request_span::current(), SpanFields::job(job), call).await
    }
}
